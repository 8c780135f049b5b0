"""Text under a pattern and under a JSON schema: tamis against genlm-control. Same model, prompts, particles and predicates.

SmolLM2-135M-Instruct in float32, SMC of 10 particles with adaptive weighted rejection on both sides. Time is per token of the
weighted texts, prefill and constraint included. "same predicate": both ask the same compiled constraint (llguidance over
bytes), so that only the samplers differ; "own": genlm-control asks its own automaton or JSON parser. genlm-control gets the
prompt's keys and values cached, as its documentation advises, and the faster of two batching delays.

Constraint evaluations are compared with masking, which asks about every token of the vocabulary once for every distinct
text the model is run on.
"""

import argparse
import math
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harness import HERE, Worker, comparison, conclude, environment, in_turn, serve

MODEL = "smollm2-135m"
GENLM = ("torch==2.13.0", "transformers==5.23.0", "llguidance==1.9.1", "genlm-control==0.4.1")
EVALUATIONS, TIME = 10.0, 1.0

CONSTRAINTS: dict[str, dict[str, Any]] = {
    "pattern": {
        "pattern": "(1[0-9]|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
        "prompts": [
            f"When was {who} born? Answer with the date only, as YYYY-MM-DD."
            for who in ("Albert Einstein", "Marie Curie", "Ada Lovelace")
        ],
        "limit": 16,
    },
    "JSON schema": {
        "json_schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 24},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "city": {"enum": ["Paris", "Lima", "Oslo", "Cairo"]},
            },
            "required": ["name", "age", "city"],
            "additionalProperties": False,
        },
        "prompts": [
            f"Invent a {who}. Answer in JSON with the fields name, age and city (Paris, Lima, Oslo or Cairo)."
            for who in ("baker", "young doctor", "retired sailor")
        ],
        "limit": 48,
    },
}


class Ours:
    """The worker of tamis; it also tells the peer prompts as token ids."""

    def __init__(self) -> None:
        from tamis.models.resolve import load, resolve

        ref = resolve(MODEL)
        self.folder = ref.folder
        self.model = load(ref, dtype="float32")
        self.made: dict[str, Any] = {}

    def __call__(self, task: str, **job: Any) -> dict[str, Any]:
        return {"describe": self.describe, "sample": self.sample}[task](**job)

    def describe(self, prompts: list[str]) -> dict[str, Any]:
        """Return what the peer needs."""
        from tamis.records import Message

        return {
            "prompts": [self.model.chat.prompt_ids((Message("user", text),)) for text in prompts],
            "ends": self.model.tokenizer.convert_ids_to_tokens(list(self.model.end_ids)),
            "folder": str(self.folder),
        }

    def sample(
        self, prompts: list[list[int]], kind: str, particles: int, limit: int, seed: int, **same: Any
    ) -> dict[str, Any]:
        """Sample every prompt's particles, and count."""
        import numpy as np

        from tamis.constrained import smc

        started = time.process_time()
        found = [
            smc(
                self.model,
                ids,
                self._token_sampler(kind),
                max_tokens=limit,
                rng=np.random.default_rng([seed, i]),
                n_particles=particles,
            )
            for i, ids in enumerate(prompts)
        ]
        return {
            "tokens": sum(len(c) for run in found for c in run.contexts),
            "calls": sum(run.n_calls for run in found),
            "masking": sum(run.passes for run in found) * len(self.model.tokenizer),
            "log_ml": [run.log_ml for run in found],
            "cpu_seconds": time.process_time() - started,
        }

    def _token_sampler(self, kind: str) -> Any:
        from tamis.constrained import AWRS, json_constraint, regex_constraint

        if kind not in self.made:
            spec, tokenizer = CONSTRAINTS[kind], self.model.tokenizer
            regex = "pattern" in spec
            made = (
                regex_constraint(tokenizer, spec["pattern"])
                if regex
                else json_constraint(tokenizer, spec["json_schema"])
            )
            self.made[kind] = AWRS(*made, self.model.end_ids)
        return self.made[kind]


class Side:
    """One side of a comparison: its worker, the same for every job, and what its jobs said."""

    def __init__(self, name: str, worker: Worker, **same: Any) -> None:
        self.name, self.worker, self.same = name, worker, same
        self.answers: list[dict[str, Any]] = []
        self.cpu: list[float] = []

    def time(self, **choice: Any) -> float:
        """Return milliseconds per token of one run of all prompts, each with another seed."""
        answer = self.worker.ask(**{"seed": len(self.answers), **self.same, **choice})
        self.answers.append(answer)
        found = 1000 * answer["seconds"] / answer["tokens"]
        self.cpu.append(1000 * answer["cpu_seconds"] / answer["tokens"])
        chance = statistics.mean(math.exp(x) for x in answer["log_ml"])
        print(
            f"{self.name}: {answer['tokens']} tokens, {found:.2f} ms a token "
            f"({self.cpu[-1]:.2f} of a processor), {answer['calls']} evaluations, chance of the constraint {chance:.3g}",
            flush=True,
        )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="threads of each side (default: torch's)")
    parser.add_argument("--kinds", nargs="+", default=list(CONSTRAINTS), choices=list(CONSTRAINTS))
    parser.add_argument("--engines", nargs="+", default=["same predicate", "own"], choices=["same predicate", "own"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Ours())
        return
    with ExitStack() as stack:
        compare(args, stack)


def compare(args: argparse.Namespace, stack: ExitStack) -> None:
    """Run all sides in turn on each constraint, and say what was found."""
    ours = stack.enter_context(Worker(sys.executable, Path(__file__), "--serve", threads=args.threads))
    folder = ours.ask(task="describe", prompts=[])["folder"]
    python = environment("genlm-control", GENLM)
    peer = stack.enter_context(Worker(python, HERE / "peers" / "constrained_genlm.py", folder, threads=args.threads))
    results, notes = [], []
    for kind in args.kinds:
        spec = CONSTRAINTS[kind]
        told = ours.ask(task="describe", prompts=spec["prompts"])
        law = {"prompts": told["prompts"], "particles": args.particles, "limit": spec["limit"], "kind": kind}
        mine = Side("tamis", ours, task="sample", **law)
        theirs = {
            engine: Side(
                f"genlm-control, {engine}",
                peer,
                engine=engine,
                ends=told["ends"],
                spec={k: v for k, v in spec.items() if k in ("pattern", "json_schema")},
                **law,
            )
            for engine in args.engines
        }
        mine.time(prompts=told["prompts"][:1])
        best = {engine: fastest(side, told["prompts"][:1]) for engine, side in theirs.items()}
        turns = [partial(side.time, delay=best[engine]) for engine, side in theirs.items()]
        times, *others = in_turn(args.repeats, mine.time, *turns)
        for side, figures in zip(theirs.values(), others, strict=True):
            results.append(
                comparison(
                    f"time per token, {kind}",
                    times,
                    figures,
                    TIME,
                    unit="ms",
                    against=side.name,
                    at_most=True,
                    ours_cpu_ms=statistics.median(mine.cpu[-args.repeats :]),
                    peer_cpu_ms=statistics.median(side.cpu[-args.repeats :]),
                )
            )
        results.append(
            comparison(
                f"evaluations saved, {kind}",
                [a["masking"] / a["calls"] for a in mine.answers],
                [1.0],
                EVALUATIONS,
                unit="x fewer",
                against="masking the vocabulary",
            )
        )
        per_token = statistics.median(a["calls"] / a["tokens"] for a in mine.answers)
        notes.append(
            f"{kind}: {per_token:.1f} constraint evaluations per token of tamis; {_chances(mine, *theirs.values())}."
        )
    conclude(*results, notes=[f"{args.particles} particles, 3 prompts of each kind, temperature 1.", *notes])


def fastest(side: Side, prompts: list[list[int]]) -> float:
    """Return the batching delay, in seconds, at which a side is faster on `prompts`: its own default, or hardly any."""
    return min((0.02, 0.001), key=lambda delay: side.time(prompts=prompts, delay=delay))


def _chances(*sides: Side) -> str:
    """Say each side's mean estimate of the probability that plain text satisfies the constraint; they should agree."""
    means = {s.name: statistics.mean(math.exp(x) for a in s.answers for x in a["log_ml"]) for s in sides}
    return "chance of the constraint by " + ", ".join(f"{name} {mean:.2g}" for name, mean in means.items())


if __name__ == "__main__":
    main()
