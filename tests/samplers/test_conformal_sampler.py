import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tamis import conformal, hashing, pipeline
from tamis import recipe as recipes
from tamis.conformal import Abstain, CLMConfig
from tamis.conformal_answers import alike, answers, calibrated, quality_of
from tamis.context import Context
from tamis.errors import ConfigError, ModelError
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, right_answer
from tamis.records import Completion, Message, Prompt, Turn
from tamis.registry import build
from tamis.report.html import render_report
from tamis.report.tables import print_result

OPTIONS = {"eps": 0.3, "delta": 0.1, "k_max": 6, "n_grid": 4}


def prompts_of(n):
    return [Prompt((Message("user", f"{i} + 7 ="),), ("7",), metadata={"answer": 7}) for i in range(n)]


class Sure(ScriptedModel):
    """A scripted model with log-probabilities, higher where it is right; a share of its draws fails."""

    failing = 0.0

    def generate(self, prompts, law, **options):
        self.calls.update(p.id for p, wanted in zip(prompts, options["candidates"], strict=True) for _ in wanted)
        for c in super().generate(prompts, law, **options):
            luck, noise = hashing.rng("sure", c.prompt_id, c.index).random(2)
            quality = 0.6 * c.text.endswith("#7") + 0.4 * noise
            if luck < self.failing:
                yield replace(c, turns=(Turn("assistant", ""),), finish_reason="error", id="")
            else:
                yield replace(c, raw_logprobs=(math.log(quality + 1e-3),), id="")


def sure(rate=0.6, failing=0.0, kind=Sure):
    made = kind(rate, right=lambda p, draw: f"{draw % 3} {right_answer(p, draw)}")
    object.__setattr__(made, "calls", Counter())
    object.__setattr__(made, "failing", failing)
    return made


def drawn(prompts, model, **options):
    """Return the sampler, its context, the probes and the sets' draws, as the pipeline gets them."""
    sampler = build("sampler", {"conformal": {**OPTIONS, **options}})
    judge = ScriptedJudge(truth=lambda p, c: c.text.endswith("#7"))
    ctx = Context(seed=3, model=model)
    ctx.judge = lambda by_id, completions: list(judge.judge(by_id, completions, Context(seed=3)))
    probes = list(sampler.probe(prompts, ctx))
    ctx.shared = sampler.gather(prompts, probes, ctx.judge({p.id: p for p in prompts}, probes))
    return sampler, ctx, probes, list(sampler.sample(prompts, ctx))


@pytest.mark.parametrize("quality", ["likelihood", "agreement"])
@pytest.mark.parametrize("failing", [0.0, 0.2])
def test_sets_are_those_of_the_rule_on_the_same_draws(quality, failing):
    prompts, model = prompts_of(150), sure(failing=failing)
    _, ctx, probes, found = drawn(prompts, model, quality=quality)
    rule = ctx.shared["rule"]
    assert isinstance(rule, CLMConfig)
    calibrating = {c.prompt_id for c in probes}
    assert 40 < len(calibrating) < 110
    assert calibrating.isdisjoint(c.prompt_id for c in found)
    assert {c.metadata["set"] for c in probes} == {"calibration"}
    for prompt in (p for p in prompts if p.id not in calibrating):
        whole = list(sure(failing=failing).generate([prompt], found[0].law, candidates=[range(6)], seed=3))
        scores = [quality_of(c, quality, alike(c.text, [w.text for w in whole[:k]]), None) for k, c in enumerate(whole)]
        data = answers([[c.text for c in whole]], [scores], [[False] * 6])
        expected = conformal.build(rule, data.scores, data.sims)
        own = [c for c in found if c.prompt_id == prompt.id]
        assert len(own) == expected.draws[0] == model.calls[prompt.id]
        assert [c.text for c in own] == [c.text for c in whole[: len(own)]]
        assert [c.metadata["set"] == "kept" for c in own] == expected.kept[0, : len(own)].tolist()
        assert [c.metadata["quality"] for c in own] == scores[: len(own)]
    assert ctx.counts["sets"] == len(prompts) - len(calibrating)
    assert sum(n for what, n in ctx.counts.items() if what.startswith("draws: ")) == len(found)
    assert ctx.shared["notes"]["finding"]["sentence"].startswith("At most 30% of prompts will lack")


def test_it_abstains_where_nothing_can_be_promised():
    prompts = prompts_of(80)
    _, ctx, probes, found = drawn(prompts, sure(0.02))
    assert isinstance(ctx.shared["rule"], Abstain)
    assert found == []
    assert {row["record"] for row in ctx.dropped} == {p.id for p in prompts} - {c.prompt_id for c in probes}
    finding = ctx.shared["notes"]["finding"]
    assert "No set is returned" in finding["sentence"]
    assert len(finding["chart"]["lines"]) == 2


def test_too_few_prompts_are_an_abstention_that_says_how_many_it_takes():
    _, ctx, _, found = drawn(prompts_of(6), sure())
    assert "too few: it takes 7 or more" in ctx.shared["notes"]["finding"]["sentence"]
    assert found == []
    assert calibrated(None, 0.2, 0.05, "max", 5, 0.3, 0) == Abstain(0.2, 0.05, 0)


def test_a_judge_can_give_the_quality():
    _, _, probes, found = drawn(
        prompts_of(80), sure(), quality="judge", judge={"answer": {"kind": "regex", "pattern": "#(.*)"}}
    )
    assert {c.metadata["quality"] for c in probes + found} == {0.0, 1.0}
    assert all(c.metadata["quality"] == c.text.endswith("#7") for c in found)
    with pytest.raises(ConfigError, match="go together"):
        build("sampler", {"conformal": {"quality": "judge"}})
    with pytest.raises(ConfigError, match="leave its `model` out"):
        build("sampler", {"conformal": {"quality": "judge", "judge": {"score": {"model": "nano-sums"}}}})


def test_a_likelihood_takes_log_probabilities():
    with pytest.raises(ModelError, match="gives none"):
        drawn(prompts_of(20), ScriptedModel(0.5))


def test_qualities():
    made = Completion("p", (Turn("assistant", "a"),), raw_logprobs=(-0.5, -1.5))
    assert quality_of(made, "likelihood", [], None) == round(math.exp(-1), 6)
    assert quality_of(made, "agreement", [1.0, 0.5], None) == 0.5
    assert [quality_of(made, "judge", [], score) for score in (0.7, None)] == [0.7, 0.0]
    assert quality_of(replace(made, finish_reason="error", id=""), "judge", [], 1.0) is None


def test_likeness_is_the_ratio_of_common_words():
    assert alike("a b c d", ["a b c d", "a x c y", "e"]) == [1.0, 0.5, 0.0]
    two = answers([["a b", "a c"]], [[0.1, None]], [[True, False]])
    assert two.sims[0].tolist() == [[0.0, 0.5], [0.5, 0.0]]
    assert two.scores[0].tolist() == [0.1, -np.inf]


@pytest.mark.parametrize("eps", [0.6, 0.01])
def test_a_run_prints_its_promise_and_draws_risk_against_cost(tmp_path, capsys, eps):
    made = recipes.load(
        "conformal",
        lab=True,
        overrides={
            "task.modular_sums.size": 40,
            "task.modular_sums.heldout": 24,
            **{
                f"stages.{stage}.conformal.{name}": value
                for stage in ("sample", "evaluate")
                for name, value in {"eps": eps, "k_max": 4, "n_grid": 3}.items()
            },
        },
    )
    run = pipeline.run(made, runs_dir=tmp_path)
    said = "At most 60% of prompts will lack" if eps == 0.6 else "No set is returned"
    print_result(run)
    assert said in capsys.readouterr().out
    page = render_report(run)
    assert said in page
    assert ("draws and answers a prompt" in page) == (eps == 0.6)
    assert "{&#39;sentence" not in page, "the finding is no count of a stage"
