"""What can go wrong around a run, done to the process itself: each is called in it before the command starts."""

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MAKING = {"open", "os.mkdir", "os.link"}
WRITING = {*MAKING, "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def small_units() -> None:
    """Cut a small run into several units of work."""
    from tamis import stages

    stages.ROWS_PER_UNIT, stages.RECORDS_PER_UNIT = 16, 8


def _at_changes(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call `act` with number and kind before every change of a file under `folder`; what it raises, the change raises."""
    seen = busy = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen, busy
        if busy or event not in WRITING or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        named = isinstance(arguments[0], str | bytes | os.PathLike)
        if named and os.path.abspath(os.fsdecode(arguments[0])).startswith(f"{folder}/"):
            seen += 1
            busy = 1
            try:
                act(seen, event)
            finally:
                busy = 0

    sys.addaudithook(hook)


def count_changes(folder: Path, into: Path) -> None:
    """Write into a file how many changes of files there were."""
    small_units()
    _at_changes(folder, lambda number, _: into.write_text(str(number)) and None)


def full_from(folder: Path, first: int) -> None:
    """Let the disk be full from a change on."""
    small_units()

    def act(number: int, event: str) -> None:
        if number >= first and event in MAKING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _at_changes(folder, act)


def signal_at(folder: Path, at: int, number: int) -> None:
    """Send this process a signal at a change."""
    small_units()

    def act(seen: int, _: str) -> None:
        if seen == at:
            signal.raise_signal(number)

    _at_changes(folder, act)


def remove_at(folder: Path, at: int) -> None:
    """Let somebody remove the run at a change."""
    small_units()

    def act(seen: int, _: str) -> None:
        if seen == at:
            shutil.rmtree(next(folder.iterdir()))

    _at_changes(folder, act)


def limit_files(size: int) -> None:
    """Let no file grow over `size` bytes, in whatever language it is written."""
    import resource

    small_units()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def no_temporary(folder: Path) -> None:
    """Let temporary files go to a folder that is full."""
    small_units()
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None


def backward_clock() -> None:
    """Let every look at the clock be an hour before the last."""
    small_units()
    start, looks = time.time(), iter(range(10**9))
    time.time = lambda: start - 3600.0 * next(looks)


def no_links() -> None:
    """Let the file system have no hard links."""
    small_units()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = refuse


def other_versions(folder: Path, at: int) -> None:
    """Pretend that another torch is installed, and be killed at a change."""
    from tamis import environment

    small_units()
    found = environment.versions() | {"torch": "0.0.1"}
    environment.versions = lambda: found
    _at_changes(folder, lambda seen, _: os.killpg(0, signal.SIGKILL) if seen == at else None)


def closed_output() -> None:
    """Close standard output, as `>&-` does."""
    small_units()
    os.close(1)
    sys.stdout = None


def broken_pipe() -> None:
    """Let standard output be a pipe that nobody reads, as `| head -0` does."""
    small_units()
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def full_output() -> None:
    """Let standard output be a full disk."""
    small_units()
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
