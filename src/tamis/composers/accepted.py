"""What composers share: which completions may be trained on, as which target, and where an example came from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from tamis.context import Context
from tamis.errors import ConfigError, DataError, ModelError
from tamis.pool import Pool
from tamis.records import Completion, Message, Prompt, Target

if TYPE_CHECKING:
    from tamis.models.chat import ChatFormat

Truncated = Literal["drop", "prefix", "complete"]
"""What becomes of a completion cut at the length limit: left out, trained without an end, trained as if it were whole."""


def chat_format(ctx: Context) -> "ChatFormat":
    """Return the chat format examples are rendered with. Raises ConfigError when the model has none."""
    if ctx.chat is None:
        raise ConfigError(
            "the model to be tuned has no tokenizer, so no training example can be made for it",
            hint="Set `model` to a local model; an endpoint can only sample and judge.",
        )
    return ctx.chat


def training_prompts(pool: Pool) -> Iterator[tuple[Prompt, list[int]]]:
    """Yield each prompt of the train split, in pool order, with the indices of its completions (maybe none)."""
    for prompt in pool.prompts.values():
        if prompt.split == "train":
            yield prompt, pool.by_prompt.get(prompt.id, [])


def usable(completion: Completion, truncated: Truncated, ctx: Context) -> bool:
    """Whether a completion can be trained on at all; one that cannot is dropped with its reason."""
    if completion.finish_reason == "error":
        reason = "the model returned an error"
    elif completion.finish_reason == "length" and truncated == "drop":
        reason = "cut at the length limit"
    elif not completion.text.strip():
        reason = "empty text"
    else:
        return True
    ctx.drop(completion.id, reason, prompt=completion.prompt_id)
    return False


def content_ids(completion: Completion, chat: "ChatFormat") -> tuple[int, ...]:
    """Return the sampled tokens of a completion without its end token; empty where they are not its text's tokens.

    They are not when the completion has none, was sampled by another tokenizer, or had its text trimmed (stop strings).
    """
    ids = completion.token_ids
    if not ids or max(ids) >= len(chat.tokenizer):
        return ()
    possible = (ids,) if completion.finish_reason == "length" else (ids[:-1], ids)
    return next((found for found in possible if chat.decode(found) == completion.text), ())


def rendered_completion(prompt: Prompt, completion: Completion, truncated: Truncated, ctx: Context) -> Target | None:
    """Return a completion as a rendered target, None (dropped with its reason) when it cannot be rendered.

    Every turn that the model wrote is trained; what the world wrote after the model's last turn is left out.
    """
    turns = list(completion.turns)
    while turns[-1].by != "model":
        turns.pop()
    single = len(turns) == 1
    target = Target(
        messages=(*prompt.messages, *(Message(t.role, t.content) for t in turns)),
        ended=completion.finish_reason != "length" or truncated == "complete",
        target_ids=content_ids(completion, chat_format(ctx)) if single else (),
    )
    return rendered(target, completion.id, ctx, train="last" if single else len(prompt.messages))


def rendered(target: Target, record: str, ctx: Context, train: Literal["last", "all"] | int = "last") -> Target | None:
    """Return `target` rendered; None when the template refuses it or no token is trained (dropped with the reason)."""
    try:
        made = chat_format(ctx).render(target, train=train)
    except (ModelError, DataError) as error:
        ctx.drop(record, "cannot be rendered in the chat format", error=str(error))
        return None
    if not any(made.weights):
        ctx.drop(record, "no trained token")
        return None
    return made


def sources_of(pool: Pool, index: int) -> tuple[str, ...]:
    """Return the id of completion `index` and those of its verdicts."""
    completion = pool.completions[index]
    return (completion.id, *(v.id for v in pool.verdicts_of.get(completion.id, ())))
