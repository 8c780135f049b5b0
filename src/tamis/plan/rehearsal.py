"""The rehearsal of a run: the pipeline itself, in a temporary folder, on a random part of the prompts.

Sampling, judging and evaluation see a few prompts, then more while their share of the calibration lasts. Selection and
composition see a pool filled up to its real size, training its real windows for a few steps. What each part took is scaled
up. Stages that a run of the runs folder has finished are read there and cost nothing.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tamis import hashing, needs, registry, stages, store
from tamis.context import Context
from tamis.errors import DataError
from tamis.models.base import ModelRef
from tamis.pipeline import Pipeline
from tamis.plan.estimate import Span, StagePlan, total
from tamis.plan.memory import Peak, held_bytes
from tamis.plan.pool import fill, trained_by_donor
from tamis.plan.rounds import Round, Work, estimate, grow
from tamis.recipe import Recipe, split_stage, tune_parts
from tamis.records import Completion, Example, Prompt, Verdict

ASKED = 16
"""Most requests to an endpoint in one round: they cost money."""
MOMENTS = 12
"""Bytes of a checkpoint per trained parameter: the float32 weight and AdamW's two moments."""

Tell = Callable[[str], None]


class _NotDone(Exception):
    """The tune stage that is asked for is in no run yet, so it must be cut before it is rehearsed."""


class Rehearsal(Pipeline):
    """A pipeline that finds out what each stage would take; after `run`, `plans` has the stages in order.

    `inside` are the seconds that went into rehearsed stages, `scratch` the bytes of checkpoints, `requests` what endpoints
    were asked, `unknown` what could not be rehearsed because the few prompts gave nothing to go on with.
    """

    def __init__(self, recipe: Recipe, runs_dir: Path, folder: Path, seconds: float, peak: Peak, tell: Tell) -> None:
        super().__init__(recipe, folder, self._hear)
        self.path, self.log.path = folder, folder / "log.jsonl"
        self.known = sorted(p for p in runs_dir.iterdir() if p.is_dir()) if runs_dir.is_dir() else []
        timed = sum(next(iter(stage)) in ("sample", "tune", "evaluate") for stage in recipe.stages)
        self.share, self.peak, self.tell = seconds / max(1, timed), peak, tell
        self.plans: list[StagePlan] = []
        self.inside, self.scratch, self.requests, self.unknown = 0.0, 0, 0, ""
        self.cut = self.tuned_here = False
        self.sampled: list[str] = []
        self.lent: set[str] = set()
        self.donors: dict[str, str] = {}
        self.scale, self.spread = 1.0, (1.0, 1.0)
        self.imitated: float | None = None
        self.before: tuple[StagePlan, list[dict[str, Any]]] | None = None
        self.moved, self.checkpoint, self.parameters = 0.0, 0.0, 0

    def _hear(self, event: dict[str, Any]) -> None:
        now = time.perf_counter()
        if event["event"] == "progress":
            self.moved = now
        elif event["event"] == "note" and "stage" not in event:
            self.tell(event["text"])
        elif str(event.get("text", "")).startswith("checkpoint "):
            self.checkpoint = now - self.moved
        self.parameters = event.get("parameters", self.parameters)

    def _stages(self) -> None:
        """Rehearse the task and rounds up to the first with something to do; those after it take what it took."""
        self.sources = []
        with self._timing() as took:
            self._task()
        prompts = len(self.state.prompts)
        self._note(prompts=prompts, seconds=Span.exact(took[0]), disk=self._size(1, 1))
        for number in range(self.recipe.loop):
            self.seed = self.recipe.seed if number == 0 else hashing.derive_seed(self.recipe.seed, "round", number)
            first = len(self.plans)
            try:
                self._round()
            except DataError as error:
                self.unknown = f"what follows {self.plans[-1].kind}: {error.message}"
                return
            made = self.plans[first:]
            if not all(plan.done for plan in made):
                again = [_done(plan) if plan.kind == "evaluate_before" else plan for plan in made]
                self.plans += again * (self.recipe.loop - number - 1)
                return

    def _round(self) -> None:
        for index, stage in enumerate(self.recipe.stages):
            self.at = index
            kind, components, options = split_stage(stage, f"stages[{index}]")
            with self._timing():
                getattr(self, f"_{kind}")(components, options)

    @contextmanager
    def _timing(self) -> Iterator[list[float]]:
        """Measure a block; count it as inside of stages unless its stage was done already."""
        took: list[float] = []
        started, outer = time.perf_counter(), self.inside
        yield took
        took.append(time.perf_counter() - started)
        if self.done and not self._reused:
            self.inside = outer + took[0]

    def _folder(self, kind: str, key: str) -> store.StageFolder:
        """Return the stage's folder; that of a stage found done is a link to where it was done.

        A model that was tuned in rehearsal may by chance be one that a run has made; its evaluation is not this run's.
        """
        folder = super()._folder(kind, key)
        if kind == "evaluate_after" and self.tuned_here:
            return folder
        named = [p for run in self.known for p in sorted(run.glob(f"*-{key[:12]}")) if p.is_dir()]
        found = next((p for p in named if store.StageFolder(p, key).whole()), None)
        if found is not None and not folder.path.exists():
            folder.path.symlink_to(found.resolve())
        elif found is None and kind == "tune" and not self.cut:
            self.number -= 1
            raise _NotDone
        return folder

    @property
    def _reused(self) -> bool:
        return bool(self.done[-1]["reused"])

    def _note(self, **figures: Any) -> StagePlan:
        """Record the plan of the stage that was rehearsed last."""
        last = self.done[-1]
        plan = StagePlan(last["kind"], last["component"], **figures, memory=self.peak.take())
        self.plans.append(_done(plan) if self._reused else plan)
        return self.plans[-1]

    def _size(self, part: float, whole: float) -> int:
        """Return the bytes of the stage done last, scaled up from a part to the whole."""
        place = self.path / self.done[-1]["folder"]
        return round(sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) * whole / part)

    def _forget(self) -> None:
        """Make room for another go at the stage that was done last."""
        place = self.path / self.done.pop()["folder"]
        os.rename(place, place.with_name(f"earlier-{time.monotonic_ns()}-{place.name}"))
        self.number -= 1

    def _grow(self, items: Sequence[Prompt], work: Work, *refs: ModelRef | None) -> list[Round]:
        """Return rounds on random parts of `items`, within this stage's share of the time.

        A round of a model has at most two units of work; an endpoint is asked little; without a model there is no limit.
        """
        order = [items[i] for i in hashing.rng(self.seed, "plan", self.at).permutation(len(items))]
        most = ASKED if any(map(_is_endpoint, refs)) else 2 * stages.ROWS_PER_UNIT if any(refs) else sys.maxsize
        return grow(order, work, most, self.share, forget=self._forget, enough=lambda: self._reused)

    def _count_requests(self, ref: ModelRef | None, answers: Sequence[Completion | Verdict]) -> None:
        if _is_endpoint(ref) and not self._reused:
            self.requests += sum(max(1, answer.cost.judge_calls) for answer in answers)

    def _asking(self, component: Any, default: ModelRef, judge: Any = None) -> Context:
        """As the pipeline does, but what sees a whole pool at once asks no endpoint: that would cost what the run costs."""
        if component.component.room in ("selector", "composer"):
            refs = [self._asked(component, default), self._asked(judge, self.state.model) if judge else None]
            if any(map(_is_endpoint, refs)):
                name = component.component.name
                raise DataError(f"'{name}' asks an endpoint about the whole pool, which no plan pays for")
        return super()._asking(component, default, judge)

    # One method per kind of stage.

    def _sample(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        before, prompts = replace(self.state), self.state.prompts
        heldout, train = ([p for p in prompts if (p.split == "train") == wanted] for wanted in (False, True))
        sampler = registry.build("sampler", components, "sample")
        judge = needs.sampling_judge(self.recipe, self.at, sampler)
        ref = self._asked(sampler, self.models.resolve(options["model"]) if "model" in options else self.state.model)
        refs = [ref, self._asked(judge, self.state.model) if judge else None]
        known = set() if before.fresh_pool else {c.id for c in before.completions}

        def work(part: list[Prompt]) -> tuple[list[Completion], list[Verdict]]:
            self.state = replace(before, prompts=[*heldout, *part])
            super(Rehearsal, self)._sample(components, options)
            drawn = [c for c in self.state.completions if c.id not in known]
            self._count_requests(ref, drawn)
            return drawn, []

        rounds = self._grow(train, work, *refs) if ref else [_all_at_once(train, work)]
        self.state.prompts = prompts
        if self._reused:
            self.lent = set()
            self._note(prompts=len(train))
            return
        figures = estimate(rounds, len(train))
        figures = self._imitating(figures) if ref == self.state.model else figures
        place = {p.id: i for i, p in enumerate(train)}
        drawn = sorted((c for r in rounds for c in r.completions), key=lambda c: (place[c.prompt_id], c.index))
        self.state.completions = [*([] if before.fresh_pool else before.completions), *drawn]
        self.sampled = [i for r in rounds for i in r.ids]
        self.lent = {c.id for c in drawn} if len(self.sampled) < len(train) else set()
        self.scale = 1.0
        self._note(**figures, disk=self._size(len(rounds[-1].ids), len(train)))
        self.peak.hold(round((figures["completions"].mid - len(drawn)) * held_bytes(drawn)))

    def _judge(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        before = replace(self.state)
        of_prompt: dict[str, list[Completion]] = {}
        for completion in before.completions:
            of_prompt.setdefault(completion.prompt_id, []).append(completion)
        ref = self._asked(registry.build("judge", components, "judge"), before.model)

        def work(part: list[Prompt]) -> tuple[list[Completion], list[Verdict]]:
            self.state = replace(before, completions=[c for p in part for c in of_prompt[p.id]])
            super(Rehearsal, self)._judge(components, options)
            said = self.state.verdicts[len(before.verdicts) :]
            self._count_requests(ref, said)
            return [], said

        items = [p for p in before.prompts if p.id in of_prompt]
        rounds = self._grow(items, work, ref)
        seen = {i for r in rounds for i in r.ids}
        population = sum(p.split == "train" for p in before.prompts) if self.lent else len(items)
        if self._reused or len(seen) == len(items):
            self.state.completions = before.completions
        else:
            self.sampled = [p.id for p in items if p.id in seen]
            self.state.completions = [c for c in before.completions if c.prompt_id in seen]
            self.lent |= {c.id for c in self.state.completions}
        self.state.verdicts = [*before.verdicts, *(v for r in rounds for v in r.verdicts)]
        figures = {} if self._reused else estimate(rounds, population)
        self._note(**{"prompts": population, **figures}, disk=self._size(len(rounds[-1].ids), population))

    def _select(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        self._fill()
        with self._timing() as took:
            super()._select(components, options)
        self._note(seconds=Span.exact(took[0] * self.scale), disk=self._size(1, self.scale))

    def _compose(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        self._fill()
        with self._timing() as took:
            super()._compose(components, options)
        examples, self.spread = self.state.examples, (1.0, 1.0)
        if self.lent:
            self.spread = total(trained_by_donor(examples, self.donors), len(self.donors)).spread
        count = Span.exact(len(examples) * self.scale).widened(*self.spread)
        self._note(examples=count, seconds=Span.exact(took[0] * self.scale), disk=self._size(1, self.scale))
        self.lent = set()

    def _fill(self) -> None:
        """Fill the pool up to its real size, where it was sampled in part and nothing was selected from it yet."""
        if not self.lent or self.state.selection is not None:
            return
        state, rng = self.state, hashing.rng(self.seed, "plan", "fill")
        filled = fill(state.prompts, self.sampled, self.lent, state.completions, state.verdicts, rng)
        self.donors = filled.donors
        self.scale = sum(p.split == "train" for p in state.prompts) / len(filled.donors)
        self.state = replace(state, completions=filled.completions, verdicts=filled.verdicts)

    def _tune(self, components: dict[str, Any], options: dict[str, Any]) -> None:
        try:
            super()._tune(components, options)
            self._note()
            self.imitated, self.tuned_here = None, False
            return
        except _NotDone:
            self.cut = True
        _, _, config = tune_parts(components, "tune")
        grows = self.scale if config.max_steps is None else 1.0
        per_step = _windows(self.state.examples, config, self.seed)
        steps, tokens = math.ceil(len(per_step) * grows), sum(per_step) * grows
        started = time.perf_counter()
        took, curve = self._steps(components, options, min(2, steps))
        fixed, step = took - (curve[-1]["seconds"] - curve[0]["seconds"]), curve[-1]["seconds"] / len(curve)
        more = min(steps, int((self.share - (time.perf_counter() - started)) / step))
        if more > len(curve):
            self._forget()
            _, curve = self._steps(components, options, more)
        self.cut, self.tuned_here = False, True
        first, last = curve[0], curve[-1]
        learnt = last["trained_tokens"] - first["trained_tokens"]
        rate = (last["seconds"] - first["seconds"]) / learnt if learnt else 0.0
        saves = math.ceil(steps / config.checkpoint_every)
        seconds = Span.exact(fixed + (saves - 1) * self.checkpoint)
        width = self.spread if config.max_steps is None else (1.0, 1.0)
        seconds += Span.exact(max(0.0, tokens - first["trained_tokens"]) * rate).widened(*width)
        self.scratch = max(self.scratch, self.parameters * MOMENTS * min(config.keep, saves))
        self.imitated = _length(self.state.examples)
        trained = Span.exact(tokens).widened(*width)
        self._note(trained_tokens=trained, seconds=seconds, disk=self._size(1, 1))

    def _steps(self, components: dict[str, Any], options: dict[str, Any], steps: int) -> tuple[float, list[Any]]:
        """Train a few steps; return the stage's seconds and its curve."""
        with self._timing() as took:
            super()._tune({**components, "max_steps": steps}, options)
        lines = (self.path / self.done[-1]["folder"] / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        return took[0], [json.loads(line) for line in lines]

    def _measure(self, side: str, ref: ModelRef, evaluators: Sequence[Any], judge: Any) -> list[dict[str, Any]]:
        if side == "after" and self.tuned_here and self.before and not self.before[0].done:
            plan, rows = self.before
            changed = self._imitating({"sampled_tokens": plan.sampled_tokens, "seconds": plan.seconds}, plan)
            self.plans.append(replace(plan, kind="evaluate_after", **changed))
            return rows
        state, rows = self.state, []
        judging, *asked = (self._asked(component, state.base) for component in (judge, *evaluators))

        def work(part: list[Prompt]) -> tuple[list[Completion], list[Verdict]]:
            self.state = replace(state, prompts=part)
            rows[:] = super(Rehearsal, self)._measure(side, ref, evaluators, judge)
            folder = store.StageFolder(self.path / self.done[-1]["folder"], self.done[-1]["key"])
            drawn, said = folder.read(Completion), folder.read(Verdict)
            self._count_requests(ref, drawn)
            self._count_requests(judging, said)
            return drawn, said

        heldout = [p for p in state.prompts if p.split == "heldout"]
        rounds = self._grow(heldout, work, ref, judging, *asked)
        self.state = state
        figures = {"prompts": len(heldout)} if self._reused else estimate(rounds, len(heldout))
        figures = self._imitating(figures) if self.tuned_here and side == "after" else figures
        plan = self._note(**figures, disk=self._size(len(rounds[-1].ids), len(heldout)))
        if side == "before":
            self.before = plan, rows
        return self.before[1] if self.before and self.tuned_here else rows

    def _imitating(self, figures: dict[str, Any], plan: StagePlan | None = None) -> dict[str, Any]:
        """Return figures of sampling from a model that was tuned in rehearsal only, and so writes like the one before.

        The real one will come to write answers as long as its examples, where those end; the range holds both lengths.
        """
        tokens = figures["sampled_tokens"]
        completions = plan.completions if plan else figures["completions"]
        if self.imitated is None or not tokens.mid:
            return figures
        ratio = self.imitated * completions.mid / tokens.mid
        low, high = min(1.0, 1 / ratio), max(1.0, 1 / ratio)
        changed = {name: (figures[name] * ratio).widened(low, high) for name in ("sampled_tokens", "seconds")}
        return {**figures, **changed}


def _is_endpoint(ref: ModelRef | None) -> bool:
    return ref is not None and ref.kind == "endpoint"


def _done(plan: StagePlan) -> StagePlan:
    """Return the plan of the same stage when it is there already."""
    return StagePlan(plan.kind, plan.component, done=True, prompts=plan.prompts)


def _all_at_once(items: Sequence[Prompt], work: Work) -> Round:
    began = time.perf_counter()
    completions, verdicts = work(list(items))
    return Round([p.id for p in items], time.perf_counter() - began, completions, verdicts)


def _windows(examples: Sequence[Example], config: Any, seed: int) -> list[int]:
    """Return the trained tokens of every step of a training. Raises DataError where there is none."""
    from tamis.training.batches import EpochSource, admit

    rows, _ = admit(examples, max_length=config.max_length, vocabulary=sys.maxsize)
    if not rows:
        raise DataError(f"none of the {len(examples)} examples of the plan can be trained on")
    order_seed = config.data_seed if config.data_seed is not None else hashing.derive_seed(seed, "data")
    source = EpochSource(rows, config.batch_size, config.epochs, order_seed, config.max_steps)
    return [sum(row.trained for row in source.draw(step)) for step in range(source.steps)]


def _length(examples: Sequence[Example]) -> float | None:
    """Return the mean trained tokens of an example; None where some do not end, so that no length can be learnt."""
    if not all(e.target.ended for e in examples):
        return None
    return sum(sum(w != 0 for w in e.target.weights) for e in examples) / len(examples)
