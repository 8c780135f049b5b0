"""Selector `distinct_reasoning`: one correct completion per distinct way of reasoning.

Row 1 (RFT, Yuan et al. 2023, arXiv 2308.01825), steps 3b, 4 and 6.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from tamis.context import Context
from tamis.equations import FINDERS, GSM8K_MARKS, Finder, check_equations, modular, reasoning_key, safe_arithmetic
from tamis.errors import ConfigError
from tamis.pool import Pool, Selection
from tamis.records import Completion
from tamis.registry import option, selector
from tamis.selectors import core

Distance = Callable[[str, str], float]


def levenshtein(a: str, b: str) -> float:
    """Return the least number of inserted, deleted or replaced characters that turn a into b."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a, b)


def word_levenshtein(a: str, b: str) -> float:
    """Return the Levenshtein distance over words instead of characters."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a.split(), b.split())


DISTANCES: dict[str, Distance] = {"levenshtein": levenshtein, "words": word_levenshtein}


def distinct_reasoning(
    completions: list[str],
    *,
    equations: Finder = GSM8K_MARKS,
    distance: Distance = levenshtein,
    per_prompt: int | None = None,
) -> list[int]:
    """Return the indices of one completion per distinct ordered list of equations, in slot order.

    `completions` are the correct ones of one prompt, in sample order. Each new key (see `equations.reasoning_key`; "" is a
    key as well) opens a slot. A later completion y with the key of slot i replaces it when its summed distance to all
    other slots is larger than that of the one there; ties keep the first. `per_prompt` then caps by farthest-first: slot 0,
    then the slot whose least distance to those taken is largest, ties to the lower slot. Every pair's distance is
    computed at most once. Raises ValueError for per_prompt < 1.
    """
    if per_prompt is not None and per_prompt < 1:
        raise ValueError(f"per_prompt must be at least 1, not {per_prompt}")
    keys = [reasoning_key(text, equations) for text in completions]
    slot_of = {key: slot for slot, key in enumerate(dict.fromkeys(keys))}
    kept: list[int] = []
    if len(slot_of) == len(completions) and per_prompt is None:
        return list(range(len(completions)))
    between = np.zeros((len(slot_of), len(slot_of)))
    for index, key in enumerate(keys):
        slot = slot_of[key]
        row = _distances(distance, completions[index], [completions[i] for i in kept])
        if slot == len(kept):
            kept.append(index)
            between[slot, :slot] = between[:slot, slot] = row
            continue
        row[slot] = 0
        if row.sum() > between[slot, : len(kept)].sum():
            kept[slot] = index
            between[slot, : len(kept)] = between[: len(kept), slot] = row
    if per_prompt is None or per_prompt >= len(kept):
        return kept
    return [kept[slot] for slot in sorted(_farthest_first(between, per_prompt))]


def _distances(distance: Distance, text: str, others: Sequence[str]) -> np.ndarray:
    if distance is levenshtein and others:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        return cdist([text], others, scorer=Levenshtein.distance)[0].astype(np.float64)
    return np.array([distance(text, other) for other in others], dtype=np.float64)


def _farthest_first(between: np.ndarray, k: int) -> list[int]:
    """Return k slots: 0, then each time the one farthest from those taken (ties to the lower)."""
    taken = [0]
    nearest = between[0].copy()
    while len(taken) < k:
        nearest[taken] = -1
        taken.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, between[taken[-1]])
    return taken


def merge_models(completions: Mapping[str, Sequence[Completion]], order: Sequence[str]) -> list[Completion]:
    """Return the completions of several models as one list: prompts as first seen, models in `order` within a prompt.

    Raises ValueError for a name that is twice in `order`, unknown, or left out.
    """
    if len(set(order)) != len(order):
        twice = next(name for name in order if list(order).count(name) > 1)
        raise ValueError(f"model '{twice}' is named twice in the order")
    if set(order) != set(completions):
        raise ValueError(f"the order names {sorted(order)}, the completions are of {sorted(completions)}")
    by_prompt: dict[str, list[Completion]] = {}
    for name in order:
        for completion in completions[name]:
            by_prompt.setdefault(completion.prompt_id, []).append(completion)
    return [c for group in by_prompt.values() for c in group]


@selector(
    "distinct_reasoning", row=1, paper="Scaling Relationship on Learning Mathematical Reasoning (Yuan et al. 2023)"
)
class DistinctReasoning:
    """Keep one correct completion per distinct list of equations and prompt, the most different ones.

    Two accepted completions reason alike when they state the same equations in the same order. Of those the one with the
    larger summed Levenshtein distance to the prompt's other kept ones stays. Completions that state a false equation are
    written aside first. With samples of several models (`models`), the union is reduced once. A prompt without an
    accepted path is counted. O(n * slots) distances per prompt.
    """

    per_prompt: int | None = option(None, "most completions of a prompt, chosen farthest-first", source="ours", ge=1)
    finder: Literal["marks", "infix", "auto"] = option(
        "auto", "where equations stand: between << and >>, plain 'x op y = z', or marks where a text has them"
    )
    check_arithmetic: bool = option(True, "leave out completions that state a false equation", source="paper")
    modulus: int | None = option(None, "check equations modulo this number (for the lab's small worlds)", ge=2)
    distance: Literal["levenshtein", "words"] = option(
        "levenshtein", "edit distance over characters, or over words", source="code"
    )
    models: tuple[str, ...] = option((), "order of the models in a union of samples; empty: the pool's order")
    threshold: float = option(0.5, "least score of an accepted completion")

    def __post_init__(self) -> None:
        if len(set(self.models)) != len(self.models):
            raise ValueError("`models` names a model twice")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, prompts in pool order, in slot order."""
        equations, distance = FINDERS[self.finder], DISTANCES[self.distance]
        chosen: list[int] = []
        accepted = distinct = 0
        for indices in pool.by_prompt.values():
            paths = [i for i in self._ordered(pool, indices) if self._usable(pool, i, ctx)]
            texts = [pool.completions[i].text for i in paths]
            slots = distinct_reasoning(texts, equations=equations, distance=distance, per_prompt=self.per_prompt)
            chosen += [paths[slot] for slot in slots]
            accepted += len(paths)
            distinct += len({reasoning_key(text, equations) for text in texts})
            if not paths:
                ctx.count("prompts without an accepted path")
        ctx.count("same reasoning as a kept one", accepted - distinct)
        if distinct > len(chosen):
            ctx.count("over per_prompt", distinct - len(chosen))
        prompts = max(1, len(pool.by_prompt))
        reason = "" if chosen else core.NOTHING_ACCEPTED
        kept = np.array(chosen, dtype=np.int64)
        return core.selection(pool, kept, reason, accepted=accepted, paths_per_prompt=len(chosen) / prompts)

    def _usable(self, pool: Pool, index: int, ctx: Context) -> bool:
        completion = pool.completions[index]
        if not pool.accepted(index, self.threshold):
            return False
        if not completion.text.strip():
            ctx.drop(completion.id, "empty response")
            return False
        evaluate = modular(self.modulus) if self.modulus else safe_arithmetic
        if self.check_arithmetic and not check_equations(
            completion.text, equations=FINDERS[self.finder], evaluate=evaluate
        ):
            ctx.drop(completion.id, "states a false equation")
            return False
        return True

    def _ordered(self, pool: Pool, indices: Sequence[int]) -> list[int]:
        if not self.models:
            return list(indices)
        of: dict[str, list[Completion]] = {name: [] for name in self.models}
        at: dict[str, int] = {}
        for i in indices:
            completion = pool.completions[i]
            if completion.model not in of:
                raise ConfigError(
                    f"the pool has completions of '{completion.model}', which `models` does not name",
                    where="selector 'distinct_reasoning'.models",
                    hint=f"Named: {', '.join(self.models)}.",
                )
            of[completion.model].append(completion)
            at[completion.id] = i
        return [at[c.id] for c in merge_models(of, self.models)]
