"""Small pools for composer tests."""

from dataclasses import replace

from tamis.context import Context
from tamis.pool import Pool
from tamis.records import Completion, Law, Message, Prompt, Turn, Verdict
from tokenizers_made import chat


def context(style="chatml", seed=0):
    return Context(seed=seed, chat=chat(style))


def prompt(number, references=(), split="train"):
    return Prompt((Message("user", f"question {number}?"),), references, split=split, source=f"data.jsonl:{number}")


def completion(asked, text, index=0, **fields):
    return Completion(
        asked.id, (Turn("assistant", text),), index=index, sampler=fields.pop("sampler", "temperature"), **fields
    )


def sampled(asked, text, index=0, ended=True, style="chatml", **fields):
    """A completion with the tokens that the chat format's own tokenizer gives."""
    made = chat(style)
    ids = tuple(made.tokenizer(text, add_special_tokens=False)["input_ids"])
    finish = "stop" if ended else "length"
    ids = (*ids, made.end_ids[0]) if ended else ids
    return completion(asked, text, index, token_ids=ids, finish_reason=finish, **fields)


def verdict(done, score, label="", judge="answer"):
    return Verdict(done.prompt_id, (done.id,), judge, score, label)


def pool_of(prompts, completions, scores=None):
    """A pool; `scores` one per completion (None: a verdict without a score), or None for no verdicts."""
    verdicts = [] if scores is None else [verdict(c, s) for c, s in zip(completions, scores, strict=True)]
    return Pool({p.id: p for p in prompts}, list(completions), verdicts)


def prefix_law(tokens):
    return replace(Law(temperature=0.7), max_new_tokens=tokens)
