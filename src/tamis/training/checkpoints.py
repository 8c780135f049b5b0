"""Checkpoints: trainable weights, optimizer state and progress, as safetensors and JSON.

A checkpoint is a folder `step-00000050` with `weights.safetensors`, `optimizer.safetensors` and `state.json`, which has the
SHA-256 of the other two. It is written under a temporary name, synced and renamed, so that a folder of that name is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tamis.errors import StoreError, TrainingError
from tamis.files import remove
from tamis.hashing import file_digest

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    `weights` and `optimizer` map names to CPU tensors, of a stored checkpoint read one by one when they are asked for;
    `digest` says what was trained and how (see `Checkpoints`); `step` is the number of finished steps; `progress` is plain
    data of the loop, `source` of the batch source.
    """

    step: int
    digest: str
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    progress: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training in `folder`, the newest `keep` of them."""

    folder: Path
    keep: int = 2

    def found(self) -> list[Path]:
        """Return the checkpoint folders, newest first."""
        names = (p for p in self.folder.glob("step-*") if p.name[5:].isdigit())
        return sorted(names, key=lambda p: int(p.name[5:]), reverse=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove all but the newest `keep`. Raises StoreError when it cannot be written."""
        from safetensors import SafetensorError

        try:
            return self._write(checkpoint)
        except (OSError, SafetensorError) as error:
            hint = "Free space on this disk or choose another folder; training goes on from the last checkpoint."
            raise StoreError(f"the checkpoint cannot be written: {error}", where=str(self.folder), hint=hint) from error

    def _write(self, checkpoint: Checkpoint) -> Path:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{checkpoint.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        for left_by_a_kill in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left_by_a_kill)
        temporary.mkdir()
        for name, tensors in ((WEIGHTS, checkpoint.weights), (OPTIMIZER, checkpoint.optimizer)):
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / name)
        state = {
            "step": checkpoint.step,
            "digest": checkpoint.digest,
            "progress": dict(checkpoint.progress),
            "source": dict(checkpoint.source),
            "files": {name: file_digest(temporary / name) for name in (WEIGHTS, OPTIMIZER)},
        }
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        publish(temporary, final)
        for old in self.found()[self.keep :]:
            shutil.rmtree(old)
        return final

    def load(self, digest: str, on_event: Callable[[dict[str, Any]], None]) -> Checkpoint | None:
        """Return the newest whole checkpoint; a damaged one is reported to `on_event` and the one before it is taken.

        Raises TrainingError when the checkpoint is of another training (`digest` differs).
        """
        for path in self.found():
            try:
                checkpoint = read(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = f"{path.name} is damaged ({error}); the checkpoint before it is tried"
                on_event({"event": "damaged checkpoint", "text": text})
                continue
            if checkpoint.digest != digest:
                raise TrainingError(
                    f"the checkpoint {path.name} is of another training: other examples, options, seed or model",
                    where=str(self.folder),
                    hint="Train in another folder, or delete this one to start again.",
                )
            return checkpoint
        return None


class _Stored(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file. Each is read when it is asked for, so that resuming needs no second copy of all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            self.names = tuple(file.keys())

    def _opened(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        with self._opened() as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in folder `path`. Raises ValueError, KeyError or OSError when it is damaged."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    for name, expected in state["files"].items():
        if file_digest(path / name) != expected:
            raise ValueError(f"{name} does not have the checksum it was written with")
    weights, optimizer = _Stored(path / WEIGHTS), _Stored(path / OPTIMIZER)
    return Checkpoint(state["step"], state["digest"], weights, optimizer, state["progress"], state["source"])


def publish(temporary: Path, final: Path) -> None:
    """Sync the files under folder `temporary` and rename it to `final`, replacing a folder of that name."""
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    remove(final)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as CPU tensors named `<parameter>/<entry>`; `names` maps parameters to their names."""
    return {
        f"{names[parameter]}/{entry}": value.detach().cpu()
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Any, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned, each entry in the dtype it had, on its parameter's device."""
    owners = {name: parameter for parameter, name in names.items()}
    steps_on_device = optimizer.defaults.get("fused")
    optimizer.state.clear()
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        owner = owners[name]
        device = owner.device if entry != "step" or steps_on_device else "cpu"
        optimizer.state[owner][entry] = value.to(device, copy=True)


class CurveFile:
    """The curve as JSON lines, one row per step. Without a path it is empty and keeps nothing; `write`: this process writes."""

    def __init__(self, path: Path | None, *, write: bool) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8") if path and write else None

    def cut(self, steps: int) -> list[dict[str, Any]]:
        """Drop the rows after step `steps` (they will be made again) and return the others."""
        rows = [row for row in self._rows() if row["step"] <= steps]
        if self.path and self._file:
            self._file.close()
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            _sync(temporary)
            temporary.rename(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row of one step."""
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Put all rows on disk."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows up to the first line that is torn or no row."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                return
            yield row
