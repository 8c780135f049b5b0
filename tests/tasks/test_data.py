"""The task "data": from files to prompts."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.registry import build
from tamis.tasks import splits
from tamis.tasks.data import inspect


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def questions(n, start=0):
    return [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(start, start + n)]


def load(path, ctx=None, **options):
    return list(build("task", {"data": {"path": str(path), **options}}).prompts(ctx or Context()))


def sides(prompts):
    return Counter(p.split for p in prompts)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "mine.jsonl", questions(50))


def test_prompts_keep_order_source_references_and_the_chosen_fields(tmp_path):
    rows = [{**q, "id": i, "level": i % 3, "junk": 1} for i, q in enumerate(questions(5))]
    prompts = load(write(tmp_path / "a.jsonl", rows), keep=["level"])
    assert [p.source for p in prompts] == [f"a.jsonl:{i}" for i in range(1, 6)]
    assert [p.references for p in prompts] == [(r["answer"],) for r in rows]
    assert [p.metadata for p in prompts] == [{"id": i, "level": i % 3} for i in range(5)]
    assert len({p.id for p in prompts}) == 5


@given(n=st.integers(2, 40), heldout=st.one_of(st.floats(0, 0.9), st.integers(0, 10)))
def test_held_out_is_exact_and_by_content(tmp_path_factory, n, heldout):
    path = write(tmp_path_factory.mktemp("d") / "a.jsonl", questions(n))
    count = splits.heldout_count(n, heldout)
    if count == n:
        with pytest.raises(DataError, match="held out"):
            load(path, heldout=heldout)
        return
    prompts = load(path, heldout=heldout)
    assert sides(prompts) == Counter({"train": n - count, "heldout": count}) - Counter()
    held = {splits.key(p.text) for p in prompts if p.split == "heldout"}
    assert held == set(sorted(splits.key(p.text) for p in prompts)[:count])


def test_the_split_is_independent_of_order_and_seed(tmp_path):
    rows = questions(30)
    one, two = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[::-1])
    held = [
        {p.text for p in load(path, Context(seed=s)) if p.split == "heldout"} for path in (one, two) for s in (0, 1)
    ]
    assert all(h == held[0] for h in held)


def test_size_caps_training_prompts_by_seed_and_content(file):
    a, again, b = (load(file, Context(seed=s), size=20) for s in (0, 0, 1))
    assert sides(a) == {"train": 20, "heldout": 5}
    assert a == again
    assert {p.text for p in a} != {p.text for p in b}
    assert sides(load(file, size=20, heldout=7)) == {"train": 20, "heldout": 7}
    assert sides(load(file, size=1000)) == {"train": 40, "heldout": 10}


def test_duplicates_are_removed_and_counted(tmp_path):
    rows = [{"prompt": t} for t in ("Hello there.", "hello  there", "Hello there.", "other")]
    path = write(tmp_path / "a.jsonl", rows)
    ctx = Context()
    assert len(load(path, ctx, heldout=0)) == 2
    assert [(d["record"], d["reason"]) for d in ctx.dropped] == [(f"a.jsonl:{i}", "duplicate prompt") for i in (2, 3)]
    assert len(load(path, heldout=0, dedupe="exact")) == 3
    kept = load(path, heldout=0, dedupe="none")
    assert len(kept) == len({p.id for p in kept}) == 4
    assert [p.metadata.get("copy") for p in kept] == [None, None, 1, None]


def test_equal_prompts_never_land_on_both_sides_even_if_kept(tmp_path):
    rows = [{"prompt": f"{'Say' if i % 2 else 'say'} {i % 7}"} for i in range(70)]
    for dedupe in ("exact", "none"):
        prompts = load(write(tmp_path / "a.jsonl", rows), dedupe=dedupe, heldout=0.3)
        held, train = ({splits.key(p.text) for p in prompts if p.split == s} for s in ("heldout", "train"))
        assert held
        assert not held & train


def test_bad_rows_are_dropped_with_their_reason_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"prompt": "fine", "id": 1})
    bad = ['{"prompt": ', '{"prompt": "  "}', '{"foo": 1}', '{"prompt": "again", "id": 1}', '{"prompt": "xxxxxxxxxxx"}']
    path.write_text("\n".join([good, *bad]))
    ctx = Context()
    assert [p.text for p in load(path, ctx, heldout=0, max_prompt_chars=10)] == ["fine"]
    assert [(d["record"], d["reason"]) for d in ctx.dropped] == [
        ("a.jsonl:2", "broken JSON"),
        ("a.jsonl:3", "empty prompt"),
        ("a.jsonl:4", "fields not understood"),
        ("a.jsonl:5", "duplicate id"),
        ("a.jsonl:6", "prompt too long"),
    ]
    assert ctx.counts["dropped: empty prompt"] == 1


def test_nothing_left_shows_a_row_the_shapes_and_a_map_that_fits(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"qestion": "What?", "anwser": "that"}] * 3)
    with pytest.raises(DataError) as caught:
        load(path)
    told = str(caught.value)
    for piece in ("a.jsonl:1", "qestion: 'What?'", "instruction", "--map prompt=qestion --map answer=anwser"):
        assert piece in told
    assert load(path, map={"prompt": "qestion", "answer": "anwser"}, heldout=0)[0].references == ("that",)
    with pytest.raises(DataError, match="Did you mean 'qestion'"):
        load(path, map={"prompt": "question"})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no row"):
        load(tmp_path / "empty.jsonl")


def test_held_out_file_and_leakage(tmp_path):
    train, test = write(tmp_path / "a.jsonl", questions(20)), write(tmp_path / "b.jsonl", questions(10, start=15))
    with pytest.raises(DataError, match="5 of 10 held-out prompts are also training prompts"):
        load(train, heldout_path=test)
    ctx = Context()
    dropped = load(train, ctx, heldout_path=test, leakage="drop")
    assert sides(dropped) == {"train": 15, "heldout": 10}
    assert ctx.counts["dropped: also held out"] == 5
    allowed = load(train, heldout_path=test, leakage="allow")
    assert sides(allowed) == {"train": 20, "heldout": 10}
    assert len({p.id for p in allowed}) == 30
    assert sides(load(train, heldout_path=test, leakage="drop", heldout=4, size=3)) == {"train": 3, "heldout": 4}
    with pytest.raises(ConfigError, match="does nothing"):
        load(train, heldout_path=test, leakage="drop", heldout=0.5)


def test_split_column(tmp_path):
    rows = [{**q, "part": "train" if i % 4 else "validation"} for i, q in enumerate(questions(12))]
    path = write(tmp_path / "a.jsonl", [*rows, {**questions(1, 99)[0], "part": "odd"}])
    ctx = Context()
    assert sides(load(path, ctx, split_column="part")) == {"train": 9, "heldout": 3}
    assert ctx.counts["dropped: split not understood"] == 1
    with pytest.raises(ConfigError, match="exclude each other"):
        load(path, split_column="part", heldout_path=path)


def test_system_and_template(file):
    prompt = load(file, system="Be brief.", template="{question} \\boxed{}\nAnswer:")[0]
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.text == "What is 0 plus 0? \\boxed{}\nAnswer:"
    with pytest.raises(DataError, match="no field 'questoin' for the template"):
        load(file, template="{questoin}")


@pytest.mark.parametrize(
    "options", [{"heldout": 1.5}, {"size": 0}, {"map": {"answer": "a"}}, {"dedupe": "fuzzy"}, {"formt": "csv"}]
)
def test_wrong_options(file, options):
    with pytest.raises(ConfigError):
        load(file, **options)


def test_fingerprint_follows_content_not_place(tmp_path):
    (tmp_path / "x").mkdir()
    one, two = write(tmp_path / "a.jsonl", questions(3)), write(tmp_path / "x" / "a.jsonl", questions(3))
    prints = [build("task", {"data": {"path": p}}).fingerprint() for p in (one, two)]
    assert prints[0] == prints[1]
    write(tmp_path / "a.jsonl", questions(4))
    assert build("task", {"data": {"path": one}}).fingerprint() != prints[0]


def test_inspect_tells_what_is_in_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [*questions(5), questions(1)[0], {"question": "only"}])) + "\nbroken\n")
    found = inspect(str(path))
    assert (found.shape, found.rows, found.accepted, found.with_reference) == ("question/answer", 8, 7, 6)
    assert found.duplicates == 1
    assert found.rejected == {"broken JSON": 1}
    assert found.examples[0][:2] == ("a.jsonl:8", "broken JSON")
    assert found.fields["question"] == 7
    assert found.example.text == "What is 0 plus 0?"
    assert "question/answer" in str(found)
    with pytest.raises(DataError, match="--map"):
        inspect(write(tmp_path / "b.jsonl", [{"a": "x"}]))
