"""Composer `accepted_sft`: fine-tune on the completions that the judge accepted, with or without gold solutions."""

from collections.abc import Iterator
from typing import Literal

from tamis.composers.accepted import (
    Truncated,
    rendered,
    rendered_completion,
    sources_of,
    training_prompts,
    usable,
)
from tamis.context import Context
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Target
from tamis.registry import composer, option


@composer("accepted_sft")
class AcceptedSFT:
    """Turn accepted completions, and gold solutions if wanted, into fine-tuning examples.

    A completion is accepted when its score is at least `threshold`; in a pool without verdicts all are. A prompt's gold
    solution is its first reference. Prompts come in the order of the data, gold before completions, completions in pool
    order. The sampled tokens themselves are trained where the model to be tuned has the tokenizer that sampled them, else
    the text. A completion that a selector picked twice gives two examples; a selector's weights become example weights.

    Gold policy after row 1 (RFT, Yuan et al. 2023, arXiv 2308.01825), which keeps gold always and lets it block nothing.
    """

    threshold: float = option(0.5, "least score of an accepted completion")
    gold: Literal["never", "always", "missing"] = option(
        "never", "add the gold solution: never, always, or only to prompts without an accepted completion"
    )
    gold_blocks: bool = option(False, "a completion with the gold solution's very text is left out", source="code")
    per_prompt: int | None = option(None, "most completions of one prompt; none: no limit", ge=1)
    truncated: Truncated = option(
        "drop", "completions cut at the length limit: left out, trained without an end, or trained as whole"
    )
    dedup: Literal["exact", "none"] = option(
        "exact", "leave out completions with the text of an earlier one of the prompt"
    )

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one sft example per kept completion and gold solution. Raises ConfigError without a tokenizer."""
        for prompt, indices in training_prompts(pool):
            made = self._self_made(prompt, indices, pool, ctx)
            if not made:
                with_completions = "an accepted completion" if indices else "a completion"
                ctx.count(f"prompts without {with_completions}")
            if self.gold == "always" or (self.gold == "missing" and not made):
                yield from _gold(prompt, ctx)
            yield from made

    def _self_made(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> list[Example]:
        examples = []
        for repeat, index in self._kept(prompt, indices, pool, ctx):
            completion = pool.completions[index]
            target = rendered_completion(prompt, completion, self.truncated, ctx)
            if target is None:
                continue
            metadata = {"origin": completion.sampler} | ({"repeat": repeat} if repeat else {})
            examples.append(
                Example(
                    "sft",
                    prompt.id,
                    target,
                    weight=pool.weight(index),
                    sources=sources_of(pool, index),
                    metadata=metadata,
                )
            )
        return examples

    def _kept(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> Iterator[tuple[int, int]]:
        """Yield (how often this completion came before, index) of the completions that become examples."""
        first_with: dict[str, str] = {}
        times: dict[str, int] = {}
        for index in indices:
            completion = pool.completions[index]
            if not self._accepted(pool, index, ctx) or not usable(completion, self.truncated, ctx):
                continue
            same = first_with.setdefault(completion.text, completion.id)
            if self._is_gold(prompt, completion.text, completion.sampler):
                ctx.drop(completion.id, "same text as the gold solution", prompt=prompt.id)
            elif self.dedup == "exact" and same != completion.id:
                ctx.drop(completion.id, "same text as another completion of the prompt", prompt=prompt.id, same_as=same)
            elif completion.id not in times and len(times) == self.per_prompt:
                ctx.count("over per_prompt")
            else:
                times[completion.id] = times.get(completion.id, -1) + 1
                yield times[completion.id], index

    def _accepted(self, pool: Pool, index: int, ctx: Context) -> bool:
        if pool.accepted(index, self.threshold):
            return True
        ctx.count("not accepted: no score" if pool.score(index) is None else "not accepted: score below threshold")
        return False

    def _is_gold(self, prompt: Prompt, text: str, sampler: str) -> bool:
        """Whether the added gold solution stands for this completion (a completion of the `gold` sampler is itself gold)."""
        blocks = self.gold == "always" and (self.gold_blocks or sampler == "gold")
        return blocks and text in prompt.references[:1]


def _gold(prompt: Prompt, ctx: Context) -> Iterator[Example]:
    if not prompt.references or not prompt.references[0].strip():
        ctx.drop(prompt.id, "no gold solution", source=prompt.source)
        return
    solution = Message("assistant", prompt.references[0])
    target = rendered(Target((*prompt.messages, solution)), prompt.id, ctx)
    if target is not None:
        yield Example("sft", prompt.id, target, sources=(prompt.id,), metadata={"origin": "gold"})
