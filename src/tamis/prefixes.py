"""Prefix fine-tuning (UPFT, Ji et al. 2025, arXiv 2503.02875): the split, the task sentence and the diagnostics.

Shared by the sampler `prefix`, which must know before sampling which prompts get a full trace, and by the composer
`prefix`, which puts the task sentence into the training prompt.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tamis.context import Judge
from tamis.errors import ConfigError, DataError
from tamis.hashing import digest
from tamis.models.base import TextModel
from tamis.records import Completion, Law, Message, Prompt, Turn

DEFAULT_TASK_SENTENCE = (
    "Give only the first step toward a solution. It may serve as a basis for what follows "
    "and need not hold the whole solution."
)


def structure_split(ids: Iterable[str], ratio: float, seed: int) -> set[str]:
    """Return the ids of the structure set D_f: those whose full traces are sampled and trained.

    The ids are ordered by hash(seed, id) and the first `floor(ratio * n + 0.5)` taken, at least one when `ratio > 0`
    (sheet 093, step 1). The order of `ids` does not matter. Raises ConfigError for a ratio outside [0, 1], DataError for
    no ids or a repeated one.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"structure_ratio must lie in [0, 1], not {ratio}", hint="The paper takes 0.1.")
    known = list(ids)
    if not known:
        raise DataError("there is no prompt to split", hint="Give the task at least one training prompt.")
    repeated = [i for i, n in Counter(known).items() if n > 1]
    if repeated:
        raise DataError(
            f"prompt {repeated[0]} occurs more than once ({len(repeated)} repeated in all)",
            hint="Remove repeated prompts from the data: a prompt belongs to exactly one of the two sets.",
        )
    size = max(math.floor(ratio * len(known) + 0.5), 1 if ratio > 0 else 0)
    return set(sorted(known, key=lambda i: digest(seed, i))[:size])


def with_task_sentence(messages: Sequence[Message], sentence: str = DEFAULT_TASK_SENTENCE) -> tuple[Message, ...]:
    """Return `messages` with `sentence` on a new line at the end of the last user message.

    Raises DataError when there is no user message.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    if last is None:
        raise DataError("the prompt has no user message to put the task sentence into")
    changed = list(messages)
    changed[last] = Message("user", f"{changed[last].content}\n{sentence}")
    return tuple(changed)


def prefix_consistency(
    token_ids: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int] | None = None
) -> list[dict[str, float]]:
    """Return how much traces of one question share their first t tokens, one row per length t.

    `token_ids[question][trace][token]`; `lengths` default to the powers of two up to the longest trace. Columns, means
    over questions: `distinct` (number of distinct t-token prefixes), `coverage` (traces per distinct prefix, m / distinct)
    and `top_share` (share of the commonest prefix). A trace shorter than t counts as a whole. Raises DataError when a
    question has no trace, ConfigError for a length below 1.
    """
    if not token_ids or any(not traces for traces in token_ids):
        raise DataError("prefix consistency needs at least one trace for every question")
    longest = max(len(trace) for traces in token_ids for trace in traces)
    rows = []
    for t in _checked(powers_of_two(longest) if lengths is None else lengths):
        counts = [Counter(tuple(trace[:t]) for trace in traces) for traces in token_ids]
        rows.append(
            {
                "t": t,
                "distinct": _mean([len(c) for c in counts]),
                "coverage": _mean([c.total() / len(c) for c in counts]),
                "top_share": _mean([max(c.values()) / c.total() for c in counts]),
            }
        )
    return rows


def rollout_accuracy(
    model: TextModel,
    prompts: Sequence[Prompt],
    traces: Sequence[Sequence[Completion]],
    right: Sequence[Sequence[bool]],
    judge: Judge,
    lengths: Sequence[int],
    *,
    n: int = 4,
    law: Law | None = None,
    seed: int = 0,
) -> list[dict[str, float | None]]:
    """Return how often continuations of t-token prefixes of right and of wrong traces come out right, a row per t.

    `traces[i]` are completions of `prompts[i]` with their token ids, `right[i][j]` says whether trace j is right. Each
    prefix is continued `n` times under `law` (default: that of the trace) as a prompt that ends in an assistant message; a
    trace of at most t tokens stands for itself. Columns: `acc_right`, `acc_wrong` (shares in [0, 1]; None without such
    traces), `gap = acc_right - acc_wrong`, and `unparsed`, the share of rollouts without a score, which count as not right.
    `model` must have a `chat` format. Raises DataError when the lengths of the arguments differ, ConfigError for a length
    or `n` below 1.
    """
    if not (len(prompts) == len(traces) == len(right)) or any(map(_unequal, traces, right)):
        raise DataError("rollout_accuracy needs one list of traces and of right flags for each prompt")
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    flat = [
        (p, c, ok) for p, cs, oks in zip(prompts, traces, right, strict=True) for c, ok in zip(cs, oks, strict=True)
    ]
    rows = []
    for t in _checked(lengths):
        shares: dict[bool, list[float]] = {True: [], False: []}
        unparsed = []
        for prompt, trace, ok in flat:
            scores = _rollout_scores(model, prompt, trace, ok, judge, t, n, law, seed)
            shares[ok].append(_mean([s is not None and s >= 0.5 for s in scores]))
            unparsed.append(_mean([s is None for s in scores]))
        acc_right, acc_wrong = (_mean(shares[ok]) if shares[ok] else None for ok in (True, False))
        gap = None if acc_right is None or acc_wrong is None else acc_right - acc_wrong
        row = {"t": t, "acc_right": acc_right, "acc_wrong": acc_wrong, "gap": gap}
        rows.append(row | {"unparsed": _mean(unparsed) if unparsed else None})
    return rows


def suggest_length(consistency: Sequence[Mapping[str, Any]], rollouts: Sequence[Mapping[str, Any]] = ()) -> int | None:
    """Return the prefix length to take, None when no row qualifies (sheet 093; our choice of thresholds).

    With `rollouts` (rows of `rollout_accuracy`): the largest t whose gap is below 0.02; without: the largest t of
    `consistency` (rows of `prefix_consistency`) with a coverage of at least 2.
    """
    if rollouts:
        fit = [row["t"] for row in rollouts if row["gap"] is not None and row["gap"] < 0.02]
    else:
        fit = [row["t"] for row in consistency if row["coverage"] >= 2]
    return max(fit, default=None)


def powers_of_two(limit: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to `limit` (at least 1)."""
    return tuple(2**k for k in range(max(limit, 1).bit_length()))


def _rollout_scores(
    model: Any,
    prompt: Prompt,
    trace: Completion,
    right: bool,
    judge: Judge,
    t: int,
    n: int,
    law: Law | None,
    seed: int,
) -> list[float | None]:
    if len(trace.token_ids) <= t:
        return [float(right)]
    prefix = model.chat.decode(trace.token_ids[:t])
    start = replace(prompt, messages=(*prompt.messages, Message("assistant", prefix)), id="")
    rollouts = model.generate([start], law or trace.law, candidates=[range(n)], seed=seed, sampler="rollout")
    whole = [replace(c, prompt_id=prompt.id, turns=(Turn("assistant", prefix + c.text),), id="") for c in rollouts]
    return [verdict.score for verdict in judge({prompt.id: prompt}, whole)]


def _checked(lengths: Sequence[int]) -> Sequence[int]:
    if any(t < 1 for t in lengths):
        raise ConfigError(f"prefix lengths must be at least 1, not {min(lengths)}")
    return lengths


def _unequal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) != len(b)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
