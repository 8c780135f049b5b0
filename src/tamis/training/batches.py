"""Examples to windows (one optimizer step) to micro-batches (one forward pass). Knows token ids only, no tokenizer."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from tamis import hashing
from tamis.records import Example, Target

Batching = Literal["bucket", "pack"]


@dataclass(frozen=True, slots=True)
class Row:
    """An example ready to train on: `ids` (L,) int32 and `weights` (L,) float32 with the example's weight multiplied in.

    `extra` is what else an objective reads, by name: arrays (L, ...) with an entry per token (old log-probabilities, a
    teacher's), or scalars () of the example (a reward, a margin). `others` are sequences that must be in the same
    micro-batch, as the rejected answer of a pair; they have the same names in `extra`.
    """

    example: Example
    ids: np.ndarray
    weights: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: "tuple[Row, ...]" = ()

    def __len__(self) -> int:
        """Return the number of tokens of all sequences."""
        return sum(len(s.ids) for s in self.sequences)

    @property
    def sequences(self) -> "tuple[Row, ...]":
        """This row's own sequence and its others."""
        return (self, *self.others)

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(len(s.ids) for s in self.sequences)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(int(np.count_nonzero(s.weights)) for s in self.sequences)


def sft_row(example: Example) -> Row:
    """Return the row of an example's target: what objectives without a method `row` train on."""
    return target_row(example, example.target)


def target_row(example: Example, target: Target, **extra: ArrayLike) -> Row:
    """Return the row of one target of `example`, with `extra` beside it."""
    ids = np.asarray(target.token_ids, dtype=np.int32)
    weights = np.asarray(target.weights, dtype=np.float32) * np.float32(example.weight)
    return Row(example, ids, weights, {name: np.asarray(values) for name, values in extra.items()})


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
    position ids, and by the `boundaries` (n + 1,) int32 of its n examples where the model's attention takes them.
    `extra` has the rows' extra by name: (B, L, ...) per token, 0 at padding; (n,) per example, in the order of `spans`. The
    sequences of one row (`Row.others`) follow each other.
    """

    input_ids: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    examples: tuple[Example, ...]
    spans: tuple[tuple[int, int, int], ...]
    packed: bool = False
    boundaries: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward pass.

        A packed batch must go in with position ids, without attention mask and without cache: `transformers` keeps the
        examples of a row apart under exactly these conditions.
        """
        given: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.boundaries is not None:
            given["cu_seq_lens_q"] = self.boundaries
        if self.packed:
            return given | {"position_ids": self.position_ids}
        if self.attention_mask is not None:
            given["attention_mask"] = self.attention_mask
        return given


def admit(
    examples: Sequence[Example], *, max_length: int, vocabulary: int, row: Callable[[Example], Row] = sft_row
) -> tuple[list[Row], list[Refused]]:
    """Return the rows that can be trained on, and the examples that cannot.

    `vocabulary` is the number of embedding rows of the model; `row` makes the row of an example.
    """
    rows, refused = [], []
    for example in examples:
        made = row(example)
        reason = next(filter(None, (_fault(s, max_length, vocabulary) for s in made.sequences)), "")
        if reason:
            refused.append(Refused(example.id, reason))
        else:
            rows.append(made)
    return rows, refused


def _fault(row: Row, max_length: int, vocabulary: int) -> str:
    ids, weights = row.ids, row.weights
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
    for name, values in row.extra.items():
        if values.ndim and len(values) != len(ids):
            return f"token ids and {name} differ in length"
        if not np.isfinite(values).all():
            return f"{name} has a value that is not finite"
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
    ordered = sorted(rows, key=len if batching == "pack" else lambda row: row.longest, reverse=True)
    return _bucket(ordered, tokens) if batching == "bucket" else _pack(ordered, tokens)


def _bucket(ordered: Sequence[Row], tokens: int) -> list[list[Row]]:
    groups: list[list[Row]] = []
    for row in ordered:
        if groups and sum(len(r.sequences) for r in (*groups[-1], row)) * groups[-1][0].longest <= tokens:
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


def collate(
    rows: Sequence[Row], *, packed: bool, boundaries: bool = False, device: torch.device | str = "cpu"
) -> Batch:
    """Return the batch of one micro-batch on `device`: one line per sequence, or all of them in one line when `packed`.

    `boundaries`: give a packed line's boundaries to the model.
    """
    sequences = [s for row in rows for s in row.sequences]
    lengths = [len(s.ids) for s in sequences]
    ends = np.cumsum([0, *lengths])
    if packed:
        spans = [(0, int(start), int(end)) for start, end in itertools.pairwise(ends)]
        shape = (1, int(ends[-1]))
    else:
        spans = [(line, 0, length) for line, length in enumerate(lengths)]
        shape = (len(sequences), max(lengths))
    ragged = not packed and min(lengths) < shape[1]
    tokens = {
        "input_ids": [s.ids.astype(np.int64) for s in sequences],
        "weights": [s.weights for s in sequences],
        "position_ids": [np.arange(length) for length in lengths],
        "attention_mask": [np.ones(length, dtype=np.int64) for length in lengths],
    }
    laid = {name: _laid(parts, spans, shape, device) for name, parts in tokens.items()}
    if not packed:
        laid["position_ids"] = torch.arange(shape[1], device=device).expand(shape)
    return Batch(
        input_ids=laid["input_ids"],
        weights=laid["weights"],
        position_ids=laid["position_ids"],
        attention_mask=laid["attention_mask"] if ragged else None,
        examples=tuple(s.example for s in sequences),
        spans=tuple(spans),
        packed=packed,
        boundaries=torch.tensor(ends, dtype=torch.int32, device=device) if boundaries and packed else None,
        extra=_extra(sequences, spans, shape, device),
    )


def _laid(
    parts: Sequence[np.ndarray],
    spans: Sequence[tuple[int, int, int]],
    shape: tuple[int, int],
    device: torch.device | str,
) -> torch.Tensor:
    """Return (B, L, ...) of `shape` (B, L) with each part (length, ...) at its span, 0 elsewhere."""
    whole = np.zeros((*shape, *parts[0].shape[1:]), dtype=parts[0].dtype)
    for part, (line, start, stop) in zip(parts, spans, strict=True):
        whole[line, start:stop] = part
    return torch.from_numpy(whole).to(device)


def _extra(
    sequences: Sequence[Row], spans: Sequence[tuple[int, int, int]], shape: tuple[int, int], device: torch.device | str
) -> dict[str, torch.Tensor]:
    found = {}
    for name, first in sequences[0].extra.items():
        values = [s.extra[name] for s in sequences]
        per_token = first.ndim > 0
        found[name] = (
            _laid(values, spans, shape, device) if per_token else torch.from_numpy(np.stack(values)).to(device)
        )
    return found


def keeps_packed_apart(module: Any, *, boundaries: bool = False) -> bool:
    """Whether the model gives a packed row the outputs of its examples alone. Found out on one row of two examples.

    `boundaries`: with the boundaries of the examples among its inputs.
    """
    device = next(module.parameters()).device
    vocabulary = module.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9, device=device)[None] % vocabulary
    given: dict[str, Any] = {
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device),
        "use_cache": False,
    }
    if boundaries:
        given["cu_seq_lens_q"] = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            both = module(input_ids=ids, **given).logits[:, 5:]
            alone = module(input_ids=ids[:, 5:], use_cache=False).logits
    except TypeError:
        return False
    finally:
        module.train(training)
    tolerance = 1e-4 if alone.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((both - alone).abs().max() <= tolerance * alone.abs().max())
