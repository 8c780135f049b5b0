"""What evaluators ask for and what they return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamis.context import Context
from tamis.pool import Pool
from tamis.records import Law, Prompt


@dataclass(frozen=True)
class Draw:
    """A request of an evaluator: `n` completions per held-out prompt under `law`."""

    law: Law
    n: int = 1


@dataclass(frozen=True)
class View:
    """What an evaluator sees of one model: held-out prompts, a judged pool per draw it asked for, and the model itself.

    `model` offers at least the capabilities the evaluator named in `needs`; figures made from `pools` alone need none. `ctx` is
    what an evaluator asks with: its model is the one of the evaluator's option `model`, else the untuned one, the same for
    both sides of a comparison, and is there where the evaluator sets `asks = True`.
    """

    prompts: Sequence[Prompt]
    pools: Mapping[Draw, Pool]
    model: Any = None
    ctx: Context = field(default_factory=Context)


@dataclass(frozen=True)
class Metric:
    """One figure with its 95% interval. `per_item` maps prompt ids to the prompt's own value, for paired comparison;
    it is empty where the figure is no mean over all prompts.

    `item_unit` is the unit of `per_item`, and of the paired difference, where it is not that of `value`. `n` is the number
    of prompts that count. `notes` holds counts worth showing (unparseable answers, truncated completions).
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    per_item: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    item_unit: str = ""
    higher_is_better: bool = True
    notes: Mapping[str, float | int | str] = field(default_factory=dict)
