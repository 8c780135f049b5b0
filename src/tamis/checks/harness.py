"""Runs claim checks: seeds, arms, intervals, the table, the plot, and whether the claim holds."""

import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tamis import hashing
from tamis.errors import ConfigError, nearest
from tamis.evaluators import stats

Outcome = Mapping[str, np.ndarray | float]


@dataclass(frozen=True)
class Figure:
    """One measured figure: its value with a 95% interval, the rule it is held against, and whether it holds.

    `kind`: gate (must hold), reported (no rule), gpu (asserted only on a larger model, reported here).
    """

    name: str
    kind: Literal["gate", "reported", "gpu"]
    value: float
    low: float | None = None
    high: float | None = None
    rule: str = ""
    holds: bool | None = None

    def __post_init__(self) -> None:
        if (self.kind == "gate") != (self.holds is not None):
            raise ValueError(f"figure '{self.name}': a gate says whether it holds, and nothing else does")


@dataclass
class Table:
    """What every arm measured on every seed: `cells[seed][arm][field]`, per-item arrays (N,) float64 or single figures."""

    cells: dict[int, dict[str, Outcome]] = field(default_factory=dict)
    row: int = 0

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(self.cells)

    def values(self, arm: str, name: str = "score") -> list[np.ndarray]:
        """Return a field's per-item values, one (N,) float64 array per seed."""
        return [np.atleast_1d(np.asarray(self.cells[s][arm][name], dtype=np.float64)) for s in self.seeds]

    def means(self, arm: str, name: str = "score") -> np.ndarray:
        """Return a field's mean per seed, (S,) float64."""
        return np.array([v.mean() for v in self.values(arm, name)])

    def mean(self, arm: str, name: str = "score") -> float:
        """Return the mean over seeds of a field's means."""
        return float(self.means(arm, name).mean())

    def difference(self, arm: str, other: str, name: str = "score") -> "stats.Interval":
        """Return the paired difference arm - other, items pooled over all seeds (paired bootstrap)."""
        pairs = [a - b for a, b in zip(self.values(arm, name), self.values(other, name), strict=True)]
        return stats.paired_bootstrap(
            np.concatenate(pairs), np.zeros(sum(map(len, pairs))), rng=hashing.rng(self.row, arm, other, name)
        )

    def gate_above(self, label: str, arm: str, other: str, name: str = "score", margin: float = 0.0) -> Figure:
        """Return the gate "arm - other > margin": the lower bound of the paired difference lies above the margin."""
        found = self.difference(arm, other, name)
        rule = f"lower bound > {margin:g}"
        return Figure(label, "gate", found.value, found.low, found.high, rule, bool(found.low > margin))


@dataclass(frozen=True)
class Check:
    """A check file, imported."""

    name: str
    row: int
    claim: str
    seeds: tuple[int, ...]
    world: Callable[[int], Any]
    arms: Mapping[str, Callable[[Any], Outcome]]
    verdict: Callable[[Table], Sequence[Figure]]


@dataclass(frozen=True)
class Result:
    """What a check gave."""

    check: Check
    table: Table
    figures: Sequence[Figure]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every gate holds."""
        return all(f.holds for f in self.figures if f.kind == "gate")


def known() -> tuple[list[Check], list[str]]:
    """Return all checks, by row, and what is wrong with each check file that cannot be used.

    A check file names NAME, ROW, CLAIM, SEEDS, world, ARMS and verdict.
    """
    package = importlib.import_module("tamis.checks")
    checks, broken = [], []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name[0] != "c" or not info.name[1:4].isdigit():
            continue
        try:
            m = importlib.import_module(f"tamis.checks.{info.name}")
            checks.append(Check(m.NAME, m.ROW, m.CLAIM, m.SEEDS, m.world, m.ARMS, m.verdict))
        except Exception as error:
            broken.append(f"The check file {info.name}.py cannot be used: {type(error).__name__}: {error}")
    return sorted(checks, key=lambda c: c.row), broken


def choose(names: Sequence[str], rows: Sequence[int], every: bool) -> list[Check]:
    """Return the checks asked for.

    Raises ConfigError for an unknown one, when none is asked for, and when all are and a check file cannot be used.
    """
    checks, broken = known()
    if every and broken:
        raise ConfigError(" ".join(broken), hint="Mend it, or name the checks to run.")
    if every:
        return checks
    by_name = {c.name: c for c in checks}
    by_row = {c.row: c for c in checks}
    for name in names:
        if name not in by_name:
            raise ConfigError(f"there is no check '{name}'", hint=" ".join([nearest(name, by_name), *broken]))
    for row in rows:
        if row not in by_row:
            raise ConfigError(
                f"row {row} has no check", hint=" ".join([f"Rows: {', '.join(map(str, by_row))}.", *broken])
            )
    chosen = [by_name[n] for n in names] + [by_row[r] for r in rows]
    if not chosen:
        raise ConfigError("name what to check", hint=f"Known: {', '.join(by_name)}; or --row N, or --all")
    return list({c.name: c for c in chosen}.values())


def run(check: Check, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Run all arms on all seeds, then the verdict."""
    started = time.monotonic()
    table = Table(row=check.row)
    for seed in check.seeds:
        world = check.world(seed)
        table.cells[seed] = {}
        for name, arm in check.arms.items():
            progress(f"{check.name}: seed {seed}, {name}")
            table.cells[seed][name] = arm(world)
    return Result(check, table, check.verdict(table), time.monotonic() - started)


def run_and_print(check: Check, out: Path) -> bool:
    """Run a check, print its table, write `out`/NAME.{json,md,svg}; returns whether the claim holds."""
    import sys

    from tamis import files
    from tamis.report.tables import console

    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
    result = run(check, lambda text: print(f"  {text}", file=sys.stderr))
    paths = write(result, out)
    console().print(markdown(result), markup=False)
    console().print(f"\nwritten: {', '.join(str(p) for p in paths)}\n", markup=False)
    return result.holds


def markdown(result: Result) -> str:
    """Return a result as Markdown: claim, arms by seed, figures, verdict."""
    check, table = result.check, result.table
    lines = [f"## {check.name} (row {check.row})", "", check.claim, ""]
    fields = _scalar_fields(table)
    lines += ["| arm | " + " | ".join(f"{f} (mean; by seed)" for f in fields) + " |", "|---" * (len(fields) + 1) + "|"]
    for arm in check.arms:
        lines.append(f"| {arm} | " + " | ".join(_by_seed(table, arm, f) for f in fields) + " |")
    lines += ["", "| figure | kind | value | 95% interval | rule | holds |", "|---|---|---|---|---|---|"]
    lines += [_figure_row(f) for f in result.figures]
    word = "holds" if result.holds else "does NOT hold"
    lines += ["", f"**The claim {word}** ({len(table.seeds)} seeds from {min(table.seeds)}, {result.seconds:.0f} s)."]
    return "\n".join(lines)


def _scalar_fields(table: Table) -> list[str]:
    first = next(iter(table.cells.values()))
    return list(dict.fromkeys(name for outcome in first.values() for name in outcome if not name.startswith("_")))


def _by_seed(table: Table, arm: str, name: str, shown: int = 5) -> str:
    if any(name not in table.cells[s][arm] for s in table.seeds):
        return "–"
    means = table.means(arm, name)
    listed = ", ".join(f"{m:.3g}" for m in means[:shown]) + (", …" if len(means) > shown else "")
    return f"{means.mean():.4g} ({listed})"


def _figure_row(figure: Figure) -> str:
    interval = "–" if figure.low is None else f"[{figure.low:.4g}, {figure.high:.4g}]"
    holds = {True: "yes", False: "**no**", None: "–"}[figure.holds]
    return f"| {figure.name} | {figure.kind} | {figure.value:.4g} | {interval} | {figure.rule or '–'} | {holds} |"


def write(result: Result, out: Path) -> list[Path]:
    """Write a result as JSON, Markdown and an SVG plot of its figures; returns the paths."""
    from tamis.files import write_atomic

    out.mkdir(parents=True, exist_ok=True)
    stem = out / result.check.name
    data = {
        "name": result.check.name,
        "row": result.check.row,
        "claim": result.check.claim,
        "holds": result.holds,
        "seconds": round(result.seconds, 1),
        "seeds": result.table.seeds,
        "figures": [asdict(f) for f in result.figures],
    }
    write_atomic(stem.with_suffix(".json"), json.dumps(data, indent=1) + "\n")
    write_atomic(stem.with_suffix(".md"), markdown(result) + "\n")
    plot = _plot(result)
    if plot:
        write_atomic(stem.with_suffix(".svg"), plot)
    return [stem.with_suffix(s) for s in (".json", ".md", ".svg")[: 3 if plot else 2]]


def _plot(result: Result) -> str:
    """Return the figures that have an interval as a stand-alone SVG, "" when there is none."""
    from tamis.report.charts import Interval, interval_plot, standalone

    groups = [
        (f.name, [Interval(f.kind, f.value, f.low, f.high, f"{f.value:.3g} ({f.low:.3g} to {f.high:.3g})", _tone(f))])
        for f in result.figures
        if f.low is not None and f.high is not None
    ]
    return standalone(interval_plot(groups, title=f"Figures of the check {result.check.name}", reference=0.0))


def _tone(figure: Figure) -> str:
    return "no" if figure.holds is False else "yes"
