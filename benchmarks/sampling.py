"""Sampling throughput: tamis against transformers.generate and llama.cpp's batched decoding. Same model, prompts and law.

SmolLM2-135M-Instruct, temperature 1, nothing truncated, natural stopping: every candidate runs until its end token (or the
limit, which about one in seven reaches). Only useful tokens count: up to and including the end token. tamis and transformers
compute in float32; llama.cpp takes the weights as they were quantised (Q4_1), with keys and values in float16. Every side
is a process of its own, and gets the best of a sweep over its batch sizes; then sides run in turn.

How near it comes: `limit` is the tokens/s of a model that does nothing but its matrix products (at their real shapes, each
with weights of its own, on the engine's rows), measured in the same process between the turns.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harness import HERE, Worker, comparison, conclude, environment, in_turn, serve

MODEL = "smollm2-135m"
TRANSFORMERS = ("torch==2.13.0", "transformers==5.23.0")
LLAMA = (
    "install",
    "--no-cache-dir",
    "-C",
    "cmake.define.CMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse",
    "llama-cpp-python==0.3.36",
)
"""Built as it comes, its AMX kernels crash on some machines (ggml-org/llama.cpp#20824); built so, they run."""

TARGETS = {"transformers": 2.0, "llama.cpp": 1.0}
NOTES = [
    "Where a step goes, profiled at 128 rows (40 prompt tokens, 82 sampled on average, the longest row 296) on a machine that "
    "was not wholly free: matrix products 56%, attention 27%, drawing 3%, cache writes 2%, norms, rotations, Python 12%.",
    "Attention is bound by reading keys and values; rows are attended in spans of like lengths, which took 232 ms a step "
    "against 277 over the width of the longest. Candidates of one prompt still read their own copy of its keys and values.",
]

QUESTIONS = (
    "What is the capital of {}?",
    "Write one sentence about {}.",
    "Name three things one can see in {}, and say in a few words why they are worth a visit.",
    "Is {} north of the equator? Answer yes or no.",
)
PLACES = (
    "Peru", "Norway", "Kenya", "Japan", "Italy", "Chile", "India", "Ghana",
    "Spain", "Fiji", "Egypt", "Nepal", "Cuba", "Laos", "Malta", "Oman",
)  # fmt: skip


def texts(count: int) -> list[str]:
    """Return `count` questions, all different up to 64."""
    every = [question.format(place) for place in PLACES for question in QUESTIONS]
    return [every[i % len(every)] for i in range(count)]


class Ours:
    """The worker of tamis: it also tells the peers what to do, and measures the machine."""

    def __init__(self) -> None:
        from tamis.models.catalog import get_gguf
        from tamis.models.resolve import load, resolve

        ref = resolve(MODEL)
        self.model = load(ref, dtype="float32")
        self.folder, self.gguf = ref.folder, get_gguf(MODEL)

    def __call__(self, task: str, **job: Any) -> dict[str, Any]:
        return {"describe": self.describe, "sample": self.sample, "rate": self.rate}[task](**job)

    def describe(self, prompts: int) -> dict[str, Any]:
        """Return what the peers need: prompts as token ids, end tokens, and where the weights are."""
        import torch

        ids = [self.model.chat.prompt_ids(p.messages) for p in self._prompts(prompts)]
        return {
            "prompts": ids,
            "ends": list(self.model.end_ids),
            "pad": self.model.tokenizer.pad_token_id,
            "folder": str(self.folder),
            "gguf": str(self.gguf),
            "threads": torch.get_num_threads(),
        }

    def sample(self, prompts: int, candidates: int, limit: int, rows: int | None) -> dict[str, Any]:
        """Sample, and count."""
        from tamis.records import Law

        self.model.batch_rows = rows
        asked = self._prompts(prompts)
        law = Law(temperature=1.0, max_new_tokens=limit)
        drawn = list(self.model.generate(asked, law, candidates=[range(candidates)] * prompts, seed=0))
        stopped = sum(c.finish_reason == "stop" for c in drawn)
        return {"tokens": sum(len(c.token_ids) for c in drawn), "candidates": len(drawn), "stopped": stopped}

    def rate(self, rows: int) -> dict[str, Any]:
        """Time the matrix products of one step of `rows` rows, and nothing else."""
        import torch

        weights = [m.weight for m in self.model._module.modules() if isinstance(m, torch.nn.Linear)]
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights}
        times = []
        with torch.inference_mode():
            for _ in range(8):
                started = time.perf_counter()
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
                times.append(time.perf_counter() - started)
        operations = 2 * sum(w.numel() for w in weights)
        step = statistics.median(times)
        return {"limit": rows / step, "gflops": rows * operations / step / 1e9, "operations": operations}

    @staticmethod
    def _prompts(count: int) -> list[Any]:
        from tamis.records import Message, Prompt

        seen: Counter[str] = Counter()
        made = []
        for text in texts(count):
            made.append(Prompt((Message("user", text),), metadata={"copy": seen[text]}))
            seen[text] += 1
        return made


class Side:
    """A side of the comparison: its worker, what every job of it says, and its peak memory so far."""

    def __init__(self, name: str, worker: Worker, **same: Any) -> None:
        self.name, self.worker, self.same = name, worker, same
        self.peak = 0

    def speed(self, prompts: Any, **choice: Any) -> float:
        """Return useful tokens per second."""
        answer = self.worker.ask(prompts=prompts, **self.same, **choice)
        found, self.peak = answer["tokens"] / answer["seconds"], answer["peak_bytes"]
        print(f"{self.name} {choice or ''}: {answer['tokens']} tokens, {found:.1f} tokens/s", flush=True)
        return found


def transformers_side(told: dict[str, Any], law: dict[str, Any], stack: ExitStack) -> Side:
    """`generate(num_return_sequences=candidates)` on left-padded batches of prompts, in float32."""
    python = environment("sampling-transformers", TRANSFORMERS)
    worker = Worker(python, HERE / "peers" / "sampling_transformers.py", told["folder"], str(told["pad"]))
    return Side("transformers", stack.enter_context(worker), ends=told["ends"], **law)


def llamacpp_side(told: dict[str, Any], law: dict[str, Any], stack: ExitStack) -> Side:
    """llama.cpp on the quantised weights."""
    python = environment("llamacpp-amx", ("numpy",), LLAMA)
    worker = Worker(python, HERE / "peers" / "sampling_llamacpp.py", told["gguf"], str(told["threads"]))
    return Side("llama.cpp", stack.enter_context(worker), ends=told["ends"], **law)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--sweep-prompts", type=int, default=16, help="prompts of a sweep's turn")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--limit", type=int, default=256, help="most new tokens of a candidate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=None, help="rows of tamis (default: from memory)")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16], help="prompts per batch of transformers")
    parser.add_argument("--llama-rows", type=int, nargs="+", default=[16, 64, 128], help="sequences of llama.cpp")
    parser.add_argument("--peers", nargs="+", default=["transformers", "llamacpp"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Ours())
        return
    with ExitStack() as stack:
        compare(args, stack)


def compare(args: argparse.Namespace, stack: ExitStack) -> None:
    """Sweep the peers, run the sides in turn, and say what was found."""
    law = {"candidates": args.candidates, "limit": args.limit}
    worker = stack.enter_context(Worker(sys.executable, Path(__file__), "--serve"))
    told = worker.ask(task="describe", prompts=args.prompts)
    ours = Side("tamis", worker, task="sample", rows=args.rows, **law)
    turns, peers, rates = [lambda: ours.speed(args.prompts)], [], []
    sweeps = {
        "transformers": [{"batch": n} for n in args.batches],
        "llamacpp": [{"rows": n, "unified": unified} for n in args.llama_rows for unified in (True, False)],
    }
    for name in args.peers:
        side = {"transformers": transformers_side, "llamacpp": llamacpp_side}[name](told, law, stack)
        some = told["prompts"][: args.sweep_prompts]
        best = max(sweeps[name], key=lambda choice: side.speed(some, **choice))
        peers.append((side, best))
        turns.append(partial(side.speed, told["prompts"], **best))

    def limit() -> float:
        rates.append(worker.ask(task="rate", rows=args.rows or 128))
        return rates[-1]["limit"]

    ours.speed(2)
    limits, mine, *theirs = in_turn(args.repeats, limit, *turns)
    results = [
        comparison(
            f"sampling ({side.name})",
            mine,
            figures,
            TARGETS[side.name],
            unit="tokens/s",
            against=f"{side.name} ({', '.join(f'{k} {v}' for k, v in best.items())})",
            ours_peak_bytes=ours.peak,
            peer_peak_bytes=side.peak,
        )
        for (side, best), figures in zip(peers, theirs, strict=True)
    ]
    share = statistics.median(mine) / statistics.median(limits)
    notes = [
        f"{args.prompts} prompts, {args.candidates} candidates each, up to {args.limit} new tokens, temperature 1.",
        f"Matrix products alone, {statistics.median(r['gflops'] for r in rates):.0f} GFLOP/s at the model's shapes and "
        f"{rates[0]['operations'] / 1e6:.0f} MFLOP a token, allow {statistics.median(limits):.0f} tokens/s: "
        f"tamis reaches {share:.0%} of that.",
        f"Peak memory: tamis {ours.peak / 1e9:.2f} GB"
        + "".join(f", {side.name} {side.peak / 1e9:.2f} GB" for side, _ in peers)
        + ".",
        *NOTES,
    ]
    print("\n".join(notes))
    conclude(*results, limits=limits, share_of_limit=share, notes=notes)


if __name__ == "__main__":
    main()
