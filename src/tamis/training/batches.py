"""Examples to windows (one optimizer step) to micro-batches (one forward pass). Knows token ids only, no tokenizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch

from tamis import hashing
from tamis.records import Example

Batching = Literal["bucket", "pack"]


@dataclass(frozen=True, slots=True)
class Row:
    """An example ready to train on: `ids` (L,) int32 and `weights` (L,) float32 with the example's weight multiplied in."""

    example: Example
    ids: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True, slots=True)
class Refused:
    """An example that cannot be trained on, and why."""

    example_id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass.

    `input_ids` (B, L) int64; `weights` (B, L) float32, `weights[:, i]` for predicting `input_ids[:, i]`, 0 at padding;
    `position_ids` (B, L) int64, from 0 in every example; `attention_mask` (B, L) int64, None where no row is padded.
    `spans[k]` = (row, start, stop) is where `examples[k]` lies. `packed`: rows hold several examples, kept apart by their
    position ids.
    """

    input_ids: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    examples: tuple[Example, ...]
    spans: tuple[tuple[int, int, int], ...]
    packed: bool = False

    def inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward pass.

        A packed batch must go in with position ids, without attention mask and without cache: `transformers` keeps the
        examples of a row apart under exactly these conditions.
        """
        given: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.packed:
            return given | {"position_ids": self.position_ids}
        if self.attention_mask is not None:
            given["attention_mask"] = self.attention_mask
        return given


def admit(examples: Sequence[Example], *, max_length: int, vocabulary: int) -> tuple[list[Row], list[Refused]]:
    """Return the rows that can be trained on, and the examples that cannot.

    `vocabulary` is the number of embedding rows of the model.
    """
    rows, refused = [], []
    for example in examples:
        ids = np.asarray(example.target.token_ids, dtype=np.int32)
        weights = np.asarray(example.target.weights, dtype=np.float32) * np.float32(example.weight)
        reason = _fault(ids, weights, max_length, vocabulary)
        if reason:
            refused.append(Refused(example.id, reason))
        else:
            rows.append(Row(example, ids, weights))
    return rows, refused


def _fault(ids: np.ndarray, weights: np.ndarray, max_length: int, vocabulary: int) -> str:
    if not len(ids):
        return "not rendered: the target has no token ids"
    if len(ids) != len(weights):
        return "token ids and weights differ in length"
    if not np.isfinite(weights).all():
        return "a weight is not finite"
    if not weights.any():
        return "no trained token"
    if weights[0]:
        return "the first token has a weight, but nothing predicts it"
    if len(ids) > max_length:
        return f"longer than {max_length} tokens"
    if ids.min() < 0 or ids.max() >= vocabulary:
        return "a token id is outside the model's vocabulary"
    return ""


class BatchSource(Protocol):
    """Where the next window comes from. `draw` and `update` are called once per step, in order, and nothing else moves it.

    A source that learns while training keeps what it learned in `state_dict`, which must be plain JSON data.
    """

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        ...

    def draw(self, step: int) -> Sequence[Row]:
        """Return the rows of window `step` (0-based)."""
        ...

    def update(self, step: int, outputs: Mapping[str, Any]) -> None:
        """Take in the curve row of the step just made."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state a checkpoint keeps."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back the state of a checkpoint."""
        ...


@dataclass
class EpochSource:
    """Every row once per epoch, in an order drawn from (`seed`, epoch); the ragged last window of an epoch is kept.

    Without state: window `step` follows from `step` alone.
    """

    rows: Sequence[Row]
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    @cached_property
    def windows(self) -> int:
        """Windows per epoch."""
        return math.ceil(len(self.rows) / self.batch_size)

    @property
    def steps(self) -> int:
        """`max_steps`, or `epochs` times the windows of an epoch, rounded up."""
        return self.max_steps or math.ceil(round(self.epochs * self.windows, 9))

    def order(self, epoch: int) -> np.ndarray:
        """Return the permutation (N,) int64 of an epoch."""
        if self._order[0] != epoch:
            self._order = (epoch, hashing.rng(self.seed, "epoch", epoch).permutation(len(self.rows)))
        return self._order[1]

    def draw(self, step: int) -> list[Row]:
        """Return the rows of window `step`."""
        epoch, window = divmod(step, self.windows)
        picked = self.order(epoch)[window * self.batch_size : (window + 1) * self.batch_size]
        return [self.rows[i] for i in picked]

    def update(self, step: int, outputs: Mapping[str, Any]) -> None:
        """Do nothing: the order does not depend on training."""

    def state_dict(self) -> dict[str, Any]:
        """Return {}."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


def split(rows: Sequence[Row], *, tokens: int, batching: Batching) -> list[list[Row]]:
    """Split a window into micro-batches of at most `tokens` tokens, padding included; a longer row is alone in its own.

    bucket: rows in order of length, longest first, each group padded to its longest. pack: best-fit decreasing, each group
    becomes one row. Ties keep the order of `rows`.
    """
    ordered = sorted(rows, key=len, reverse=True)
    return _bucket(ordered, tokens) if batching == "bucket" else _pack(ordered, tokens)


def _bucket(ordered: Sequence[Row], tokens: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for row in ordered:
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _pack(ordered: Sequence[Row], tokens: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    left: list[int] = []
    for row in ordered:
        fits = [(free, i) for i, free in enumerate(left) if free >= len(row)]
        if fits:
            index = min(fits)[1]
            groups[index].append(row)
            left[index] -= len(row)
        else:
            groups.append([row])
            left.append(max(0, tokens - len(row)))
    return groups


def collate(rows: Sequence[Row], *, packed: bool, device: torch.device | str = "cpu") -> Batch:
    """Return the batch of one micro-batch on `device`: one line per row, or all of them in one line when `packed`."""
    lengths = [len(row) for row in rows]
    if packed:
        ends = np.cumsum(lengths).tolist()
        spans = [(0, end - length, end) for end, length in zip(ends, lengths, strict=True)]
        shape = (1, ends[-1])
    else:
        spans = [(line, 0, length) for line, length in enumerate(lengths)]
        shape = (len(rows), max(lengths))
    ids, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    positions = np.zeros(shape, dtype=np.int64) if packed else np.arange(shape[1])[None].repeat(shape[0], axis=0)
    mask = None if packed or min(lengths) == shape[1] else np.zeros(shape, dtype=np.int64)
    for row, (line, start, stop) in zip(rows, spans, strict=True):
        ids[line, start:stop], weights[line, start:stop] = row.ids, row.weights
        if packed:
            positions[line, start:stop] = np.arange(stop - start)
        if mask is not None:
            mask[line, start:stop] = 1
    ids_t, weights_t, positions_t = (torch.from_numpy(a).to(device) for a in (ids, weights, positions))
    mask_t = None if mask is None else torch.from_numpy(mask).to(device)
    examples = tuple(row.example for row in rows)
    return Batch(ids_t, weights_t, positions_t, mask_t, examples, tuple(spans), packed)


def keeps_packed_apart(module: Any) -> bool:
    """Whether the model gives a packed row the outputs of its examples alone. Found out on one row of two examples."""
    device = next(module.parameters()).device
    vocabulary = module.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9, device=device)[None] % vocabulary
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            both = module(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 5:]
            alone = module(input_ids=ids[:, 5:], use_cache=False).logits
    except TypeError:
        return False
    finally:
        module.train(training)
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((both - alone).abs().max() <= tolerance * alone.abs().max())
