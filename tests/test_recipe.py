import pytest
import yaml

from tamis import recipe as recipes
from tamis.errors import ConfigError


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
