"""A server that does not answer: what it left is taken out of a stage's folder, so that the same command asks again."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tamis import files
from tamis.asking.ask import silence, unanswered
from tamis.errors import ModelError
from tamis.records import Completion
from tamis.store import StageFolder

NO_ROOM = "the prompt leaves no room in the context"
Log = Callable[..., None]


def check_drawn(folder: StageFolder, groups: Sequence[str], log: Log) -> None:
    """Raise ModelError where every completion of these groups of units failed for want of a server's answer.

    The groups are taken out of the folder first, so that the same command asks again.
    """
    tables = (t for group in groups for t in folder.tables(Completion, group, columns=["finish_reason"]))
    ends = Counter(reason for table in tables for reason in table["finish_reason"].to_pylist())
    if not ends or ends["error"] < ends.total():
        return
    if reasons := _reasons(unit for group in groups for unit in folder.units(group)):
        _take_out(folder, groups, reasons, log)
        raise unanswered("completion", reasons, folder.path.name)


def check_asked(folder: StageFolder, groups: Sequence[str], log: Log) -> None:
    """Raise ModelError where a server answered none of the questions that these groups of units asked.

    The groups are taken out of the folder first, so that the same command asks again.
    """
    counts, dropped = Counter[str](), []
    for unit in (unit for group in groups for unit in folder.units(group)):
        counts.update(unit["counts"])
        dropped += unit["dropped"]
    if reasons := silence(counts, dropped):
        _take_out(folder, groups, reasons, log)
        raise unanswered("question to the model", reasons, folder.path.name)


def _reasons(units: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return a server's reasons for the completions that failed, counted."""
    rows = (row for unit in units for row in unit["dropped"] if "prompt" in row)
    return Counter(row["reason"] for row in rows if row["reason"] != NO_ROOM)


def _take_out(folder: StageFolder, groups: Sequence[str], reasons: Counter[str], log: Log) -> None:
    for reason, n in reasons.most_common(5):
        log("note", stage=folder.path.name, text=f"{n} requests failed: {reason}")
    for group in groups:
        for index in reversed(range(len(folder.units(group)))):
            files.remove(folder.unit_path(group, index))


@contextmanager
def without_silent_tail(folder: StageFolder, group: str) -> Iterator[None]:
    """Where the server is given up, take out the units right before in which it had answered nothing already."""
    try:
        yield
    except ModelError:
        for index, unit in reversed(list(enumerate(folder.units(group)))):
            completions = unit["counts"].get("completions", 0)
            drawn = completions and _reasons([unit]).total() >= completions
            if not drawn and not silence(unit["counts"], unit["dropped"]):
                break
            files.remove(folder.unit_path(group, index))
        raise
