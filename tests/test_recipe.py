import pytest
import yaml

from strategies import BOMB, MERGE_BOMB
from tamis import recipe as recipes
from tamis.errors import ConfigError
from tamis.plain import parse


@pytest.fixture
def plain():
    return {
        "name": "mine",
        "task": {"modular_sums": {"size": 8, "heldout": 4}},
        "stages": [
            {"sample": {"temperature": {"n": 2}}},
            {"judge": "answer"},
            {"compose": {"accepted_sft": {}}},
            {"tune": {"objective": "sft", "adapter": "lora", "lr": 0.001}},
            {"evaluate": {"accuracy": {}}},
        ],
    }


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("lab", [False, True])
def test_every_packaged_recipe_is_valid_and_documented(name, lab):
    made = recipes.load(name, lab=lab)
    assert made.about.endswith(".")
    assert made.name == name + ("-lab" if lab else "")
    again = recipes.load(yaml.safe_load(made.to_yaml()))
    assert again.hash == made.hash


def test_overrides_reach_stages_by_kind_and_number(plain):
    plain["stages"].insert(1, {"sample": {"temperature": {"n": 4}}})
    made = recipes.load(plain, overrides=["stages.sample[1].temperature.n=16", "seed=3", "stages.tune.epochs=1"])
    assert made.stages[0]["sample"]["temperature"]["n"] == 2
    assert made.stages[1]["sample"]["temperature"]["n"] == 16
    assert made.seed == 3
    assert made.stages[-2]["tune"]["epochs"] == 1


def test_an_override_changes_the_hash_and_a_description_does_not(plain):
    base = recipes.load(plain)
    assert recipes.load(plain, overrides=["seed=1"]).hash != base.hash
    assert recipes.load({**plain, "about": "words"}).hash == base.hash


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.sample.temperature.nn=3", "Did you mean 'n'"),
        ("stages.sampel.temperature.n=3", "Did you mean 'sample'"),
        ("sede=3", "Did you mean 'seed'"),
        ("stages.sample.temprature.n=3", "takes one component"),
        ("stages.sample[4].temperature.n=3", "is not there"),
        ("stages.tune.lrr=1", "Did you mean 'lr'"),
        ("nothing", "path=value"),
        ("seed={", "not valid YAML"),
        ("seed=abc", "seed"),
        ("loop=0", "loop"),
        ("stages.sample.temperature.n=-1", "n:"),
        ("task.modular_sums.sise=3", "Did you mean 'size'"),
        ("seed=yes", "true is not a value for it"),
        ("stages.tune.epochs=.inf", "not a number that can be used"),
        ("seed=" + "9" * 400, "not a number that can be used"),
        ("stages.sample.temperature.temperature='inf'", "finite"),
        ("stages.sample.temperature.n=2012-01-01", "type date"),
        ("stages.sample.temperature=''", "must be a mapping"),
        ("stages.sample=null", "needs a component"),
        ("stages.sample={1: 2}", "the key 1 is not text"),
        ("stages=&a [*a]", "nested too deeply"),
        ("stages.sample.model=3", "model is the name of a model"),
        ("engine.batch_rows=0", "batch_rows"),
        ("endpoint.concurrency=0", "concurrency"),
        ("endpoint.concurency=8", "Did you mean 'concurrency'"),
        ("endpoint.retries=true", "true is not a value for it"),
        ("endpoint.timeout=long", "timeout"),
        ("endpoint=64", "must be a mapping"),
        ("model=", "model"),
        ("lab.set.seed=3", "without 'lab.'"),
        ("name=../../x", "names the run folder"),
        ("name=a/b", "names the run folder"),
        ("name=", "name"),
    ],
)
def test_a_wrong_override_names_the_field_and_the_nearest_valid_one(plain, override, says):
    with pytest.raises(ConfigError) as caught:
        recipes.load(plain, overrides=[override])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [{"smple": {"temperature": {}}}]}, "Did you mean 'sample'"),
        ({"stages": [{"sample": {"temperatur": {}}}]}, "Did you mean 'temperature'"),
        ({"stages": [{"compose": {"accepted_sft": {}}}]}, "before any 'sample'"),
        ({"stages": [{"sample": {}}]}, "needs a component"),
        ({"task": {"modular_sum": {}}}, "Did you mean 'modular_sums'"),
        ({"tasks": {}}, "Did you mean 'task'"),
        ({"engine": {"rows": 3}}, "rows"),
        ({"stages": [None]}, "stages"),
        ({"stages": [{"judge": {3: {}}}]}, "the key 3 is not text"),
        ({"stages": [{"sample": {"temperature": {"n": 10**30}}}]}, "not a number that can be used"),
        ({"seed": 10**5000}, "not a number that can be used"),
        ({"stages": [{"evaluate": {"judge": {"answer": {}}}}]}, "needs a component"),
        ({"task": {"modular_sums": ""}}, "must be a mapping"),
        ({"about": "\ud800"}, "no text file can hold"),
        ({"model": b"x"}, "type bytes"),
        ({"set": {"seed": 3}}, "extends none"),
        ({"extends": ["rft"]}, "one name or file"),
        ({"extends": "rft", "set": ["seed"]}, "must map paths"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_to_do(plain, change, says):
    with pytest.raises(ConfigError) as caught:
        recipes.load({**plain, **change})
    assert says in str(caught.value)


def test_unknown_recipes_missing_files_and_broken_yaml(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'rft'"):
        recipes.load("rfft")
    with pytest.raises(ConfigError, match="no such recipe file"):
        recipes.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        recipes.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        recipes.load(tmp_path / "list.yaml")


def test_extends_overrides_fields_of_its_parent(tmp_path):
    (tmp_path / "child.yaml").write_text("extends: rft\nname: child\nset: {stages.sample.temperature.n: 3}\n")
    made = recipes.load(tmp_path / "child.yaml")
    assert (made.name, made.stages[0]["sample"]["temperature"]["n"]) == ("child", 3)


def test_data_replaces_the_task_and_map_is_kept():
    made = recipes.load("rft", data="train.jsonl", mapping={"prompt": "q"})
    assert made.task == {"data": {"path": "train.jsonl", "map": {"prompt": "q"}}}


def test_a_selection_cannot_be_lost_by_a_sample_stage_after_it(plain):
    select, sample, compose = {"select": {"random": {"k": 2}}}, {"sample": "gold"}, {"compose": "accepted_sft"}
    with pytest.raises(ConfigError, match=r"stages\[3\].*selection would be lost"):
        recipes.load({**plain, "stages": [*plain["stages"][:2], select, sample, compose]})
    recipes.load({**plain, "stages": [*plain["stages"][:2], select, compose, sample, compose]})


def test_samples_that_nothing_is_made_of_cannot_be_followed_by_tuning(plain):
    sample, compose, tune = {"sample": "gold"}, {"compose": "accepted_sft"}, {"tune": {"max_steps": 1}}
    with pytest.raises(ConfigError, match=r"stages\[3\].*sampled last"):
        recipes.load({**plain, "stages": [sample, compose, sample, tune]})
    recipes.load({**plain, "stages": [sample, compose, tune, tune, sample]})


def test_a_component_is_replaced_as_a_whole_and_overrides_may_be_a_mapping(plain):
    made = recipes.load(plain, overrides=["stages.judge={answer: {kind: numeric}}", "stages.compose=prefix"])
    assert made.stages[1] == {"judge": {"answer": {"kind": "numeric"}}}
    assert made.stages[2] == {"compose": "prefix"}
    made = recipes.load(plain, overrides={"stages.sample.temperature.n": 3, "task": "modular_sums"})
    assert (made.stages[0]["sample"]["temperature"]["n"], made.task) == (3, {"modular_sums": {}})


@pytest.mark.parametrize("lab", [3, [1], {"set": 3}, {"set": {"stages.x.y": 1}}])
def test_a_broken_lab_twin_is_refused(plain, lab):
    with pytest.raises(ConfigError, match="lab"):
        recipes.load({**plain, "lab": lab}, lab=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name: a\nname: b\n", "the key 'name' stands twice"),
        (b"task: {data: {path: x, path: y}}\n", "the key 'path' stands twice"),
        (b"name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"task: &t {data: *t}\n", "nested too deeply"),
        (b"seed: 2020-13-45\n", "cannot be read"),
    ],
)
def test_yaml_that_could_be_read_two_ways_or_not_at_all_is_refused(tmp_path, text, says):
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        recipes.load(tmp_path / "r.yaml")
    assert says in str(caught.value)
    assert "r.yaml" in str(caught.value)


def test_extends_goes_from_the_file_that_says_it_and_never_round(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/parent.yaml").write_text("extends: rft\nname: parent\nset: {seed: 5}\n")
    (tmp_path / "in/my child (2).yaml").write_text("extends: parent.yaml\nset: {loop: 2}\n")
    monkeypatch.chdir(tmp_path)
    made = recipes.load("in/my child (2).yaml")
    assert (made.name, made.seed, made.loop) == ("my-child-2", 5, 2)
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"extends itself: a.yaml -> b.yaml -> a.yaml"):
        recipes.load("a.yaml")


def test_a_map_without_data_is_refused():
    with pytest.raises(ConfigError, match="reads no data file"):
        recipes.load("rft", mapping={"prompt": "q"})


@pytest.mark.parametrize("source", [None, 3, ["rft"], b"rft", {}, "x" * 5000, "\0"])
def test_what_is_no_recipe_is_refused(source):
    with pytest.raises(ConfigError):
        recipes.load(source)


@pytest.mark.parametrize("text", [BOMB, MERGE_BOMB])
def test_a_text_that_multiplies_itself_is_refused_before_it_is_built(text):
    with pytest.raises(ConfigError, match="more than 100000 values"):
        parse(text, "here")


@pytest.mark.parametrize("text", ["!!int ''", "!!bool maybe", "!!timestamp x", "2012-13-45", "9" * 5000])
def test_a_value_that_cannot_be_read_is_told_with_its_place(text):
    with pytest.raises(ConfigError, match=r"put text in quotes[\s\S]*line 2"):
        parse(f"a: 1\nb: {text}", "here")
