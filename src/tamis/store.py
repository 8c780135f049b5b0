"""The run store: stage folders of atomically written units, found again by content.

A unit of work is finished when its JSON under `units/` is there; it names the unit's shards with their checksums, what the
unit cost and what it dropped. A stage is finished when `stage.json` is there. Every file appears by rename after a sync, so
a kill at any moment leaves finished units and nothing half-written. Wall time is kept here, not in records.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamis import environment
from tamis.errors import StoreError
from tamis.files import read_json, remove, write_atomic, write_json
from tamis.hashing import digest, file_digest
from tamis.records import RECORD_KINDS, Cost, R, Record, from_table, to_table

FORMAT = 2
"""Part of every stage's key: raised when folders, the cutting into units, the sampling engine, the rendering of examples or
the training loop come to give other bytes. A component's own changes are told by its `version`."""

UNIT_NAME = re.compile(r"(?P<group>.+)-(?P<index>\d{5,})\.json")
AGAIN = "Run the recipe again: what is missing or damaged is made again."


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
    def ledger(self) -> Path:
        """The path of `stage.json`."""
        return self.path / "stage.json"

    @property
    def done(self) -> bool:
        """Whether the stage is finished under this key."""
        return self._finished() is not None

    def _finished(self) -> dict[str, Any] | None:
        info = unsealed(self.ledger)
        return info if info is not None and info.get("key") == self.key else None

    def info(self) -> dict[str, Any]:
        """Return what `stage.json` holds. Raises StoreError when it is not as it was written."""
        return _intact(self.ledger)

    def unit_path(self, group: str, index: int) -> Path:
        """Return the path of a unit's JSON."""
        return self.path / "units" / f"{group}-{index:05d}.json"

    def unit_done(self, group: str, index: int) -> bool:
        """Whether a unit is finished and its shards are whole."""
        return not self._unit_faults(self.unit_path(group, index))

    def _unit_faults(self, unit: Path) -> list[Path]:
        ledger = unsealed(unit)
        if ledger is None or not _is_of(ledger, unit):
            return [unit]
        shards = [self.path / name for name, sha in ledger["files"].items() if not _has(self.path / name, sha)]
        return [unit, *shards] if shards else []

    def faults(self) -> list[Path]:
        """Return what is missing or not as it was written: of a finished stage all it lists, else of its units."""
        units, info = [path for _, _, path in self._unit_paths()], self._finished()
        if info is None:
            wrong = [self.ledger] if self.ledger.exists() else []
        else:
            listed = {self.path / name: sha for name, sha in info["files"].items()}
            wrong = [path for path, sha in listed.items() if not _has(path, sha)]
            units += [path for path in listed if path.parent.name == "units"]
        faults = (fault for unit in dict.fromkeys(units) for fault in self._unit_faults(unit))
        return list(dict.fromkeys([*wrong, *faults]))

    def whole(self) -> bool:
        """Whether the stage is finished and all its files have the checksums they were written with. Changes nothing."""
        return self.done and not self.faults()

    def mend(self) -> list[Path]:
        """Set aside what is damaged, so that this and only this is made again; returns it."""
        faults = self.faults()
        for path in faults:
            if path.exists():
                aside = path.with_name(path.name + ".damaged")
                remove(aside)
                os.replace(path, aside)
        if faults:
            self.ledger.unlink(missing_ok=True)
        return faults

    def write_unit(self, group: str, index: int, unit: Unit, seconds: float) -> None:
        """Write a unit's shards, then its JSON."""
        files = {}
        for kind, records in unit.records.items():
            name = f"{kind}/{group}-{index:05d}.parquet"
            (self.path / kind).mkdir(exist_ok=True)
            buffer = BytesIO()
            pq.write_table(to_table(records, RECORD_KINDS[kind]), buffer, compression="zstd")
            shard = buffer.getvalue()
            write_atomic(self.path / name, shard)
            files[name] = hashlib.sha256(shard).hexdigest()
        (self.path / "units").mkdir(exist_ok=True)
        ledger = {
            "unit": self.unit_path(group, index).stem,
            "files": files,
            "cost": asdict(unit.cost),
            "counts": dict(unit.counts),
            "dropped": unit.dropped,
            "notes": unit.notes,
            "versions": environment.versions(),
            "seconds": round(seconds, 3),
        }
        write_json(self.unit_path(group, index), sealed(ledger))

    def _unit_paths(self, group: str | None = None) -> list[tuple[str, int, Path]]:
        """Return group, index and path of the units' JSON, of one group if given, in order."""
        found = [(UNIT_NAME.fullmatch(p.name), p) for p in (self.path / "units").glob("*.json")]
        return sorted((m["group"], int(m["index"]), p) for m, p in found if m and group in (None, m["group"]))

    def units(self, group: str | None = None) -> list[dict[str, Any]]:
        """Return what the finished units' JSON holds, of one group if given, in order.

        Raises StoreError when one is not as it was written, or when one before another is missing.
        """
        found, seen = self._unit_paths(group), Counter[str]()
        for name, index, _ in found:
            if index != seen[name]:
                raise StoreError("is missing", where=str(self.unit_path(name, seen[name])), hint=AGAIN)
            seen[name] += 1
        ledgers = [_intact(path) for _, _, path in found]
        for ledger, (_, _, path) in zip(ledgers, found, strict=True):
            if not _is_of(ledger, path):
                raise StoreError("is the ledger of another unit", where=str(path), hint=AGAIN)
        return ledgers

    def read(self, kind: type[R], group: str | None = None) -> list[R]:
        """Return the finished units' records of one kind, of one group of units if given, in unit order.

        Raises StoreError when a shard is missing or damaged.
        """
        return [record for table in self.tables(kind, group) for record in from_table(table, kind)]

    def tables(
        self, kind: type[Record], group: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield the finished units' shards of one kind as Arrow tables, of these columns only if given. Raises as `read`."""
        folder = next(name for name, cls in RECORD_KINDS.items() if cls is kind)
        for name in (name for unit in self.units(group) for name in unit["files"]):
            if name.startswith(f"{folder}/"):
                try:
                    with (self.path / name).open("rb") as file:
                        table = pq.ParquetFile(file).read(columns, use_threads=False)
                except (OSError, pa.ArrowException) as error:
                    raise StoreError(f"is damaged: {error}", where=str(self.path / name), hint=AGAIN) from error
                yield table

    def selection(self) -> tuple[list[str], list[float]]:
        """Return the completion ids that a select stage kept and their weights, empty where it gave none.

        Raises StoreError when they cannot be read.
        """
        path = self.path / "selection.json"
        try:
            kept = read_json(path)
            return kept["completion_ids"], kept["weights"]
        except (KeyError, TypeError) as error:
            raise StoreError(f"is not a selection (no {error})", where=str(path), hint=AGAIN) from error

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
        files = [*(path for _, _, path in self._unit_paths()), *files]
        base = {
            "format": FORMAT,
            "key": self.key,
            "cost": asdict(cost) | {"seconds": seconds},
            "counts": dict(counts),
            "notes": notes,
            "versions": _versions(units),
            "seconds": seconds,
            "files": {str(p.relative_to(self.path)): file_digest(p) for p in files},
        }
        write_json(self.ledger, sealed(base | info))
        return self.info()

    def versions(self) -> dict[str, list[str]]:
        """Return the versions of each library that the finished units were made with."""
        info = self._finished()
        if info is not None:
            return dict(info["versions"])
        return _versions(filter(None, (unsealed(path) for _, _, path in self._unit_paths())))


def _versions(units: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for unit in units:
        for name, version in unit["versions"].items():
            found[name] = sorted({*found.get(name, ()), version})
    return found


def sealed(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ledger with a digest of itself, so that an edit shows."""
    return {**ledger, "seal": digest(ledger)}


def unsealed(path: Path) -> dict[str, Any] | None:
    """Return the ledger in `path` without its seal; None where it is not there or not as it was written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found.pop("seal") == digest(found) else None
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None


def _intact(path: Path) -> dict[str, Any]:
    found = unsealed(path)
    if found is None:
        raise StoreError("is missing or not as it was written", where=str(path), hint=AGAIN)
    return found


def _is_of(ledger: Mapping[str, Any], unit: Path) -> bool:
    """Whether a ledger is that of the unit whose JSON it is in (older ones tell by shards only): no unit counts twice."""
    named = [ledger.get("unit", unit.stem), *(Path(name).stem for name in ledger["files"])]
    return all(name == unit.stem for name in named)


def _has(path: Path, sha: str) -> bool:
    return path.is_file() and file_digest(path) == sha


def adopt(runs: Iterable[Path], target: StageFolder) -> bool:
    """Hard-link a stage that one of `runs` holds under the same key; returns whether a finished one was found.

    An unfinished one gives its finished units where the target has none. Checkpoints of an unfinished tune stage are not
    shared. Nothing in another run is changed, and one that changes meanwhile, is damaged or cannot be read is passed over.
    """
    found = [p for run in runs for p in sorted(run.glob(f"*-{target.key[:12]}")) if p.is_dir() and p != target.path]
    if any(_link_tree(p, target, finished=True) for p in found if StageFolder(p, target.key).done):
        return True
    if not target.path.exists():
        partial = [p for p in found if (p / "units").is_dir() and not (p / "checkpoints").exists()]
        partial.sort(key=lambda p: -len(list((p / "units").glob("*.json"))))
        any(_link_tree(p, target, finished=False) for p in partial)
    return False


def _link_tree(source: Path, target: StageFolder, *, finished: bool) -> bool:
    """Let `target` appear, or be replaced, as a copy of `source` by hard links; False where the copy is not good."""
    temporary = Path(tempfile.mkdtemp(dir=target.path.parent, prefix=".tmp-"))
    copy = StageFolder(temporary / "stage", target.key)
    left_out = [".*.tmp", ".tmp-*", "*.damaged", "checkpoints", *([] if finished else ["stage.json"])]
    try:
        shutil.copytree(source, copy.path, copy_function=_link, ignore=shutil.ignore_patterns(*left_out))
        copy.mend()
        if finished and not copy.done:
            return False
        remove(target.path)
        os.replace(copy.path, target.path)
    except OSError:
        return False
    else:
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written in a run folder that this process holds."""
    for path in sorted(folder.rglob(".tmp-*"), reverse=True):
        remove(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
            left = line.encode(errors="backslashreplace")
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise


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
