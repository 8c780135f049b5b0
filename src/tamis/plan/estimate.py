"""What a plan says: spans (low, middle, high) of what each stage of a run will take, and their sums."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SUMMED = ("completions", "sampled_tokens", "prompt_tokens", "judge_calls", "examples", "trained_tokens", "seconds")


@dataclass(frozen=True)
class Span:
    """An estimate and the range it comes from; all three are equal where the figure is known."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0

    @classmethod
    def exact(cls, value: float) -> "Span":
        """Return a span without width."""
        return cls(value, value, value)

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.mid + other.mid, self.high + other.high)

    def __mul__(self, factor: float) -> "Span":
        return Span(self.low * factor, self.mid * factor, self.high * factor)

    def widened(self, low: float, high: float) -> "Span":
        """Return the span with its ends multiplied by `low` <= 1 and `high` >= 1."""
        return Span(self.low * low, self.mid, self.high * high)

    @property
    def spread(self) -> tuple[float, float]:
        """Low and high as shares of the middle; (1, 1) around zero."""
        return (self.low / self.mid, self.high / self.mid) if self.mid else (1.0, 1.0)


def total(seen: Sequence[float], population: int) -> Span:
    """Return the sum over `population` items of which `seen` were drawn at random: mean, and two standard errors around it.

    The standard error has the finite-population correction, so that it is 0 when all were seen; the range never falls below
    what was seen already. One item alone of several has no known spread and gives (seen, seen * population, the same).
    """
    n = len(seen)
    mid, known = float(np.mean(seen)) * population, float(np.sum(seen))
    if n == population:
        return Span.exact(known)
    if n == 1:
        return Span(known, mid, mid)
    half = 2 * float(np.std(seen, ddof=1)) / math.sqrt(n) * math.sqrt(1 - n / population) * population
    return Span(max(known, mid - half), mid, mid + half)


@dataclass(frozen=True)
class StagePlan:
    """What one stage is expected to take: counts, seconds, most memory of the process and bytes left on the disk.

    `done`: finished in the runs folder already, so it costs nothing. `note` says what could not be known.
    """

    kind: str
    component: str
    done: bool = False
    prompts: int = 0
    completions: Span = Span()
    sampled_tokens: Span = Span()
    prompt_tokens: Span = Span()
    judge_calls: Span = Span()
    examples: Span = Span()
    trained_tokens: Span = Span()
    seconds: Span = Span()
    memory: int = 0
    disk: int = 0
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run is expected to take. `run` is the run folder's name; `started` are the seconds outside of the stages.

    `memory` is the most the process holds, `device_memory` the most on an accelerator, in bytes; `scratch` are bytes on the
    disk that are needed only while it trains; `calibration` is how long the plan itself took, `requests` what it asked of
    an endpoint. `unknown` names what could not be estimated; the sums leave it out.
    """

    run: str
    stages: list[StagePlan]
    start: float
    memory: int
    device_memory: int
    scratch: int
    calibration: float
    requests: int = 0
    unknown: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)

    def total(self, what: str) -> Span:
        """Return the sum of a figure over the stages; that of seconds includes start-up and report."""
        first = Span.exact(self.start) if what == "seconds" else Span()
        return sum((getattr(stage, what) for stage in self.stages), first)

    @property
    def disk(self) -> int:
        """Bytes that the run leaves on the disk."""
        return sum(stage.disk for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, with its sums under "total"."""
        return {**asdict(self), "total": {what: asdict(self.total(what)) for what in SUMMED} | {"disk": self.disk}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """Return the plan that `to_dict` wrote. Raises KeyError, TypeError or AttributeError for anything else."""
        fields = {name: value for name, value in data.items() if name != "total"}
        return cls(**{**fields, "stages": [_stage(row) for row in data["stages"]]})


def _stage(row: Mapping[str, Any]) -> StagePlan:
    fields: dict[str, Any] = {n: Span(**value) if isinstance(value, Mapping) else value for n, value in row.items()}
    return StagePlan(**fields)
