"""What a stage does inside its folder, with scripted models: no weights, no training."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tamis import stages
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.hashing import digest
from tamis.judges.pairs import Pair
from tamis.lab.judges import TwoLabelJudge
from tamis.lab.scripted import ScriptedJudge, ScriptedModel
from tamis.models import keeper
from tamis.models.base import ModelRef
from tamis.pool import Pool, Selection
from tamis.recipe import Engine
from tamis.records import Completion, Example, Message, Prompt, Target, Turn, Verdict
from tamis.registry import build
from tamis.store import StageFolder


def prompts_of(n):
    return [Prompt((Message("user", f"question {i}"),), ("7",), metadata={"answer": 7}) for i in range(n)]


def quiet(event, **detail):
    pass


def test_finish_reasons_count_probes_too(tmp_path):
    """With every try a probe, the stage's note would otherwise be empty."""
    sampler = build("sampler", {"dart": {"policy": "prop2diff", "k": 1, "n_probe": 2, "max_tries": 2}})
    ctx = Context(model=ScriptedModel(1.0))
    ctx.judge = stages.judging(ScriptedJudge(), Context())
    info = stages.sample(StageFolder(tmp_path, "k"), sampler, prompts_of(3), ctx, quiet)
    assert info["notes"] == {"finish_reasons": {"stop": 6}}


def test_what_a_judge_counts_on_probes_is_counted_once_also_after_a_kill(tmp_path, monkeypatch):
    class Counting(ScriptedJudge):
        def judge(self, prompts, completions, ctx):
            ctx.count("questions asked", len(completions))
            return super().judge(prompts, completions, ctx)

    def counts(folder):
        ctx = Context(model=ScriptedModel(1.0))
        stages.give_judge(ctx, Counting(), Context())
        stages.sample(folder, sampler, prompts_of(5), ctx, quiet)
        return [unit["counts"] for unit in folder.units()]

    monkeypatch.setattr(stages, "ROWS_PER_UNIT", 2)
    sampler = build("sampler", {"dart": {"policy": "prop2diff", "k": 1, "n_probe": 2, "max_tries": 2}})
    folder = StageFolder(tmp_path, "k")
    unbroken = counts(folder)
    assert sum(unit.get("questions asked", 0) for unit in unbroken) == 10
    folder.unit_path("sample", 2).unlink()
    assert counts(folder) == unbroken


def test_an_objective_refuses_examples_of_another_kind(tmp_path):
    pair = Example("preference", "p", Target(()), rejected=Target(()), margin=1.0)
    ref = ModelRef("m", "local", "i", ("trainable",))
    with pytest.raises(ConfigError, match=r"'sft' trains examples of the kind sft.*of the kind preference"):
        stages.tune(StageFolder(tmp_path, "k"), ref, [pair], build("objective", "sft"), None, None, 0, quiet)
    assert not list(tmp_path.iterdir())


def test_both_sides_of_an_evaluation_ask_the_same_judging_model(tmp_path):
    asked = []

    class Asking:
        def judge(self, prompts, completions, ctx):
            asked.append(ctx.model)
            return [Verdict(c.prompt_id, (c.id,), "asking", 1.0) for c in completions]

    tuned, base = ScriptedModel(1.0, identity="tuned"), ScriptedModel(1.0, identity="base")
    evaluators, judge_ctx = [build("evaluator", "accuracy")], Context(model=base)
    ctx = Context(model=tuned)
    stages.measure(StageFolder(tmp_path, "k"), evaluators, Asking(), prompts_of(2), ctx, judge_ctx, {}, quiet)
    assert asked == [base]


def test_a_paired_difference_carries_its_own_unit():
    side = {"evaluator": "perplexity", "name": "perplexity", "unit": "", "higher_is_better": False, "n": 2, "notes": {}}
    side |= {"value": 2.0, "low": 1.0, "high": 3.0, "per_item": {"a": 0.5, "b": 0.9}, "item_unit": "nats per token"}
    (row,) = stages.compare({"before": [side], "after": [{**side, "per_item": {"a": 0.4, "b": 0.7}}]}, seed=0)
    assert row["difference"]["unit"] == "nats per token"
    assert row["difference"]["value"] == pytest.approx(-0.15)
    assert json.dumps(row)


def test_progress_of_a_resumed_training_counts_only_its_own_steps(tmp_path, monkeypatch):
    def train(*args, on_event, **options):
        on_event({"event": "step", "step": 51, "total": 100, "trained_tokens": 5100})
        on_event({"event": "step", "step": 52, "total": 100, "trained_tokens": 5200})
        raise ConfigError("enough")

    heard = []
    monkeypatch.setattr("tamis.training.tune", train)
    log = lambda event, **detail: heard.append(detail)  # noqa: E731
    ref = ModelRef("m", "local", "i", ("trainable",))
    with pytest.raises(ConfigError, match="enough"):
        stages.tune(StageFolder(tmp_path, "k"), ref, [], build("objective", "sft"), None, None, 0, log)
    assert [d["done"] for d in heard] == [50, 51, 52]
    assert heard[1]["tokens_per_second"] == 0  # what the first step took is not known apart from the steps before
    assert heard[2]["tokens_per_second"] > 0
    assert heard[2]["eta"] is None  # two steps of fifty say nothing yet


def test_a_run_says_what_a_model_takes_time_for(monkeypatch):
    def resolve(name, on_event, gguf):
        on_event({"event": "fetch", "name": name, "text": f"fetching '{name}'"})
        on_event({"event": "ready", "name": name})
        return ModelRef(name, "local", digest(name), ())

    said = []
    monkeypatch.setattr(importlib.import_module("tamis.models.resolve"), "resolve", resolve)
    models = keeper.Models(SimpleNamespace(engine=Engine()), lambda event, **detail: said.append((event, detail)))
    assert models.resolve("far") is models.resolve("far")
    assert said == [("note", {"text": "fetching 'far'"})]


def test_a_selector_asks_the_judge_of_its_stage_and_its_verdicts_are_kept(tmp_path):
    class Best:
        needs_judge = True

        def select(self, pool, ctx):
            pairs = [Pair(pool.prompt(0), *pool.completions[:2])]
            return Selection(np.array([0 if ctx.compare(pairs)[0].label == "A" else 1]))

    prompts = prompts_of(1)
    made = [Completion(prompts[0].id, (Turn("assistant", text),), index=i) for i, text in enumerate(("#6", "#7"))]
    ctx, asking = Context(), Context()
    stages.give_judge(ctx, TwoLabelJudge(lambda p, c: c.text == "#7"), asking)
    folder = StageFolder(tmp_path, "k")
    stages.select(folder, Best(), Pool({prompts[0].id: prompts[0]}, made), ctx, quiet)
    (verdict,) = folder.read(Verdict)
    assert (verdict.label, verdict.completion_ids) == ("B", (made[0].id, made[1].id))
    assert json.loads((tmp_path / "selection.json").read_text())["completion_ids"] == [made[1].id]
    assert folder.units()[0]["cost"]["judge_calls"] == 1
