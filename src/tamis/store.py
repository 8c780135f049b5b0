"""The run store: stage folders of atomically written units, found again by content.

A unit of work is finished when its JSON under `units/` is there; it names the unit's shards with their checksums, what the
unit cost and what it dropped. A stage is finished when `stage.json` is there. Every file appears by rename after a sync, so
a kill at any moment leaves finished units and nothing half-written. Wall time is kept here, not in records.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tamis.errors import StoreError
from tamis.hashing import file_digest
from tamis.records import RECORD_KINDS, Cost, R, Record, from_table, to_table

FORMAT = 1


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
        return (self.path / "stage.json").exists() and self.info()["key"] == self.key

    def info(self) -> dict[str, Any]:
        """Return `stage.json`."""
        return read_json(self.path / "stage.json")

    def unit_path(self, group: str, index: int) -> Path:
        """Return the path of a unit's JSON."""
        return self.path / "units" / f"{group}-{index:05d}.json"

    def unit_done(self, group: str, index: int) -> bool:
        """Whether a unit is finished and its shards are whole. A damaged shard is set aside and its unit is not done."""
        path = self.unit_path(group, index)
        if not path.exists():
            return False
        for name, sha in read_json(path)["files"].items():
            shard = self.path / name
            if not shard.exists() or file_digest(shard) != sha:
                self._set_aside(shard, path)
                return False
        return True

    def _set_aside(self, shard: Path, unit: Path) -> None:
        for path in (unit, shard):
            if path.exists():
                os.replace(path, path.with_name(path.name + ".damaged"))
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

    def read_unit(self, group: str, index: int, kind: type[R]) -> list[R]:
        """Return the records of one kind that a unit wrote."""
        names = {cls: name for name, cls in RECORD_KINDS.items()}
        return _read(self.path / names[kind] / f"{group}-{index:05d}.parquet", kind)

    def read(self, kind: type[R], group: str | None = None) -> list[R]:
        """Return all records of one kind, of one group of units if given, in unit order."""
        names = {cls: name for name, cls in RECORD_KINDS.items()}
        pattern = f"{group}-*.parquet" if group else "*.parquet"
        return [r for p in sorted((self.path / names[kind]).glob(pattern)) for r in _read(p, kind)]

    def whole(self) -> bool:
        """Whether the stage is done and every shard and every file it lists has its checksum; damage is set aside."""
        if not self.done:
            return False
        for path in sorted((self.path / "units").glob("*.json")):
            group, index = path.stem.rsplit("-", 1)
            if not self.unit_done(group, int(index)):
                return False
        for name, sha in self.info().get("files", {}).items():
            if not (self.path / name).exists() or file_digest(self.path / name) != sha:
                os.replace(self.path / "stage.json", self.path / "stage.json.damaged")
                return False
        return True

    def finish(self, info: dict[str, Any], files: Sequence[Path] = ()) -> dict[str, Any]:
        """Write `stage.json`: sums over the units, `info`, and the checksums of further `files`."""
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
            write_atomic(self.path / "dropped.jsonl", lines)
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


def _read(path: Path, kind: type[R]) -> list[R]:
    return from_table(pq.read_table(path), kind)


def adopt(runs_dir: Path, target: StageFolder) -> bool:
    """Hard-link a stage that any run of `runs_dir` holds under the same key; returns whether a finished one was found.

    An unfinished one gives its finished units. Checkpoints of an unfinished tune stage are not shared.
    """
    if target.path.exists():
        return False
    found = [p for p in runs_dir.glob(f"*/*-{target.key[:12]}") if p.is_dir() and p != target.path]
    done = [p for p in found if StageFolder(p, target.key).whole()]
    partial = [p for p in found if (p / "units").is_dir() and not (p / "checkpoints").exists()]
    for source in done[:1] or sorted(partial, key=lambda p: -len(list((p / "units").glob("*.json"))))[:1]:
        _link_tree(source, target.path)
        return bool(done)
    return False


def _link_tree(source: Path, target: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-"))
    try:
        shutil.copytree(
            source,
            temporary / "stage",
            copy_function=_link,
            ignore=shutil.ignore_patterns(".tmp-*", "*.damaged", "checkpoints"),
        )
        os.replace(temporary / "stage", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": stamp, **record}, ensure_ascii=False, default=str) + "\n")
