"""genlm-control's side of the constrained benchmark: AWRS and SMC on its own transformers back end, in float32."""

import asyncio
import json
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from harness import HERE, serve

sys.path.append(str(HERE.parent / "src"))

import torch
from genlm.backend.llm import AsyncTransformer
from genlm.control import AWRS, BoolFSA, JsonSchema, Potential, PromptedLLM

from tamis.constrained.texts import Grammar, json_grammar, regex_grammar


class Predicate(Potential):
    """The same compiled constraint that tamis asks, over the model's tokens; it counts."""

    def __init__(self, vocabulary: list[Any], grammar: Grammar) -> None:
        super().__init__(vocabulary)
        self.grammar, self.calls = grammar, 0

    async def prefix(self, context: list[Any]) -> float:
        self.calls += 1
        return 0.0 if self.grammar.can_extend(b"".join(context)) else -float("inf")

    async def complete(self, context: list[Any]) -> float:
        self.calls += 1
        return 0.0 if self.grammar.is_complete(b"".join(context)) else -float("inf")


class Peer:
    """The model, and the constraints made so far."""

    def __init__(self, folder: str) -> None:
        self.lm = AsyncTransformer.from_name(folder, hf_opts={"torch_dtype": torch.float32, "device_map": "cpu"})
        self.made: dict[str, tuple[Any, Any]] = {}

    def __call__(
        self,
        prompts: list[list[int]],
        spec: dict[str, Any],
        engine: str,
        ends: list[str],
        particles: int,
        limit: int,
        seed: int,
        delay: float,
        **same: Any,
    ) -> Mapping[str, Any]:
        """Sample every prompt's particles; nothing is kept from one job to the next but the compiled constraint."""
        key = json.dumps([spec, engine])
        if key not in self.made:
            llm = PromptedLLM(self.lm, eos_byte_strings=[end.encode() for end in ends])
            self.made[key] = llm, self.constraint(llm, spec, engine)
        llm, condition = self.made[key]
        self.lm.timeout, self.lm.batch_size = delay, particles
        self.lm.clear_cache()
        condition.calls = 0
        started = time.process_time()
        found = [asyncio.run(self.sample(llm, condition, ids, particles, limit, seed)) for ids in prompts]
        return {
            "tokens": sum(len(context) for run in found for context in run.contexts),
            "calls": condition.calls,
            "log_ml": [float(run.log_ml) for run in found],
            "cpu_seconds": time.process_time() - started,
        }

    @staticmethod
    def constraint(llm: Any, spec: dict[str, Any], engine: str) -> Any:
        """Return the condition: the shared predicate, or what genlm-control makes of the pattern or schema."""
        regex = "pattern" in spec
        if engine == "own":
            made = BoolFSA.from_regex(spec["pattern"]) if regex else JsonSchema(spec["json_schema"])
            return made.coerce(llm, f=b"".join)
        return Predicate(llm.vocab, regex_grammar(spec["pattern"]) if regex else json_grammar(spec["json_schema"]))

    async def sample(self, llm: Any, condition: Any, ids: list[int], particles: int, limit: int, seed: int) -> Any:
        """Return the weighted sequences of one prompt."""
        self.lm.cache_kv(ids)
        llm.prompt_ids = ids
        sampler = AWRS(llm, condition, seed=seed)
        return await sampler.smc(n_particles=particles, ess_threshold=0.5, max_tokens=limit)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Peer(sys.argv[1]))
