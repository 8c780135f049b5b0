"""The judge "answer"."""

import sys
import types

import pytest

from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.records import Completion, Message, Prompt, Turn
from tamis.registry import build


def prompt_of(*references, text="q", **metadata):
    return Prompt((Message("user", text),), references, metadata=metadata)


def judge(prompt, *texts, finish="stop", **options):
    completions = [
        Completion(prompt.id, (Turn("assistant", t),), index=i, finish_reason=finish) for i, t in enumerate(texts)
    ]
    verdicts = list(build("judge", {"answer": options}).judge({prompt.id: prompt}, completions, Context()))
    assert [v.completion_ids for v in verdicts] == [(c.id,) for c in completions]
    assert all((v.score is None) == (v.label not in ("correct", "wrong")) for v in verdicts)
    return verdicts


def labels(*args, **options):
    return [v.label for v in judge(*args, **options)]


def test_gsm8k_row_by_row():
    gold = "He has 48/2 = <<48/2=24>>24.\n#### 72"
    found = judge(prompt_of(gold), "#### 72", "so $72.00", "71", "dunno")
    assert [(v.score, v.label) for v in found] == [
        (1.0, "correct"),
        (1.0, "correct"),
        (0.0, "wrong"),
        (None, "unparseable_answer"),
    ]
    assert found[2].rationale == "extracted '71', gold '72'"
    assert all(v.cost.judge_calls == 0 and v.judge == "answer" for v in found)


def test_states_that_are_not_wrong_answers():
    assert labels(prompt_of("5"), "5", finish="error") == ["no_answer"]
    assert labels(prompt_of("5"), "5", finish="length") == ["correct"]
    assert labels(prompt_of(), "5") == ["no_gold"]
    assert labels(prompt_of("five"), "5", kind="numeric") == ["unparseable_gold"]
    assert labels(prompt_of("4", "5"), "5") == ["correct"]


@pytest.mark.parametrize(
    "prompt",
    [
        prompt_of("B", options=["red", "blue"]),
        prompt_of("B", choices={"A": "red", "B": "blue"}),
        prompt_of("B", choices={"text": ["red", "blue"], "label": ["A", "B"]}),
        prompt_of("B", text="Which?\nA. red\nB. blue"),
    ],
)
def test_choices(prompt):
    assert labels(prompt, "(B)", "blue", "The answer is A.", "hm") == [
        "correct",
        "correct",
        "wrong",
        "unparseable_answer",
    ]


def test_regex_for_the_lab():
    found = labels(prompt_of("#2"), "1+2=3,3+5=2,#2", "#3", "1+2", kind="regex", pattern=r"#(\d+)")
    assert found == ["correct", "wrong", "unparseable_answer"]


def test_user_function(monkeypatch):
    module = types.ModuleType("mine")

    def score(text, prompt):
        return {"none": None, "nan": float("nan"), "half": 0.5, "text": "x"}.get(text, text == prompt.references[0])

    module.score, module.value = score, 3
    monkeypatch.setitem(sys.modules, "mine", module)
    found = judge(prompt_of("5"), "5", "6", "half", "none", "nan", "text", kind="python", callable="mine:score")
    assert [v.score for v in found] == [1.0, 0.0, 0.5, None, None, None]
    assert [v.label for v in found][3:] == ["unparseable_answer", "judge_error", "judge_error"]
    found = judge(prompt_of(), "5", kind="python", callable="mine:score")
    assert (found[0].label, found[0].score) == ("judge_error", None)
    assert "IndexError" in found[0].rationale
    for wrong in ("mine:nothing", "nowhere:f", "mine:value", "mine"):
        with pytest.raises(ConfigError, match="callable"):
            judge(prompt_of("5"), "5", kind="python", callable=wrong)


def test_a_user_function_that_cannot_be_imported_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cut_off.py").write_text("def score(:\n")
    (tmp_path / "raising.py").write_text("raise RuntimeError('no key')\n")
    for spec, says in (("cut_off:score", "SyntaxError"), ("raising:score", "no key")):
        with pytest.raises(ConfigError, match=says):
            build("judge", {"answer": {"kind": "python", "callable": spec}})


def test_functions_without_source_have_a_fingerprint_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "first_version.py").write_text("def score(text, prompt):\n    return True\n")
    specs = ("operator:eq", "operator:ne", "math:isclose", "first_version:score")
    prints = [build("judge", {"answer": {"kind": "python", "callable": spec}}).fingerprint() for spec in specs]
    assert len(set(prints)) == 4
    assert all(prints)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "regex"},
        {"kind": "python"},
        {"pattern": "x"},
        {"callable": "a:b"},
        {"kind": "regex", "pattern": "("},
        {"kind": "fuzzy"},
        {"tolerance": -1},
        {"tolerence": 1},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        build("judge", {"answer": options})


def test_unknown_prompts_are_an_error():
    with pytest.raises(DataError, match="is not there"):
        list(build("judge", "answer").judge({}, [Completion("x", (Turn("assistant", "5"),))], Context()))


def gym_prompts(name):
    task = build("task", {"reasoning_gym": {"name": name, "size": 3, "heldout": 0}})
    return list(task.prompts(Context()))


def test_own_scorers_of_reasoning_gym():
    for prompt in gym_prompts("mini_sudoku"):
        gold = prompt.references[0]
        other = gold.translate(str.maketrans("12", "21"))
        said = [gold, f"Let me see.\nAnswer:\n{gold}", other]
        assert labels(prompt, *said) == ["correct", "correct", "wrong"]
        assert labels(prompt, *said, kind="reasoning_gym") == ["correct", "correct", "wrong"]
    with pytest.raises(ConfigError, match="needs prompts of the task reasoning_gym"):
        judge(prompt_of("5"), "5", kind="reasoning_gym")


def test_numbers_of_reasoning_gym_are_compared_as_numbers():
    for prompt in gym_prompts("chain_sum"):
        gold = prompt.references[0]
        assert labels(prompt, gold, f"The sum is {gold}.00", "none") == ["correct", "correct", "unparseable_answer"]


def test_an_item_that_is_drawn_otherwise_is_unparseable_gold():
    prompt = gym_prompts("mini_sudoku")[0]
    changed = Prompt(prompt.messages, ("another",), metadata=prompt.metadata)
    assert labels(changed, "another") == ["unparseable_gold"]
