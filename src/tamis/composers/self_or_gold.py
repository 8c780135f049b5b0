"""Composer `self_or_gold`: the model's own answer where it is right, the gold answer elsewhere."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from tamis.composers.accepted import rendered, rendered_completion, sources_of, training_prompts
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.pool import Pool
from tamis.records import Completion, Example, Message, Prompt, Target
from tamis.registry import composer, option


@composer(
    "self_or_gold",
    row=8,
    paper="Selective Self-Rehearsal (Gupta et al. 2024, arXiv 2409.04787)",
    needs=("scoring",),
)
class SelfOrGold:
    """Tune on the model's own answer where the judge finds it right, and on gold elsewhere (SSR).

    The target of a question x is the first completion in sample order with a score of at least `threshold` that is whole and
    not empty, else its first reference: L = -sum_{right} log p(y_hat | x) - sum_{wrong} log p(y | x). Each question occurs
    exactly once. The text is used as it is, white space at its end cut. Own answers are likelier under the base, so gradients
    are smaller and less is forgotten: metadata holds source ("self" or "gold"), tokens, and base_logprob, the mean
    log-probability of a target's tokens under the untuned model (nats; left out where no model is at hand).

    `on_missing`: what becomes of a question that has no judged answer. Counts the share of self and gold, and answers by
    another model than the untuned one, which lose the effect.
    """

    threshold: float = option(0.5, "least score of a right answer")
    on_missing: Literal["gold", "drop"] = option(
        "gold", "questions without a judged answer: gold is trained, or left out"
    )
    allow_foreign: bool = option(True, "take answers by another model than the one to be tuned, and count them")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one sft example per question.

        Raises DataError for a wrong or unjudged answer to a question without gold and for verdicts on unknown prompts,
        ConfigError for answers by another model unless they are allowed.
        """
        unknown = next((v for v in pool.verdicts if v.prompt_id not in pool.prompts), None)
        if unknown is not None:
            raise DataError(
                f"verdict {unknown.id} is on prompt {unknown.prompt_id}, which is not there",
                hint="Judge the completions of these very prompts.",
            )
        examples = [e for e in (self._example(*at, pool, ctx) for at in training_prompts(pool)) if e is not None]
        for source in ("self", "gold"):
            made = [e for e in examples if e.metadata["source"] == source]
            ctx.count(f"targets: {source}", len(made))
            ctx.count(f"tokens of {source} targets", sum(e.metadata["tokens"] for e in made))
            if examples and len(made) == len(examples):
                ctx.count(
                    f"every target is {source}: this is {'pure self-training' if source == 'self' else 'plain SFT'}"
                )
        yield from _with_logprobs(examples, ctx)

    def _example(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> Example | None:
        own = next((i for i in indices if self._right(i, pool, ctx)), None)
        if own is not None:
            kept = _trimmed(pool.completions[own])
            target, sources = rendered_completion(prompt, kept, "drop", ctx), sources_of(pool, own)
        elif self.on_missing == "drop" and all(pool.score(i) is None for i in indices):
            ctx.drop(prompt.id, "no judged answer", source=prompt.source)
            return None
        else:
            messages = (*prompt.messages, Message("assistant", _gold(prompt)))
            target, sources = rendered(Target(messages), prompt.id, ctx), (prompt.id,)
        if target is None:
            return None
        tokens = int(np.count_nonzero(target.weights))
        metadata = {"origin": "self_or_gold", "source": "gold" if own is None else "self", "tokens": tokens}
        return Example("sft", prompt.id, target, sources=sources, metadata=metadata)

    def _right(self, index: int, pool: Pool, ctx: Context) -> bool:
        completion, score = pool.completions[index], pool.score(index)
        base = getattr(ctx.model, "identity", None)
        if base is not None and completion.model != base:
            if not self.allow_foreign:
                raise ConfigError(
                    f"completion {completion.id} is by another model than the one to be tuned",
                    hint="Sample with the untuned model itself, or set allow_foreign: true.",
                )
            ctx.count("answers by another model than the one to be tuned")
        whole = completion.finish_reason == "stop" and bool(completion.text.strip())
        return whole and score is not None and score >= self.threshold


def _gold(prompt: Prompt) -> str:
    gold = next((text.rstrip() for text in prompt.references[:1]), "")
    if not gold:
        raise DataError(
            "a question whose own answer is wrong or not judged has no gold answer",
            where=prompt.source or f"prompt {prompt.id}",
            hint="Give it a reference, or leave the row out of the data.",
        )
    return gold


def _trimmed(completion: Completion) -> Completion:
    """Return the completion without the white space at its end."""
    last = completion.turns[-1]
    if last.content == last.content.rstrip():
        return completion
    return replace(completion, turns=(*completion.turns[:-1], replace(last, content=last.content.rstrip())))


def _with_logprobs(examples: list[Example], ctx: Context) -> Iterator[Example]:
    """Yield the examples with the mean log-probability of their targets under the untuned model, where there is one."""
    if ctx.model is None or not examples:
        yield from examples
        return
    rows = ctx.model.logprobs([e.target.token_ids for e in examples])
    for example, row in zip(examples, rows, strict=True):
        mean = float(np.average(row.astype(np.float64), weights=example.target.weights))
        yield replace(example, metadata={**example.metadata, "base_logprob": round(mean, 6)}, id="")
