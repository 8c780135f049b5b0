from dataclasses import replace

import numpy as np
import pytest

from tamis import difficulty
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.hashing import rng
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, right_answer
from tamis.pool import Pool
from tamis.prefixes import DEFAULT_TASK_SENTENCE, structure_split
from tamis.records import Cost, Message, Prompt
from tamis.registry import build


def prompts_of(n, references=("7",)):
    return [Prompt((Message("user", f"question {i}"),), references, metadata={"answer": 7}) for i in range(n)]


def telling(prompt, draw):
    """A right answer whose text differs from try to try."""
    return f"{draw} {right_answer(prompt, draw)}"


class Recorder(ScriptedModel):
    """A scripted model that notes every call."""

    def generate(self, prompts, law, **options):
        self.calls.append((list(prompts), law, options))
        yield from super().generate(prompts, law, **options)


class Unreported(ScriptedModel):
    """A scripted model behind a server that reports no usage."""

    def generate(self, prompts, law, **options):
        assert len(self.calls) < 200, "this never ends"
        self.calls.append(law)
        yield from (replace(c, cost=Cost(), id="") for c in super().generate(prompts, law, **options))


def scripted(rates, kind=ScriptedModel):
    made = kind(rates, right=telling)
    object.__setattr__(made, "calls", [])
    return made


def context(model, seed=0):
    judge = ScriptedJudge(truth=lambda p, c: c.text.endswith(right_answer(p, 0)))
    ctx = Context(seed=seed, model=model)
    ctx.judge = lambda by_id, completions: list(judge.judge(by_id, completions, Context(seed=seed)))
    return ctx


def run(sampler, prompts, ctx, unit=None):
    """Sample as the pipeline does: probe, gather, then units of prompts; returns all completions."""
    probes = list(sampler.probe(prompts, ctx)) if hasattr(sampler, "probe") else []
    if hasattr(sampler, "gather"):
        verdicts = ctx.judge({p.id: p for p in prompts}, probes) if probes else []
        ctx.shared = {**sampler.gather(prompts, probes, verdicts), "probes": probes}
    unit = unit or len(prompts)
    units = [prompts[i : i + unit] for i in range(0, len(prompts), unit)]
    return probes + [c for part in units for c in sampler.sample(part, ctx)]


# Temperature and gold.


def test_temperature_hands_on_the_law():
    model = scripted(0.5, Recorder)
    options = {"n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_new_tokens": 9, "stop": ["\n"]}
    prompts = prompts_of(2)
    found = run(build("sampler", {"temperature": options}), prompts, context(model, seed=4))
    assert [(c.prompt_id, c.index) for c in found] == [(p.id, j) for p in prompts for j in range(3)]
    law = model.calls[0][1]
    assert (law.temperature, law.top_p, law.top_k, law.min_p, law.max_new_tokens, law.stop) == (
        0.7,
        0.9,
        5,
        0.1,
        9,
        ("\n",),
    )
    assert model.calls[0][2]["seed"] == 4
    with pytest.raises(ConfigError, match="greedy"):
        build("sampler", {"temperature": {"temperature": 0}})
    assert len(run(build("sampler", {"temperature": {"temperature": 0, "n": 1}}), prompts, context(model))) == 2


def test_gold():
    prompts = [*prompts_of(1, ("a", "b", "a", " ")), *prompts_of(2, ())[1:]]
    ctx = Context()
    first = list(build("sampler", "gold").sample(prompts, ctx))
    assert [(c.text, c.model, c.sampler, c.finish_reason) for c in first] == [("a", "data", "gold", "stop")]
    assert ctx.dropped[0]["record"] == prompts[1].id
    every = list(build("sampler", {"gold": {"references": "all"}}).sample(prompts, Context()))
    assert [(c.text, c.index) for c in every] == [("a", 0), ("b", 1)]


# DART.


def dart(**options):
    return build("sampler", {"dart": options})


def test_uniform_stops_at_the_target_and_lists_the_unmet():
    prompts = prompts_of(40)
    rates = {p.id: float(r) for p, r in zip(prompts, np.linspace(0, 1, 40), strict=True)}
    ctx = context(scripted(rates))
    found = run(dart(k=4, max_tries=48), prompts, ctx)
    pool = Pool({p.id: p for p in prompts}, found, ctx.judge({p.id: p for p in prompts}, found))
    account = difficulty.account(pool, {p.id: 4 for p in prompts})
    unmet = {row["record"] for row in ctx.dropped}
    assert prompts[0].id in unmet
    assert unmet == set(account.unmet)
    assert (account.tries[[i in unmet for i in account.prompt_ids]] == 48).all()
    for prompt_id in set(account.prompt_ids) - unmet:
        right = [pool.accepted(i) for i in pool.by_prompt[prompt_id]]
        assert sum(right) >= 4
    assert ctx.counts["tries"] == len(found)
    assert ctx.counts["correct tries"] == account.correct.sum()
    assert ctx.counts["correct tries wanted"] == 160
    detail = next(row for row in ctx.dropped if row["record"] == prompts[0].id)
    assert (detail["tries"], detail["correct"], detail["target"]) == (48, 0, 4)
    kept = build("selector", {"first_accepted": {"k": 4}}).select(pool, Context())
    rows = np.unique([pool.completions[i].prompt_id for i in kept.indices], return_counts=True)[1]
    assert (rows <= 4).all()
    assert (rows == 4).sum() == 40 - len(unmet)


def test_one_try_a_round_never_overshoots():
    prompts = prompts_of(30)
    rates = {p.id: float(r) for p, r in zip(prompts, rng(1).uniform(0.1, 1, 30), strict=True)}
    ctx = context(scripted(rates))
    found = run(dart(k=3, max_tries=1000, round_cap=1), prompts, ctx)
    pool = Pool({p.id: p for p in prompts}, found, ctx.judge({p.id: p for p in prompts}, found))
    account = difficulty.account(pool, {p.id: 3 for p in prompts})
    assert (account.correct == 3).all()
    assert all(pool.accepted(indices[-1]) for indices in pool.by_prompt.values())


def test_tries_follow_the_negative_binomial_law():
    """Round size 1 and a high cap: the mean of tries * p / k is within 4 standard errors of 1 (sheet 025, check a)."""
    prompts = prompts_of(300)
    rate = np.clip(rng(0, "beta").beta(0.6, 0.6, 300), 0.05, 1)
    ctx = context(scripted(dict(zip([p.id for p in prompts], rate.tolist(), strict=True))))
    found = run(dart(k=4, max_tries=5000, round_cap=1), prompts, ctx)
    tries = np.unique([c.prompt_id for c in found], return_counts=True)
    by_id = dict(zip(*tries, strict=True))
    ratio = np.array([by_id[p.id] for p in prompts]) * rate / 4
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(300)


@pytest.mark.parametrize("policy", ["uniform", "prop2diff"])
def test_results_do_not_depend_on_units_or_order(policy):
    prompts = prompts_of(24)
    model = scripted({p.id: (i % 9) / 8 for i, p in enumerate(prompts)})
    whole = run(dart(policy=policy, n_probe=4), prompts, context(model))
    parts = run(dart(policy=policy, n_probe=4), prompts[::-1], context(model), unit=5)
    assert {c.id for c in whole} == {c.id for c in parts}
    assert len({c.id for c in whole}) == len(whole)
    for prompt in prompts:
        assert [c.index for c in whole if c.prompt_id == prompt.id] == list(
            range(sum(c.prompt_id == prompt.id for c in whole))
        )


def test_prop2diff_probes_all_and_gives_hard_prompts_more():
    prompts = prompts_of(60)
    rates = {p.id: r for p, r in zip(prompts, [1.0, 0.5, 0.1] * 20, strict=True)}
    ctx = context(scripted(rates))
    sampler = dart(policy="prop2diff", k=4, n_probe=8, max_tries=400)
    found = run(sampler, prompts, ctx)
    by_id = {p.id: p for p in prompts}
    pool = Pool(by_id, found, ctx.judge(by_id, found))
    wanted = ctx.shared["targets"]
    probes = {p.id: [c for c in found if c.prompt_id == p.id][:8] for p in prompts}
    passed = {i: np.mean([pool.accepted(found.index(c)) for c in group]) for i, group in probes.items()}
    assert (
        list(wanted.values()) == difficulty.targets(np.array([passed[p.id] for p in prompts]), "prop2diff", 4).tolist()
    )
    assert not ctx.dropped
    kept = build("selector", {"first_accepted": {"policy": "prop2diff", "k": 4}}).select(pool, Context())
    rows = {p.id: 0 for p in prompts}
    for i in kept.indices:
        rows[pool.completions[i].prompt_id] += 1
    assert rows == wanted
    assert np.mean([rows[p.id] for p in prompts[2::3]]) > 3 > 1.5 > np.mean([rows[p.id] for p in prompts[::3]])
    assert all(rows[p.id] == 1 for p in prompts[::3])


def test_equal_texts_count_once():
    prompts = prompts_of(1)
    model = ScriptedModel(1.0)  # always the same right text
    once = run(dart(k=2, max_tries=6), prompts, context(model))
    assert len(once) == 6
    each = run(dart(k=2, max_tries=6, dedup="none"), prompts, context(model))
    assert len(each) == 4  # p = 1/2 before the first try: a first round of four


def test_token_budget_ends_an_unsolvable_prompt():
    prompts = prompts_of(2)
    model = scripted({prompts[0].id: 0.0, prompts[1].id: 1.0})
    ctx = context(model)
    found = run(dart(k=1, max_tries=None, token_budget=100), prompts, ctx)
    spent = sum(c.cost.sampled_tokens for c in found if c.prompt_id == prompts[0].id)
    assert 100 <= spent < 300
    assert [row["record"] for row in ctx.dropped] == [prompts[0].id]


def test_token_budget_ends_tries_whose_cost_nobody_reports():
    prompts = prompts_of(1)
    model = scripted(0.0, Unreported)
    found = run(dart(k=1, max_tries=None, token_budget=1000, max_new_tokens=100), prompts, context(model))
    assert 10 <= len(found) < 80  # a try without a cost counts as one of the longest


def test_dart_errors():
    for options, message in (
        ({"max_tries": None}, "token_budget"),
        ({"policy": "prop2diff", "max_tries": 4}, "less than n_probe"),
        ({"k": 0}, "k:"),
        ({"max_tries": 0}, "max_tries:"),
        ({"policy": "hard"}, "policy:"),
    ):
        with pytest.raises(ConfigError, match=message):
            dart(**options)
    assert dart(policy="uniform", max_tries=4).max_tries == 4
    ctx = context(scripted(0.5))
    bare = [replace(prompts_of(1, ())[0], source="data.jsonl:3")]
    with pytest.raises(DataError, match=r"data\.jsonl:3.*reference answer"):
        list(dart().probe(bare, ctx))
    ctx.judge = None
    with pytest.raises(ConfigError, match="asks a judge"):
        list(dart().probe(prompts_of(1), ctx))


# Prefix.


def prefix(**options):
    return build("sampler", {"prefix": options})


def test_prefix_never_samples_beyond_the_prefix():
    prompts = prompts_of(50)
    model = scripted(0.5, Recorder)
    ctx = context(model, seed=3)
    found = run(prefix(prefix_tokens=4, max_new_tokens=300), prompts, ctx, unit=20)
    structure = structure_split([p.id for p in prompts], 0.1, 3)
    assert len(structure) == 5
    assert [c.prompt_id for c in found] == [p.id for p in prompts]
    for completion in found:
        full = completion.prompt_id in structure
        assert completion.sampler == ("prefix:structure" if full else "prefix:cut")
        assert completion.law.max_new_tokens == (300 if full else 4)
        assert completion.law.temperature == 0.7
        assert full or completion.cost.sampled_tokens <= 4
    assert [len(c[0]) for c in model.calls if c[1].max_new_tokens == 4] != []


def test_prefix_with_the_task_sentence_keeps_prompt_ids():
    prompts = prompts_of(20)
    model = scripted(0.5, Recorder)
    found = run(prefix(sample_with_task_prompt=True), prompts, context(model))
    assert {c.prompt_id for c in found} == {p.id for p in prompts}
    for asked, law, _ in model.calls:
        assert all(p.text.endswith(DEFAULT_TASK_SENTENCE) == (law.max_new_tokens == 8) for p in asked)


def test_supervised_prefix_samples_whole_traces():
    found = run(prefix(supervised=True, tries=16), prompts_of(10), context(scripted(0.5)))
    assert len(found) == 160
    assert {c.law.max_new_tokens for c in found} == {1024}
    assert {c.sampler for c in found} == {"prefix:structure", "prefix:cut"}


def test_prefix_errors():
    for options in ({"prefix_tokens": 0}, {"structure_ratio": 1.1}, {"prefix_tokens": 9, "max_new_tokens": 8}, {"tries": 0},
                    {"temperature": 0, "tries": 2}):  # fmt: skip
        with pytest.raises(ConfigError):
            prefix(**options)
    prompts = prompts_of(2)
    with pytest.raises(DataError, match="more than once"):
        run(prefix(), [*prompts, prompts[0]], context(scripted(0.5)))
    with pytest.raises(DataError, match="no prompt"):
        list(prefix().sample([], Context(shared=prefix().gather([], [], []), model=scripted(0.5))))
