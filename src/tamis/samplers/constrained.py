"""Sampler `constrained`: texts that match a pattern or a JSON schema, weighted as the model would write them.

Row 69 (AWRS, Lipkin et al. 2025, arXiv 2504.05410). Tokens, particles and constraints are in `tamis.constrained`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tamis.constrained.awrs import AWRS
from tamis.constrained.smc import WeightedSequences, smc
from tamis.constrained.texts import Grammar, json_grammar, regex_grammar, text_constraint, token_bytes
from tamis.context import Context
from tamis.errors import MissingExtra
from tamis.records import Completion, Cost, Law, Prompt, Turn
from tamis.registry import option, sampler


@sampler("constrained", row=69, paper="Fast Controlled Generation (AWRS, Lipkin et al. 2025)", needs=("tokens",))
class Constrained:
    """Sample texts that satisfy a constraint, with weights that make them stand for the model's own law given it.

    Each prompt grows `n` particles token by token: tokens are drawn and tested until one passes (adaptive weighted rejection),
    particles are resampled where their weights differ much (SMC). Every particle becomes a completion; equal texts may repeat.
    `Completion.metadata`: "log_weight" (normalised over the prompt's particles; -log n for each is what plain sampling has),
    "log_probability" (estimate of the log-probability that the model's text satisfies the constraint), "ess" (how many
    equally weighted texts the particles are worth). `raw_logprobs` are the model's own; `logprobs` are empty, because
    the law that was drawn from has no closed form. Particles that the constraint killed are counted; prompts without a
    living one, or without room in the context, are listed. With `proper_weights: false` the first allowed token is taken
    at weight 1: quicker, and biased towards beginnings that are hard to complete.

    Needs the extra `constrained` (llguidance) and a local model under engine transformers. Raises ConfigError for a pattern
    or schema that cannot be compiled or satisfied.
    """

    contract = {"pattern": "[a-z]{1,3}", "n": 3, "max_new_tokens": 8}  # noqa: RUF012

    pattern: str = option("", "regular expression that the whole text matches (Rust syntax, no look-around)")
    json_schema: dict[str, Any] = option({}, "JSON schema that the text satisfies")
    n: int = option(8, "particles, and so completions, of each prompt", source="paper", ge=1)
    ess_threshold: float = option(
        0.5, "resample when the effective number of particles falls below this share", source="paper", ge=0, le=1
    )
    max_accepts: int = option(2, "allowed tokens to see before one is weighted; more vary less, cost more", ge=1)
    max_rejects: int | None = option(None, "most refused tokens at a step; none: no limit, which is unbiased", ge=1)
    proper_weights: bool = option(True, "weight every token; false: locally constrained decoding")
    temperature: float = option(1.0, "divides the logits", gt=0)
    max_new_tokens: int = option(256, "most tokens of a completion; what is not complete by then is dropped", ge=2)

    def __post_init__(self) -> None:
        if bool(self.pattern) == bool(self.json_schema):
            raise ValueError("set either `pattern` or `json_schema`")
        self._token_sampler((lambda tokens: True), (lambda tokens: True), (0,), ())
        with suppress(MissingExtra):
            self._grammar()

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield the living particles of each prompt, in prompt order."""
        grammar = self._grammar()
        table = token_bytes(ctx.model.tokenizer)
        constraint, complete = text_constraint(ctx.model.tokenizer, grammar.can_extend, grammar.is_complete)
        ends = tuple(ctx.model.end_ids)
        textless = [i for i in ctx.model.tokenizer.get_vocab().values() if i not in table and i not in ends]
        tokens = self._token_sampler(constraint, complete, ends, textless)
        for prompt in prompts:
            ids = ctx.model.chat.prompt_ids(prompt.messages)
            room = min(self.max_new_tokens, (ctx.model.context_length or math.inf) - len(ids)) if ids else 0
            if room < 2:
                ctx.drop(prompt.id, "the prompt leaves no room in the context", tokens=len(ids))
                continue
            found = smc(
                ctx.model,
                ids,
                tokens,
                max_tokens=int(room),
                rng=ctx.rng(prompt.id, "constrained"),
                n_particles=self.n,
                ess_threshold=self.ess_threshold,
                temperature=self.temperature,
            )
            self._count(found, prompt, ctx)
            yield from self._completions(found, prompt, len(ids), table, ctx)

    def _grammar(self) -> Grammar:
        return regex_grammar(self.pattern) if self.pattern else json_grammar(self.json_schema)

    def _token_sampler(self, constraint: Any, complete: Any, ends: Sequence[int], prune: Sequence[int]) -> AWRS:
        rejects = math.inf if self.max_rejects is None else self.max_rejects
        return AWRS(
            constraint, complete, ends, self.max_accepts, rejects, proper_weights=self.proper_weights, prune=prune
        )

    def _completions(
        self, found: WeightedSequences, prompt: Prompt, asked: int, table: dict[int, bytes], ctx: Context
    ) -> Iterator[Completion]:
        alive = [i for i, weight in enumerate(found.log_weights.tolist()) if weight > -math.inf]
        for i in alive:
            tokens = found.contexts[i]
            text = b"".join(table[token] for token in tokens[:-1]).decode(errors="replace")
            yield Completion(
                prompt_id=prompt.id,
                turns=(Turn("assistant", text),),
                index=i,
                token_ids=tokens,
                raw_logprobs=tuple(np.array(found.logprobs[i], dtype=np.float32).tolist()),
                model=ctx.model.identity,
                sampler="constrained",
                law=Law(self.temperature, max_new_tokens=self.max_new_tokens),
                seed=ctx.seed,
                metadata={
                    "log_weight": float(found.log_weights[i]),
                    "log_probability": found.log_ml,
                    "ess": found.ess,
                },
                cost=Cost(prompt_tokens=asked if i == alive[0] else 0, sampled_tokens=len(tokens)),
            )

    def _count(self, found: WeightedSequences, prompt: Prompt, ctx: Context) -> None:
        ctx.count("constraint evaluations", found.n_calls)
        ctx.count("rows run through the model", found.passes)
        ctx.count(
            "plain draws that would satisfy the constraint, of 1,000 a prompt", round(1000 * math.exp(found.log_ml))
        )
        ctx.count("particles that died", sum(weight == -math.inf for weight in found.log_weights.tolist()))
        if found.status == "dead":
            ctx.drop(prompt.id, "no particle satisfied the constraint", particles=self.n)
