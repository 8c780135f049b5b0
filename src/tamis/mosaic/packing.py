"""Which rows go into one mosaic: every pass takes each row once, in an order of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import numpy as np

from tamis import hashing
from tamis.errors import ConfigError, nearest
from tamis.mosaic.rules import STRATEGIES, Sizes, Version, draw_size
from tamis.mosaic.texts import Mosaic, write_mosaic
from tamis.mosaic.wordings import DEFAULT, Wordings

Count = Callable[[Sequence[str]], np.ndarray]
"""Maps texts to their numbers of tokens, (N,) int64."""


class Row(NamedTuple):
    """One instruction and its response."""

    instruction: str
    response: str


@dataclass(frozen=True)
class Packing:
    """How rows become mosaics.

    Each of `passes` passes orders the rows by hash(seed, pass, row id); a row's id is the hash of its content and of how many
    equal rows came before it, so the order of the data does not matter. A mosaic wants a size drawn by `sizes` (`draw_size`)
    and takes the next rows one by one while its instruction and output together, as they are written, have fewer than
    `max_tokens` tokens; what is left over begins the next one. All draws of a mosaic come from hash(seed, pass, its number).

    A row with `max_tokens` tokens or more by itself is skipped altogether. One that reaches them only with the words of the
    rule it drew is skipped in that pass. Raises ConfigError for sizes, limits or a version that cannot be.
    """

    sizes: Sizes = "uniform"
    max_rows: int = 10
    max_tokens: int = 2000
    passes: int = 4
    version: Version = "both"
    wordings: Wordings = DEFAULT
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "passes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name, known in (("version", STRATEGIES), ("sizes", get_args(Sizes))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}: there is no '{getattr(self, name)}'", hint=nearest(getattr(self, name), known)
                )

    def mosaics(self, rows: Sequence[Row], count: Count, skip: Callable[[int, int | None], None]) -> Iterator[Mosaic]:
        """Yield the mosaics of all passes. `skip(row, part)` is told of each row left out, of all passes (None) or of one.

        Raises ConfigError when no row is short enough, DataError for an empty instruction or response.
        """
        lengths = count([f"{row.instruction}\n{row.response}" for row in rows]).tolist() if rows else []
        fitting = [i for i, length in enumerate(lengths) if length < self.max_tokens]
        if rows and not fitting:
            raise ConfigError(
                f"max_tokens: {self.max_tokens} is too small, the shortest row has {min(lengths)} tokens",
                hint="Set it higher; instruction and response count.",
            )
        for i in sorted(set(range(len(rows))) - set(fitting)):
            skip(i, None)
        ids = row_ids(rows)
        for part in range(self.passes):
            order = sorted(fitting, key=lambda i: hashing.digest(self.seed, part, ids[i]))
            yield from self._pass(part, order, rows, count, skip)

    def _pass(
        self,
        part: int,
        order: Sequence[int],
        rows: Sequence[Row],
        count: Count,
        skip: Callable[[int, int | None], None],
    ) -> Iterator[Mosaic]:
        at = number = 0
        most = len(order) if self.sizes == "max" else self.max_rows
        while at < len(order):
            made = self._mosaic(part, number, order[at : at + most], rows, count)
            if made is None:
                skip(order[at], part)
                at += 1
            else:
                yield made
                at += len(made.rows)
            number += 1

    def _mosaic(self, part: int, number: int, ahead: Sequence[int], rows: Sequence[Row], count: Count) -> Mosaic | None:
        """The mosaic of as many of the rows `ahead` as it wants and as fit; None when the first does not fit."""

        def written(n: int) -> Mosaic | None:
            taken = tuple(ahead[:n])
            instructions, responses = zip(*(rows[i] for i in taken), strict=True)
            rng = hashing.rng(self.seed, "mosaic", part, number)
            made = write_mosaic(instructions, responses, rng, self.version, self.wordings)
            fits = int(count([made.prompt, made.output]).sum()) < self.max_tokens
            return replace(made, rows=taken, part=part) if fits else None

        wanted = draw_size(self.sizes, self.max_rows, hashing.rng(self.seed, "mosaic size", part, number))
        whole = written(min(wanted, len(ahead))) if wanted else None
        if whole is not None:
            return whole
        best = None
        for n in range(1, min(wanted or len(ahead), len(ahead)) + 1):
            made = written(n)
            if made is None:
                break
            best = made
        return best


def row_ids(rows: Sequence[Row]) -> list[str]:
    """Return an id per row: the hash of its content and of how many equal rows came before it."""
    seen: dict[Row, int] = {}
    found = []
    for row in rows:
        seen[row] = seen.get(row, -1) + 1
        found.append(hashing.digest("mosaic row", row.instruction, row.response, seen[row]))
    return found
