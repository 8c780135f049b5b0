"""What models answered, kept by content: the same question to the same model is never asked twice."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tamis.errors import StoreError

_BATCH = 500


class Replies:
    """A map from a question's content hash to plain JSON data, in the SQLite file `path`, or in memory without one.

    Several processes may use one file. A put is on disk when the call returns. A file that is no database is set aside as
    `NAME.damaged` and a new one is begun: replies are a saving, never the only copy of a result.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.hits = self.misses = 0
        self._memory: dict[str, Any] = {}
        self._database: sqlite3.Connection | None = None

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what is known of `keys`."""
        wanted = list(dict.fromkeys(keys))
        found = {k: self._memory[k] for k in wanted if k in self._memory}
        missing = [k for k in wanted if k not in found]
        if self.path is not None and missing:
            found |= self._guarded(self._select, missing)
        self.hits += len(found)
        self.misses += len(wanted) - len(found)
        return found

    def put(self, replies: Mapping[str, Any]) -> None:
        """Keep the replies."""
        if self.path is None:
            self._memory |= replies
        elif replies:
            self._guarded(self._insert, replies)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _select(self, database: sqlite3.Connection, keys: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            rows = database.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", part)
            found |= {key: json.loads(text) for key, text in rows}
        return found

    def _insert(self, database: sqlite3.Connection, replies: Mapping[str, Any]) -> dict[str, Any]:
        rows = [(key, json.dumps(reply, ensure_ascii=False)) for key, reply in replies.items()]
        with database:
            database.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)
        return {}

    def _guarded(self, work: Any, argument: Any) -> dict[str, Any]:
        assert self.path is not None
        for last in (False, True):
            try:
                return work(self._open(), argument)
            except sqlite3.OperationalError as error:
                raise StoreError(
                    f"the replies cannot be kept: {error}",
                    where=str(self.path),
                    hint=_hint(error, self.path),
                ) from error
            except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
                if last:
                    hint = f"Move {self.path.name} away: a new one is begun."
                    raise StoreError(f"the replies cannot be read: {error}", where=str(self.path), hint=hint) from error
                self._set_aside()
        raise AssertionError

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            assert self.path is not None
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        return self._database

    def _set_aside(self) -> None:
        assert self.path is not None
        with contextlib.suppress(sqlite3.Error):
            self.close()
        self._database = None
        for name in (self.path.name, f"{self.path.name}-wal", f"{self.path.name}-shm"):
            file = self.path.with_name(name)
            if file.exists():
                os.replace(file, file.with_name(f"{name}.damaged"))


def _hint(error: sqlite3.Error, path: Path) -> str:
    if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        return f"The file holds other tables than those of replies. Move {path.name} away: a new one is begun."
    return "Free space, or check permissions."
