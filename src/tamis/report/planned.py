"""What `tamis plan` prints, and the line in which a run says how far its plan was off."""

from collections.abc import Callable, Sequence

from tamis.plan import Comparison, Plan, Span, StagePlan
from tamis.progress import byte_size, duration
from tamis.report.tables import console, table

COLUMNS = ("completions", "sampled_tokens", "judge_calls", "examples", "trained_tokens")


def print_plan(plan: Plan) -> None:
    """Print a plan: a row per stage, the sums, memory, disk, and what is not known."""
    out = console()
    shown = [name for name in COLUMNS if any(getattr(stage, name).high for stage in plan.stages)]
    rows = [_row(stage, shown) for stage in plan.stages]
    rows.append(["start, report", "", *("" for _ in shown), _seconds(Span.exact(plan.start)), "", ""])
    sums = [_count(plan.total(name)) for name in shown]
    rows.append(["in total", "", *sums, _seconds(plan.total("seconds")), byte_size(plan.memory), byte_size(plan.disk)])
    out.print(table("stage", "prompts", *(n.replace("_", " ") for n in shown), "time", "memory", "disk", rows=rows))
    for line in _remarks(plan):
        out.print(line, markup=False)


def _row(stage: StagePlan, shown: Sequence[str]) -> list[str]:
    prompts = f"{stage.prompts:,}" if stage.prompts else ""
    if stage.done:
        return [stage.kind, prompts, *("" for _ in shown), "done already", "", ""]
    counts = [_count(getattr(stage, name)) for name in shown]
    return [stage.kind, prompts, *counts, _seconds(stage.seconds), byte_size(stage.memory), byte_size(stage.disk)]


def _remarks(plan: Plan) -> list[str]:
    found = [f"\nMeasured in {duration(plan.calibration)} on this machine. run: {plan.run}"]
    if plan.device_memory:
        found.append(f"On the accelerator: {byte_size(plan.device_memory)} at most.")
    if plan.scratch:
        found.append(f"While it trains, checkpoints take up to {byte_size(plan.scratch)} more on the disk.")
    if plan.requests:
        found.append(f"The endpoint was asked {plan.requests} times for this plan.")
    if plan.unknown:
        found.append(f"Not known, and not in the sums: {plan.unknown}")
    return found


def comparison_line(found: Comparison) -> str:
    """Return in words what was planned and what the run took."""
    return (
        f"planned {_short(found.planned_tokens)} tokens in {duration(found.planned_seconds)}; it took "
        f"{_short(found.tokens)} in {duration(found.seconds)}: {100 * found.tokens_off:.0f} % and "
        f"{100 * found.seconds_off:.0f} % off"
    )


def _count(span: Span) -> str:
    return _range(span, _short) if span.high else ""


def _seconds(span: Span) -> str:
    return _range(span, duration)


def _range(span: Span, text: Callable[[float], str]) -> str:
    low, mid, high = text(span.low), text(span.mid), text(span.high)
    return mid if low == high else f"{mid} ({low}–{high})"


def _short(count: float) -> str:
    if count < 1e4:
        return f"{count:,.0f}"
    unit, letter = next((unit, letter) for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= unit)
    return f"{count / unit:.1f}{letter}"
