"""The sampling engine: many candidates of many prompts through one causal language model.

Prompts are taken longest first. Each is run once, and its keys and values are copied into the row of every candidate;
rows step together; a row that ends gives its place to the next candidate. Models that keep anything but plain keys and
values (state spaces, short sliding windows) go batch by batch with the cache that `transformers` makes for them.
Knows token ids only: no tokenizer, no chat template.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from tamis.errors import ModelError
from tamis.generation.cache import RowCache, fits_rows
from tamis.generation.forward import Forward
from tamis.generation.memory import out_of_memory, rows_that_fit
from tamis.generation.rows import Request, Row, Rows, Sampled, Stop
from tamis.generation.sampling import check_law
from tamis.records import Law

OnEvent = Callable[[dict[str, Any]], None]
"""Told {"event": "sampled", "tokens": n} when a candidate ends, and {"event": "memory", "text": ...} when rows are halved."""

_REFILL_SHARE = 16
_LOGGER = logging.getLogger(__name__)


def sample(
    module: Any,
    requests: Sequence[Request],
    law: Law,
    *,
    end_ids: Sequence[int],
    stop: Stop | None = None,
    batch_rows: int | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[Sampled]:
    """Yield a `Sampled` per candidate of every request, in the order they end.

    `module` is a `transformers` causal language model (put into evaluation mode while the iterator lives). Sampling ends
    at a token of `end_ids`, where `stop` says so, or at the request's limit; a prompt and its limit must fit the model.
    Candidate c of a request draws with `numpy.random.default_rng(seeds[c])`, one uniform a token, whatever else is in its
    batch: the result is a function of the arguments (and up to rounding not of `batch_rows`).

    At most `batch_rows` rows are stepped together; None takes what fits half of the free memory (`rows_that_fit`). Memory
    besides the model's is at most rows x (longest prompt and limit) columns of keys and values, three float32 copies of the
    rows' logits, and a prefill of 4,096 tokens. Where that is more than there is, rows are halved and what was not finished
    is drawn again, to the same tokens.
    Raises ConfigError for a law out of range, ModelError for models or logits that cannot be sampled from, or where
    memory does not suffice for one row.
    """
    check_law(law)
    wanted = {i: list(range(len(r.seeds))) for i, r in enumerate(requests) if r.seeds}
    if not wanted:
        return
    forward = Forward(module)
    limit = max(requests[i].limit for i in wanted)
    longest = max(len(requests[i].tokens) + requests[i].limit for i in wanted)
    drive = _continuous if fits_rows(forward.config, longest) else _batchwise
    tell = on_event or _log
    with evaluating(module):
        size = min(batch_rows or rows_that_fit(forward, longest, limit), sum(map(len, wanted.values())))
        while any(wanted.values()):
            try:
                rows = Rows(size, limit, law, end_ids, stop, forward.device, span_rows(forward.device))
                for sampled in drive(forward, requests, wanted, rows, size):
                    wanted[sampled.request].remove(sampled.candidate)
                    tell({"event": "sampled", "tokens": len(sampled.token_ids)})
                    yield sampled
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise ModelError(
                        f"memory does not suffice to sample one sequence of up to {longest} tokens",
                        hint="Lower max_new_tokens, use shorter prompts or a smaller model.",
                    ) from None
                size //= 2
                tell({"event": "memory", "text": f"out of memory in sampling: going on with {size} rows", "rows": size})


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


def span_rows(device: torch.device) -> int:
    """Rows that are attended in one call: on a CPU few, to read fewer keys; elsewhere all, to make fewer calls."""
    return 32 if device.type == "cpu" else 2**16


def _log(event: Mapping[str, Any]) -> None:
    if event["event"] == "memory":
        _LOGGER.warning(event["text"])


def _longest_first(requests: Sequence[Request], wanted: Mapping[int, Sequence[int]]) -> list[int]:
    return sorted((i for i, left in wanted.items() if left), key=lambda i: -len(requests[i].tokens))


def _continuous(
    forward: Forward, requests: Sequence[Request], wanted: Mapping[int, Sequence[int]], rows: Rows, size: int
) -> Iterator[Sampled]:
    queue = _Queue(forward, requests, wanted)
    cache = RowCache(size, max(len(requests[i].tokens) + requests[i].limit for i in wanted))
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
        rows.step(forward.step(rows.last[: len(rows.live)], rows.positions, rows.spans, cache))


@dataclass(slots=True)
class _Prefilled:
    """A prompt that was run: its row of the cache that it was run with, the logits after it, and who waits for them."""

    number: int
    candidates: list[int]
    cache: Cache
    source: int
    logits: Tensor


class _Queue:
    """Candidates that wait for a row: of prompts not run yet, and of prompts whose keys and values are at hand."""

    def __init__(self, forward: Forward, requests: Sequence[Request], wanted: Mapping[int, Sequence[int]]) -> None:
        self.forward, self.requests = forward, requests
        self.wanted = {i: list(left) for i, left in wanted.items()}
        self.prompts = deque(_longest_first(requests, wanted))
        self.ready: deque[_Prefilled] = deque()

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
            prompt = self.ready[0]
            chosen, prompt.candidates = prompt.candidates[:free], prompt.candidates[free:]
            if not prompt.candidates:
                self.ready.popleft()
            count, request = len(chosen), self.requests[prompt.number]
            length = len(request.tokens)
            cache.admit(prompt.cache, prompt.source, length, slice(first, first + count))
            logits.append(prompt.logits.expand(count, -1))
            admitted += [Row(prompt.number, c, request.seeds[c], length, request.limit, rows.steps) for c in chosen]
            first, free = first + count, free - count
        rows.admit(admitted, torch.cat(logits))

    def _prefill(self, free: int) -> None:
        """Run the next prompts, no more than `free` candidates need."""
        needed, candidates = 0, 0
        for number in self.prompts:
            if candidates >= free:
                break
            needed, candidates = needed + 1, candidates + len(self.wanted[number])
        lengths = [len(self.requests[n].tokens) for n in list(self.prompts)[:needed]]
        batch = next(self.forward.batches(lengths, needed))
        numbers = [self.prompts.popleft() for _ in batch]
        cache = DynamicCache()
        logits = self.forward.last([self.requests[n].tokens for n in numbers], cache)
        self.ready.extend(_Prefilled(n, self.wanted[n], cache, i, logits[i]) for i, n in enumerate(numbers))


def _batchwise(
    forward: Forward, requests: Sequence[Request], wanted: Mapping[int, Sequence[int]], rows: Rows, size: int
) -> Iterator[Sampled]:
    """Rows with prompts and limits of one length at a time, so that no cache ever sees padding."""
    by_length = groupby(_longest_first(requests, wanted), key=lambda i: len(requests[i].tokens))
    for length, group in by_length:
        waiting = [
            Row(i, c, requests[i].seeds[c], length, requests[i].limit, 0) for i in group for c in list(wanted[i])
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
