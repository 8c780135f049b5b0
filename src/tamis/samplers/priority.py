"""Sampler `priority`: different completions in the order of the model's confidence, without a temperature.

Row 96 (Priority Sampling, Grubisic et al. 2024, arXiv 2402.18734). The search is in `tamis.priority`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tamis.constrained.texts import Grammar, regex_grammar, token_bytes
from tamis.context import Context
from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.priority import Allowed, Found, Laws, Prefix, PrioritySearch
from tamis.records import Completion, Cost, Law, Prompt, Turn
from tamis.registry import option, sampler


@sampler("priority", row=96, paper="Priority Sampling (Grubisic et al. 2024)", needs=("tokens",))
class Priority:
    """Try the most confident completions one by one, each a different one: for tasks with a cheap test of each try.

    The first try is greedy decoding. Every position leaves the tokens not taken as branches; the branch of highest priority
    is decoded greedily next. Tries differ as token sequences; now and then two spell the same text. All tokens that end a
    completion count as one, the chat format's. Beginnings that tries share are run once.

    `Completion.index` is the order of emission; `Completion.metadata`: "priority" and "logprob" (natural logarithms, of the
    branch and the whole completion), "branch_depth" (tokens up to the branching one), "coverage" (probability of all tries
    so far) and "bound" (no completion outside them is likelier; under the default `branch_k`). `raw_logprobs` are the model's
    own; `logprobs` are empty, as nothing is drawn. `sampled_tokens` counts tokens after the shared beginning.
    The seed plays no part. Fewer tries than `n` are listed with the reason: the tree ended, or a `pattern` was not matched
    within `max_new_tokens` (such a try is one of the n).

    Needs a local model under engine transformers; a `pattern` needs the extra `constrained` (llguidance). Raises ConfigError
    for a pattern that does not compile or that no tokens of the model begin, ModelError where the model gives no
    next-token logits.
    """

    contract = {"n": 4, "max_new_tokens": 6}  # noqa: RUF012
    deterministic = True

    n: int = option(30, "most completions of each prompt", source="paper", ge=1)
    max_new_tokens: int = option(256, "most tokens of a completion", ge=1)
    priority: Literal["path", "token"] = option(
        "path", "probability of the whole prefix of a branch, or of its last token alone"
    )
    branch_k: int | None = option(None, "best tokens of a position that are followed or branch; none: all", ge=1)
    pattern: str = option("", "regular expression that the whole text matches (Rust syntax, no look-around)")
    frontier: int = option(1, "branches decoded together: faster, and in another order", ge=1)
    sort: Literal["emission", "logprob"] = option("emission", "order of the completions of a prompt")
    stop_mass: float | None = option(None, "probability of all tries at which a prompt has enough", gt=0, le=1)

    def __post_init__(self) -> None:
        if self.pattern:
            with suppress(MissingExtra):
                regex_grammar(self.pattern)

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield the tries of each prompt, in prompt order; under `sort: emission` each as soon as it is decoded."""
        end = end_of(ctx.model)
        pattern = _Pattern(ctx.model.tokenizer, self.pattern, end) if self.pattern else None
        for prompt in prompts:
            ids = ctx.model.chat.prompt_ids(prompt.messages)
            room = int(min(self.max_new_tokens, (ctx.model.context_length or math.inf) - len(ids))) if ids else 0
            if room < 1:
                ctx.drop(prompt.id, "the prompt leaves no room in the context", tokens=len(ids))
                continue
            search = self._search(laws_of(ctx.model, ids, end), room, end, pattern)
            made = self._completions(search, prompt, len(ids), pattern, ctx)
            yield from made if self.sort == "emission" else sorted(made, key=lambda c: -c.metadata["logprob"])

    def _search(self, laws: Laws, room: int, end: int, allowed: Allowed | None) -> PrioritySearch:
        return PrioritySearch(
            laws,
            self.n,
            end,
            room,
            allowed=allowed,
            priority=self.priority,
            branch_k=self.branch_k,
            frontier=self.frontier,
            stop_mass=self.stop_mass,
        )

    def _completions(
        self, search: PrioritySearch, prompt: Prompt, asked: int, pattern: "_Pattern | None", ctx: Context
    ) -> Iterator[Completion]:
        count = 0
        for count, found in enumerate(search, 1):
            cost = Cost(
                prompt_tokens=asked if count == 1 else 0,
                sampled_tokens=len(found.tokens) - max(found.branch_depth - 1, 0),
            )
            yield self._completion(found, prompt, count - 1, cost, search.eos, pattern, ctx)
        ctx.count("nodes of token trees run through the model", search.forward_passes)
        if search.dropped:
            reason = "tries that did not match the pattern within max_new_tokens"
            ctx.drop(prompt.id, reason, tries=search.dropped, completions=count)
        if search.exhausted:
            ctx.drop(prompt.id, "fewer completions than tries", completions=count, tries=self.n)

    def _completion(
        self,
        found: Found,
        prompt: Prompt,
        index: int,
        cost: Cost,
        end: int,
        pattern: "_Pattern | None",
        ctx: Context,
    ) -> Completion:
        from tamis.generation.stops import decode

        ended = found.tokens[-1] == end
        written = found.tokens[:-1] if ended else found.tokens
        text = pattern.text(written).decode(errors="replace") if pattern else decode(ctx.model.tokenizer, written)
        return Completion(
            prompt_id=prompt.id,
            turns=(Turn("assistant", text),),
            index=index,
            token_ids=found.tokens,
            raw_logprobs=tuple(np.array(found.logprobs, dtype=np.float32).tolist()),
            finish_reason="stop" if ended else "length",
            model=ctx.model.identity,
            sampler="priority",
            law=Law(max_new_tokens=self.max_new_tokens),
            seed=ctx.seed,
            metadata={
                "priority": found.priority,
                "logprob": found.logprob,
                "branch_depth": found.branch_depth,
                "coverage": found.coverage,
                "bound": found.bound,
            },
            cost=cost,
        )


def end_of(model: Any) -> int:
    """Return the token that ends a completion: the chat format's, else the model's first. Raises ModelError for none."""
    for end in (*model.chat.end_ids, *model.end_ids):
        return int(end)
    raise ModelError(
        f"model '{model.name}' names no token that ends a completion",
        hint="Set eos_token_id in its generation_config.json.",
    )


def laws_of(model: Any, prompt_ids: Sequence[int], end: int) -> Laws:
    """Return the next-token probabilities of a model after a prompt, all its end tokens taken as the one `end`.

    Raises ModelError for a model without sessions (`tamis.generation.open_session`).
    """
    from tamis.generation import PrefixTree, open_session

    tree = PrefixTree(open_session(model, prompt_ids))
    others = [i for i in model.end_ids if i != end]

    def laws(prefixes: Sequence[Prefix]) -> np.ndarray:
        probs: np.ndarray = tree.logits(prefixes).cpu().double().softmax(dim=-1).numpy()
        probs[:, end] += probs[:, others].sum(axis=1)
        probs[:, others] = 0
        return probs

    return laws


class _Pattern:
    """Whether prefix + token can be completed to a text that matches; for the end token, whether the prefix matches."""

    def __init__(self, tokenizer: Any, pattern: str, end: int) -> None:
        self.table, self.end, self.grammar = token_bytes(tokenizer), end, regex_grammar(pattern)
        self._of = lru_cache(8)(lambda prefix: _Text(self.grammar, self.text(prefix)))
        if not any(self((), token) for token in (*self.table, end)):
            raise ConfigError(
                f"no token of the model begins a text that matches the pattern {pattern!r}",
                hint="Write it with characters that the model's vocabulary has.",
            )

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes of tokens that were allowed."""
        return b"".join(self.table[token] for token in tokens)

    def __call__(self, prefix: Prefix, token: int) -> bool:
        before = self._of(prefix)
        if token == self.end:
            return self.grammar.is_complete(before.text)
        piece = self.table.get(token)
        return piece is not None and before.begins(piece[0]) and self.grammar.can_extend(before.text + piece)


class _Text:
    """A text, and which bytes may follow it, each asked for once."""

    def __init__(self, grammar: Grammar, text: bytes) -> None:
        self.text = text
        self.begins = lru_cache(256)(lambda byte: grammar.can_extend(text + bytes([byte])))
