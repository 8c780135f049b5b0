"""Ask a model: in batches, again where an answer cannot be read, never what is known already."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from tamis.asking.reading import read_label
from tamis.context import Context
from tamis.errors import ModelError
from tamis.hashing import derive_seed, digest
from tamis.models.base import LabelModel, StructuredModel
from tamis.records import Cost, Law, Message, Prompt, total_cost

T = TypeVar("T")

GREEDY = Law(temperature=0.0, max_new_tokens=512)
SAMPLED = Law(temperature=1.0, max_new_tokens=64)
KEPT_AT_ONCE = 64
"""Replies that are written together: what a kill can lose."""
RETRY_TEMPERATURE = 0.7
"""Least temperature of a retry: a greedy answer asked for again would be the same."""
ASKED, NO_REPLY = "questions asked", "answers without a value: no_reply"
_FAILED = "no reply: "


@dataclass(frozen=True)
class Question(Generic[T]):
    """What is asked, and `read`, which turns the reply's text into a value or None where it cannot be read.

    `schema` is the JSON schema of the reply; it is handed to models that can be held to one.
    """

    messages: tuple[Message, ...]
    read: Callable[[str], T | None]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was answered: `value` is None where no try could be read; `text` and `finish` are those of the last try.

    `finish` is "stop", "length" or "error" (the model gave no reply). `cost` counts all tries.
    """

    value: T | None
    text: str
    finish: str
    tries: int
    cost: Cost

    @property
    def fault(self) -> str:
        """Label of a verdict without a value: "no_reply", "cut_reply" or "unparseable_verdict"; "" where there is a value."""
        if self.value is not None:
            return ""
        return {"error": "no_reply", "length": "cut_reply"}.get(self.finish, "unparseable_verdict")


def ask(
    ctx: Context,
    questions: Sequence[Question[T]],
    law: Law = GREEDY,
    *,
    samples: int = 1,
    retries: int = 1,
) -> list[list[Answer[T]]]:
    """Return `samples` answers to each question by `ctx.model`.

    An answer that cannot be read is asked for up to `retries` more times, sampled at a temperature of at least 0.7. Sample j
    of a question depends on the seed, the question and j alone, so neither order nor batch matters. Replies that
    `ctx.replies` knows are not asked for; what they had cost still stands in the answer. Counts "questions asked" and, by
    reason, answers without a value; a question that a server failed to answer is dropped with the server's reason, and its
    reply is not kept.
    """
    open_answers: dict[tuple[int, int], Answer[T] | None] = {
        (number, j): None for number in range(len(questions)) for j in range(samples)
    }
    for attempt in range(retries + 1):
        waiting = [
            at for at, found in open_answers.items() if found is None or (found.fault and found.finish != "error")
        ]
        if not waiting:
            break
        hot = law if attempt == 0 else replace(law, temperature=max(law.temperature, RETRY_TEMPERATURE))
        seed = ctx.seed if attempt == 0 else derive_seed(ctx.seed, "retry", attempt)
        replies = _replies(ctx, [(questions[number], j) for number, j in waiting], hot, seed)
        for at, reply in zip(waiting, replies, strict=True):
            open_answers[at] = _answer(questions[at[0]], reply, open_answers[at])
    answers = [[_given(open_answers[number, j]) for j in range(samples)] for number in range(len(questions))]
    for answer in (a for row in answers for a in row):
        ctx.count(ASKED, answer.tries)
        if answer.fault:
            ctx.count(f"answers without a value: {answer.fault}")
    return answers


def _given(answer: Answer[T] | None) -> Answer[T]:
    assert answer is not None
    return answer


def _answer(question: Question[T], reply: Mapping[str, Any], before: Answer[T] | None) -> Answer[T]:
    text, finish = reply["text"], reply["finish"]
    value = question.read(text) if finish != "error" else None
    cost = Cost(prompt_tokens=reply["prompt_tokens"], sampled_tokens=reply["sampled_tokens"], judge_calls=1)
    tries = 1
    if before is not None:
        cost, tries = cost + before.cost, tries + before.tries
    return Answer(value, text, finish, tries, cost)


def _replies(ctx: Context, wanted: Sequence[tuple[Question[Any], int]], law: Law, seed: int) -> list[dict[str, Any]]:
    """Return the replies to samples of questions, those known already from `ctx.replies`."""
    prompts = [Prompt(question.messages) for question, _ in wanted]
    keys = [
        digest("reply", ctx.model.identity, prompt.id, law, seed, j, question.schema)
        for prompt, (question, j) in zip(prompts, wanted, strict=True)
    ]
    known = {key: reply for key, reply in ctx.replies.get(keys).items() if _whole(reply)}
    missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
    for schema, indices in _by_schema(wanted, sorted(missing.values())):
        fresh = _generate(ctx, [prompts[i] for i in indices], [wanted[i][1] for i in indices], law, seed, schema)
        answered = zip(indices, fresh, strict=True)
        while part := {keys[i]: reply for i, reply in islice(answered, KEPT_AT_ONCE)}:
            _drop(ctx, ((reply["prompt"], reply["reason"]) for reply in part.values() if "reason" in reply))
            ctx.replies.put({key: reply for key, reply in part.items() if reply["finish"] != "error"})
            known |= part
    return [known[key] for key in keys]


def _whole(reply: Any) -> bool:
    """Whether a kept reply is as `_generate` makes them; any other is asked for again."""
    return (
        isinstance(reply, dict)
        and isinstance(reply.get("text"), str)
        and isinstance(reply.get("finish"), str)
        and reply["finish"] != "error"
        and all(type(reply.get(name)) is int for name in ("prompt_tokens", "sampled_tokens"))
    )


def _drop(ctx: Context, failures: Iterable[tuple[str, str]]) -> None:
    """Write failed questions aside. They are counted with the answers without a value."""
    ctx.dropped += [{"record": prompt, "reason": _FAILED + reason} for prompt, reason in failures]


def silence(counts: Mapping[str, int], dropped: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return a server's reasons, counted, where it answered none of the questions in `counts`; else nothing."""
    reasons = Counter(str(row["reason"]) for row in dropped if str(row["reason"]).startswith(_FAILED))
    none = counts.get(ASKED, 0) <= counts.get(NO_REPLY, 0)
    return Counter({r.removeprefix(_FAILED): n for r, n in reasons.items()}) if none else Counter()


def unanswered(what: str, reasons: Counter[str], where: str) -> ModelError:
    """Return the error for a server that failed every one of the requests named `what`."""
    reason, n = reasons.most_common(1)[0]
    return ModelError(
        f"every {what} failed; the server's answer to {n} of {reasons.total()}: {reason}",
        where=where,
        hint="When the server answers again, run the same command: what failed is asked again, nothing else is.",
    )


def _by_schema(
    wanted: Sequence[tuple[Question[Any], int]], indices: Sequence[int]
) -> list[tuple[Mapping[str, Any] | None, list[int]]]:
    groups: dict[str, tuple[Mapping[str, Any] | None, list[int]]] = {}
    for i in indices:
        schema = wanted[i][0].schema
        groups.setdefault(digest(schema), (schema, []))[1].append(i)
    return list(groups.values())


def _generate(
    ctx: Context, prompts: Sequence[Prompt], samples: Sequence[int], law: Law, seed: int, schema: Any
) -> Iterator[dict[str, Any]]:
    model = ctx.model
    extra = {"schema": schema} if schema is not None and isinstance(model, StructuredModel) and model.structured else {}
    candidates = [[j] for j in samples]
    errors: Mapping[str, str] = getattr(model, "errors", {})
    made = model.generate(prompts, law, candidates=candidates, seed=seed, sampler="ask", **extra)
    for c in made:
        yield {
            "text": c.text,
            "finish": c.finish_reason,
            "prompt_tokens": c.cost.prompt_tokens,
            "sampled_tokens": c.cost.sampled_tokens,
            **(
                {"prompt": c.prompt_id, "reason": errors[c.id]} if c.finish_reason == "error" and c.id in errors else {}
            ),
        }


def label_probabilities(
    ctx: Context,
    questions: Sequence[tuple[Message, ...]],
    labels: Sequence[str],
    law: Law = SAMPLED,
    *,
    samples: int = 8,
    retries: int = 0,
) -> tuple[np.ndarray, list[Cost]]:
    """Return the probability that `ctx.model` answers each of N questions with each of K labels, and what each cost.

    The probabilities are (N, K) float64, and rows sum to 1: exact where the model gives log-probabilities of labels
    (`label_logprobs`; its tokens are not counted), renormalised over the labels; otherwise the shares among `samples`
    answers under `law` that name a label. A row is NaN where no answer names one.
    """
    if isinstance(ctx.model, LabelModel) and len(questions):
        prompts = [Prompt(m) for m in questions]
        given = ctx.model.label_logprobs(prompts, labels).logprobs.astype(np.float64)
        _count_failures(
            ctx, [p.id for p, row in zip(prompts, given, strict=True) if not np.isfinite(row).any()], len(given)
        )
        with np.errstate(invalid="ignore"):
            weights = np.exp(given - given.max(axis=1, keepdims=True))
            return weights / weights.sum(axis=1, keepdims=True), [Cost(judge_calls=1)] * len(questions)
    asked = [Question(m, lambda text: read_label(text, labels)) for m in questions]
    answers = ask(ctx, asked, law, samples=samples, retries=retries)
    counts = [[sum(a.value == label for a in row) for label in labels] for row in answers]
    votes = np.array(counts, dtype=np.float64).reshape(len(questions), len(labels))
    with np.errstate(invalid="ignore"):
        return votes / votes.sum(axis=1, keepdims=True), list(map(total_cost, answers))


def _count_failures(ctx: Context, silent: Sequence[str], asked: int) -> None:
    """Count and drop the prompts of which a server gave a reason for its silence; nothing where there is none."""
    reasons: Mapping[str, str] = getattr(ctx.model, "errors", {})
    failures = [(prompt, reasons[prompt]) for prompt in silent if prompt in reasons]
    if failures:
        ctx.count(ASKED, asked)
        ctx.count(NO_REPLY, len(failures))
        _drop(ctx, failures)
