"""A .gguf file through llama.cpp: quantised weights as they are, tokens drawn by tamis' own law and seeds.

Runs with llama-cpp-python 0.3.36 (extra `tamis[llamacpp]`). The file's logits go through `generation.draw`, so law,
log-probabilities and randomness are those of the transformers engine; the logits differ from it by what quantised
activations and a half-precision cache cost.
"""

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.models.base import ModelRef
from tamis.models.sampled import SampledModel
from tamis.records import Law

if TYPE_CHECKING:
    from tamis.generation import Request, Sampled, StopStrings

ROWS = 64
PIECE = 512
"""Prompt tokens, and positions that are scored, per pass."""


class LlamaCppModel(SampledModel):
    """A GGUF file, loaded at its first use: capabilities text, scoring and tokens, but not trainable.

    `device`: "cpu" keeps all layers there; None (default) puts them on the accelerator that llama.cpp was built for, if
    any. `batch_rows` (default 64) sequences are stepped together; each has a key/value cache (half precision) as long as the
    call's longest prompt and its new tokens. Tokenizer and chat template are those of `ref.folder`, which was converted
    from the file. Raises MissingExtra without llama-cpp-python, ModelError for a reference without a .gguf file, a file
    that llama.cpp cannot read, and more rows than it has sequences, ConfigError for a `dtype`.
    """

    batch_rows: int

    def __init__(
        self, ref: ModelRef, *, device: str | None = None, dtype: str | None = None, batch_rows: int | None = None
    ) -> None:
        super().__init__(ref, ROWS if batch_rows is None else batch_rows)
        if ref.gguf is None:
            raise ModelError(
                f"llama.cpp runs .gguf files, and '{ref.name}' is {'tuned' if ref.adapter else 'a model folder'}",
                hint="Name a .gguf file or 'smollm2-135m', or take engine transformers.",
            )
        if dtype is not None:
            raise ConfigError(
                f"llama.cpp takes the weights as they are in the file, not as {dtype}",
                where="engine.dtype",
                hint="Leave dtype out, or take engine transformers.",
            )
        if device not in (None, "cpu"):
            raise ConfigError(
                f"llama.cpp has no device '{device}'",
                where="engine.device",
                hint="It is 'cpu', or nothing: then layers go to the accelerator that llama.cpp was built for.",
            )
        self.device = device

    @property
    def key(self) -> dict[str, Any]:
        """What decides results besides the model: engine, device and rows."""
        return {"engine": "llamacpp", "device": self.device or "any", "batch_rows": self.batch_rows}

    @property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have: those the model was trained with."""
        return self._loaded.context_length or None

    def draw(self, requests: "Sequence[Request]", law: Law, stop: "StopStrings | None") -> "Iterator[Sampled]":
        """Yield a `Sampled` per seed of every request, in the order they end; draws as `generation.sample` does."""
        wanted = [(number, request) for number, request in enumerate(requests) if request.seeds]
        if not wanted:
            return
        rows = min(self.batch_rows, sum(len(request.seeds) for _, request in wanted))
        columns = max(len(request.tokens) + request.limit for _, request in wanted)
        with _Session(self._loaded, rows + 1, columns) as session:
            yield from _Loop(session, rows, deque(wanted), law, frozenset(self.end_ids), stop).run()

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each sequence a float32 array of its length: [i] = log p(token i | tokens before i), [0] = 0."""
        import torch

        longest = max(map(len, sequences), default=0)
        scores = [np.zeros(len(s), dtype=np.float32) for s in sequences]
        if longest < 2:
            return scores
        with _Session(self._loaded, 1, longest) as session:
            for sequence, score in zip(sequences, scores, strict=True):
                session.forget(0)
                for start in range(0, len(sequence) - 1, PIECE):
                    tokens = sequence[start : min(start + PIECE, len(sequence) - 1)]
                    places = [(token, start + i, 0, True) for i, token in enumerate(tokens)]
                    logits = torch.from_numpy(session.decode(places))
                    targets = torch.tensor(sequence[start + 1 : start + 1 + len(tokens)])
                    found = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
                    score[start + 1 : start + 1 + len(tokens)] = found.numpy()
        return scores

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return (len(sequences), vocabulary) float32 logits of the token after each sequence.

        Raises ConfigError for an empty sequence.
        """
        for number, sequence in enumerate(sequences):
            if not len(sequence):
                raise ConfigError(f"sequence {number} has no tokens", hint="Begin it with the BOS token.")
        logits = np.empty((len(sequences), self._loaded.vocabulary), dtype=np.float32)
        if not len(sequences):
            return logits
        with _Session(self._loaded, 1, max(map(len, sequences))) as session:
            for row, sequence in zip(logits, sequences, strict=True):
                session.forget(0)
                row[:] = session.prefill(sequence, 0)
        return logits

    def release(self) -> None:
        """Let go of the weights, freed when nothing samples from them any more; they are loaded again at the next use."""
        self.__dict__.pop("_loaded", None)

    @cached_property
    def _loaded(self) -> "_Weights":
        assert self.ref.gguf is not None
        return _Weights(self.ref.gguf, on_cpu=self.device == "cpu")


class _Weights:
    """The weights of a GGUF file in memory, through the low-level interface of llama-cpp-python."""

    def __init__(self, path: Path, on_cpu: bool) -> None:
        self.api = _api()
        params = self.api.llama_model_default_params()
        if on_cpu:
            params.n_gpu_layers = 0
        # The AMX kernels of ggml 0.25 crash the process on batches of Q4_1 weights; they come with the extra buffers.
        params.use_extra_bufts = b"AMX_INT8 = 1" not in self.api.llama_print_system_info()
        self.model = self.api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ModelError(f"llama.cpp cannot read this file: {_said()}", where=str(path), hint="Is it whole?")
        self.vocabulary: int = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.context_length: int = self.api.llama_model_n_ctx_train(self.model)

    def __del__(self) -> None:
        if getattr(self, "model", None) and self.api.llama_model_free is not None:
            self.api.llama_model_free(self.model)


class _Session:
    """A llama.cpp context of `sequences` sequences of up to `columns` tokens, and one batch that is filled anew."""

    def __init__(self, weights: _Weights, sequences: int, columns: int) -> None:
        import torch

        self.weights, self.api = weights, weights.api
        most = self.api.llama_max_parallel_sequences()
        if sequences > most:
            raise ModelError(
                f"llama.cpp steps at most {most - 1} rows together, not {sequences - 1}",
                where="engine.batch_rows",
                hint=f"Set it to {most - 1} or less.",
            )
        params = self.api.llama_context_default_params()
        params.n_seq_max = sequences
        params.n_ctx = sequences * (columns + -columns % 256)
        params.n_batch = max(PIECE, sequences)
        params.n_ubatch = PIECE
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.kv_unified = False
        self.context = self.api.llama_init_from_model(weights.model, params)
        if not self.context:
            raise ModelError(
                f"llama.cpp cannot hold {sequences - 1} rows of {columns} tokens: {_said()}",
                hint="Set engine.batch_rows or max_new_tokens lower.",
            )
        self.memory = self.api.llama_get_memory(self.context)
        self.batch = self.api.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, places: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        """Feed (token, position, sequence, wants logits) each; return (wanted, vocabulary) float32 logits.

        The array is llama.cpp's own and is overwritten by the next call.
        """
        batch = self.batch
        for i, (token, position, sequence, wants) in enumerate(places):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wants
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(places)
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise ModelError(f"llama.cpp failed with code {code}: {_said()}", hint="Set engine.batch_rows lower.")
        wanted = sum(wants for *_, wants in places)
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (wanted, self.weights.vocabulary))

    def prefill(self, tokens: Sequence[int], sequence: int) -> np.ndarray:
        """Feed all tokens to an empty sequence; return (vocabulary,) logits of the token after them."""
        for start in range(0, len(tokens), PIECE):
            piece = tokens[start : start + PIECE]
            ends = start + len(piece) == len(tokens)
            places = [(t, start + i, sequence, ends and i == len(piece) - 1) for i, t in enumerate(piece)]
            logits = self.decode(places)
        return logits[0]

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def copy(self, source: int, target: int) -> None:
        """Make sequence `target` what sequence `source` is."""
        self.forget(target)
        self.api.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *failure: object) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)


@dataclass
class _Row:
    """A candidate that is being sampled; its row is its place in the list of live rows."""

    request: int
    candidate: int
    length: int
    limit: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)


@dataclass
class _Loop:
    """Rows 0..n-1 step together. Each prompt is run once, in the sequence after the last row, and copied from there."""

    session: _Session
    rows: int
    waiting: "deque[tuple[int, Request]]"
    law: Law
    ends: frozenset[int]
    stop: "StopStrings | None"
    live: list[_Row] = field(default_factory=list)
    prompt: np.ndarray | None = None
    done: int = 0

    def run(self) -> "Iterator[Sampled]":
        """Yield every candidate as it ends."""
        while self.waiting or self.live:
            yield from self._take_ended(self._fill())
            if self.live:
                places = [
                    (row.tokens[-1], row.length + len(row.tokens) - 1, i, True) for i, row in enumerate(self.live)
                ]
                self._draw(self.live, self.session.decode(places))
                yield from self._take_ended(self.live)

    def _fill(self) -> list[_Row]:
        """Give free rows to waiting candidates and draw their first tokens; return the new rows."""
        added: list[_Row] = []
        while self.waiting and len(self.live) < self.rows:
            number, request = self.waiting[0]
            if self.prompt is None:
                self.session.forget(self.rows)
                self.prompt = self.session.prefill(request.tokens, self.rows).copy()
            count = min(self.rows - len(self.live), len(request.seeds) - self.done)
            new = [self._row(number, request, c) for c in range(self.done, self.done + count)]
            for place in range(len(self.live), len(self.live) + count):
                self.session.copy(self.rows, place)
            self._draw(new, np.repeat(self.prompt[None], count, axis=0))
            self.live += new
            added += new
            self.done += count
            if self.done == len(request.seeds):
                self.waiting.popleft()
                self.prompt, self.done = None, 0
        return added

    def _row(self, number: int, request: "Request", candidate: int) -> _Row:
        uniforms = np.random.default_rng(request.seeds[candidate]).random(request.limit)
        return _Row(number, candidate, len(request.tokens), request.limit, uniforms)

    def _draw(self, rows: Sequence[_Row], logits: np.ndarray) -> None:
        import torch

        from tamis.generation import draw

        uniforms = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64)
        drawn = draw(torch.from_numpy(logits), self.law, uniforms)
        values = zip(rows, drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.raw_logprobs.tolist(), strict=True)
        for row, token, logprob, raw in values:
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.raw_logprobs.append(raw)

    def _take_ended(self, looked_at: Sequence[_Row]) -> "Iterator[Sampled]":
        """Yield the rows that have ended; the last live row moves into each hole, so that rows stay 0..n-1."""
        for row in list(looked_at):
            end = self._end(row)
            if end is None:
                continue
            place, last = next(i for i, other in enumerate(self.live) if other is row), self.live.pop()
            if last is not row:
                self.session.copy(len(self.live), place)
                self.live[place] = last
            yield _sampled(row, *end)

    def _end(self, row: _Row) -> 'tuple[int, Literal["stop", "length"]] | None':
        count = len(row.tokens)
        met = self.stop(row.tokens, 1) if self.stop else None
        if met is not None:
            return met, "stop"
        if row.tokens[-1] in self.ends:
            return count, "stop"
        return (count, "length") if count >= row.limit else None


def _sampled(row: _Row, count: int, finish: Literal["stop", "length"]) -> "Sampled":
    from tamis.generation import Sampled

    if not np.isfinite(row.raw_logprobs[:count]).all():
        raise ModelError("the model's logits are not finite numbers", hint="The .gguf file may be damaged.")
    values = (tuple(row.tokens[:count]), tuple(row.logprobs[:count]), tuple(row.raw_logprobs[:count]))
    return Sampled(row.request, row.candidate, *values, finish)


_heard: deque[str] = deque(maxlen=3)
_callbacks: list[Any] = []
_WARNING = 3


def _api() -> Any:
    """Return the low-level module of llama-cpp-python, its messages kept for errors instead of shown."""
    try:
        import llama_cpp.llama_cpp as api
    except ImportError:
        raise MissingExtra("llama-cpp-python", "llamacpp", "engine llamacpp") from None
    if not _callbacks:

        def hear(level: int, text: bytes, _: Any) -> None:
            if level == _WARNING or level == _WARNING + 1:
                _heard.append(text.decode(errors="replace").strip())

        _callbacks.append(api.llama_log_callback(hear))
        api.llama_log_set(_callbacks[0], ctypes.c_void_p(0))
        api.llama_backend_init()
    return api


def _said() -> str:
    return next((text for text in reversed(_heard) if text), "it gave no reason")
