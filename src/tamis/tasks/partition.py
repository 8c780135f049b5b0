"""Which rows of a data set are taken, and for which side, decided from 16-byte keys alone.

The first pass over the data adds every row; `Partition.settle` gives each its fate. Keys lie in temporary files beyond a few
megabytes: 20 bytes a row on disk (as much again for ids, and for exact marks), and at most about 15 in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt

from tamis.errors import ConfigError, DataError
from tamis.tasks.splits import heldout_count

DEFAULT_SHARE = 0.2
TRAIN, HELDOUT, LEFT_OUT, ALSO_HELDOUT, DUPLICATE, DUPLICATE_ID = range(6)
"""What becomes of a row; the first two are its side, the others say why it is left out."""
SIDES = ("", "train", "heldout")

_PARTS = 64
_IN_MEMORY = 1 << 16
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<u4")])
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint32]


class Keys:
    """Rows by 16-byte key, read back part by part in the order of the keys."""

    def __init__(self) -> None:
        self._parts = [SpooledTemporaryFile(_IN_MEMORY) for _ in range(_PARTS)]  # noqa: SIM115

    def add(self, key: bytes, row: int) -> None:
        """Add a row; rows come in ascending order."""
        self._parts[key[0] * _PARTS >> 8].write(key + row.to_bytes(4, "little"))

    def parts(self) -> Iterator[npt.NDArray[Any]]:
        """Yield arrays of (high, low, row), each sorted by key and row; the keys of a part are above those before it."""
        for part in self._parts:
            part.seek(0)
            found = np.frombuffer(part.read(), _ENTRY)
            yield found[np.lexsort((found["low"], found["high"]))]

    def close(self) -> None:
        """Remove the temporary files."""
        for part in self._parts:
            part.close()


def _same(part: npt.NDArray[Any]) -> Mask:
    """Return for each entry but the first whether its key is that of the entry before."""
    return (part["high"][1:] == part["high"][:-1]) & (part["low"][1:] == part["low"][:-1])


def repeats(keys: Keys, sides: npt.NDArray[np.uint8], skip: Mask) -> Mask:
    """Return for each row whether an earlier one of the same side, not in `skip`, has its key."""
    found, present = np.zeros(len(sides), bool), np.unique(sides)
    for part in keys.parts():
        kept = part[~skip[part["row"]]]
        for side in present:
            own = kept[sides[kept["row"]] == side]
            found[own["row"][1:][_same(own)]] = True
    return found


def first(counts: Numbers, wanted: int) -> Mask:
    """Return which groups are taken, in order, as long as they fit into `wanted` rows; one that does not is passed over."""
    sums = np.cumsum(counts, dtype=np.int64)
    fitting = int(np.searchsorted(sums, wanted, "right"))
    taken = np.zeros(len(counts), bool)
    taken[:fitting] = True
    left = wanted - (int(sums[fitting - 1]) if fitting else 0)
    for group in range(fitting, len(counts)):
        if not left:
            break
        if counts[group] <= left:
            taken[group] = True
            left -= int(counts[group])
    return taken & (counts > 0)


@dataclass(frozen=True)
class Wishes:
    """What is asked of a partition, as the options of the task "data" say it."""

    heldout: float | int
    size: int | None
    dedupe: str
    leakage: str
    seed: int


class Partition:
    """Rows by key, given side and id, and then their fates."""

    def __init__(self) -> None:
        self.keys, self.marks, self.ids = Keys(), Keys(), Keys()
        self._sides = bytearray()

    def __len__(self) -> int:
        return len(self._sides)

    def __enter__(self) -> "Partition":
        return self

    def __exit__(self, *failure: object) -> None:
        for keys in (self.keys, self.marks, self.ids):
            keys.close()

    def add(self, side: str, key: bytes, mark: bytes | None, row_id: bytes | None) -> None:
        """Add the next row: its given side ("" for none), its key, its exact mark where that decides, its id's hash."""
        row = len(self._sides)
        self._sides.append(SIDES.index(side))
        self.keys.add(key, row)
        if mark is not None:
            self.marks.add(mark, row)
        if row_id is not None:
            self.ids.add(row_id, row)

    def duplicates(self, dedupe: str) -> tuple[Mask, Mask]:
        """Return which rows repeat an id, and which of the others repeat a prompt."""
        sides = np.frombuffer(self._sides, np.uint8)
        same_id = repeats(self.ids, sides, np.zeros(len(sides), bool))
        if dedupe == "none":
            return same_id, np.zeros(len(sides), bool)
        return same_id, repeats(self.keys if dedupe == "normalised" else self.marks, sides, same_id)

    def settle(self, wishes: Wishes, where: str) -> tuple[npt.NDArray[np.uint8], Mask]:
        """Return the fate of every row, and whether other rows with its key stay beside it.

        Raises `Leak` where training prompts are also held out and that is refused, DataError where nothing is left to train
        on, ConfigError where a share is asked of data that say themselves what is held out.
        """
        same_id, duplicate = self.duplicates(wishes.dedupe)
        groups, total = self._groups()
        sides, live = np.frombuffer(self._sides, np.uint8), ~(same_id | duplicate)
        if sides.any():
            fates = self._by_given_side(wishes, groups, total, live, where)
        else:
            heldout, taken = self._chosen(wishes, _count(groups[live], total), where)
            fates = np.where(taken[groups], np.uint8(TRAIN), np.uint8(LEFT_OUT))
            fates[heldout[groups]] = HELDOUT
        fates[duplicate & (fates <= HELDOUT)] = DUPLICATE
        fates[same_id] = DUPLICATE_ID
        return fates, _count(groups[fates <= HELDOUT], total)[groups] > 1

    def _groups(self) -> tuple[Numbers, int]:
        """Return each row's group (rows of equal keys, numbered in the order of the keys) and how many groups there are."""
        groups, total = np.zeros(len(self), np.uint32), 0
        for part in self.keys.parts():
            if len(part):
                groups[part["row"]] = total + np.concatenate([[0], np.cumsum(~_same(part))]).astype(np.uint32)
                total = int(groups[part["row"][-1]]) + 1
        return groups, total

    def _chosen(self, wishes: Wishes, counts: Numbers, where: str) -> tuple[Mask, Mask]:
        """Return which groups are held out, and which are taken at all, of data that do not say it themselves."""
        taken = counts > 0
        if wishes.size is not None:
            share = isinstance(wishes.heldout, float)
            wanted = round(wishes.size / (1 - wishes.heldout)) if share else wishes.size + int(wishes.heldout)
            taken = self._drawn(counts, wanted, wishes.seed)
        total = int(counts[taken].sum())
        heldout = first(counts * taken, heldout_count(total, wishes.heldout))
        if heldout.sum() == taken.sum():
            raise DataError(
                f"all {total} prompts are held out, none is left to train on",
                where=where,
                hint="Lower 'heldout' or give more data.",
            )
        return heldout, taken

    def _drawn(self, counts: Numbers, wanted: int, seed: int) -> Mask:
        """Return the groups that are taken when `wanted` rows are, in an order drawn from the seed and each key alone."""
        salt, drawn, number = seed.to_bytes(16, "big", signed=True), Keys(), 0
        for part in self.keys.parts():
            for entry in part[np.concatenate([[True], ~_same(part)])] if len(part) else part:
                drawn.add(blake2b(entry.tobytes()[:16], digest_size=16, salt=salt).digest(), number)
                number += 1
        order = np.concatenate([part["row"] for part in drawn.parts()])
        drawn.close()
        taken = np.zeros(len(counts), bool)
        taken[order[first(counts[order], wanted)]] = True
        return taken

    def _by_given_side(
        self, wishes: Wishes, groups: Numbers, total: int, live: Mask, where: str
    ) -> npt.NDArray[np.uint8]:
        if isinstance(wishes.heldout, float) and wishes.heldout != DEFAULT_SHARE:
            raise ConfigError(
                f"heldout: {wishes.heldout} does nothing, the data says what is held out",
                where="task 'data'",
                hint="Leave it out, or give a whole number to cap the held-out side.",
            )
        training = np.frombuffer(self._sides, np.uint8) == SIDES.index("train")
        train, heldout = _count(groups[live & training], total), _count(groups[live & ~training], total)
        both = (train > 0) & (heldout > 0)
        if both.any() and wishes.leakage == "refuse":
            raise Leak(int(both.sum()), int((heldout > 0).sum()), _meeting(groups, training, both))
        held = first(heldout, wishes.heldout) if isinstance(wishes.heldout, int) else heldout > 0
        left = train * ~held if wishes.leakage == "drop" else train
        if not left.any():
            raise DataError("no training prompt is left", where=where, hint="Check the split of the data.")
        taken = left > 0 if wishes.size is None else self._drawn(left, wishes.size, wishes.seed)
        kept = np.where(training, taken[groups], held[groups])
        fates = np.where(kept, np.where(training, np.uint8(TRAIN), np.uint8(HELDOUT)), np.uint8(LEFT_OUT))
        if wishes.leakage == "drop":
            fates[training & held[groups]] = ALSO_HELDOUT
        return fates


class Leak(Exception):
    """Training prompts that are also held out: `both` of the `heldout` different held-out prompts; `row` shows the first."""

    def __init__(self, both: int, heldout: int, row: int) -> None:
        super().__init__(both, heldout, row)
        self.both, self.heldout, self.row = both, heldout, row


def _count(groups: Numbers, total: int) -> Numbers:
    counts = np.zeros(total, np.uint32)
    np.add.at(counts, groups, 1)
    return counts


def _meeting(groups: Numbers, training: Mask, both: Mask) -> int:
    """Return the first row whose group has been on the other side before."""
    seen: dict[int, bool] = {}
    for row in np.flatnonzero(both[groups]).tolist():
        if seen.setdefault(int(groups[row]), bool(training[row])) != training[row]:
            return row
    raise AssertionError("no group is on both sides")
