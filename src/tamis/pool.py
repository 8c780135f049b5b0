"""The pool: completions with their prompts and verdicts, as selectors, composers and evaluators see them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tamis.errors import ConfigError
from tamis.records import Completion, Prompt, Verdict


@dataclass
class Pool:
    """Completions in sample order, their prompts by id and their verdicts.

    `weights` (N,) float64 come from a selector, 1 elsewhere. `embed` maps texts to a (N, d) float32 array and is None where
    the run has no embedder; `count_tokens` maps texts to an (N,) int64 array of token counts of the model to be tuned.
    """

    prompts: dict[str, Prompt]
    completions: list[Completion]
    verdicts: list[Verdict] = field(default_factory=list)
    weights: np.ndarray | None = None
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    count_tokens: Callable[[Sequence[str]], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def verdicts_of(self) -> dict[str, list[Verdict]]:
        """Verdicts by completion id, in the order they were given."""
        found: dict[str, list[Verdict]] = {}
        for verdict in self.verdicts:
            for completion_id in verdict.completion_ids:
                found.setdefault(completion_id, []).append(verdict)
        return found

    @cached_property
    def by_prompt(self) -> dict[str, list[int]]:
        """Indices of the completions of each prompt, prompts and indices in pool order."""
        groups: dict[str, list[int]] = {}
        for index, completion in enumerate(self.completions):
            groups.setdefault(completion.prompt_id, []).append(index)
        return groups

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of completion `index`."""
        return self.prompts[self.completions[index].prompt_id]

    def score(self, index: int) -> float | None:
        """Return the last pointwise score of completion `index`; None where it has none."""
        scores = [
            v.score
            for v in self.verdicts_of.get(self.completions[index].id, ())
            if len(v.completion_ids) == 1 and v.score is not None
        ]
        return scores[-1] if scores else None

    def scores(self) -> np.ndarray:
        """Return all scores as (N,) float64. Raises ConfigError when a completion has none."""
        values = [self.score(i) for i in range(len(self))]
        for index, value in enumerate(values):
            if value is None:
                raise ConfigError(
                    f"completion {self.completions[index].id} has no score",
                    hint="Put a judge stage that gives scores before this stage.",
                )
        return np.array(values, dtype=np.float64)

    def judged(self) -> bool:
        """Whether any verdict is there."""
        return bool(self.verdicts)

    def accepted(self, index: int, threshold: float = 0.5) -> bool:
        """Whether completion `index` has a score of at least `threshold`; without any verdict in the pool all are accepted."""
        if not self.judged():
            return True
        score = self.score(index)
        return score is not None and score >= threshold

    def weight(self, index: int) -> float:
        """Return the selector's weight of completion `index`, 1.0 where none was given."""
        return 1.0 if self.weights is None else float(self.weights[index])

    def take(self, indices: Sequence[int], weights: np.ndarray | None = None) -> "Pool":
        """Return the pool of the completions at `indices` (repeats allowed), with their weights."""
        return Pool(
            self.prompts,
            [self.completions[i] for i in indices],
            self.verdicts,
            weights,
            self.embed,
            self.count_tokens,
        )


@dataclass(frozen=True)
class Selection:
    """What a selector picked: `indices` (k,) int64 into the pool, `weights` (k,) float64 or None, `reason` when fewer than
    asked were picked, and `notes` (counts, figures) for the report."""

    indices: np.ndarray
    weights: np.ndarray | None = None
    reason: str = ""
    notes: dict[str, float | int | str] = field(default_factory=dict)
