"""What a run will take, found out before it starts, and how far that was off afterwards."""

import datetime
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tamis import environment, files
from tamis.errors import ConfigError, StoreError
from tamis.plan.estimate import Plan, Span, StagePlan
from tamis.recipe import Recipe
from tamis.runs import Run

__all__ = ["Comparison", "Plan", "Span", "StagePlan", "compare", "plan"]

FOLDER = ".plans"


def plan(
    recipe: Recipe,
    *,
    runs_dir: Path = Path("runs"),
    seconds: float = 10.0,
    began: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Rehearse `recipe` for about `seconds` (besides loading models) and return what its run will take.

    The run's folder is not touched; the plan is kept in `runs_dir/.plans`, so that the run can say how far it was off.
    `began` is when the command started, in `time.monotonic()`; all since then is start-up that the run will have too.
    `tell` hears what takes time, such as the first fetch of a model. Raises TamisError for what the run would refuse.
    """
    from tamis.plan.memory import Peak, device_bytes
    from tamis.plan.rehearsal import Rehearsal

    if not 0 <= seconds < math.inf:
        raise ConfigError(f"the seconds to measure for are {seconds}", hint="Give a number of 0 or more.")
    started, kept = time.monotonic(), runs_dir / FOLDER
    _check_writable(next(p for p in (kept, *kept.absolute().parents) if os.path.lexists(p)))
    with tempfile.TemporaryDirectory(prefix="tamis-plan-") as folder, Peak() as peak:
        rehearsal = Rehearsal(recipe, runs_dir, Path(folder), seconds, peak, tell)
        rehearsal.run()
        ended = time.monotonic()
        made = Plan(
            run=recipe.run_name,
            stages=rehearsal.plans,
            start=ended - (started if began is None else began) - rehearsal.inside,
            memory=max(peak.take(), *(stage.memory for stage in rehearsal.plans)),
            device_memory=device_bytes(),
            scratch=rehearsal.scratch,
            calibration=ended - started,
            requests=rehearsal.requests,
            unknown=rehearsal.unknown,
            machine=environment.machine(),
        )
    with files.explained(runs_dir):
        kept.mkdir(parents=True, exist_ok=True)
        files.write_json(kept / f"{made.run}.json", made.to_dict())
    return made


def _check_writable(folder: Path) -> None:
    """Raise StoreError unless a file can be made in a folder. Leaves nothing there."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = None
        raise files.refused(error, folder) from error


@dataclass(frozen=True)
class Comparison:
    """A plan's tokens (sampled and trained) and seconds beside those that the run took."""

    planned_tokens: float
    tokens: int
    planned_seconds: float
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures and how far they were off, as plain data."""
        return {**asdict(self), "tokens_off": self.tokens_off, "seconds_off": self.seconds_off}

    @property
    def tokens_off(self) -> float:
        """How far the tokens were off, as a share of what was taken."""
        return abs(self.planned_tokens - self.tokens) / max(1, self.tokens)

    @property
    def seconds_off(self) -> float:
        """How far the time was off, as a share of what was taken."""
        return abs(self.planned_seconds - self.seconds) / self.seconds


def compare(run: Run, seconds: float) -> Comparison | None:
    """Return how far the last plan of a run was off; `seconds` is what the run's command took.

    None where there is no plan, where the plan leaves something out, or where the run did not do at one go just what was
    planned (it went on from an earlier stop, or stages were done meanwhile), or where plan or manifest cannot be read.
    """
    try:
        path = run.path.parent / FOLDER / f"{run.name}.json"
        return _compare(Plan.from_dict(json.loads(path.read_text(encoding="utf-8"))), run.manifest, seconds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, StoreError):
        return None


def _compare(planned: Plan, manifest: Mapping[str, Any], seconds: float) -> Comparison | None:
    created = datetime.datetime.fromisoformat(manifest["created"])
    begun = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds + 1)
    done = [(stage["kind"], stage["reused"]) for stage in manifest["stages"]]
    expected = [(stage.kind, stage.done) for stage in planned.stages]
    if planned.unknown or done != expected or created < begun:
        return None
    costs = [stage["cost"] for stage in manifest["stages"] if not stage["reused"]]
    tokens = sum(cost["sampled_tokens"] + cost["trained_tokens"] for cost in costs)
    expected_tokens = planned.total("sampled_tokens").mid + planned.total("trained_tokens").mid
    return Comparison(expected_tokens, tokens, planned.total("seconds").mid, seconds)
