"""Judge `auto_rubric`: learns a rubric from a few preference pairs, then judges by it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tamis import preferences
from tamis.asking import template
from tamis.asking.templates import fingerprint
from tamis.context import Context
from tamis.errors import DataError
from tamis.hashing import file_digest
from tamis.judges.rubric import ByRubric
from tamis.preferences import Preference
from tamis.registry import judge, option
from tamis.rubrics import WORDINGS, Rubric, learn
from tamis.tasks import readers


def known(path: str, ctx: Context) -> list[Preference]:
    """Return the pairs of a file (see `tamis.preferences.read`).

    Rows that are no pair with one better answer are dropped with their reason. Raises DataError where no pair is left.
    """
    found = preferences.read(path)
    for row in found.rejected:
        ctx.drop(row["record"], row["reason"], detail=row["detail"])
    if not found.pairs:
        raise DataError(
            "there is no pair with a better answer to learn from",
            where=path,
            hint="A row has prompt, chosen and rejected, or prompt, response1, response2 and label (1 or 2).",
        )
    return found.pairs


@judge(
    "auto_rubric",
    row=26,
    paper="Auto-Rubric: Learning to Extract Generalizable Criteria (2025)",
    needs=("text", "embedder"),
)
class AutoRubric(ByRubric):
    """Learn a rubric from about 70 preference pairs, without training, and judge pairs of answers by it.

    For each pair the model proposes a criterion; it is kept only where a fresh call, which does not see the label, finds the
    better answer by it, else it is rewritten up to `max_epochs` rounds. A core set is chosen by coding rate over embeddings,
    and the model groups it into themes with tips, each with the numbers of its criteria. Judging is that of `rubric`.

    The rubric is learned when the first pair is judged. All replies are kept, so that learning again asks nothing. Write
    it down with `save`, read it, and use it with the judge `rubric`. `tamis.rubrics.analyse` tells what each theme does on
    pairs that were not learned from.
    """

    contract: ClassVar[dict] = {"pairs": "preferences.jsonl"}

    pairs: str = option(..., "file of pairs: prompt, chosen, rejected, and perhaps critiques", min_length=1)
    save: str = option("", "YAML file that the learned rubric is written to; empty: none")
    criteria: int = option(1, "most criteria of one pair", source="paper", ge=1)
    max_epochs: int = option(10, "rounds in which a pair's criteria are tried", source="paper", ge=1)
    batch: int = option(10, "pairs between two choices of the core set", source="paper", ge=1)
    k: int = option(200, "most criteria of the core set", source="paper", ge=1)
    max_themes: int = option(5, "most themes", source="paper", ge=1)
    max_tips: int = option(5, "most tips of a theme", source="paper", ge=0)

    @cached_property
    def _learned(self) -> dict[tuple[int, str], Rubric]:
        return {}

    def rubric(self, ctx: Context) -> Rubric:
        """Return the learned rubric; learn it where this judge has not yet, with this seed and model."""
        key = (ctx.seed, ctx.model.identity)
        if key not in self._learned:
            self._learned[key] = self._learn(ctx)
        return self._learned[key]

    def _learn(self, ctx: Context) -> Rubric:
        found = learn(
            ctx,
            known(self.pairs, ctx),
            self.law,
            self.asked_with,
            m=self.criteria,
            max_epochs=self.max_epochs,
            batch=self.batch,
            k=self.k,
            max_themes=self.max_themes,
            max_tips=self.max_tips,
        )
        if self.save:
            found.write(Path(self.save).expanduser())
        return found

    def fingerprint(self) -> Sequence[str]:
        """Return the content of all wordings and of the pairs."""
        files = [file for source in readers.locate(self.pairs) for file in readers.files(source)]
        return [*super().fingerprint(), *fingerprint(*map(template, WORDINGS)), *map(file_digest, files)]
