"""Sampler `prefix`: the first few tokens of one completion for most prompts, a full trace for some.

Row 93 (UPFT, Ji et al. 2025, arXiv 2503.02875), steps 1 and 2. The composer `prefix` makes the examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tamis.context import Context
from tamis.prefixes import DEFAULT_TASK_SENTENCE, structure_split, with_task_sentence
from tamis.records import Completion, Law, Prompt, Verdict
from tamis.registry import option, sampler


@sampler("prefix", row=93, paper="The First Few Tokens Are All You Need (Ji et al. 2025)", needs=("text", "tokens"))
class Prefix:
    """Sample a short prefix of every prompt but a tenth, which gets full traces; nothing is filtered by answers.

    The structure set is the share `structure_ratio` of all prompts, by a hash of seed and id (`prefixes.structure_split`);
    its completions carry the sampler name "prefix:structure". All other prompts stop after `prefix_tokens` new tokens and
    carry "prefix:cut": no token beyond the prefix is ever sampled. For the supervised variant set `supervised` and 16
    tries: whole traces are sampled for both sets, so that a judge can tell the right ones, and the composer cuts.
    """

    prefix_tokens: int = option(
        8, "tokens of a prefix: 8 for general models, 32 to 128 for reasoning models", source="paper", ge=1
    )
    structure_ratio: float = option(
        0.1, "share of prompts with a full trace; 0.3 below 1000 prompts", source="paper", ge=0, le=1
    )
    tries: int = option(1, "completions of each prompt; 16 for the supervised variant", source="paper", ge=1)
    temperature: float = option(0.7, "divides the logits; 0 is greedy", source="paper", ge=0)
    max_new_tokens: int = option(1024, "most tokens of a full trace", ge=1)
    supervised: bool = option(False, "sample whole traces for the prefix set too, for a judge to accept")
    sample_with_task_prompt: bool = option(
        False, "put the task sentence into the prompts that prefixes are sampled from"
    )
    task_sentence: str = option(DEFAULT_TASK_SENTENCE, "the task sentence, for `sample_with_task_prompt`", min_length=1)

    def __post_init__(self) -> None:
        if self.max_new_tokens < self.prefix_tokens:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) is less than prefix_tokens ({self.prefix_tokens})"
            )
        if self.temperature == 0 and self.tries > 1:
            raise ValueError("temperature 0 is greedy and gives equal tries; set tries to 1 or raise the temperature")

    def gather(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]
    ) -> dict[str, Any]:
        """Return the ids of all prompts: the split needs every one of them."""
        return {"ids": tuple(p.id for p in prompts)}

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield the tries of each prompt, in prompt order. Raises DataError for no prompts or repeated ones."""
        structure = _structure(ctx.shared["ids"], self.structure_ratio, ctx.seed)
        full = Law(self.temperature, max_new_tokens=self.max_new_tokens)
        cut = full if self.supervised else replace(full, max_new_tokens=self.prefix_tokens)
        traced = [p for p in prompts if p.id in structure]
        prefixed = [self._asked(p) for p in prompts if p.id not in structure]
        found: dict[str, list[Completion]] = {p.id: [] for p in prompts}
        for group, law, name in ((traced, full, "prefix:structure"), (prefixed, cut, "prefix:cut")):
            wanted = [range(self.tries)] * len(group)
            for completion in ctx.model.generate(group, law, candidates=wanted, seed=ctx.seed, sampler=name):
                found[completion.prompt_id].append(completion)
        for completions in found.values():
            yield from completions

    def _asked(self, prompt: Prompt) -> Prompt:
        """Return the prompt a prefix is sampled from; it keeps its id."""
        if not self.sample_with_task_prompt:
            return prompt
        return replace(prompt, messages=with_task_sentence(prompt.messages, self.task_sentence))


@lru_cache(maxsize=2)
def _structure(ids: tuple[str, ...], ratio: float, seed: int) -> frozenset[str]:
    return frozenset(structure_split(ids, ratio, seed))
