"""maj@k: the answer that most of k samples give is right (self-consistency)."""

import re
from collections import Counter
from collections.abc import Sequence

from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.pool import Pool
from tamis.records import Law
from tamis.registry import evaluator, option

EXTRACTED = re.compile(r"extracted ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"), gold ")


@evaluator("maj_at_k", paper="Self-Consistency Improves Chain of Thought Reasoning (Wang et al., 2022)")
class MajAtK:
    """Share of held-out prompts whose most frequent answer among k samples is right.

    A sample votes for the answer that the judge extracted from it (the verdict's rationale; for judges that name none, the
    final answer of its text); numbers vote by value. Samples without a score do not vote; ties go to the answer seen first.
    The vote is right when the first sample that gave the winning answer has a score of at least 0.5; a prompt without any
    vote is not right and counts as `no_vote` in the notes, ties as `ties`. The interval is Wilson's; `per_item` is 1.0 or
    0.0.

    Raises ConfigError when nothing was judged, DataError when a prompt has fewer than k samples.
    """

    k: int = option(8, "samples that vote", ge=1)
    temperature: float = option(0.7, "sampling temperature", source="paper", gt=0)
    top_p: float = option(1.0, "nucleus", gt=0, le=1)
    max_new_tokens: int = option(256, "longest completion, in tokens", ge=1)

    def draws(self) -> Sequence[Draw]:
        """Ask for k samples per prompt."""
        law = Law(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)
        return (Draw(law, self.k),)

    def measure(self, view: View) -> list[Metric]:
        """Return the metric "maj@k"."""
        pool, rows = outcomes.drawn(view, *self.draws())
        rows = {prompt_id: row[: self.k] for prompt_id, row in rows.items()}
        notes: Counter[str] = Counter()
        per_item = {prompt_id: float(_majority_right(pool, row, notes)) for prompt_id, row in rows.items()}
        interval = stats.wilson(int(sum(per_item.values())), len(per_item))
        shown = {**outcomes.counts(pool, rows), **notes}
        return [Metric(f"maj@{self.k}", *interval, n=len(rows), per_item=per_item, unit="share", notes=shown)]


def _majority_right(pool: Pool, row: Sequence[int], notes: Counter[str]) -> bool:
    votes = {index: _vote(pool, index) for index in row if pool.score(index) is not None}
    ranked = Counter(votes.values()).most_common(2)  # equal counts keep the order in which they were seen
    if not ranked:
        notes["no_vote"] += 1
        return False
    notes.update(["ties"] * (len(ranked) == 2 and ranked[0][1] == ranked[1][1]))
    return outcomes.right(pool, next(index for index, answer in votes.items() if answer == ranked[0][0]))


def _vote(pool: Pool, index: int) -> str:
    from tamis.answers import final_answer
    from tamis.numerals import as_number

    completion = pool.completions[index]
    named = [EXTRACTED.match(verdict.rationale) for verdict in pool.verdicts_of[completion.id]]
    answer = next((found[1][1:-1] for found in reversed(named) if found), None)
    if answer is None:
        answer = final_answer(completion.text) or ""
    return str(as_number(answer) or answer)
