"""The cache of models: where it is, how a folder is made in it once, and file digests remembered by the file's stat.

The cache is `$TAMIS_HOME`, else `tamis` in the platform's user cache; models lie in `models/NAME/`. A folder is made in a
temporary folder beside its place and renamed, under a lock: two processes make it once, and a killed one leaves no half
folder.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tamis.errors import ConfigError, ModelError
from tamis.hashing import file_digest

STAMP = "tamis.json"
SETTLED_NS = 2_000_000_000
"""A file changed less than this ago is hashed anew: two changes may fall into one tick of the file system's clock."""
SMALL = 1 << 20
"""Files below this size, in bytes, are hashed anew each time."""
REMEMBERED = 1000


def cache_root() -> Path:
    """Return the cache folder: $TAMIS_HOME, or `tamis` in the platform's user cache. It may not exist yet.

    Raises ConfigError where $TAMIS_HOME names the home of a user that is not there.
    """
    if home := os.environ.get("TAMIS_HOME"):
        try:
            return Path(home).expanduser()
        except RuntimeError:
            raise ConfigError(
                f"TAMIS_HOME is {home}, and there is no such home folder", hint="Give a full path."
            ) from None
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tamis"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamis"


def model_folder(name: str) -> Path:
    """Return where the cached model `name` lies or would lie."""
    return cache_root() / "models" / name


def make_once(folder: Path, stamp: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `build(empty folder)` unless it is there with the same `stamp` (plain JSON values).

    Atomic, safe against other processes and against being killed at any moment. Raises ModelError when the cache cannot
    be written.
    """
    if is_made(folder, stamp):
        return folder
    try:
        with locked(folder):
            if not is_made(folder, stamp):
                _make(folder, stamp, build)
    except OSError as error:
        raise ModelError(
            f"the cache cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="Free space there, or set TAMIS_HOME to another folder.",
        ) from error
    return folder


def is_made(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether `folder` is there, whole, and made from what `stamp` says."""
    try:
        return json.loads((folder / STAMP).read_text()) == dict(stamp)
    except (OSError, ValueError):
        return False


def remove(folder: Path) -> int:
    """Remove a cached folder and return the bytes freed."""
    with locked(folder):
        freed = size_of(folder)
        folder.rename(_beside(folder) / "old")
        _clear_leftovers(folder)
    return freed


def size_of(folder: Path) -> int:
    """Return the bytes that the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock file beside `folder`, waiting for the process that has it; a kill releases it."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, stamp: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    _clear_leftovers(folder)
    making = _beside(folder)
    try:
        build(making)
        (making / STAMP).write_text(json.dumps(dict(stamp), indent=2) + "\n")
        _sync(making)
        making.chmod(0o755)
        if folder.exists():
            folder.rename(_beside(folder) / "old")
        making.rename(folder)
    finally:
        _clear_leftovers(folder)


def _beside(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.making-", dir=folder.parent))


def _clear_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.making-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remembered_digest(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large one is remembered by device, inode, size and times of change.

    The memory is `digests.json` in the cache; a changed file is hashed again. A cache that cannot be written is no error.
    """
    stat = path.stat()
    if stat.st_size < SMALL:
        return file_digest(path)
    key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    memory = cache_root() / "digests.json"
    known = _read_digests(memory)
    if key in known:
        return known[key]
    digest = file_digest(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError), locked(memory):
            _write_digests(memory, {**_read_digests(memory), key: digest})
    return digest


def _read_digests(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_digests(memory: Path, known: Mapping[str, str]) -> None:
    kept = dict(list(known.items())[-REMEMBERED:])
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, prefix=".digests.", delete=False) as file:
        json.dump(kept, file, indent=0)
    Path(file.name).replace(memory)
