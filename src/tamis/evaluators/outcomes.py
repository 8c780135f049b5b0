"""What evaluators of judged completions share: which completions are right, and what else is worth counting."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tamis.errors import ConfigError, DataError
from tamis.metrics import Draw, View
from tamis.pool import Pool

RIGHT = 0.5
"""A score of at least this counts as right."""


def drawn(view: View, draw: Draw) -> tuple[Pool, dict[str, list[int]]]:
    """Return the judged pool of a draw and the completions of each held-out prompt as indices, by candidate number.

    Prompts come in the order of their ids, so that figures do not depend on the order of the data. Raises DataError when
    there is no prompt or one has fewer completions than were asked for, ConfigError when nothing was judged.
    """
    if not view.prompts:
        raise DataError("there is no held-out prompt to evaluate on", hint="Raise the task's `heldout`.")
    pool = view.pools.get(draw)
    if pool is None or not pool.judged():
        raise ConfigError("the held-out completions were not judged", hint="Give the evaluate stage a `judge`.")
    rows = {}
    for prompt_id in sorted(prompt.id for prompt in view.prompts):
        found = sorted(pool.by_prompt.get(prompt_id, ()), key=lambda i: pool.completions[i].index)
        if len(found) < draw.n:
            raise DataError(
                f"prompt {prompt_id} has {len(found)} completions where {draw.n} are needed",
                hint="Sample it again with the draw this evaluator asks for.",
            )
        rows[prompt_id] = found
    return pool, rows


def right(pool: Pool, index: int) -> bool:
    """Whether a completion's score is at least `RIGHT`; one without a score is not right."""
    return pool.accepted(index, RIGHT)


def counts(pool: Pool, rows: Mapping[str, Sequence[int]]) -> dict[str, float | int | str]:
    """Count the completions in `rows` that were cut at the length limit, and those without a score by their label."""
    found: Counter[str] = Counter()
    for index in (i for row in rows.values() for i in row):
        found["truncated"] += pool.completions[index].finish_reason == "length"
        if pool.score(index) is None:
            labels = [v.label for v in pool.verdicts_of.get(pool.completions[index].id, ()) if v.label]
            found[labels[-1] if labels else "no_score"] += 1
    return {name: n for name, n in sorted(found.items()) if n}
