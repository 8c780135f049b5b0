"""What a component is handed besides its records: seed, model, judge, and where to count what it drops."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis import hashing
from tamis.records import Completion, Prompt, Verdict
from tamis.replies import Replies

if TYPE_CHECKING:
    from tamis.judges.pairs import Pair
    from tamis.models.chat import ChatFormat

Judge = Callable[[Mapping[str, Prompt], Sequence[Completion]], list[Verdict]]


@dataclass
class Context:
    """Handed to every component call.

    `model` offers the capabilities the component asked for in `needs`: the run's model, or the one that the component's option
    `model` names. `chat` is the chat format of the model to be tuned, `embed` maps texts to (N, d) float32 unit vectors
    where the component needs "embedder". `judge` and `compare` ask the judge of the stage, about completions one by one and
    in pairs. `shared` is what a barrier computed from all records; `replies` what models answered to questions before
    (`tamis.asking.ask`).
    """

    seed: int = 0
    model: Any = None
    chat: "ChatFormat | None" = None
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    judge: Judge | None = None
    compare: Callable[["Sequence[Pair]"], list[Verdict]] | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    replies: Replies = field(default_factory=Replies)

    def rng(self, *parts: Any) -> np.random.Generator:
        """Return a generator derived from the seed and `parts` (a record id, an index), never from call order."""
        return hashing.rng(self.seed, *parts)

    def count(self, what: str, n: int = 1) -> None:
        """Count something for the report."""
        self.counts[what] += n

    def drop(self, record: str, reason: str, **detail: Any) -> None:
        """Count a record that is left out and write it aside with its reason. `record` is an id or "file:line"."""
        self.counts[f"dropped: {reason}"] += 1
        self.dropped.append({"record": record, "reason": reason, **detail})
