"""The pipeline's own overhead: a run of the recipe rft against the bare calls that it makes.

Bare: load the model, sample, judge, select, compose, `training.tune` (which saves and tries the model), sample and judge the
held-out prompts before and after. Without keys, units, checksums, parquet, log, manifest, metrics and report. Both sides get
the same completions and examples; imports and files are warm on both.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

SETTINGS = {
    "smollm2-135m": {"task.reasoning_gym.size": 48, "task.reasoning_gym.heldout": 32},
    "nano-sums": {"task.modular_sums.terms": 5, "task.modular_sums.size": 1500, "task.modular_sums.heldout": 1000},
}
TARGET = 1.03


def recipe(model: str, small: bool) -> Any:
    from tamis import recipe as recipes

    changes = dict(SETTINGS[model])
    if small:
        changes |= {name: 8 for name in changes if name.endswith(("size", "heldout"))}
    return recipes.load("rft", lab=model == "nano-sums", overrides=changes)


def whole(made: Any, folder: Path) -> dict[str, Any]:
    from tamis import pipeline

    stages = {stage["kind"]: stage for stage in pipeline.run(made, runs_dir=folder).manifest["stages"]}
    counts = {"completions": "sample", "examples": "compose"}
    return {
        **{what: stages[kind]["counts"][what] for what, kind in counts.items()},
        "stages": {kind: stage["seconds"] for kind, stage in stages.items()},
    }


def bare(made: Any, folder: Path) -> dict[str, Any]:
    from tamis import registry, stages
    from tamis.context import Context
    from tamis.models.resolve import load, resolve
    from tamis.pool import Pool
    from tamis.recipe import split_stage, tune_parts
    from tamis.training import tune

    ref = resolve(made.model)
    model = load(ref, engine=made.engine.name, **made.engine.options)
    ctx = Context(seed=made.seed, model=model, chat=model.chat)
    prompts = list(registry.build("task", made.task).prompts(ctx))
    by_id = {p.id: p for p in prompts}
    found = {kind: parts for kind, parts, _ in map(split_stage, made.stages)}
    sampler, judge = registry.build("sampler", found["sample"]), registry.build("judge", found["judge"])
    selector, composer = registry.build("selector", found["select"]), registry.build("composer", found["compose"])
    completions = []
    for part in stages.chunks([p for p in prompts if p.split == "train"], max(1, stages.ROWS_PER_UNIT // sampler.n)):
        completions += sampler.sample(part, ctx)
    verdicts = list(judge.judge(by_id, completions, ctx))
    pool = Pool(by_id, completions, verdicts, count_tokens=model.chat.count)
    selection = selector.select(pool, ctx)
    examples = list(composer.compose(pool.take(list(selection.indices), selection.weights), ctx))
    objective, adapter, config = tune_parts(found["tune"], "tune")
    tuned = tune(ref, examples, objective, adapter, config, seed=made.seed, folder=folder / "tune")
    evaluator = registry.build("evaluator", found["evaluate"])
    heldout = [p for p in prompts if p.split == "heldout"]
    for side in (model, load(tuned.model, engine=made.engine.name, **made.engine.options)):
        for part in stages.chunks(heldout, stages.ROWS_PER_UNIT):
            (draw,) = evaluator.draws()
            drawn = side.generate(part, draw.law, candidates=[range(draw.n)] * len(part), seed=made.seed)
            list(judge.judge(by_id, list(drawn), ctx))
    return {"completions": len(completions), "examples": len(examples)}


PARTS = {
    "sync to disk": ("os", "fsync"),
    "records to parquet and JSON": ("tamis.store", "StageFolder.write_unit"),
    "records read back": ("tamis.store", "StageFolder.read"),
    "manifest": ("tamis.pipeline", "Pipeline._manifest"),
    "checksums": ("tamis.store", "file_digest"),
    "report": ("tamis.report.html", "write_report"),
    "models loaded": ("tamis.models.hf", "LocalModel._load"),
    "identity of the model": ("tamis.models.keeper", "Models.resolve"),
}


@contextmanager
def watched(spent: Counter[str]) -> Any:
    """Add up the seconds inside of each of `PARTS`; parts may lie inside of others."""
    import importlib

    originals = []
    for what, (module, path) in PARTS.items():
        owner: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, last)
        originals.append((owner, last, original))
        setattr(owner, last, timed(original, what, spent))
    try:
        yield
    finally:
        for owner, last, original in originals:
            setattr(owner, last, original)


def timed(function: Callable[..., Any], what: str, spent: Counter[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[what] += time.perf_counter() - started  # type: ignore[assignment]

    return call


def work(side: str, model: str, small: bool = False, watch: bool = False) -> dict[str, Any]:
    made, spent = recipe(model, small), Counter()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        if watch:
            with watched(spent):
                answer = whole(made, Path(folder))
        else:
            answer = {"pipeline": whole, "bare": bare}[side](made, Path(folder))
        return {**answer, "took": time.perf_counter() - started, "spent": dict(spent)}


def compare(model: str, repeats: int) -> dict[str, Any]:
    sides: dict[str, list[dict[str, Any]]] = {"pipeline": [], "bare": []}
    workers = {side: harness.Worker(sys.executable, Path(__file__), "--serve") for side in sides}
    for side, worker in workers.items():
        worker.ask(side=side, model=model, small=True)
    for _ in range(repeats):
        for side, worker in workers.items():
            sides[side].append(worker.ask(side=side, model=model))
    watched_run = workers["pipeline"].ask(side="pipeline", model=model, watch=True)
    for worker in workers.values():
        worker.close()
    ours, theirs = ([a["took"] for a in answers] for answers in sides.values())
    counts = [{(a["completions"], a["examples"]) for a in answers} for answers in sides.values()]
    if counts[0] != counts[1]:
        raise SystemExit(f"the two sides did not do the same: {counts}")
    return harness.comparison(
        f"overhead of the pipeline, {model}",
        ours,
        theirs,
        TARGET,
        unit="s",
        against="bare calls",
        at_most=True,
        notes=[
            f"{model}: {sides['pipeline'][0]['completions']} completions, {sides['pipeline'][0]['examples']} examples",
            f"{model}: seconds inside of (parts overlap): "
            + ", ".join(f"{what} {s:.2f}" for what, s in watched_run["spent"].items())
            + f"; in a run of {watched_run['took']:.1f} s",
            f"{model}: stages, s: " + ", ".join(f"{k} {v:.2f}" for k, v in watched_run["stages"].items()),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.serve:
        harness.serve(work)
        return
    found = [compare(model, arguments.repeats) for model in arguments.models]
    notes = [note for row in found for note in row.pop("notes")]
    harness.conclude(*found, notes=notes)


if __name__ == "__main__":
    main()
