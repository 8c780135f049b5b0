"""What holds for every registered sampler, third-party ones included.

A sampler with required options names example values in the class attribute `contract` (a mapping of options). One that needs
next-token logits and no text asks a small real model, untrained; all others a scripted one. One whose seed plays no part
says so by the class attribute `deterministic`.
"""

from functools import cache

import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError, TamisError
from tamis.lab import nano
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, right_answer
from tamis.models.hf import LocalModel
from tamis.records import Completion, Message, Prompt, from_table, to_table

OFFERED = {"text", "tokens"}
SAMPLERS = {c.name: c for c in registry.components("sampler") if set(c.needs) <= OFFERED}
every_sampler = pytest.mark.parametrize("component", SAMPLERS.values(), ids=SAMPLERS)


def example(component):
    return component.build(getattr(component.cls, "contract", {}))


def prompts_of(n):
    return [
        Prompt((Message("user", f"What is {i} + 3?"),), (str(i + 3),), metadata={"answer": i + 3}, source=f"d:{i}")
        for i in range(n)
    ]


@cache
def small_model():
    return LocalModel.from_module(*nano.nano_module(nano.PRINTABLE, 1, 16), "nano", "nano")


def context(component, seed=0):
    """A model that is right half of the time, with texts that differ from try to try, and a judge that knows."""
    model = ScriptedModel(
        0.5, right=lambda p, draw: f"{draw} {right_answer(p, draw)}", wrong=lambda p, draw: f"{draw}?"
    )
    if "tokens" in component.needs and "text" not in component.needs:
        model = small_model()
    judge = ScriptedJudge(truth=lambda p, c: c.text.endswith(right_answer(p, 0)))
    ctx = Context(seed=seed, model=model)
    ctx.judge = lambda by_id, completions: list(judge.judge(by_id, completions, Context(seed=seed)))
    return ctx


def run(sampler, prompts, ctx, unit):
    """Return all completions as the pipeline draws them: probe, gather, then units of `unit` prompts."""
    units = [prompts[i : i + unit] for i in range(0, len(prompts), unit)]
    probes = [c for part in units for c in sampler.probe(part, ctx)] if hasattr(sampler, "probe") else []
    if hasattr(sampler, "gather"):
        verdicts = ctx.judge({p.id: p for p in prompts}, probes) if probes else []
        ctx.shared = {**sampler.gather(prompts, probes, verdicts), "probes": probes}
    return probes + [c for part in units for c in sampler.sample(part, ctx)]


@every_sampler
def test_is_documented(component):
    assert component.about.endswith(".")
    assert len(component.page) > len(component.about), "say more than one line"
    assert all(o["about"] for o in component.options()), "every option needs its meaning"


@every_sampler
def test_unknown_options_are_refused(component):
    with pytest.raises(ConfigError, match="unknown option 'no_such_option'"):
        component.build({"no_such_option": 1})


@every_sampler
def test_yields_unique_completions_of_the_given_prompts_in_order(component):
    prompts = prompts_of(6)
    ctx = context(component)
    found = run(example(component), prompts, ctx, unit=6)
    assert found
    assert all(isinstance(c, Completion) for c in found)
    assert len({c.id for c in found}) == len(found)
    assert len({(c.prompt_id, c.index) for c in found}) == len(found)
    assert {c.prompt_id for c in found} <= {p.id for p in prompts}
    rank = {p.id: i for i, p in enumerate(prompts)}
    sampled = found[len(ctx.shared.get("probes", ())) :]
    assert [rank[c.prompt_id] for c in sampled] == sorted(rank[c.prompt_id] for c in sampled)
    assert all(c.model and c.sampler and c.finish_reason in ("stop", "length", "error") for c in found)


@every_sampler
def test_spends_what_it_says(component):
    found = run(example(component), prompts_of(4), context(component), unit=4)
    for completion in found:
        assert completion.cost.sampled_tokens > 0 or not component.needs
        assert completion.cost.seconds == 0, "seconds live in the ledger, not in records"


@every_sampler
def test_is_seeded(component):
    prompts = prompts_of(6)
    one, again, other = (run(example(component), prompts, context(component, seed), unit=6) for seed in (1, 1, 2))
    assert one == again
    if component.needs and not getattr(component.cls, "deterministic", False):
        assert {c.text for c in one} != {c.text for c in other}


@every_sampler
def test_does_not_depend_on_order_or_units(component):
    if getattr(component.cls, "ordered", False):
        pytest.skip("says that it depends on stream order")
    prompts = prompts_of(7)
    whole = run(example(component), prompts, context(component), unit=7)
    parts = run(example(component), prompts[::-1], context(component), unit=2)
    assert {c.id for c in whole} == {c.id for c in parts}
    for prompt in prompts:
        assert [c for c in whole if c.prompt_id == prompt.id] == [c for c in parts if c.prompt_id == prompt.id]


@every_sampler
def test_survives_the_arrow_round_trip(component):
    found = run(example(component), prompts_of(3), context(component), unit=3)
    assert from_table(to_table(found, Completion), Completion) == found


def attempt(call):
    """Return (result, None), or (None, error) for an error that is meant for the user."""
    try:
        return call(), None
    except (TamisError, ValueError) as error:
        return None, error


@every_sampler
def test_no_prompts_give_no_completions_or_a_clear_error(component):
    found, error = attempt(lambda: run(example(component), [], context(component), unit=1))
    assert str(error) if error else found == []


@every_sampler
def test_a_prompt_without_reference_is_used_named_or_listed(component):
    bare = Prompt((Message("user", "hello"),), metadata={"answer": 1}, source="d:9")
    ctx = context(component)
    found, error = attempt(lambda: run(example(component), [bare], ctx, unit=1))
    if error:
        assert "d:9" in str(error) or bare.id in str(error)
    else:
        assert found or ctx.dropped[0]["record"] == bare.id
