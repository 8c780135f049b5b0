"""What each kind of stage does inside its folder: units of work, progress, what was dropped, what it cost."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from tamis import files, hashing, registry
from tamis.asking.ask import silence, unanswered
from tamis.context import Context, Judge
from tamis.errors import ConfigError, DataError, ModelError
from tamis.metrics import Draw, View
from tamis.models.base import ModelRef
from tamis.outage import NO_ROOM, Log, check_asked, check_drawn, without_silent_tail
from tamis.pool import Pool
from tamis.records import Completion, Cost, Example, Prompt, Record, Verdict, total_cost
from tamis.store import StageFolder, Unit

ROWS_PER_UNIT = 256
RECORDS_PER_UNIT = 4096


def key_of(component: Any) -> dict[str, Any]:
    """Return what of a component enters a stage's key: name, version, options, and its `fingerprint()` if it has one.

    A fingerprint stands for what the options only point at: a file's content, a user function's source.
    """
    known = component.component
    key = {"name": known.name, "version": known.version, "options": registry.config_of(component)}
    return {**key, "fingerprint": component.fingerprint()} if hasattr(component, "fingerprint") else key


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


class Meter:
    """Progress events of one stage: done, total, tokens and accepted so far."""

    def __init__(self, log: Log, stage: str, total: int, unit: str) -> None:
        self.log, self.stage, self.total, self.unit = log, stage, total, unit
        self.done = self.tokens = self.skipped = 0
        self.accepted: int | None = None
        self.started = time.monotonic()

    def add(self, done: int, tokens: int = 0, accepted: int | None = None, *, skipped: bool = False) -> None:
        """Report `done` more; `skipped` ones were there already and do not count for the rate."""
        self.done += done
        self.tokens += 0 if skipped else tokens
        self.skipped += done if skipped else 0
        if accepted is not None:
            self.accepted = (self.accepted or 0) + accepted
        seconds = max(time.monotonic() - self.started, 1e-9)
        fresh, left = self.done - self.skipped, self.total - self.done
        eta = left * seconds / fresh if fresh and fresh >= 0.1 * (fresh + left) else None
        self.log(
            "progress",
            stage=self.stage,
            done=self.done,
            total=self.total,
            unit=self.unit,
            tokens_per_second=self.tokens / seconds,
            accepted=self.accepted,
            eta=eta,
        )


def load_prompts(folder: StageFolder, task: Any, ctx: Context, log: Log) -> None:
    """Write a task's prompts in units; the task's drops go with the unit they fell in.

    The task is read from its start, also after a kill, and what is finished is left as it is.
    """
    meter = Meter(log, folder.path.name, 0, "prompts")
    seen = 0
    for index, part in enumerate(chunks(task.prompts(ctx), RECORDS_PER_UNIT)):
        counts, dropped = ctx.counts.copy(), ctx.dropped.copy()
        ctx.counts.clear()
        ctx.dropped.clear()
        for split in ("train", "heldout"):
            counts[f"{split} prompts"] += sum(p.split == split for p in part)
        if not folder.unit_done("prompts", index):
            folder.write_unit("prompts", index, Unit({"prompts": part}, total_cost(part), counts, dropped), 0.0)
        seen += len(part)
        meter.add(len(part))
    if not seen:
        reasons = ", ".join(f"{n} {what}" for what, n in ctx.counts.items()) or "the source is empty"
        raise DataError(f"the task gave no prompt ({reasons})", where=task.component.name, hint="Check the data file.")
    if ctx.counts or ctx.dropped:
        folder.write_unit("prompts-rest", 0, Unit({}, Cost(), ctx.counts, ctx.dropped), 0.0)


def check_split(prompts: Sequence[Prompt], kinds: Sequence[str]) -> None:
    """Raise DataError at once where a stage of these kinds would find no prompt on its side of the split."""
    splits = {p.split for p in prompts}
    if "sample" in kinds and "train" not in splits:
        raise DataError("there is no training prompt to sample for", hint="Lower `heldout` or give more data.")
    if "evaluate" in kinds and "heldout" not in splits:
        raise DataError(
            f"there is no held-out prompt to evaluate on, all {len(prompts)} are for training",
            hint="Raise the task's `heldout` (a whole number is a count), or take the evaluate stage out.",
        )


def sample(folder: StageFolder, sampler: Any, prompts: Sequence[Prompt], ctx: Context, log: Log) -> dict[str, Any]:
    """Draw completions in units of prompts; a sampler with a barrier probes all prompts first."""
    if hasattr(sampler, "gather"):
        if hasattr(sampler, "probe"):
            _draw(folder, "probe", sampler.probe, sampler, prompts, ctx, log)
            check_drawn(folder, ["probe"], log)
        probes = folder.read(Completion, "probe")
        verdicts = ctx.judge({p.id: p for p in prompts}, probes) if ctx.judge and probes else []
        ctx.shared = {**sampler.gather(prompts, probes, verdicts), "probes": probes}
        if folder.unit_done("sample", 0):  # it holds what was counted up to here, before a kill
            ctx.counts.clear()
            ctx.dropped.clear()
    _draw(folder, "sample", sampler.sample, sampler, prompts, ctx, log)
    check_drawn(folder, ("probe", "sample"), log)
    check_asked(folder, ("probe", "sample"), log)
    ends = folder.tables(Completion, columns=["finish_reason"])
    reasons = Counter(reason for table in ends for reason in table["finish_reason"].to_pylist())
    if reasons and reasons["error"] == reasons.total():
        hint = "Shorten the prompts, or take a model with a longer context."
        raise ModelError(f"every completion failed: {NO_ROOM}", where=folder.path.name, hint=hint)
    notes = {"finish_reasons": {reason: n for reason, n in reasons.items() if n}}
    return {"notes": {**notes, **ctx.shared.get("notes", {})}}


def _draw(
    folder: StageFolder, group: str, draw: Any, sampler: Any, prompts: Sequence[Prompt], ctx: Context, log: Log
) -> None:
    size = max(1, ROWS_PER_UNIT // max(1, int(getattr(sampler, "n", 0) or getattr(sampler, "k", 0) or 1)))
    meter = Meter(log, folder.path.name, len(prompts), "prompts")
    for index, part in enumerate(chunks(prompts, size)):
        if folder.unit_done(group, index):
            meter.add(len(part), skipped=True)
            continue
        started = time.monotonic()
        found: list[Completion] = []
        with without_silent_tail(folder, group):
            for completion in draw(part, ctx):
                new = not found or completion.prompt_id != found[-1].prompt_id
                found.append(completion)
                meter.add(int(new), completion.cost.sampled_tokens)
        unit = Unit({"completions": found}, total_cost(found), ctx.counts.copy(), ctx.dropped.copy())
        unit.counts["completions"] += len(found)
        unit.dropped += _failures(found, ctx.model)
        ctx.counts.clear()
        ctx.dropped.clear()
        folder.write_unit(group, index, unit, time.monotonic() - started)


def _failures(completions: Sequence[Completion], model: Any) -> list[dict[str, Any]]:
    """Return the completions that failed, with the reason where the model (an endpoint) kept one."""
    reasons = getattr(model, "errors", {})
    return [
        {"record": c.id, "prompt": c.prompt_id, "reason": reasons.get(c.id, NO_ROOM)}
        for c in completions
        if c.finish_reason == "error"
    ]


def judging(judge: Any, ctx: Context) -> Judge:
    """Return a judge component as a plain function of prompts and completions."""

    def ask(prompts: Mapping[str, Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        return list(judge.judge(prompts, completions, ctx))

    return ask


def give_judge(ctx: Context, judge: Any, asking: Context) -> None:
    """Let a component ask `judge`, which itself asks with `asking`; both count and drop into the same place."""
    asking.counts, asking.dropped = ctx.counts, ctx.dropped
    ctx.judge = judging(judge, asking)
    if hasattr(judge, "compare"):
        ctx.compare = lambda pairs: judge.compare(pairs, asking)


def judge(
    folder: StageFolder,
    judge: Any,
    prompts: Mapping[str, Prompt],
    completions: Sequence[Completion],
    ctx: Context,
    log: Log,
    group: str = "judge",
) -> None:
    """Judge completions in units of whole prompts."""
    meter = Meter(log, folder.path.name, len(completions), "completions")
    for index, part in enumerate(_whole_prompts(completions, ROWS_PER_UNIT)):
        if folder.unit_done(group, index):
            meter.add(len(part), skipped=True)
            continue
        started = time.monotonic()
        with without_silent_tail(folder, group):
            found = list(judge.judge(prompts, part, ctx))
        unit = Unit({"verdicts": found}, total_cost(found), ctx.counts.copy(), ctx.dropped.copy())
        unit.counts.update(v.label or "scored" for v in found)
        ctx.counts.clear()
        ctx.dropped.clear()
        folder.write_unit(group, index, unit, time.monotonic() - started)
        meter.add(len(part), accepted=sum(v.score is not None and v.score >= 0.5 for v in found))
    check_asked(folder, [group], log)


def _whole_prompts(completions: Sequence[Completion], size: int) -> Iterator[list[Completion]]:
    """Yield slices of at least `size` completions (the last may be shorter) that never cut a prompt's run in two."""
    part: list[Completion] = []
    for completion in completions:
        if len(part) >= size and completion.prompt_id != part[-1].prompt_id:
            yield part
            part = []
        part.append(completion)
    if part:
        yield part


def select(folder: StageFolder, selector: Any, pool: Pool, ctx: Context, log: Log) -> dict[str, Any]:
    """Run a selector over the whole pool and write what it kept."""
    started = time.monotonic()
    verdicts: list[Verdict] = []
    if ctx.compare is not None:
        ctx.compare = _kept(ctx.compare, verdicts)
    selection = selector.select(pool, ctx)
    if reasons := silence(ctx.counts, ctx.dropped):
        raise unanswered("question to the model", reasons, folder.path.name)
    indices = [int(i) for i in selection.indices]
    weights = [] if selection.weights is None else [float(w) for w in selection.weights]
    chosen = {"completion_ids": [pool.completions[i].id for i in indices], "weights": weights}
    files.write_json(folder.path / "selection.json", chosen)
    ctx.counts["candidates"] += len(pool)
    ctx.counts["selected"] += len(indices)
    records: dict[str, Sequence[Record]] = {"verdicts": verdicts} if verdicts else {}
    unit = Unit(records, total_cost(verdicts), ctx.counts, ctx.dropped, dict(selection.notes))
    folder.write_unit("select", 0, unit, time.monotonic() - started)
    if selection.reason:
        log("note", stage=folder.path.name, text=selection.reason)
    return {"files": [folder.path / "selection.json"], "reason": selection.reason}


def _kept(compare: Callable[..., list[Verdict]], kept: list[Verdict]) -> Callable[..., list[Verdict]]:
    def ask(pairs: Sequence[Any]) -> list[Verdict]:
        found = compare(pairs)
        kept.extend(found)
        return found

    return ask


def compose(folder: StageFolder, composer: Any, pool: Pool, ctx: Context, log: Log) -> None:
    """Write a composer's examples in units. Raises DataError when there is none to train on."""
    started, total = time.monotonic(), 0
    for index, part in enumerate(chunks(composer.compose(pool, ctx), RECORDS_PER_UNIT)):
        unit = Unit({"examples": part}, total_cost(part), ctx.counts.copy(), ctx.dropped.copy())
        unit.counts["examples"] += len(part)
        ctx.counts.clear()
        ctx.dropped.clear()
        if not folder.unit_done("compose", index):
            folder.write_unit("compose", index, unit, time.monotonic() - started)
        started, total = time.monotonic(), total + len(part)
    if ctx.counts or ctx.dropped or not total:
        folder.write_unit("compose-rest", 0, Unit({"examples": []}, Cost(), ctx.counts, ctx.dropped), 0.0)
    check_asked(folder, ("compose", "compose-rest"), log)
    if not total:
        reasons = ", ".join(f"{n} {what}" for what, n in ctx.counts.items())
        raise DataError(
            f"no example is left to train on ({reasons or 'the pool is empty'})",
            where=folder.path.name,
            hint="Look at the completions with: tamis show RUN completions. More samples per prompt, a higher temperature "
            "or another answer kind may help.",
        )


def tune(
    folder: StageFolder,
    start: ModelRef,
    examples: Sequence[Example],
    objective: Any,
    adapter: Any,
    config: Any,
    seed: int,
    log: Log,
) -> dict[str, Any]:
    """Train and save; the loop's own events become progress."""
    from tamis.training import tune as train

    kinds: Sequence[str] = getattr(objective, "kinds", ())
    foreign = sorted({e.kind for e in examples}.difference(kinds)) if kinds else []
    if foreign:
        raise ConfigError(
            f"the objective '{objective.component.name}' trains examples of the kind {' or '.join(kinds)}, and these are "
            f"of the kind {', '.join(foreign)}",
            where=folder.path.name,
            hint="Take a composer and an objective that go together.",
        )
    started = time.monotonic()
    meter: Meter | None = None
    tokens = 0

    def listen(event: dict[str, Any]) -> None:
        nonlocal meter, tokens
        if event.get("event") != "step":
            log("note", stage=folder.path.name, **{k: v for k, v in event.items() if k != "event"})
            return
        if meter is None:
            meter = Meter(log, folder.path.name, event["total"], "steps")
            if event["step"] > 1:
                meter.add(event["step"] - 1, skipped=True)
                tokens = event["trained_tokens"]
        meter.add(1, event["trained_tokens"] - tokens)
        tokens = event["trained_tokens"]

    result = train(start, examples, objective, adapter, config, seed=seed, folder=folder.path, on_event=listen)
    files.remove(folder.path / "checkpoints")  # a kill may have come between the model and this
    cost = Cost(trained_tokens=result.fit.trained_tokens)
    unit = Unit({}, cost, dropped=[{"record": r.example_id, "reason": r.reason} for r in result.fit.refused])
    unit.counts["trained examples"] = len(examples) - len(unit.dropped)
    unit.counts["steps"] = result.fit.steps
    for row in unit.dropped:
        unit.counts[f"dropped: {row['reason']}"] += 1
    folder.write_unit("tune", 0, unit, time.monotonic() - started)
    made = [p for p in sorted((folder.path / "model").rglob("*")) if p.is_file()] + [folder.path / "curve.jsonl"]
    whole = result.model.adapter is None
    return {"files": made, "identity": result.model.identity, "whole": whole, "smoke": result.smoke}


def measure(
    folder: StageFolder,
    evaluators: Sequence[Any],
    judging_with: Any,
    heldout: Sequence[Prompt],
    ctx: Context,
    judge_ctx: Context,
    asking: Mapping[str, Context],
    log: Log,
) -> dict[str, Any]:
    """Sample what the evaluators ask for from the held-out prompts, judge it, and write their figures.

    `ctx` holds the model that is measured; `judge_ctx` the one that the judge may ask and `asking`, by evaluator, those that
    evaluators may ask: the same before and after tuning.
    """
    if not heldout:
        raise DataError("there is no held-out prompt to evaluate on", hint="Raise the task's `heldout`.")
    by_id = {p.id: p for p in heldout}
    pools: dict[Draw, Pool] = {}
    for number, draw in enumerate(dict.fromkeys(d for e in evaluators for d in e.draws())):
        _draw(folder, f"draw{number}", _drawing(draw), draw, heldout, ctx, log)
        check_drawn(folder, [f"draw{number}"], log)
        drawn = folder.read(Completion, f"draw{number}")
        judge(folder, judging_with, by_id, drawn, judge_ctx, log, group=f"draw{number}j")
        pools[draw] = Pool(by_id, drawn, folder.read(Verdict, f"draw{number}j"))
    rows = []
    for number, evaluator in enumerate(evaluators):
        name, started = evaluator.component.name, time.monotonic()
        own = asking.get(name, Context(seed=ctx.seed))
        for m in evaluator.measure(View(list(heldout), pools, ctx.model, own)):
            rows.append({"evaluator": name, **asdict(m), "per_item": dict(m.per_item), "notes": dict(m.notes)})
        if reasons := silence(own.counts, own.dropped):
            raise unanswered("question to the model", reasons, folder.path.name)
        if own.counts or own.dropped:
            unit = Unit({}, Cost(), own.counts, own.dropped)
            folder.write_unit(f"measure{number}", 0, unit, time.monotonic() - started)
    files.write_json(folder.path / "metrics.json", rows)
    return {"files": [folder.path / "metrics.json"]}


def _drawing(draw: Draw) -> Callable[[Sequence[Prompt], Context], Iterator[Completion]]:
    def run(prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        wanted = [range(draw.n)] * len(prompts)
        return ctx.model.generate(prompts, draw.law, candidates=wanted, seed=ctx.seed, sampler="evaluate")

    return run


def compare(metrics: Mapping[str, list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Return one row per metric: before and after, either may lack it; the paired difference where it has values by prompt."""
    from tamis.evaluators import stats

    sides = {side: {(m["evaluator"], m["name"]): m for m in found} for side, found in metrics.items()}
    rows = []
    for at in dict.fromkeys(at for found in sides.values() for at in found):
        here = {side: found[at] for side, found in sides.items() if at in found}
        any_side = next(iter(here.values()))
        row: dict[str, Any] = {k: any_side[k] for k in ("evaluator", "name", "unit", "higher_is_better")}
        row |= {side: _side(metric) for side, metric in here.items()}
        if {"before", "after"} <= here.keys() and any_side["per_item"]:
            rng = hashing.rng(seed, "paired", *at)
            before, after = (here[side]["per_item"] for side in ("before", "after"))
            difference = stats.paired(before, after, rng, higher_is_better=any_side["higher_is_better"])
            row["difference"] = {**asdict(difference), "unit": any_side["item_unit"]}
        rows.append(row)
    return rows


def _side(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {k: metric[k] for k in ("value", "low", "high", "n", "notes")}
