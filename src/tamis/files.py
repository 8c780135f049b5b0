"""Files that are wholly there or not at all, and what the system refuses in words a user can act on."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tamis.errors import StoreError, TamisError

REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "Free space or choose another --runs-dir, and run the same command again.",
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it writable or choose another --runs-dir."),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "Move away what is in its place."),
    errno.ENOENT: "It was removed while the run worked. The same command goes on from what is left.",
    errno.ENAMETOOLONG: "Choose a --runs-dir with a shorter path, or a shorter name.",
}
OTHERWISE = "What is finished is kept. Put it right and run the same command again."
FOREIGN = re.compile(r"(?P<said>[^:]*) \(os error (?P<number>\d+)\)")
"""How the libraries that are written in Rust (safetensors, tokenizers) tell an error of the system."""


def refused(error: OSError, where: Path) -> StoreError:
    """Return what the system refused, at the error's own file or else at `where`, and what to do about it."""
    at = str(error.filename2 or error.filename or where)
    return StoreError(
        f"the system refused: {error.strerror or error}", where=at, hint=REMEDIES.get(error.errno or 0, OTHERWISE)
    )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system refuses while a run works (disk full, no permission, a file in the way) into a StoreError."""
    try:
        yield
    except (TamisError, BrokenPipeError):
        raise  # told already; or not the disk: who read our output has gone
    except OSError as error:
        raise refused(error, folder) from error
    except Exception as error:
        found = FOREIGN.search(str(error))
        if found is None:
            raise
        raise refused(OSError(int(found["number"]), found["said"].strip()), folder) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file in a folder that is there so that it is either wholly new or as it was. Raises StoreError when refused.

    No folder is made: a run folder that is removed while the run works does not come back without its first half.
    """
    payload = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    try:
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
        error.filename = error.filename2 = None
        raise refused(error, path) from error


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
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot be read: {error}", where=str(path), hint="Delete it and run again.") from error


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder, made if it is not there, for this process; a kill releases it.

    Yields a function that raises StoreError when the folder was removed since. Raises StoreError when another process holds
    the folder, or when it cannot be written or locked, or when its name is not UTF-8, which the writers of models need.
    """
    import fcntl

    if any("\udc80" <= c <= "\udcff" for c in str(folder)):
        raise StoreError("the name is not UTF-8 text", where=repr(str(folder)), hint="Choose another --runs-dir.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise refused(error, folder) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another process (pid {os.pread(handle, 32, 0).decode() or 'unknown'}) is working on this run",
                where=str(folder),
                hint="Wait for it, or stop it; then the same command goes on from what is finished.",
            ) from None
        except OSError as error:
            raise refused(error, folder) from error
        with contextlib.suppress(OSError):  # a full disk: the pid is only for the message above
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)

        def still_there() -> None:
            if not os.fstat(handle).st_nlink:
                raise refused(OSError(errno.ENOENT, os.strerror(errno.ENOENT)), folder)

        yield still_there
    finally:
        os.close(handle)
