"""What every registered judge keeps, those of third-party packages included.

A judge whose options have no defaults names some in a class attribute `contract = {"option": value}`. Judges that ask a
model have their own tests.
"""

import inspect

import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.records import Completion, Message, Prompt, Turn, Verdict, from_table, to_table

JUDGES = registry.components("judge")
every = pytest.mark.parametrize("component", JUDGES, ids=lambda c: c.name)
alone = pytest.mark.parametrize("component", [c for c in JUDGES if not c.needs], ids=lambda c: c.name)

PROMPTS = {p.id: p for p in (Prompt((Message("user", f"{i}+{i}="),), (str(2 * i),)) for i in range(4))}
TEXTS = ("{}", "The answer is {}.", "99", "I cannot say", "", "Rating: high", "\x00 ½ 🙂 \\boxed{{")
COMPLETIONS = [
    Completion(p.id, (Turn("assistant", text.format(p.references[0])),), index=i)
    for p in PROMPTS.values()
    for i, text in enumerate(TEXTS)
]


def build(component):
    return component.build(getattr(component.cls, "contract", {}))


def verdicts_of(component, prompts=PROMPTS, completions=COMPLETIONS, seed=0):
    return list(build(component).judge(prompts, completions, Context(seed=seed)))


def test_there_are_some():
    assert "answer" in {c.name for c in JUDGES}


@every
def test_documented(component):
    assert component.about.endswith((".", ":"))
    assert len(component.page) > len(component.about)
    assert all(option["about"] for option in component.options())
    assert inspect.getdoc(component.cls.judge)


@every
def test_unknown_options_are_refused(component):
    with pytest.raises(ConfigError, match="unknown option"):
        component.build({"no_such_option": 1})


@every
def test_nothing_to_judge_gives_no_verdict(component):
    assert verdicts_of(component, {}, []) == []


@alone
def test_one_verdict_per_completion_in_order(component):
    verdicts = verdicts_of(component)
    assert [v.completion_ids for v in verdicts] == [(c.id,) for c in COMPLETIONS]
    assert [v.prompt_id for v in verdicts] == [c.prompt_id for c in COMPLETIONS]
    assert all(isinstance(v, Verdict) and v.judge == component.name and v.label for v in verdicts)


@alone
def test_what_cannot_be_read_is_never_scored(component):
    for verdict in verdicts_of(component):
        assert verdict.score is None or not verdict.label.startswith(("unparseable", "no_", "judge_error"))
        assert verdict.score is not None or verdict.label


@alone
def test_recorded_failures_are_never_scored(component):
    failed = [Completion(p, (Turn("assistant", ""),), finish_reason="error") for p in PROMPTS]
    assert all(v.score is None for v in verdicts_of(component, completions=failed))


@alone
def test_deterministic_and_independent_of_order_and_shards(component):
    first = verdicts_of(component)
    assert verdicts_of(component) == first
    if not getattr(component.cls, "ordered", False):
        assert verdicts_of(component, completions=COMPLETIONS[::-1]) == first[::-1]
        assert (
            verdicts_of(component, completions=COMPLETIONS[:9]) + verdicts_of(component, completions=COMPLETIONS[9:])
            == first
        )


@alone
def test_arrow_round_trip(component):
    verdicts = verdicts_of(component)
    assert from_table(to_table(verdicts, Verdict), Verdict) == verdicts
