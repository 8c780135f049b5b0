"""What is known of the sequences being sampled: tokens, log-probabilities, uniforms, and which rows are done.

Rows 0..n-1 are live, the longest in the first span of rows, the next in the second. Tensors stay on the model's device;
what the host knows without asking it (how many tokens each row has) is kept in `Row`, so that nothing is fetched between
two looks at the `ended` flags.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tamis.errors import ModelError
from tamis.generation.attention import Span
from tamis.generation.sampling import Drawn, draw
from tamis.records import Law

Stop = Callable[[Sequence[int], int], int | None]
"""(token ids so far, how many of them are new) -> how many to keep when a stop string is met, else None."""


End = tuple[int, Literal["stop", "length"]]
"""How many of a row's tokens are kept, and why it ended."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's token ids, one seed per candidate wanted, and the most tokens (>= 1) a candidate may have."""

    tokens: Sequence[int]
    seeds: Sequence[int]
    limit: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """Candidate number `candidate` (index into the request's seeds) of request number `request`.

    `token_ids` include the sampled end token; `logprobs` and `raw_logprobs` are natural logarithms, rounded to float32,
    one per token. `finish` is "stop" (end token or stop string) or "length".
    """

    request: int
    candidate: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Row:
    """A live row: which candidate it is, its prompt's length, its limit, and the step count when it was admitted."""

    request: int
    candidate: int
    seed: int
    prompt_length: int
    limit: int
    born: int


class Rows:
    """The state of up to `size` rows of at most `limit` new tokens each, attended to `span` rows at a time."""

    def __init__(
        self,
        size: int,
        limit: int,
        law: Law,
        end_ids: Sequence[int],
        stop: Stop | None,
        device: torch.device,
        span: int,
    ) -> None:
        self.law, self.stop, self.end_ids, self.span = law, stop, frozenset(end_ids), span
        self.ends = torch.tensor(sorted(self.end_ids), dtype=torch.int64, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.tokens = torch.zeros((size, limit), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros((2, size, limit), dtype=torch.float32, device=device)
        self.uniforms = torch.zeros((size, limit), dtype=wide, device=device)
        self.prompt_length = torch.zeros(size, dtype=torch.int64, device=device)
        self.count = torch.zeros(size, dtype=torch.int64, device=device)
        self.last = torch.zeros(size, dtype=torch.int64, device=device)
        self.ended = torch.zeros(size, dtype=torch.bool, device=device)
        self.index = torch.arange(size, device=device)
        self.live: list[Row] = []
        self.steps = 0
        self.looked = 0

    @property
    def positions(self) -> Tensor:
        """(n,) int64 position of each live row's last token."""
        n = len(self.live)
        return self.prompt_length[:n] + self.count[:n] - 1

    @property
    def spans(self) -> list[Span]:
        """Live rows, `span` at a time, with the positions up to the last token of the longest of them."""
        lengths = [self._length(row) for row in self.live]
        starts = range(0, len(lengths), self.span)
        return [(slice(at, min(at + self.span, len(lengths))), max(lengths[at : at + self.span])) for at in starts]

    @property
    def due(self) -> bool:
        """Whether a live row has reached its limit."""
        return any(self._sampled(row) >= row.limit for row in self.live)

    def _sampled(self, row: Row) -> int:
        return self.steps - row.born + 1

    def _length(self, row: Row) -> int:
        return row.prompt_length + self._sampled(row)

    def admit(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Append live rows and draw their first tokens from `logits` (len(rows), V)."""
        first, last = len(self.live), len(self.live) + len(rows)
        new = slice(first, last)
        self.live.extend(rows)
        self.prompt_length[new] = torch.tensor([row.prompt_length for row in rows], device=self.tokens.device)
        self.count[new] = 0
        self.ended[new] = False
        if self.law.temperature > 0:
            self.uniforms[new] = self._streams(rows)
        self._record(new, logits)

    def step(self, logits: Tensor) -> None:
        """Draw the next token of every live row from `logits` (n, V)."""
        self.steps += 1
        self._record(slice(0, len(self.live)), logits)

    def _streams(self, rows: Sequence[Row]) -> Tensor:
        streams = np.zeros((len(rows), self.uniforms.shape[1]))
        for stream, row in zip(streams, rows, strict=True):
            stream[: row.limit] = np.random.default_rng(row.seed).random(row.limit)
        return torch.from_numpy(streams).to(self.uniforms)

    def _record(self, rows: slice, logits: Tensor) -> None:
        index, count = self.index[rows], self.count[rows]
        drawn: Drawn = draw(logits, self.law, self.uniforms[index, count])
        self.tokens[index, count] = drawn.tokens
        self.logprobs[0, index, count] = drawn.logprobs
        self.logprobs[1, index, count] = drawn.raw_logprobs
        self.last[rows] = drawn.tokens
        self.ended[rows] |= (drawn.tokens[:, None] == self.ends).any(-1)
        self.count[rows] += 1

    def finished(self) -> dict[int, End]:
        """Return how every live row that is done ends. Waits for the device."""
        ended = self.ended[: len(self.live)].tolist()
        fresh, self.looked = self.steps - self.looked + 1, self.steps
        ends = {number: self._end(number, ended[number], fresh) for number in range(len(self.live))}
        return {number: end for number, end in ends.items() if end}

    def _end(self, number: int, ended: bool, fresh: int) -> End | None:
        row = self.live[number]
        count = self._sampled(row)
        if not ended and not self.stop and count < row.limit:
            return None
        tokens = self.tokens[number, :count].tolist()
        if ended:
            tokens = tokens[: next(i for i, token in enumerate(tokens, 1) if token in self.end_ids)]
        met = self.stop(tokens, fresh) if self.stop else None
        if met is not None:
            return met, "stop"
        if ended:
            return len(tokens), "stop"
        return (count, "length") if count >= row.limit else None

    def collect(self, ends: dict[int, End]) -> list[Sampled]:
        """Return the samples of the rows in `ends`. Raises ModelError where a log-probability is not a number."""
        numbers = list(ends)
        tokens = self.tokens[numbers].tolist()
        ours, raws = self.logprobs[:, numbers].tolist()
        if not all(np.isfinite(raw[: ends[n][0]]).all() for n, raw in zip(numbers, raws, strict=True)):
            raise ModelError(
                "the model's logits are not finite numbers",
                hint="Its weights may be damaged, or its dtype too narrow: try dtype float32.",
            )
        samples = []
        for i, number in enumerate(numbers):
            row, (n, finish) = self.live[number], ends[number]
            values = tuple(tokens[i][:n]), tuple(ours[i][:n]), tuple(raws[i][:n])
            samples.append(Sampled(row.request, row.candidate, *values, finish))
        return samples

    def remove(self, gone: Sequence[int]) -> tuple[list[int], list[int]]:
        """Take rows `gone` out and let the others move up, so that spans stay ordered by length.

        Returns (rows moved, rows they moved to). A row that is in its span already stays where it is.
        """
        out = set(gone)
        left = [row for row in range(len(self.live)) if row not in out]
        left.sort(key=lambda row: -self._length(self.live[row]))
        sources, targets = [], []
        for at in range(0, len(left), self.span):
            members, places = left[at : at + self.span], range(at, min(at + self.span, len(left)))
            sources += [row for row in members if row not in places]
            targets += sorted(set(places).difference(members))
        live = self.live
        self.live = live[: len(left)]
        for source, target in zip(sources, targets, strict=True):
            self.live[target] = live[source]
        if sources:
            for state in (self.tokens, self.uniforms, self.prompt_length, self.count, self.last, self.ended):
                state[targets] = state[sources]
            self.logprobs[:, targets] = self.logprobs[:, sources]
        return sources, targets
