"""Tuning throughput: tamis against trl's SFTTrainer. Same model, conversations, LoRA, optimizer and windows, fp32.

Useful tokens are the tokens of the trained examples, prompt and completion, padding not; loss on completions only. Every
setting of a side is a process of its own, so that its peak memory is its own; sides run in turn, the first optimizer step of
each run is a warm-up. trl's best setting is the fastest of `SETTINGS` in a sweep of the same call; the loss curves compared are
those of `SAME_WINDOWS` (packing and grouping by length change which examples meet in a window).
"""

import argparse
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import HERE, Worker, comparison, conclude, environment, in_turn, serve

PEER = HERE / "peers" / "tuning_trl.py"
PACKAGES = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "trl==1.16.0",
)
WINDOW, EXAMPLES = 8, 128
LORA = {"r": 16, "alpha": 32.0}
LR, CLIP = 1e-3, 1.0

PLAIN = {"gradient_checkpointing": False}
FREE = {**PLAIN, "padding_free": True, "max_length": None}
PACKED = {**PLAIN, "packing": True, "per_device_train_batch_size": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"batch-{n}": {**PLAIN, "per_device_train_batch_size": n} for n in (1, 2, 4, 8)},
    **{f"padding-free-{n}": {**FREE, "per_device_train_batch_size": n} for n in (2, 4)},
    "pack-512": {**PACKED, "max_length": 512, "gradient_accumulation_steps": 3},
    "pack-1024": {**PACKED, "max_length": 1024, "gradient_accumulation_steps": 2},
    **{
        f"by-length-{n}": {**PLAIN, "per_device_train_batch_size": n, "train_sampling_strategy": "group_by_length"}
        for n in (2, 4)
    },
}
"""Options of SFTConfig that differ from trl's defaults, beside those that make the trainings the same."""
SAME_WINDOWS = "batch-1"
PARTS = ("best", "default", "curve", "allocator", "profile")
KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""What a user of trl may set to keep freed memory in the process, as tamis does by itself; reported beside the plain ratio."""
ELEMENTWISE = {"mul", "add", "add_", "sub", "div", "neg", "pow", "mean", "rsqrt", "silu", "silu_backward", "cat", "sum"}


def conversations(count: int) -> Iterator[tuple[str, str]]:
    """Yield question and answer; the length law has a long tail (log-normal), about 60 to 400 tokens together."""
    rng = random.Random(20)
    for _ in range(count):
        terms = min(25, max(1, round(math.exp(rng.gauss(math.log(5), 0.8)))))
        numbers = [rng.randint(2, 99) for _ in range(terms)]
        sums = list(itertools.accumulate(numbers))
        steps = [
            f"{before} + {number} = {after}" for before, number, after in zip([0, *sums], numbers, sums, strict=False)
        ]
        question = f"Add these numbers step by step: {', '.join(map(str, numbers))}. What is the sum?"
        yield question, f"I add them one by one: {'; '.join(steps)}. The sum is {sums[-1]}."


def prepare(folder: Path) -> Path:
    """Write what both sides train on: model folder, first adapter, rendered examples, optimizer."""
    from tamis.adapters.lora import LoRA
    from tamis.models.resolve import load, resolve
    from tamis.records import Message, Target

    ref = resolve("smollm2-135m")
    model = load(ref, dtype="float32")
    examples = []
    for question, answer in conversations(EXAMPLES):
        target = model.chat.render(Target((Message("user", question), Message("assistant", answer))))
        examples.append({"input_ids": list(target.token_ids), "completion_mask": [int(w) for w in target.weights]})
    LoRA(**LORA).attach(model.module(), 0).save_pretrained(folder / "adapter")
    setup = {"model": str(ref.folder), "adapter": str(folder / "adapter"), "examples": examples}
    path = folder / "setup.json"
    vocabulary = model.module().config.vocab_size
    path.write_text(json.dumps(setup | {"window": WINDOW, "lr": LR, "clip": CLIP, "vocabulary": vocabulary}))
    return path


def train(setup: dict[str, Any], options: dict[str, Any], windows: int, curve: bool = False) -> dict[str, Any]:
    """Train `windows` steps with tamis; the answer is that of peers/tuning_trl.py."""
    import numpy as np

    from tamis.adapters.lora import LoRA
    from tamis.models.resolve import load, resolve
    from tamis.objectives.sft import SFT
    from tamis.records import Example, Target
    from tamis.training.batches import EpochSource, admit
    from tamis.training.config import TuneConfig
    from tamis.training.loop import fit

    class InOrder(EpochSource):
        def order(self, epoch: int) -> Any:
            return np.arange(len(self.rows))

    module = LoRA(**LORA).attach(load(resolve("smollm2-135m"), dtype="float32").module(), 0)
    given = [
        Example(
            "sft", str(i), Target((), token_ids=tuple(e["input_ids"]), weights=tuple(map(float, e["completion_mask"])))
        )
        for i, e in enumerate(setup["examples"][: windows * WINDOW])
    ]
    same = {"lr": setup["lr"], "clip": setup["clip"], "schedule": "constant", "warmup": 0.0, "batch_size": WINDOW}
    config = TuneConfig(max_steps=windows, **same, **options)
    rows, _ = admit(given, max_length=config.max_length, vocabulary=module.get_input_embeddings().weight.shape[0])
    ends = []
    found = fit(
        module,
        given,
        SFT(),
        config,
        seed=0,
        source=InOrder(rows, WINDOW, 1, 0, windows),
        on_event=lambda event: ends.append(time.perf_counter()) if event["event"] == "step" else None,
    )
    answer = {"seconds": ends[-1] - ends[0], "tokens": sum(map(len, rows[WINDOW:]))}
    return {**answer, "losses": [row["loss"] for row in found.curve]} if curve else answer


def profile(setup: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the share of each kind of work in the operators' time of two windows, the first with all that is made once."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    with recorded(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        train(setup, options, windows=2)
    shares: dict[str, float] = {}
    for event in found.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, str(event.input_shapes), setup["vocabulary"])
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {"shares": {kind: round(part / total, 3) for kind, part in sorted(shares.items(), key=lambda x: -x[1])}}


def kind_of(operator: str, shapes: str, vocabulary: int) -> str:
    """Return what an operator's time counts as."""
    name = operator.removeprefix("aten::")
    if "attention" in name:
        return "attention"
    if str(vocabulary) in shapes and name != "index_select":
        return "output layer and softmax"
    if name in ("mm", "addmm", "addmm_", "bmm"):
        rank = f" {LORA['r']}]"
        return "LoRA products" if rank in shapes or f"[{LORA['r']}," in shapes else "linear layers"
    if name in ELEMENTWISE:
        return "norms, rotary embedding, activation, sums"
    if "adam" in name or name.startswith("_foreach"):
        return "optimizer"
    return "rest (Python, copies, loading)"


@dataclass
class Side:
    """A worker with the peak memory it has reported so far."""

    worker: Worker
    windows: int
    peak: float = 0.0

    def rate(self, windows: int | None = None) -> float:
        """Train, and return useful tokens per second."""
        answer = self.worker.ask(windows=windows or self.windows)
        self.peak = answer["peak_bytes"] / 1e9
        return answer["tokens"] / answer["seconds"]

    def losses(self) -> list[float]:
        """Train, and return the loss of each step."""
        return self.worker.ask(windows=self.windows, curve=True)["losses"]


@dataclass
class Bench:
    """What a call compares, and on what."""

    python: Path
    setup: str
    options: str
    windows: int
    repeats: int

    @contextmanager
    def ours(self) -> Iterator[Side]:
        with Worker(sys.executable, Path(__file__), "worker", self.setup, self.options) as worker:
            yield Side(worker, self.windows)

    @contextmanager
    def trl(self, name: str) -> Iterator[Side]:
        with Worker(self.python, PEER, self.setup, json.dumps(SETTINGS[name])) as worker:
            yield Side(worker, self.windows)

    def allocator(self, name: str) -> Iterator[dict[str, Any]]:
        """Compare speed where trl's process keeps freed memory too."""
        with ExitStack() as stack:
            ours = stack.enter_context(self.ours())
            with patch.dict(os.environ, KEPT):
                peer = stack.enter_context(self.trl(name))
            figures = in_turn(self.repeats, ours.rate, peer.rate)
        yield comparison("tuning, memory kept on both sides", *figures, 1.3, unit="tok/s", against=f"trl ({name})")

    def sweep(self, names: Sequence[str]) -> dict[str, float]:
        """Return trl's useful tokens per second by setting, of one training each."""
        found = {}
        for name in names:
            with self.trl(name) as side:
                found[name] = round(side.rate(), 1)
                print(f"trl {name:16} {found[name]:7.1f} tok/s, peak {side.peak:.2f} GB", flush=True)
        return found

    def against(self, name: str, target: float) -> Iterator[dict[str, Any]]:
        """Compare speed and peak memory with one setting of trl. Its default is slow: two windows tell enough."""
        most = 2 if name == "default" else self.windows
        with self.ours() as ours, self.trl(name) as peer:
            figures = in_turn(self.repeats, ours.rate, lambda: peer.rate(most))
        named = f"trl ({name})"
        yield comparison("tuning", *figures, target, unit="tok/s", against=named)
        peaks = [ours.peak], [peer.peak]
        yield comparison("tuning, peak memory", *peaks, 1.0, unit="GB", against=named, at_most=True)

    def curve(self) -> Iterator[dict[str, Any]]:
        """Compare the loss curves of the same windows."""
        with self.ours() as ours, self.trl(SAME_WINDOWS) as peer:
            curves = [side.losses() for side in (ours, peer)]
        apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
        against = f"allowed from trl ({SAME_WINDOWS})"
        more = {"unit": "nats", "against": against, "at_most": True, "curves": curves}
        yield comparison("tuning, loss curves apart", [apart], [1e-4], 1.0, **more)

    def notes(self) -> dict[str, Any]:
        """Return what the figures mean, and the profile of what remains."""
        with self.ours() as side:
            shares = side.worker.ask(profiled=True)["shares"]
        return {
            "useful tokens": "tokens of the trained examples, prompt and completion, no padding, the same on both sides",
            "windows": f"{WINDOW} examples; trl's are the same, in the same order, but where it packs or groups by length",
            "time by kind of work": shares,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4, help="optimizer steps per run, the first a warm-up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS), help="settings swept")
    parser.add_argument("--best", choices=list(SETTINGS), help="trl's best setting, known from a sweep: none is made")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="what is compared; none: only the sweep"
    )
    parser.add_argument("--ours", default="{}", help="options of TuneConfig as JSON")
    args = parser.parse_args()
    python = environment("trl", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(python, str(prepare(Path(folder))), args.ours, args.windows, args.repeats)
        swept = {} if args.best else bench.sweep(args.settings)
        best = args.best or max(swept, key=swept.__getitem__)
        made = {
            "best": lambda: bench.against(best, 1.3),
            "default": lambda: bench.against("default", 2.0),
            "curve": bench.curve,
            "allocator": lambda: bench.allocator(best),
        }
        rows = [row for part in args.parts if part in made for row in made[part]()]
        notes = bench.notes() if "profile" in args.parts else {}
    if rows:
        conclude(*rows, trl_sweep=swept, notes=notes)
    else:
        print(json.dumps({"trl_sweep": swept, "notes": notes}, indent=1))


def work(setup: dict[str, Any], options: dict[str, Any], profiled: bool = False, **job: Any) -> dict[str, Any]:
    """Answer a job of this side's worker."""
    return profile(setup, options) if profiled else train(setup, options, **job)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        given = json.loads(Path(sys.argv[2]).read_text())
        serve(lambda **job: work(given, json.loads(sys.argv[3]), **job))
    else:
        main()
