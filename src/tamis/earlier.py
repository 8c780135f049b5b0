"""What a run replaces stays in its folder until the run is done."""

import contextlib
import os
from pathlib import Path

from tamis import files
from tamis.errors import StoreError

FOLDER = ".earlier"
MANIFEST = "manifest.json"


class Earlier:
    """What a run folder held before: all of it under `--fresh`, else the stages whose inputs have changed since.

    The manifest is set aside last and put back first, so that it is there just when all of an earlier state is.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / FOLDER

    @property
    def whole(self) -> bool:
        """Whether a whole earlier state is set aside: the run in work was started with `--fresh`."""
        return (self.path / MANIFEST).exists()

    def set_aside(self, path: Path) -> None:
        """Move a file or folder of the run out of its way."""
        self.path.mkdir(exist_ok=True)
        files.remove(self.path / path.name)
        os.replace(path, self.path / path.name)

    def set_all_aside(self) -> None:
        """Make the run folder empty. What a `--fresh` that was not done has made is removed, what was before it stays."""
        if self.whole and _done(self.run):
            files.remove(self.path)
        unfinished = self.whole
        for path in self._held():
            files.remove(path) if unfinished else self.set_aside(path)

    def put_back(self) -> bool:
        """Undo `set_all_aside` unless a stage is finished since; returns whether there was something to put back."""
        if not self.whole or any(self.run.glob("*/stage.json")):
            return False
        for path in self._held():
            files.remove(path)
        for path in sorted(self.path.iterdir(), key=lambda p: p.name != MANIFEST):
            os.replace(path, self.run / path.name)
        self.path.rmdir()
        return True

    def drop(self) -> None:
        """Remove what is set aside: the run is done."""
        files.remove(self.path)

    def _held(self) -> list[Path]:
        """Return what is in the run folder, the manifest last."""
        found = [p for p in self.run.iterdir() if p.name not in (".lock", FOLDER)]
        return sorted(found, key=lambda p: (p.name == MANIFEST, p.name))


def _done(run: Path) -> bool:
    with contextlib.suppress(StoreError, KeyError, TypeError):
        return bool(files.read_json(run / MANIFEST)["status"] == "done")
    return False
