"""The training loop: windows of examples, one optimizer step each, for any objective.

A window's loss is the sum of the objective's losses over all its micro-batches and processes, divided by the sum of their
weights, so that it does not depend on how the window is cut.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from tamis import hashing
from tamis.errors import TrainingError
from tamis.records import Example
from tamis.training.attention import by_example
from tamis.training.batches import (
    Batch,
    Batching,
    BatchSource,
    EpochSource,
    Refused,
    Row,
    admit,
    collate,
    keeps_packed_apart,
    sft_row,
    split,
)
from tamis.training.checkpoints import Checkpoint, Checkpoints, CurveFile, load_optimizer, optimizer_tensors
from tamis.training.config import TuneConfig
from tamis.training.memory import kept
from tamis.training.world import World

OnEvent = Callable[[dict[str, Any]], None]

DIVERGED_STEPS, DIVERGED_FACTOR, DIVERGED_RISE = 5, 3.0, 10.0
"""Training has diverged when so many losses in a row are above factor * |first loss| + rise."""

MICRO_BATCH_TOKENS = {"cpu": 512}
MICRO_BATCH_TOKENS_ELSEWHERE = 4096
"""Tokens per forward pass where the config does not say: on a CPU, what still fits its caches."""


class Objective(Protocol):
    """What the loop asks of an objective.

    An objective that reads more of an example than its target has a method `row(example) -> Row`, which lays it out.
    """

    def weight(self, batch: Batch) -> float:
        """Return what the batch counts in its window."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the loss summed over the batch (a scalar) and metrics, also sums: both are divided by the window's weight."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What a training did.

    `curve` has one row per step: step (from 1), loss, lr, grad_norm (before clipping), trained_tokens and seconds (both
    since the start of training), and the objective's metrics. `refused` are the examples left out.
    """

    steps: int
    curve: list[dict[str, Any]]
    trained_tokens: int
    refused: list[Refused]


def fit(
    module: torch.nn.Module,
    examples: Sequence[Example],
    objective: Objective,
    config: TuneConfig,
    *,
    seed: int,
    folder: Path | None = None,
    on_event: OnEvent | None = None,
    source: BatchSource | None = None,
    stamp: str = "",
) -> FitResult:
    """Train the parameters of `module` that require a gradient, in place; the module is left in evaluation mode.

    `module` is a causal language model (plain or with a PEFT adapter); `examples` have rendered targets. With `folder`,
    checkpoints go to folder/checkpoints and the curve to folder/curve.jsonl, and a training that was cut off goes on from
    its last checkpoint; on CPU the result equals that of an unbroken one bit for bit. Without, nothing is written.
    `on_event` gets a dictionary per step ("event": "step", "total" steps, and the curve's row) and
    one with a "text" for each thing worth a line in the log.
    `source` replaces the order by epochs; `stamp` names the starting weights in checkpoints.

    Raises TrainingError when no example can be trained on, when a loss or gradient is not finite or the loss diverges, when
    a single example does not fit in memory, or when the folder's checkpoint is of another training.
    """
    world = World(config.dtype)
    emit = on_event if on_event and world.main else _silent
    rows, refused = _admit(module, examples, objective, config, emit)
    order_seed = config.data_seed if config.data_seed is not None else hashing.derive_seed(seed, "data")
    source = source or EpochSource(rows, config.batch_size, config.epochs, order_seed, config.max_steps)
    keeping = kept() if world.device.type == "cpu" else nullcontext()
    with _own_randomness(), keeping, by_example(module, world.device) as alone:
        trainer = _Trainer(module, objective, config, source, seed, world, emit, alone)
        ids = [row.example.id for row in rows]
        digest = hashing.digest(config.mathematics(), seed, stamp, ids, _options(objective), trainer.shapes())
        trainer.run(folder, digest)
    module.eval()
    return FitResult(trainer.done, trainer.curve, trainer.trained, refused)


def _silent(event: dict[str, Any]) -> None:
    pass


def _options(objective: Objective) -> Any:
    return [type(objective).__name__, objective if hasattr(objective, "__dataclass_fields__") else None]


def _admit(
    module: Any, examples: Sequence[Example], objective: Objective, config: TuneConfig, emit: OnEvent
) -> tuple[list[Row], list[Refused]]:
    limit = min(config.max_length, getattr(module.config, "max_position_embeddings", None) or config.max_length)
    vocabulary = module.get_input_embeddings().weight.shape[0]
    row = getattr(objective, "row", sft_row)
    rows, refused = admit(examples, max_length=limit, vocabulary=vocabulary, row=row)
    reasons = [r.reason for r in refused]
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    found = ", ".join(f"{reason} ({n})" for reason, n in counts.items()) or "there are none"
    if refused:
        text = f"{len(refused)} of {len(examples)} examples are left out: {found}"
        emit({"event": "refused", "text": text, "reasons": counts})
    if not rows:
        raise TrainingError(
            f"none of the {len(examples)} examples can be trained on: {found}",
            hint="Look at the examples and their trained tokens; max_length sets the longest example that is taken.",
        )
    return rows, refused


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's global random state as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


class _Trainer:
    """One training: its optimizer and how far it is."""

    def __init__(
        self,
        module: torch.nn.Module,
        objective: Objective,
        config: TuneConfig,
        source: BatchSource,
        seed: int,
        world: World,
        emit: OnEvent,
        alone: bool,
    ) -> None:
        self.module, self.objective, self.config, self.source = module, objective, config, source
        self.seed, self.world, self.emit = seed, world, emit
        self.done, self.trained, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, Any]] = []
        usual = MICRO_BATCH_TOKENS.get(world.device.type, MICRO_BATCH_TOKENS_ELSEWHERE)
        self.tokens = config.micro_batch_tokens or usual
        self.alone = alone
        self.batching: Batching = "bucket"
        self.last_good: Path | None = None
        world.place(module)
        self.names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        if not self.names:
            raise TrainingError("no parameter of the model trains", hint="Attach an adapter (lora, full) first.")
        self.parameters = list(self.names)
        self.optimizer = _adamw(self.names, config, world.device)
        self.prepare()

    def prepare(self) -> None:
        """Set up the module as the config says, and report it."""
        if self.config.gradient_checkpointing:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        wanted = self.config.batching
        self.alone = self.alone and wanted != "bucket" and keeps_packed_apart(self.module, boundaries=True)
        if self.alone or (wanted == "pack" and keeps_packed_apart(self.module)):
            self.batching = "pack"
        elif wanted == "pack":
            text = "this architecture does not keep packed examples apart: padded batches are used"
            self.emit({"event": "packing off", "text": text})
        steps, dtype = self.source.steps, "bfloat16" if self.world.half else "float32"
        moving = sum(p.numel() for p in self.parameters)
        text = (
            f"{steps} steps of {moving:,} parameters on {self.world.device} in {dtype}, {self.world.size} process(es)"
        )
        self.emit({"event": "training", "text": text, "steps": steps, "parameters": moving, "dtype": dtype})

    def shapes(self) -> dict[str, list[int]]:
        """Return name and shape of every parameter that trains."""
        return {name: list(p.shape) for p, name in self.names.items()}

    def run(self, folder: Path | None, digest: str) -> None:
        """Make all steps, those of the last checkpoint not again."""
        files = None if folder is None else Checkpoints(folder / "checkpoints", self.config.keep)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        curve_file = CurveFile(folder / "curve.jsonl" if folder is not None else None, write=self.world.main)
        try:
            if files:
                self.restore(files, digest)
            self.curve = curve_file.cut(self.done)
            self.world.wait()
            self.module.train()
            steps = self.source.steps
            while self.done < steps:
                curve_file.append(self.advance(steps))
                if files and (self.done % self.config.checkpoint_every == 0 or self.done == steps):
                    curve_file.sync()
                    self.save(files, digest)
        finally:
            curve_file.close()

    def advance(self, steps: int) -> dict[str, Any]:
        """Make one optimizer step and return its row of the curve."""
        started, step = time.perf_counter(), self.done
        lr = self.config.lr_at(step, steps)
        totals = self.gradient(self.source.draw(step))
        grad_norm = self.clip()
        self.check(totals["loss"], grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.trained += int(totals.pop("trained"))
        self.seconds += time.perf_counter() - started
        row = {"step": self.done, "loss": totals.pop("loss"), "lr": lr, "grad_norm": grad_norm}
        row |= {"trained_tokens": self.trained, "seconds": round(self.seconds, 6), **totals}
        self.curve.append(row)
        self.source.update(step, row)
        self.emit({"event": "step", "total": steps, **row})
        return row

    def gradient(self, rows: Sequence[Row]) -> dict[str, float]:
        """Put the window's gradient into the parameters; return its loss, trained tokens and metrics.

        When memory runs out, the window is started again with micro-batches of half the size.
        """
        while True:
            self.world.reseed(hashing.derive_seed(self.seed, "step", self.done, self.world.rank))
            self.optimizer.zero_grad(set_to_none=True)
            totals = self.accumulate(rows)
            if totals is not None:
                self.world.sum_gradients(self.parameters)
                return totals
            self.halve(rows)

    def accumulate(self, rows: Sequence[Row]) -> dict[str, float] | None:
        """Run this process's share of the window forward and backward. Return None if memory ran out anywhere."""
        share = sorted(rows, key=len, reverse=True)[self.world.rank :: self.world.size]
        groups = split(share, tokens=self.tokens, batching=self.batching)
        laid_out = partial(collate, packed=self.batching == "pack", boundaries=self.alone, device=self.world.device)
        batches = [laid_out(group) for group in groups]
        weight = self.world.total({"weight": sum(self.objective.weight(b) for b in batches)})["weight"]
        if not weight > 0:
            raise TrainingError(f"the examples of step {self.done + 1} weigh {weight}", where=self.at())
        sums: dict[str, Any] = {"loss": 0.0}
        full = False
        try:
            for batch in batches:
                with self.world.precision():
                    loss, metrics = self.objective.loss(self.module, batch)
                (loss / weight).backward()
                for name, value in {"loss": loss, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + (value.detach() if torch.is_tensor(value) else value)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            full = True
        totals = self.world.total({"full": float(full)} | {n: float(v) / weight for n, v in sums.items()})
        if totals.pop("full"):
            return None
        return totals | {"trained": float(sum(row.trained for row in rows))}

    def halve(self, rows: Sequence[Row]) -> None:
        """Halve the micro-batches. Raises TrainingError when each is a single example already."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        longest = max(len(row.sequences) * row.longest for row in rows)
        size = min(self.tokens, len(rows) * longest)
        if size <= longest:
            raise TrainingError(
                f"step {self.done + 1}: memory ran out on a single example of {longest} tokens",
                where=self.at(),
                hint="Set gradient_checkpointing, a smaller max_length, or a smaller model.",
            )
        self.tokens = max(longest, size // 2)
        text = f"step {self.done + 1}: memory ran out; going on with {self.tokens} tokens per forward pass"
        self.emit({"event": "out of memory", "text": text, "micro_batch_tokens": self.tokens})

    def clip(self) -> float:
        """Clip the window's gradient and return its norm before."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        value = float(norm)
        if self.config.clip is not None and value > self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        return value

    def check(self, loss: float, grad_norm: float) -> None:
        """Raise TrainingError when this step must not be made."""
        recent = [row["loss"] for row in self.curve[1 - DIVERGED_STEPS :]] + [loss]
        ceiling = DIVERGED_FACTOR * abs(self.curve[0]["loss"]) + DIVERGED_RISE if self.curve else math.inf
        if not math.isfinite(loss):
            fault = f"the loss is {loss}"
        elif not math.isfinite(grad_norm):
            fault = f"the gradient's norm is {grad_norm}"
        elif len(recent) == DIVERGED_STEPS and min(recent) > ceiling:
            fault = f"the loss diverges: {loss:.4g}, after {self.curve[0]['loss']:.4g} at the start"
        else:
            return
        kept = f"the last good checkpoint is {self.last_good.name}" if self.last_good else "there is no checkpoint yet"
        raise TrainingError(
            f"step {self.done + 1}: {fault}; {kept}", where=self.at(), hint="Try a smaller learning rate or clip."
        )

    def at(self) -> str | None:
        """Return where the last good checkpoint lies."""
        return str(self.last_good) if self.last_good else None

    def save(self, files: Checkpoints, digest: str) -> None:
        """Write a checkpoint (the main process only)."""
        if self.world.main:
            weights = {name: p.detach().cpu() for p, name in self.names.items()}
            progress = {"trained": self.trained, "seconds": self.seconds, "tokens": self.tokens}
            moments = optimizer_tensors(self.optimizer, self.names)
            state = self.source.state_dict()
            self.last_good = files.save(Checkpoint(self.done, digest, weights, moments, progress, state))
            self.emit({"event": "checkpoint", "text": f"checkpoint {self.last_good.name} written"})
        self.world.wait()

    def restore(self, files: Checkpoints, digest: str) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        checkpoint = files.load(digest, self.emit)
        if checkpoint is None:
            return
        with torch.no_grad():
            for parameter, name in self.names.items():
                parameter.copy_(checkpoint.weights[name])
        load_optimizer(self.optimizer, self.names, checkpoint.optimizer)
        self.source.load_state_dict(checkpoint.source)
        self.done, progress = checkpoint.step, checkpoint.progress
        self.trained, self.seconds, self.tokens = progress["trained"], progress["seconds"], progress["tokens"]
        self.last_good = files.folder / f"step-{checkpoint.step:08d}"
        self.emit({"event": "resumed", "text": f"going on after step {self.done}", "step": self.done})


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in ("out of memory", "DefaultCPUAllocator", "can't allocate memory"))


def _adamw(names: Mapping[torch.nn.Parameter, str], config: TuneConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only: not on norms, biases and other vectors."""
    decayed = [p for p in names if p.ndim >= 2]
    others = [p for p in names if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),
    )
