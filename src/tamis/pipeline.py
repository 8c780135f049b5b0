"""Running a recipe: the only module that knows all rooms.

A stage's key hashes its resolved config, its inputs' keys, the identity of the model it uses, the seed and the component's
version. The same key means the same bytes, so a stage that is there is not done again, in this run or any other of the same
runs folder. Work units are fixed slices of the records, so a restart repeats at most the unit in flight.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamis import __version__, environment, files, needs, registry, stages, store
from tamis.context import Context
from tamis.earlier import Earlier
from tamis.errors import StoreError, TamisError
from tamis.hashing import derive_seed, digest
from tamis.models.base import ModelRef
from tamis.models.keeper import Models
from tamis.pool import Pool
from tamis.recipe import Recipe, split_stage, tune_parts
from tamis.records import Completion, Example, Prompt, Verdict
from tamis.replies import Replies
from tamis.runs import Run

Listener = Callable[[dict[str, Any]], None]
STAGE_NAME = re.compile(r"\d{2,}-[a-z_]+-[0-9a-f]{12}")


@dataclass
class State:
    """What the next stage starts from."""

    base: ModelRef
    model: ModelRef
    prompts: list[Prompt] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    selection: tuple[list[str], list[float]] | None = None
    examples: list[Example] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    fresh_pool: bool = True


class Pipeline:
    """One run of one recipe in one folder."""

    def __init__(self, recipe: Recipe, runs_dir: Path, listener: Listener) -> None:
        self.recipe, self.runs_dir = recipe, runs_dir
        self.path = runs_dir / recipe.run_name
        self.log = store.EventLog(self.path / "log.jsonl", listener)
        self.models = Models(recipe, self.log)
        self.replies = Replies(runs_dir / "replies.sqlite")
        self.done: list[dict[str, Any]] = []
        self.number = self.at = 0
        self.seed = recipe.seed
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}

    def run(self, fresh: bool = False) -> Run:
        """Run all stages; returns the run. Nothing finished is done again unless `fresh`.

        What the run replaces is kept until it is done; where a `fresh` one fails before a stage is finished it is put back.
        """
        needs.check(self.recipe)
        with files.lock(self.path) as self.still_there, files.explained(self.path):
            self.earlier = Earlier(self.path)
            try:
                self._start(fresh)
                return self._run()
            except BaseException:
                with contextlib.suppress(OSError, StoreError):
                    if self.earlier.put_back():
                        self.log("note", text="nothing was made anew: the run is as it was before --fresh")
                raise

    def _start(self, fresh: bool) -> None:
        store.sweep(self.path)
        if fresh:
            self.earlier.set_all_aside()
        self.sources = [self.path]
        if self.earlier.whole:
            text = f"made anew (--fresh); what was there before is kept in {self.earlier.path} until the run is done"
            self.log("note", text=text)
        elif not fresh:
            self.sources = [self.earlier.path, *sorted(p for p in self.runs_dir.iterdir() if p.is_dir())]

    def _run(self) -> Run:
        files.write_atomic(self.path / "recipe.yaml", self.recipe.to_yaml())
        base = self.models.resolve(self.recipe.model)
        self.state = State(base, base)
        self._manifest("running")
        self.log("run_start", run=str(self.path), recipe=self.recipe.name, model=base.name, identity=base.identity)
        started = time.monotonic()
        try:
            self._stages()
        except BaseException as error:
            with contextlib.suppress(OSError, StoreError):
                said = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else "stopped"
                self._manifest("failed", error=said)
                self.log("run_failed", error=said)
            raise
        self._manifest("done")
        run = Run(self.path)
        from tamis.report.html import write_report

        report = write_report(run)
        self.earlier.drop()
        self.log("run_done", run=str(self.path), report=str(report), seconds=round(time.monotonic() - started, 1))
        return run

    def _stages(self) -> None:
        self._task()
        for number in range(self.recipe.loop):
            self.seed = self.recipe.seed if number == 0 else derive_seed(self.recipe.seed, "round", number)
            for index, stage in enumerate(self.recipe.stages):
                self.at = index
                kind, components, options = split_stage(stage, f"stages[{index}]")
                getattr(self, f"_{kind}")(components, options)

    def _folder(self, kind: str, key: str) -> store.StageFolder:
        self.number += 1
        return store.StageFolder(self.path / f"{self.number:02d}-{kind}-{key[:12]}", key)

    def _context(self, model: ModelRef | None = None, *, embeds: bool = False) -> Context:
        state = self.state
        return Context(
            seed=self.seed,
            model=self.models.get(model) if model else None,
            chat=self.models.chat(state.base) if "tokens" in state.base.capabilities else None,
            embed=self.models.embed if embeds else None,
            replies=self.replies,
        )

    def _asking(self, component: Any, default: ModelRef, judge: Any = None) -> Context:
        """Return the context of a component that asks `default` unless it names a model; `judge` asks the model in force."""
        ctx = self._context(self._asked(component, default), embeds="embedder" in component.component.needs)
        if judge is not None:
            stages.give_judge(ctx, judge, self._asking(judge, self.state.model))
        return ctx

    def _asked(self, component: Any, default: ModelRef) -> ModelRef | None:
        """Return the model that a component asks: that of its option `model`, else `default`; None where it asks none."""
        if not needs.asks(component):
            return None
        name = getattr(component, "model", None)
        return self.models.resolve(name) if name else default

    def _stage(
        self,
        kind: str,
        component: str,
        config: Any,
        inputs: Sequence[str],
        work: Callable[[store.StageFolder], dict[str, Any] | None],
    ) -> store.StageFolder:
        """Do one stage unless it is there; returns its folder."""
        key = digest(store.FORMAT, kind, component, config, inputs)
        folder = self._folder(kind, key)
        self._set_stale_aside(folder)
        entry = {"folder": folder.path.name, "kind": kind, "component": component, "key": key}
        damaged = folder.mend()
        reused = folder.done or store.adopt(self.sources, folder)
        self.log("stage_start", stage=folder.path.name, kind=kind, component=component)
        if damaged:
            names = ", ".join(str(p.relative_to(folder.path)) for p in damaged)
            self.log("note", stage=folder.path.name, text=f"missing or damaged, made again: {names}")
        if other := environment.others(folder.versions()):
            text = f"made with {other}, not with what is installed now; --fresh makes everything again"
            self.log("note", stage=folder.path.name, text=text)
        if not reused:
            folder.path.mkdir(exist_ok=True)
            self._manifest("running", {**entry, "status": "running"})
            info = dict(work(folder) or {})
            made = info.pop("files", ())
            folder.finish(
                {"kind": kind, "component": component, "config": config, "inputs": list(inputs), **info}, made
            )
        info = folder.info()
        shown = {k: info[k] for k in ("seconds", "cost", "counts", "notes")}
        self.done.append({**entry, "status": "done", "reused": reused, **shown, "other_versions": other})
        self._manifest("running")
        self.log(
            "stage_done",
            stage=folder.path.name,
            kind=kind,
            component=component,
            reused=reused,
            counts=info["counts"],
            cost=info["cost"],
            seconds=info["seconds"],
        )
        return folder

    def _set_stale_aside(self, folder: store.StageFolder) -> None:
        """Move away a folder of the same number whose key is another: its data, model or component has changed since."""
        for other in self.path.glob(f"{self.number:02d}-*"):
            if other != folder.path and STAGE_NAME.fullmatch(other.name):
                self.earlier.set_aside(other)
                at = self.earlier.path / other.name
                text = f"what it was made from has changed since: kept as {at} until this run is done, then removed"
                self.log("note", stage=other.name, text=text)

    def _manifest(self, status: str, running: Mapping[str, Any] | None = None, error: str = "") -> None:
        self.still_there()
        created = environment.now()
        path = self.path / "manifest.json"
        if path.exists():
            with contextlib.suppress(TamisError, KeyError, TypeError):
                created = str(files.read_json(path)["created"])
        empty: dict[str, Any] = {
            "reused": False,
            "seconds": 0.0,
            "cost": {},
            "counts": {},
            "notes": {},
            "other_versions": "",
        }
        manifest = {
            "tamis": __version__,
            "created": created,
            "status": status,
            "error": error,
            "recipe": self.recipe.name,
            "hash": self.recipe.hash,
            "seed": self.recipe.seed,
            "model": {"name": self.recipe.model, "identity": self.state.base.identity},
            "versions": environment.versions(),
            "machine": environment.machine(),
            "pid": os.getpid(),
            "stages": [*self.done, *([{**empty, **running}] if running else [])],
        }
        files.write_json(path, manifest)

    # One method per stage kind.

    def _task(self) -> None:
        task = registry.build("task", self.recipe.task, "task")
        name = task.component.name
        config = stages.key_of(task)

        def work(folder: store.StageFolder) -> None:
            stages.load_prompts(folder, task, self._context(), self.log)

        folder = self._stage("task", name, config, [digest(self.recipe.seed)], work)
        self.state.prompts = folder.read(Prompt)
        stages.check_split(self.state.prompts, [next(iter(stage)) for stage in self.recipe.stages])
        self.state.inputs = [folder.key]
        self.task_key = folder.key

    def _sample(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        sampler = registry.build("sampler", components, "sample")
        name = sampler.component.name
        ref = self.models.resolve(options["model"]) if "model" in options else state.model
        judge = needs.sampling_judge(self.recipe, self.at, sampler)
        prompts = [p for p in state.prompts if p.split == "train"]

        def work(folder: store.StageFolder) -> dict[str, Any]:
            return stages.sample(folder, sampler, prompts, self._asking(sampler, ref, judge), self.log)

        inputs = [self.task_key, digest(self.seed, self._identity(sampler, ref, judge))]
        folder = self._stage("sample", name, stages.key_of(sampler), inputs, work)
        found = folder.read(Completion)
        if not state.fresh_pool:
            known = {c.id for c in state.completions}
            new = [c for c in found if c.id not in known]
            if len(new) < len(found):
                text = f"{len(found) - len(new)} of {len(found)} completions are in the pool already"
                self.log("note", stage=folder.path.name, text=text)
            found = state.completions + new
        state.completions = found
        state.inputs = [folder.key] if state.fresh_pool else [*state.inputs, folder.key]
        state.verdicts = [] if state.fresh_pool else state.verdicts
        state.selection, state.fresh_pool = None, False

    def _judge(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        judge = registry.build("judge", components, "judge")

        def work(folder: store.StageFolder) -> None:
            ctx = self._asking(judge, state.model)
            stages.judge(folder, judge, self._by_id(), state.completions, ctx, self.log)

        inputs = [*state.inputs, digest(self._identity(judge, state.model))]
        folder = self._stage("judge", judge.component.name, stages.key_of(judge), inputs, work)
        state.verdicts = state.verdicts + folder.read(Verdict)
        state.inputs = [*state.inputs, folder.key]

    def _select(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        selector = registry.build("selector", components, "select")
        judge = registry.build("judge", options["judge"], "select.judge") if "judge" in options else None

        def work(folder: store.StageFolder) -> dict[str, Any]:
            pool, ctx = self._pool(), self._asking(selector, state.model, judge)
            pool.embed = ctx.embed
            return stages.select(folder, selector, pool, ctx, self.log)

        asked = self._identity(selector, state.model, judge)
        inputs = [*state.inputs, digest(self.seed, state.base.identity, asked)]
        folder = self._stage("select", selector.component.name, stages.key_of(selector), inputs, work)
        state.selection = folder.selection()
        state.inputs = [*state.inputs, folder.key]

    def _compose(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        composer = registry.build("composer", components, "compose")
        judge = registry.build("judge", options["judge"], "compose.judge") if "judge" in options else None

        def work(folder: store.StageFolder) -> None:
            pool, ctx = self._pool(), self._asking(composer, state.base, judge)
            pool.embed = ctx.embed
            stages.compose(folder, composer, pool, ctx, self.log)

        asked = self._identity(composer, state.base, judge)
        chat = self.models.chat(state.base).template_digest
        inputs = [*state.inputs, digest(self.seed, chat, state.base.identity, asked)]
        folder = self._stage("compose", composer.component.name, stages.key_of(composer), inputs, work)
        state.examples = folder.read(Example)
        state.inputs, state.fresh_pool = [folder.key], True

    def _tune(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        objective, adapter, config = tune_parts(components, "tune")
        start = state.base if config.start == "base" else state.model
        name = f"{objective.component.name}+{adapter.component.name}"
        parts = {"objective": stages.key_of(objective), "adapter": stages.key_of(adapter), **config.mathematics()}

        def work(folder: store.StageFolder) -> dict[str, Any]:
            self.models.release()
            if self.recipe.engine.device == "cpu":
                os.environ["ACCELERATE_USE_CPU"] = "true"
            return stages.tune(folder, start, state.examples, objective, adapter, config, self.seed, self.log)

        folder = self._stage("tune", name, parts, [*state.inputs, digest(self.seed, start.identity)], work)
        state.model = self.models.tuned(start, folder)

    def _evaluate(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        state = self.state
        evaluators = [registry.build("evaluator", {name: config}, "evaluate") for name, config in components.items()]
        judge = needs.evaluating_judge(self.recipe, options)
        sides = {"before": self.models.comparable(state.base)} | (
            {"after": state.model} if state.model != state.base else {}
        )
        metrics = {side: self._measure(side, ref, evaluators, judge) for side, ref in sides.items()}
        self.rows |= {(row["evaluator"], row["name"]): row for row in stages.compare(metrics, self.recipe.seed)}
        rows = list(self.rows.values())
        files.write_json(self.path / "metrics.json", {"rows": rows})
        self.log("metrics", rows=rows)

    def _measure(self, side: str, ref: ModelRef, evaluators: Sequence[Any], judge: Any) -> list[dict[str, Any]]:
        heldout = [p for p in self.state.prompts if p.split == "heldout"]
        config = [stages.key_of(e) for e in evaluators] + [stages.key_of(judge)]

        def work(folder: store.StageFolder) -> dict[str, Any]:
            ctx, base = self._context(ref), self.state.base
            asking = {e.component.name: self._asking(e, base) for e in evaluators}
            asked = self._asking(judge, base)
            for context in (ctx, asked, *asking.values()):
                context.seed = self.recipe.seed
            return stages.measure(folder, evaluators, judge, heldout, ctx, asked, asking, self.log)

        names = "+".join(e.component.name for e in evaluators)
        asked = [self._identity(e, self.state.base) for e in (judge, *evaluators)]
        inputs = [self.task_key, digest(self.recipe.seed, self._runs(ref), asked)]
        folder = self._stage(f"evaluate_{side}", names, config, inputs, work)
        return files.read_json(folder.path / "metrics.json")

    def _pool(self) -> Pool:
        state = self.state
        chat = self.models.chat(state.base) if "tokens" in state.base.capabilities else None
        pool = Pool(self._by_id(), state.completions, state.verdicts, count_tokens=chat.count if chat else None)
        if state.selection is None:
            return pool
        import numpy as np

        at = {c.id: i for i, c in enumerate(state.completions)}
        ids, weights = state.selection
        return pool.take([at[i] for i in ids], np.array(weights) if weights else None)

    def _identity(self, component: Any, default: ModelRef, judge: Any = None) -> list[Any]:
        """Return what decides the answers that a component gets, for a key: of the model it asks, the embedder, its judge."""
        asked = self._asked(component, default)
        found = self._runs(asked) if asked else []
        if "embedder" in component.component.needs:
            found.append(self.models.resolve(self.recipe.embedder).identity)
        if judge is not None:
            found += [stages.key_of(judge), self._identity(judge, self.state.model)]
        return found

    def _runs(self, ref: ModelRef) -> list[Any]:
        """Return what of a model decides its answers: its identity and how this machine runs it."""
        return [ref.identity, self.models.engine(ref)]

    def _by_id(self) -> dict[str, Prompt]:
        return {p.id: p for p in self.state.prompts}


def run(
    recipe: Recipe, *, runs_dir: Path = Path("runs"), fresh: bool = False, listener: Listener = lambda _: None
) -> Run:
    """Run a recipe in `runs_dir`; returns the finished run. Raises TamisError."""
    return Pipeline(recipe, runs_dir, listener).run(fresh)
