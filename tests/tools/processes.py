"""`tamis` commands as processes of their own, forked from a server that has imported everything, and what their runs made."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamis.hashing import file_digest
from tamis.store import StageFolder, unsealed

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("tamis.cli", "tamis.pipeline", "tamis.recipe", "tamis.models.hf", "tamis.generation", "tamis.training.loop"),
        *(
            "tamis.report.html",
            "tamis.report.tables",
            "tamis.evaluators.stats",
            "transformers",
            "peft",
            "sklearn.cluster",
        ),
    ]
)
NUMBERS = itertools.count()
VOLATILE = {"log.jsonl", "manifest.json", "report.html", ".lock"}
"""What of a run folder tells of the time it took, and so differs from run to run."""


class Command:
    """A running `tamis` command in a process group of its own. `before` is called in it before anything else."""

    def __init__(self, *arguments: str, cwd: Path, before: Callable[[], Any] | None = None) -> None:
        number = next(NUMBERS)
        self.out, self.err = (cwd / f"said-{number}.{kind}" for kind in ("out", "err"))
        self.process = FORKS.Process(target=_enter, args=(arguments, cwd, self.out, self.err, before))
        self.process.start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole group, once the process has one of its own."""
        pid = self.process.pid
        while self.alive and os.getpgid(pid) != pid:
            pass
        if self.alive:
            os.killpg(pid, number)

    def wait(self) -> int:
        """Return the exit code as a shell would: 128 + n after signal n."""
        self.process.join()
        code = self.process.exitcode
        return code if code >= 0 else 128 - code

    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()


def _enter(arguments: tuple[str, ...], cwd: Path, out: Path, err: Path, before: Callable[[], Any] | None) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    sys.argv = ["tamis", *arguments]
    if before:
        before()
    from tamis import cli

    cli.main(list(arguments))


def stages(run: Path) -> list[Path]:
    """Return the stage folders of a run, in order."""
    return sorted(p for p in run.glob("[0-9]*-*-*") if p.is_dir())


def finished(run: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of every file of finished units and stages: what a later process has to leave alone.

    Selection and training are one unit each, which ends with the stage.
    """
    found = []
    for place in stages(run):
        folder = StageFolder(place, "")
        units = [
            path for name, _, path in folder._unit_paths() if name not in ("select", "tune") or folder.ledger.exists()
        ]
        ledgers = [folder.ledger, *units]
        for ledger, info in ((path, unsealed(path)) for path in ledgers):
            found += [ledger, *(place / name for name in info["files"])] if info else []
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def made(run: Path) -> dict[str, Any]:
    """Return what a run made, by path: checksums of bytes, and ledgers and curves without the seconds they tell."""
    found = {}
    for folder, folders, names in os.walk(run, followlinks=True):
        folders[:] = [name for name in folders if not name.endswith(".damaged")]
        paths = [Path(folder, name) for name in names if name not in VOLATILE and not name.endswith(".damaged")]
        found |= {str(path.relative_to(run)): _content(path) for path in paths}
    return found


def _content(path: Path) -> Any:
    if path.name == "curve.jsonl":
        return [{**json.loads(line), "seconds": None} for line in path.read_text().splitlines()]
    if path.name in ("stage.json", "tamis.json") or path.parent.name == "units":
        info = json.loads(path.read_text())
        info["cost"] = {k: v for k, v in info.get("cost", {}).items() if k != "seconds"}
        info["files"] = sorted(info["files"])
        return {k: v for k, v in info.items() if k not in ("seconds", "seal")}
    if path.name == "README.md":
        return re.sub(r", \d+ s$", "", path.read_text(), flags=re.MULTILINE)
    return file_digest(path)
