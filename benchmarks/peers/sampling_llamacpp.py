"""llama.cpp's side of the sampling benchmark: continuous batched decoding of a GGUF file through its C interface.

One batch holds a token of every live sequence. A prompt is decoded once, in a sequence of its own, and its keys and values
are given to each of its candidates (`llama_memory_seq_cp`); a candidate that ends gives its sequence to the next. Tokens
are drawn by llama.cpp's own sampler chain (its last stage, `dist`, alone: temperature 1, nothing truncated).
"""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
from harness import serve


@dataclass(slots=True)
class Live:
    """A candidate being sampled: its newest token, that token's position, and how many tokens it has."""

    token: int
    position: int
    count: int
    sampler: Any


class Engine:
    """A model and a context of `rows` sequences (and one for prompts) of up to `length` tokens."""

    def __init__(self, model: Any, rows: int, length: int, unified: bool, threads: int) -> None:
        params = lib.llama_context_default_params()
        params.n_seq_max = rows + 1
        params.n_ctx = (rows + 1) * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = max(rows, 256)
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = unified
        self.rows, self.ctx = rows, lib.llama_init_from_model(model, params)
        if not self.ctx:
            raise SystemExit("llama.cpp made no context")
        self.memory = lib.llama_get_memory(self.ctx)
        self.batch = lib.llama_batch_init(params.n_batch, 0, 1)

    def close(self) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.ctx)

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """Decode (token, position, sequence, whether its logits are wanted) entries as one batch."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        batch.n_tokens = len(tokens)
        code = lib.llama_decode(self.ctx, batch)
        if code:
            raise SystemExit(f"llama_decode answered {code}")

    def run(self, prompts: Sequence[Sequence[int]], candidates: int, limit: int, ends: frozenset[int]) -> list[int]:
        """Return the length of every candidate of every prompt, end token included, in the order they end."""
        waiting = deque(sorted(prompts, key=len, reverse=True))
        first: deque[Live] = deque()
        live: dict[int, Live] = {}
        free = list(range(self.rows))
        lengths: list[int] = []
        while waiting or first or live:
            while free and (first or waiting):
                if not first:
                    first = self._prompt(waiting.popleft(), candidates, len(lengths) + len(live))
                candidate = first.popleft()
                if candidate.token in ends or limit == 1:
                    lengths.append(1)
                    continue
                slot = free.pop()
                lib.llama_memory_seq_cp(self.memory, self.rows, slot, -1, -1)
                live[slot] = candidate
            if not first:
                lib.llama_memory_seq_rm(self.memory, self.rows, -1, -1)
            if not live:
                continue
            self.decode([(c.token, c.position, slot, True) for slot, c in live.items()])
            for i, (slot, c) in enumerate(list(live.items())):
                c.token = lib.llama_sampler_sample(c.sampler, self.ctx, i)
                c.position, c.count = c.position + 1, c.count + 1
                if c.token in ends or c.count == limit:
                    lengths.append(c.count)
                    lib.llama_memory_seq_rm(self.memory, slot, -1, -1)
                    lib.llama_sampler_free(c.sampler)
                    del live[slot]
                    free.append(slot)
        lib.llama_memory_clear(self.memory, True)
        return lengths

    def _prompt(self, ids: Sequence[int], candidates: int, seed: int) -> deque[Live]:
        lib.llama_memory_seq_rm(self.memory, self.rows, -1, -1)
        self.decode([(token, i, self.rows, i == len(ids) - 1) for i, token in enumerate(ids)])
        made = deque()
        for number in range(candidates):
            sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            lib.llama_sampler_chain_add(sampler, lib.llama_sampler_init_dist(seed + number))
            made.append(Live(lib.llama_sampler_sample(sampler, self.ctx, len(ids) - 1), len(ids), 1, sampler))
        return made


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    lib.llama_log_set(SILENT, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    described = lib.ctypes.create_string_buffer(256)
    lib.llama_model_desc(model, described, len(described))
    engines: dict[tuple[int, int, bool], Engine] = {}

    def work(
        prompts: list[list[int]], candidates: int, limit: int, ends: list[int], rows: int, unified: bool
    ) -> Mapping[str, Any]:
        key = (rows, max(map(len, prompts)) + limit, unified)
        if key not in engines:
            for engine in engines.values():
                engine.close()
            engines.clear()
            engines[key] = Engine(model, *key, threads)
        lengths = engines[key].run(prompts, candidates, limit, frozenset(ends))
        return {"tokens": sum(lengths), "candidates": len(lengths), "model": described.value.decode()}

    serve(work)


@lib.llama_log_callback
def SILENT(level: int, text: bytes, data: object) -> None:
    """Drop llama.cpp's log lines."""


if __name__ == "__main__":
    main()
