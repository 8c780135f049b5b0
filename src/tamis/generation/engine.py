"""The sampling engine: many candidates of many prompts through one causal language model.

Prompts are taken longest first. Each is run once, and its keys and values are copied into the row of every candidate;
rows step together; a row that ends gives its place to the next candidate. Models that keep anything but plain keys and
values (state spaces, short sliding windows) go batch by batch with the cache that `transformers` makes for them.
Knows token ids only: no tokenizer, no chat template.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from tamis.generation.cache import RowCache, fits_rows
from tamis.generation.forward import Forward
from tamis.generation.rows import Request, Row, Rows, Sampled, Stop
from tamis.generation.sampling import check_law
from tamis.records import Law

_REFILL_SHARE = 8


def sample(
    module: Any,
    requests: Sequence[Request],
    law: Law,
    *,
    end_ids: Sequence[int],
    stop: Stop | None = None,
    batch_rows: int = 64,
) -> Iterator[Sampled]:
    """Yield a `Sampled` per candidate of every request, in the order they end.

    `module` is a `transformers` causal language model (put into evaluation mode while the iterator lives). Sampling ends
    at a token of `end_ids`, where `stop` says so, or at the request's limit; a prompt and its limit must fit the model.
    At most `batch_rows` rows are stepped together. The result is a function of the arguments alone; candidate c of a
    request draws with `numpy.random.default_rng(seeds[c])`, one uniform a token, whatever else is in its batch.
    Raises ConfigError for a law out of range, ModelError for models or logits that cannot be sampled from.
    """
    check_law(law)
    wanted = [r for r in requests if r.seeds]
    if not wanted:
        return
    forward = Forward(module)
    limit = max(r.limit for r in wanted)
    size = min(batch_rows, sum(len(r.seeds) for r in wanted))
    rows = Rows(size, limit, law, end_ids, stop, forward.device)
    longest = max(len(r.tokens) + r.limit for r in wanted)
    drive = _continuous if fits_rows(forward.config, longest) else _batchwise
    with evaluating(module):
        yield from drive(forward, requests, rows, size)


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Put `module` into evaluation mode (no dropout), and back into the mode it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def look_every(device: torch.device) -> int:
    """Steps between two looks at which rows have ended: each look makes the host wait for an accelerator."""
    return 1 if device.type == "cpu" else 8


def _longest_first(requests: Sequence[Request]) -> list[int]:
    return sorted((i for i, r in enumerate(requests) if r.seeds), key=lambda i: -len(requests[i].tokens))


def _continuous(forward: Forward, requests: Sequence[Request], rows: Rows, size: int) -> Iterator[Sampled]:
    queue = _Queue(forward, requests)
    cache = RowCache(size)
    every = look_every(forward.device)
    while rows.live or queue:
        free = size - len(rows.live)
        if queue and free >= max(1, size // _REFILL_SHARE):
            queue.fill(rows, cache, free)
        if rows.steps % every == 0 or rows.due:
            ends = rows.finished()
            if ends:
                yield from rows.collect(ends)
                cache.move(*rows.remove(list(ends)))
                continue
        rows.step(forward.step(rows.last[: len(rows.live)], rows.positions, rows.width, cache))


class _Queue:
    """Candidates that wait for a row: of prompts not run yet, and of prompts whose keys and values are at hand."""

    def __init__(self, forward: Forward, requests: Sequence[Request]) -> None:
        self.forward, self.requests = forward, requests
        self.prompts = deque(_longest_first(requests))
        self.ready: deque[tuple[int, int, Cache, int, Tensor]] = deque()

    def __bool__(self) -> bool:
        return bool(self.ready or self.prompts)

    def fill(self, rows: Rows, cache: RowCache, free: int) -> None:
        """Admit up to `free` candidates, running as many prompts as that takes."""
        admitted: list[Row] = []
        logits: list[Tensor] = []
        first = len(rows.live)
        while free and self:
            if not self.ready:
                self._prefill(free)
            number, done, prefilled, source, scores = self.ready.popleft()
            request = self.requests[number]
            count = min(free, len(request.seeds) - done)
            if done + count < len(request.seeds):
                self.ready.appendleft((number, done + count, prefilled, source, scores))
            length = len(request.tokens)
            cache.admit(prefilled, source, length, slice(first, first + count))
            logits.append(scores.expand(count, -1))
            admitted += [
                Row(number, c, request.seeds[c], length, request.limit, rows.steps) for c in range(done, done + count)
            ]
            first, free = first + count, free - count
        rows.admit(admitted, torch.cat(logits))

    def _prefill(self, free: int) -> None:
        """Run the next prompts, no more than `free` candidates need."""
        needed, candidates = 0, 0
        for number in self.prompts:
            if candidates >= free:
                break
            needed, candidates = needed + 1, candidates + len(self.requests[number].seeds)
        lengths = [len(self.requests[n].tokens) for n in list(self.prompts)[:needed]]
        batch = next(self.forward.batches(lengths, needed))
        numbers = [self.prompts.popleft() for _ in batch]
        prefilled = DynamicCache()
        logits = self.forward.last([self.requests[n].tokens for n in numbers], prefilled)
        self.ready.extend((n, 0, prefilled, i, logits[i]) for i, n in enumerate(numbers))


def _batchwise(forward: Forward, requests: Sequence[Request], rows: Rows, size: int) -> Iterator[Sampled]:
    """Rows with prompts and limits of one length at a time, so that no cache ever sees padding."""
    by_length = groupby(_longest_first(requests), key=lambda i: len(requests[i].tokens))
    for length, group in by_length:
        waiting = [
            Row(i, c, seed, length, requests[i].limit, 0) for i in group for c, seed in enumerate(requests[i].seeds)
        ]
        for start in range(0, len(waiting), size):
            yield from _one_batch(forward, requests, rows, waiting[start : start + size])


def _one_batch(forward: Forward, requests: Sequence[Request], rows: Rows, batch: Sequence[Row]) -> Iterator[Sampled]:
    cache = DynamicCache(config=forward.config)
    logits = forward.last([requests[row.request].tokens for row in batch], cache)
    rows.steps = rows.looked = 0
    rows.admit(batch, logits)
    ends = rows.finished()
    while len(ends) < len(batch):
        past = batch[0].prompt_length + rows.steps
        rows.step(forward(rows.last[: len(batch), None], cache, past)[:, -1])
        ends = rows.finished() | ends
    yield from rows.collect(ends)
    rows.remove(list(ends))
