"""What evaluators share that let the measured model judge pairs of answers: the judge, the pairs, both orders."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.judges.pairs import Pair
from tamis.metrics import View
from tamis.ratings import RatedPair, own_pair
from tamis.records import Verdict

Compare = Callable[[Sequence[Pair]], list[Verdict]]


def pair_judge(spec: dict[str, Any] | str) -> Any:
    """Return the pairwise judge of a recipe form. Raises ConfigError for another judge, or one with a model of its own."""
    judge = registry.build("judge", spec, "judge")
    if not hasattr(judge, "compare"):
        raise ConfigError(
            f"the judge '{judge.component.name}' does not compare two answers", hint="Take prefer or probability."
        )
    if getattr(judge, "model", None):
        raise ConfigError(
            f"the judge names the model '{judge.model}', and here the model that is measured judges",
            hint="Leave `model` out of the judge.",
        )
    return judge


def judged_by(judge: Any, model: Any, ctx: Context) -> Compare:
    """Return `judge`, asked of `model`, as a plain function that shows each pair once, in the order given."""
    asking = replace(ctx, model=model)
    in_order = getattr(judge, "in_order", judge.compare)
    return lambda pairs: in_order(pairs, asking)


def heldout_pairs(view: View, field: str) -> dict[str, RatedPair]:
    """Return the own pairs of the held-out prompts by prompt id, in the order of the ids. Raises DataError for none."""
    found = {p.id: own_pair(p, field) for p in sorted(view.prompts, key=lambda p: p.id)}
    kept = {prompt_id: rated for prompt_id, rated in found.items() if rated}
    if not kept:
        raise DataError(
            f"none of {len(view.prompts)} held-out prompts has a pair of answers",
            hint="A row has chosen and rejected, or two answers and `ratings` (task data with keep: [ratings]).",
        )
    return kept


def both_orders(compare: Compare, pairs: Sequence[Pair]) -> tuple[list[Verdict], list[Verdict]]:
    """Return the verdicts on the pairs as given, and on the swapped pairs.

    Raises ConfigError where a judge did not judge the order that it was shown.
    """
    sides = list(pairs), [p.swapped() for p in pairs]
    there, back = (compare(side) for side in sides)
    for shown, said in zip([*sides[0], *sides[1]], [*there, *back], strict=True):
        if said.completion_ids != shown.ids:
            raise ConfigError(
                "the judge orders pairs itself, so that a bias to a place cannot be seen",
                where=f"judge '{said.judge}'",
                hint="Its verdict must be on (first, second) as they are shown.",
            )
    return there, back
