"""reasoning-gym: its data sets by name, and their own scorers where these do not run a model's text as code."""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tamis.errors import ConfigError, nearest
from tamis.hashing import canonical

BLOCK = 500

REFUSED = {
    "codeio": "the programs it runs give other results from run to run",
    "composite": "it mixes other data sets; use these by their own names",
}
"""Data sets that cannot be used, and why."""

HASH_ORDERED = frozenset(
    ["isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"]
)
"""Data sets whose items follow the order of Python sets, which differs between processes unless PYTHONHASHSEED is 0."""

EVALUATING_SCORERS = frozenset(
    [
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    ]
)
"""Data sets whose scorer hands the answer to `eval` or to SymPy's `parse_expr`, which evaluates it. Never called."""

_FULL = 1 - 1e-6
_LONGEST = 20_000


def names() -> list[str]:
    """Return the names of all reasoning-gym data sets that can be used."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - REFUSED.keys())


def open_block(name: str, seed: int, options: Mapping[str, Any]) -> Any:
    """Return a reasoning-gym data set of `BLOCK` items; item i is drawn with seed + i.

    The size is fixed because some data sets prepare all items when they are made, or make them depend on the size.
    Raises ConfigError for an unknown name or option (with the nearest one), for a value it refuses and for a data
    set whose items could not be drawn again.
    """
    from reasoning_gym.factory import DATASETS, create_dataset

    where = f"reasoning_gym '{name}'"
    if name in REFUSED:
        raise ConfigError(f"the data set cannot be used: {REFUSED[name]}", where=where)
    if name not in DATASETS:
        raise ConfigError(f"unknown reasoning_gym data set '{name}'", hint=nearest(name, names()))
    if name in HASH_ORDERED and sys.flags.hash_randomization:
        raise ConfigError(
            "its items would differ in the next process, because they follow the order of Python sets",
            where=where,
            hint="Set PYTHONHASHSEED=0 in the environment before Python starts.",
        )
    known = {f.name for f in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for option in options:
        if option not in known:
            raise ConfigError(f"unknown option '{option}'", where=where, hint=nearest(option, known))
    try:
        return create_dataset(name, seed=seed, size=BLOCK, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"the options are refused: {error}", where=where, hint=f"Options: {sorted(known)}") from None


def has_scorer(name: str) -> bool:
    """Whether a data set scores answers in a way of its own that is safe to call."""
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    return (
        name in DATASETS
        and name not in EVALUATING_SCORERS
        and DATASETS[name][0].score_answer is not ProceduralDataset.score_answer
    )


def draw(block: Any, index: int) -> dict[str, Any]:
    """Return item `index` of a block, the same each time: the global generators some data sets use are seeded for it.

    What a data set prints is discarded. Raises IndexError where the data set has run out of items.
    """
    import random

    import numpy as np

    kept, kept_numpy = random.getstate(), np.random.get_state()
    random.seed(block.seed + index)
    np.random.seed((block.seed + index) % 2**32)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return block[index]
    finally:
        random.setstate(kept)
        np.random.set_state(kept_numpy)


@lru_cache(maxsize=64)
def _block(name: str, seed: int, options: str) -> Any:
    return open_block(name, seed, json.loads(options))


@lru_cache(maxsize=4096)
def _entry(name: str, seed: int, index: int, options: str) -> dict[str, Any]:
    return draw(_block(name, seed, options), index)


def entry(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the item that a prompt's metadata ("dataset", "seed", "index", "options") names, drawn again."""
    return _entry(origin["dataset"], origin["seed"], origin["index"], canonical(origin["options"]))


def is_right(candidates: Sequence[str], origin: Mapping[str, Any]) -> bool | None:
    """Whether the data set's own scorer gives full marks to any of the candidate answers; None when it can read none.

    Raises ConfigError for a data set without a scorer that is safe to call.
    """
    name = origin["dataset"]
    if not has_scorer(name):
        raise ConfigError(
            f"reasoning_gym '{name}' has no scorer that can be used: "
            + ("it would run the answer as code" if name in EVALUATING_SCORERS else "it compares with the gold text"),
            hint="Use the answer judge with kind 'auto', 'exact', 'numeric' or 'python'.",
        )
    item = entry(origin)
    dataset = _block(name, origin["seed"], canonical(origin["options"]))
    marks = [_marks(dataset, c, item) for c in candidates if 0 < len(c) <= _LONGEST]
    readable = [m for m in marks if m is not None]
    return any(m >= _FULL for m in readable) if readable else None


def _marks(dataset: Any, answer: str, item: dict[str, Any]) -> float | None:
    """Return the scorer's mark; None where it raises, as several do on text they cannot read."""
    try:
        return float(dataset.score_answer(answer, item))
    except Exception:
        return None
