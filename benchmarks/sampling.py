"""Sampling throughput: tamis against transformers.generate(num_return_sequences=n), same model, law and prompts, fp32.

Both run in turn, several times; medians and their ratio are printed, and one JSON object as the last line. The peer gets the
best of several batch sizes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from tamis.models.resolve import load, resolve
from tamis.records import Law, Message, Prompt

QUESTIONS = (
    "What is the capital of {}?",
    "Write one sentence about {}.",
    "Name three things one can see in {}, and say in a few words why they are worth a visit.",
    "Is {} north of the equator? Answer yes or no.",
)
PLACES = ("Peru", "Norway", "Kenya", "Japan", "Italy", "Chile", "India", "Ghana", "Spain", "Fiji", "Egypt", "Nepal")


def prompts(count: int) -> list[Prompt]:
    texts = [q.format(p) for p in PLACES for q in QUESTIONS]
    return [Prompt((Message("user", texts[i % len(texts)]),), metadata={"copy": i // len(texts)}) for i in range(count)]


def ours(model, asked: list[Prompt], n: int, law: Law) -> int:
    drawn = model.generate(asked, law, candidates=[range(n)] * len(asked), seed=0)
    return sum(len(c.token_ids) for c in drawn)


def peer(module, model, asked: list[Prompt], n: int, law: Law, batch: int) -> int:
    """Left-padded batches of prompts in order of length, as its users would do it. Returns sampled tokens, end included."""
    end = torch.tensor(model.end_ids)
    ids = sorted((model.chat.prompt_ids(p.messages) for p in asked), key=len)
    pad = model.tokenizer.pad_token_id
    total = 0
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        width = max(map(len, part))
        rows = torch.tensor([[pad] * (width - len(r)) + r for r in part])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in part])
        made = module.generate(
            input_ids=rows,
            attention_mask=mask,
            do_sample=True,
            temperature=law.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=law.max_new_tokens,
            num_return_sequences=n,
            pad_token_id=pad,
            eos_token_id=list(model.end_ids),
        )[:, width:]
        stopped = torch.isin(made, end)
        first = torch.where(stopped.any(1), stopped.int().argmax(1) + 1, made.shape[1])
        total += int(first.sum())
    return total


def rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 4, 8], help="prompts per batch of the peer")
    args = parser.parse_args()
    model = load(resolve("smollm2-135m"), dtype="float32")
    module = model.module().eval()
    law, asked = Law(temperature=1.0, max_new_tokens=args.new_tokens), prompts(args.prompts)
    n = args.candidates
    list(model.generate(asked[:2], Law(max_new_tokens=4), candidates=[range(2)] * 2, seed=0))
    best = max(args.peer_batches, key=lambda b: rate(lambda: peer(module, model, asked, n, law, b)))
    mine, theirs = [], []
    for _ in range(args.repeats):
        mine.append(rate(lambda: ours(model, asked, n, law)))
        theirs.append(rate(lambda: peer(module, model, asked, n, law, best)))
    a, b = statistics.median(mine), statistics.median(theirs)
    print(f"{torch.get_num_threads()} threads, {args.prompts} prompts x {n}, up to {args.new_tokens} new tokens, fp32")
    print(f"tamis        {a:7.1f} tok/s  {[round(x, 1) for x in mine]}")
    print(
        f"transformers {b:7.1f} tok/s  {[round(x, 1) for x in theirs]}  (best of {args.peer_batches}: {best} prompts)"
    )
    target = 2.0
    result = {"name": "sampling", "ours": a, "peer": b, "ratio": a / b, "target": target, "holds": a / b >= target}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
