"""Composer `preference_targets`: train a judge on how a population of raters is divided."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from tamis.asking import Template, template
from tamis.asking.templates import fingerprint
from tamis.calibration import statement
from tamis.composers.accepted import rendered, training_prompts, usable
from tamis.context import Context
from tamis.errors import DataError
from tamis.judges.pairs import PAIR_FACTS, Pair
from tamis.pool import Pool
from tamis.ratings import RatedPair, judged_pairs, own_pair
from tamis.records import Example, Message, Prompt, Target
from tamis.registry import composer, option


@composer(
    "preference_targets",
    row=113,
    paper="Judging with Confidence: Calibrating Autoraters to Preference Distributions (Li et al. 2025)",
)
class PreferenceTargets:
    """Train the model to be the judge `probability`: user = its question about two answers, assistant = the share.

    A pair is a data row's own (two answers and `ratings`, or chosen and rejected), else any two completions that judges
    compared or scored; each of them is a rater (`tamis.ratings`). The target states the share k / m of the m ratings for
    the first, ties counting half, rounded: "[P: 0.70]". Trained so the model answers with the distribution of k / m, and the
    mean of its answers is the estimate. The loss lies on the statement and its end alone. `targets: majority` (1, 0 or 0.5)
    is the baseline that loses the shares; `verdict` trains the judge `prefer` on "Verdict: A", "B" or "tie".

    Each pair is asked in both orders, the share turned round. Raises DataError for ratings that are empty or none, and for a
    pair that is also held out, in whichever order. Prompts without a rated pair are dropped, counted.
    """

    targets: Literal["share", "majority", "verdict"] = option("share", "what is trained: the share, or who has most")
    both_orders: bool = option(True, "each pair in both orders; false: in one, drawn at random", source="paper")
    decimals: int = option(2, "decimals of a share", ge=1, le=4)
    ratings: str = option(
        "ratings", "field of a prompt's metadata that holds the ratings of its own pair", min_length=1
    )
    template: str = option("", "wording: a packaged template or a YAML file of yours; empty: the judge's own")

    def __post_init__(self) -> None:
        _ = self.asked_with

    @property
    def asked_with(self) -> Template:
        """The wording in force. Raises ConfigError where it uses a field that is not filled in."""
        return template(self.template or ("prefer" if self.targets == "verdict" else "probability"), PAIR_FACTS)

    def fingerprint(self) -> Sequence[str]:
        """Return the content of the wording, of which the options hold only the name."""
        return fingerprint(self.asked_with)

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield sft examples: two per pair, or one."""
        heldout = [own_pair(p, self.ratings) for p in pool.prompts.values() if p.split != "train"]
        unseen = {found.content for found in heldout if found}
        for prompt, indices in training_prompts(pool):
            found = self._rated(prompt, indices, pool, ctx)
            if not found:
                ctx.drop(prompt.id, "no rated pair of answers", source=prompt.source)
            for rated in found:
                if rated.content in unseen:
                    raise DataError(
                        "a pair to train on is also held out, perhaps in the other order",
                        where=prompt.source or prompt.id,
                        hint="Keep both orders of a pair, and all its ratings, on one side of the split.",
                    )
                yield from self._examples(rated, ctx)

    def _rated(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> list[RatedPair]:
        own = own_pair(prompt, self.ratings)
        if own:
            return [own]
        done = {pool.completions[i].id: pool.completions[i] for i in indices}
        return judged_pairs(prompt, [c for c in done.values() if usable(c, "complete", ctx)], pool.verdicts_of)

    def _examples(self, rated: RatedPair, ctx: Context) -> list[Example]:
        share = round(rated.share, self.decimals) if self.targets == "share" else majority(rated.share)
        orders = [(rated.pair, self._said(share)), (rated.pair.swapped(), self._said(1 - share))]
        if not self.both_orders:
            orders = [orders[int(ctx.rng("order", *rated.pair.ids).integers(2))]]
        facts = {"origin": "preference_targets", "share": rated.share, "ratings": len(rated.ratings)}
        return judging_examples(orders, self.asked_with, rated.sources, facts, ctx)

    def _said(self, share: float) -> str:
        return verdict_line(share) if self.targets == "verdict" else statement(share, self.decimals)


def majority(share: float) -> float:
    """Return 1 where more than half prefer the first, 0 where fewer do, else 0.5."""
    return 0.5 if share == 0.5 else float(share > 0.5)


def verdict_line(first: float) -> str:
    """Return the line that a reply to the judge `prefer` ends in; `first` is 1 for A, 0 for B, 0.5 for a tie."""
    return f"Verdict: {'tie' if first == 0.5 else 'A' if first else 'B'}"


def judging_examples(
    orders: Sequence[tuple[Pair, str]],
    wording: Template,
    sources: tuple[str, ...],
    facts: Mapping[str, Any],
    ctx: Context,
) -> list[Example]:
    """Return an example per pair as it is shown and what is to be said of it; none where one cannot be rendered."""
    targets = [
        rendered(Target((*wording.render(**pair.facts()), Message("assistant", said))), "+".join(pair.ids), ctx)
        for pair, said in orders
    ]
    prompt_id = orders[0][0].prompt.id
    made = [Example("sft", prompt_id, t, sources=sources, metadata=facts) for t in targets if t is not None]
    return made if len(made) == len(orders) else []
