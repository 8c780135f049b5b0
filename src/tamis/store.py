"""The run store: stage folders of atomically written units, found again by content.

A unit of work is finished when its JSON under `units/` is there; it names the unit's shards with their checksums, what the
unit cost and what it dropped. A stage is finished when `stage.json` is there. Every file appears by rename after a sync, so
a kill at any moment leaves finished units and nothing half-written. Wall time is kept here, not in records.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tamis.errors import StoreError
from tamis.hashing import file_digest
from tamis.records import RECORD_KINDS, Cost, R, Record, from_table, to_table

FORMAT = 1
"""Part of every stage's key: raised when folders, the cutting into units, the sampling engine, the rendering of examples or
the training loop come to give other bytes. A component's own changes are told by its `version`."""

UNIT_FIELDS = frozenset({"files", "cost", "counts", "dropped", "notes", "seconds"})
STAGE_FIELDS = UNIT_FIELDS - {"dropped"} | {"key"}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it is either wholly there or as it was. Raises StoreError when the disk refuses."""
    payload = data.encode() if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write: {error.strerror or error}", where=str(path), hint="Free space or choose another --runs-dir."
        ) from error


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in order of insertion."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises StoreError that names the file when it is not valid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot be read: {error}", where=str(path), hint="Delete it and run again.") from error


@dataclass
class Unit:
    """What one finished unit of work gave: records by kind, cost, counts and what was dropped."""

    records: dict[str, Sequence[Record]]
    cost: Cost = Cost()
    counts: Counter[str] = field(default_factory=Counter)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class StageFolder:
    """One stage's folder inside a run."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    @property
    def done(self) -> bool:
        """Whether the stage is finished under this key."""
        info = _ledger(self.path / "stage.json", STAGE_FIELDS)
        return info is not None and info["key"] == self.key

    def info(self) -> dict[str, Any]:
        """Return `stage.json`."""
        return read_json(self.path / "stage.json")

    def unit_path(self, group: str, index: int) -> Path:
        """Return the path of a unit's JSON."""
        return self.path / "units" / f"{group}-{index:05d}.json"

    def unit_done(self, group: str, index: int) -> bool:
        """Whether a unit is finished and its shards are whole. What is damaged is set aside, and its unit is not done."""
        faults = self._unit_faults(self.unit_path(group, index))
        self._set_aside(faults)
        return not faults

    def _unit_faults(self, unit: Path) -> list[Path]:
        ledger = _ledger(unit, UNIT_FIELDS)
        if ledger is None:
            return [unit]
        shards = [self.path / name for name, sha in ledger["files"].items() if not _has(self.path / name, sha)]
        return [unit, *shards] if shards else []

    def faults(self) -> list[Path]:
        """Return what of a finished stage is missing or not as it was written; `stage.json` where it is not finished."""
        if not self.done:
            return [self.path / "stage.json"]
        listed = {self.path / name: sha for name, sha in self.info()["files"].items()}
        units = [path for path in listed if path.parent.name == "units"]
        wrong = [path for path, sha in listed.items() if not _has(path, sha)]
        return list(dict.fromkeys([*wrong, *(fault for unit in units for fault in self._unit_faults(unit))]))

    def whole(self) -> bool:
        """Whether the stage is finished and all its files have the checksums they were written with. Changes nothing."""
        return not self.faults()

    def mend(self) -> list[Path]:
        """Set aside what is damaged of a finished stage, so that this and only this is made again; returns it."""
        faults = self.faults() if (self.path / "stage.json").exists() else []
        self._set_aside(faults)
        return faults

    def _set_aside(self, faults: Sequence[Path]) -> None:
        for path in faults:
            if path.exists():
                aside = path.with_name(path.name + ".damaged")
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
                os.replace(path, aside)
        if faults:
            (self.path / "stage.json").unlink(missing_ok=True)

    def write_unit(self, group: str, index: int, unit: Unit, seconds: float) -> None:
        """Write a unit's shards, then its JSON."""
        files = {}
        for kind, records in unit.records.items():
            name = f"{kind}/{group}-{index:05d}.parquet"
            buffer = BytesIO()
            pq.write_table(to_table(records, RECORD_KINDS[kind]), buffer, compression="zstd")
            write_atomic(self.path / name, buffer.getvalue())
            files[name] = file_digest(self.path / name)
        write_json(
            self.unit_path(group, index),
            {
                "files": files,
                "cost": asdict(unit.cost),
                "counts": dict(unit.counts),
                "dropped": unit.dropped,
                "notes": unit.notes,
                "seconds": round(seconds, 3),
            },
        )

    def units(self, group: str | None = None) -> list[dict[str, Any]]:
        """Return the finished units' JSON, of one group if given, in order."""
        pattern = f"{group}-*.json" if group else "*.json"
        return [read_json(p) for p in sorted((self.path / "units").glob(pattern))]

    def read(self, kind: type[R], group: str | None = None) -> list[R]:
        """Return all records of one kind, of one group of units if given, in unit order."""
        names = {cls: name for name, cls in RECORD_KINDS.items()}
        pattern = f"{group}-*.parquet" if group else "*.parquet"
        return [r for p in sorted((self.path / names[kind]).glob(pattern)) for r in from_table(pq.read_table(p), kind)]

    def finish(self, info: dict[str, Any], files: Sequence[Path] = ()) -> dict[str, Any]:
        """Write `stage.json`: sums over the units, `info`, and the checksums of the units' JSON and of further `files`."""
        units = self.units()
        cost, counts = Cost(), Counter[str]()
        for unit in units:
            cost = cost + Cost(**unit["cost"])
            counts.update(unit["counts"])
        seconds = round(sum(u["seconds"] for u in units), 3)
        notes = {k: v for u in units for k, v in u["notes"].items()}
        dropped = [d for u in units for d in u["dropped"]]
        if dropped:
            lines = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in dropped)
            write_atomic(self.path / "rejected.jsonl", lines)
            files = [*files, self.path / "rejected.jsonl"]
        files = [*sorted((self.path / "units").glob("*.json")), *files]
        base = {
            "format": FORMAT,
            "key": self.key,
            "cost": asdict(cost) | {"seconds": seconds},
            "counts": dict(counts),
            "notes": notes,
            "seconds": seconds,
            "files": {str(p.relative_to(self.path)): file_digest(p) for p in files},
        }
        write_json(self.path / "stage.json", base | info)
        return self.info()


def _ledger(path: Path, required: frozenset[str]) -> dict[str, Any] | None:
    """Return the JSON object in `path` if it is there, whole and has the required fields."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and required <= found.keys() else None


def _has(path: Path, sha: str) -> bool:
    return path.is_file() and file_digest(path) == sha


def adopt(runs: Iterable[Path], target: StageFolder) -> bool:
    """Hard-link a stage that one of `runs` holds under the same key; returns whether a finished one was found.

    An unfinished one gives its finished units where the target has none. Checkpoints of an unfinished tune stage are not
    shared. Nothing in another run is changed, and one that changes meanwhile is passed over.
    """
    found = [p for run in runs for p in sorted(run.glob(f"*-{target.key[:12]}")) if p.is_dir() and p != target.path]
    if any(StageFolder(p, target.key).whole() and _link_tree(p, target.path) for p in found):
        return True
    if not target.path.exists():
        partial = [p for p in found if (p / "units").is_dir() and not (p / "checkpoints").exists()]
        partial.sort(key=lambda p: -len(list((p / "units").glob("*.json"))))
        for source in partial:
            if _link_tree(source, target.path, unfinished=True):
                break
    return False


def _link_tree(source: Path, target: Path, *, unfinished: bool = False) -> bool:
    """Let `target` appear, or be replaced, as a copy of `source` by hard links; False when `source` changes meanwhile."""
    left_out = [".*.tmp", ".tmp-*", "*.damaged", "checkpoints", *(["stage.json"] if unfinished else [])]
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    try:
        shutil.copytree(source, temporary / "stage", copy_function=_link, ignore=shutil.ignore_patterns(*left_out))
    except FileNotFoundError:
        return False
    except shutil.Error as error:
        if any(Path(failed).exists() for failed, *_ in error.args[0]):
            raise
        return False
    else:
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary / "stage", target)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written in a run folder that this process holds."""
    for path in sorted(folder.rglob(".tmp-*"), reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises StoreError when another process holds it; a kill releases it."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise StoreError(
            f"cannot be written: {error.strerror or error}", where=str(folder), hint="Choose another --runs-dir."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise StoreError(
                f"another process (pid {file.read().strip() or 'unknown'}) is working on this run",
                where=str(folder),
                hint="Wait for it, or stop it; then the same command goes on from what is finished.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system refuses while a run works (disk full, no permission, a file in the way) into a StoreError."""
    try:
        yield
    except BrokenPipeError:
        raise  # not the disk: who read our output has gone
    except OSError as error:
        raise StoreError(
            f"the system refused: {error.strerror or error}",
            where=str(error.filename or folder),
            hint="What is finished is kept. Put it right (free space, permissions, what is in the way) and run again.",
        ) from error


class EventLog:
    """Appends events to `log.jsonl`, one JSON object a line, and hands them to a listener."""

    def __init__(self, path: Path, listener: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.listener = path, listener

    def __call__(self, event: str, **detail: Any) -> None:
        import datetime

        record = {"event": event, **detail}
        self.listener(record)
        if event != "progress":
            stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            self._append(json.dumps({"time": stamp, **record}, ensure_ascii=False, default=str) + "\n")

    def _append(self, line: str) -> None:
        """Append a whole line or nothing; what a kill or a full disk left of the last line is cut off first."""
        with self.path.open("ab+", buffering=0) as file:
            end = _end_of_lines(file)
            file.truncate(end)
            if file.write(data := line.encode()) != len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def _end_of_lines(file: Any) -> int:
    """Return the position after the last line break of a file, 0 where there is none."""
    at = file.seek(0, os.SEEK_END)
    while at:
        start = max(0, at - 4096)
        file.seek(start)
        block = file.read(at - start)
        if b"\n" in block:
            return start + block.rindex(b"\n") + 1
        at = start
    return 0
