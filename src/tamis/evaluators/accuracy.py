"""Greedy accuracy."""

from collections.abc import Sequence

from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.records import Law
from tamis.registry import evaluator, option


@evaluator("accuracy")
class Accuracy:
    """Share of held-out prompts whose greedy completion is right.

    A completion is right when its score is at least 0.5. One that could not be judged (`unparseable_answer`, `no_answer`...)
    counts as not right and stands in the notes with its label, as do completions cut at the length limit (`truncated`).
    The interval is Wilson's; `per_item` is 1.0 or 0.0.

    Raises ConfigError when nothing was judged, DataError when a prompt has no completion.
    """

    max_new_tokens: int = option(256, "longest completion, in tokens", ge=1)

    def draws(self) -> Sequence[Draw]:
        """Ask for one greedy completion per prompt."""
        return (Draw(Law(temperature=0.0, max_new_tokens=self.max_new_tokens)),)

    def measure(self, view: View) -> list[Metric]:
        """Return the metric "accuracy"."""
        pool, rows = outcomes.drawn(view, *self.draws())
        per_item = {prompt_id: float(outcomes.right(pool, row[0])) for prompt_id, row in rows.items()}
        interval = stats.wilson(int(sum(per_item.values())), len(per_item))
        notes = outcomes.counts(pool, {prompt_id: row[:1] for prompt_id, row in rows.items()})
        return [Metric("accuracy", *interval, n=len(per_item), per_item=per_item, unit="share", notes=notes)]
