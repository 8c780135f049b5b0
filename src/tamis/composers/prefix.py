"""Composer `prefix`: first tokens of most traces, whole traces of a few (UPFT).

Row 93: The First Few Tokens Are All You Need (Ji et al. 2025, arXiv 2503.02875), step 3.
"""

from collections.abc import Iterator

from tamis.composers.accepted import chat_format, content_ids, rendered, sources_of, training_prompts, usable
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.prefixes import DEFAULT_TASK_SENTENCE, with_task_sentence
from tamis.records import Completion, Example, Message, Prompt, Target
from tamis.registry import composer, option

STRUCTURE, CUT = "prefix:structure", "prefix:cut"


@composer("prefix", row=93, paper="The First Few Tokens Are All You Need (Ji et al. 2025)")
class Prefix:
    """Train the first tokens of a completion under the task sentence, and whole traces of the structure set.

    The sampler `prefix` marks the two sets by the sampler name of its completions. Set D_p ("prefix:cut"): user message =
    question + task sentence, assistant = the first t tokens, no end token unless the completion ended by itself within
    them. Set D_f ("prefix:structure"): plain question, full trace with its end token, without it when the length limit cut
    the trace. One example per prompt: its first completion, in a judged pool its first accepted one (the supervised
    variant). Without a judge nothing is filtered by answers.

    Counts the trained tokens of both sets (end tokens included), as "trained tokens: cut" and "trained tokens: structure".
    """

    prefix_tokens: int | None = option(
        None, "cut D_p completions to this many tokens; none: as sampled; the supervised variant needs it", ge=1
    )
    task_sentence: str = option(
        DEFAULT_TASK_SENTENCE, "what is added to the question of a prefix example", source="paper", min_length=1
    )
    threshold: float = option(0.5, "least score of an accepted completion, in a judged pool")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one sft example per prompt. Raises ConfigError for a judged pool without `prefix_tokens` and for
        completions that the sampler `prefix` did not make."""
        if pool.judged() and self.prefix_tokens is None:
            raise ConfigError(
                "prefix_tokens is needed in a judged pool, whose completions are whole traces",
                hint="Set it to the sampler's prefix_tokens.",
            )
        for prompt, indices in training_prompts(pool):
            index = self._first(indices, pool, ctx)
            if index is None:
                with_completions = "an accepted completion" if indices else "a completion"
                ctx.count(f"prompts without {with_completions}")
                continue
            yield from self._example(prompt, index, pool, ctx)

    def _first(self, indices: list[int], pool: Pool, ctx: Context) -> int | None:
        for index in indices:
            if pool.accepted(index, self.threshold) and usable(pool.completions[index], "prefix", ctx):
                return index
        return None

    def _example(self, prompt: Prompt, index: int, pool: Pool, ctx: Context) -> Iterator[Example]:
        completion = pool.completions[index]
        if completion.sampler not in (STRUCTURE, CUT):
            raise ConfigError(
                f"completion {completion.id} was made by the sampler '{completion.sampler}'",
                hint="The composer `prefix` needs the sampler `prefix`, which decides what is cut and what is whole.",
            )
        target = self._target(prompt, completion, ctx)
        if target is None:
            return
        part = completion.sampler.removeprefix("prefix:")
        ctx.count(f"trained tokens: {part}", sum(w > 0 for w in target.weights))
        yield Example(
            "sft",
            prompt.id,
            target,
            weight=pool.weight(index),
            sources=sources_of(pool, index),
            metadata={"origin": completion.sampler},
        )

    def _target(self, prompt: Prompt, completion: Completion, ctx: Context) -> Target | None:
        chat = chat_format(ctx)
        ids = content_ids(completion, chat)
        if not ids:
            ctx.drop(completion.id, "its tokens are not those of the model to be tuned", prompt=prompt.id)
            return None
        messages, ended = prompt.messages, completion.finish_reason == "stop"
        if completion.sampler == CUT:
            messages = with_task_sentence(messages, self.task_sentence)
            limit = self.prefix_tokens or len(completion.token_ids)
            ended = ended and len(completion.token_ids) <= limit
            ids = ids[:limit]
        target = Target((*messages, Message("assistant", chat.decode(ids))), ended, ids)
        return rendered(target, completion.id, ctx)
