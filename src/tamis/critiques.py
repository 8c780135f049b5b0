"""Critiques of answers: what is asked for, and the conclusion that is read from them.

Row 27 (Critique Fine-Tuning, Wang et al. 2025, arXiv 2501.17703), steps 2 and 3.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tamis.asking import Question, Template, ask
from tamis.context import Context
from tamis.records import Cost, Law

END_MARK = "[END]"
CONCLUSION = re.compile(
    rf"conclusion\s*:\s*(?:(?P<said>right|wrong)(?:\.|[^\S\n]|{re.escape(END_MARK)})*$)?", re.IGNORECASE | re.MULTILINE
)

Conclusion = Literal["right", "wrong"]


def parse_conclusion(text: str) -> Conclusion | None:
    """Return what the last "Conclusion: ..." of `text` says, or None where it says neither "right" nor "wrong".

    After the word only a full stop, the end mark or the line's end may follow: "right/wrong" and "rightly so" say nothing.
    """
    found = list(CONCLUSION.finditer(text))
    said = (found[-1]["said"] or "").casefold() if found else ""
    known: dict[str, Conclusion] = {"right": "right", "wrong": "wrong"}
    return known.get(said)


@dataclass(frozen=True)
class Critique:
    """A critic's reply: its text without the end mark, its conclusion (None: none could be read), how it ended, its cost."""

    text: str
    conclusion: Conclusion | None
    finish: str
    cost: Cost

    @property
    def fault(self) -> str:
        """Label of the verdict where it cannot be used: "no_reply", "cut_reply", "unparseable_verdict"; "" where it can.

        A critique that was cut cannot be used, even if a conclusion stands in it.
        """
        cut = {"error": "no_reply", "length": "cut_reply"}.get(self.finish, "")
        return cut or ("" if self.conclusion else "unparseable_verdict")


def criticise(
    ctx: Context, wording: Template, given: Sequence[Mapping[str, str]], law: Law, retries: int
) -> list[Critique]:
    """Return `ctx.model`'s critique of each answer; the wording is filled in with each of `given`."""
    questions: list[Question[Conclusion]] = [Question(wording.render(**fields), parse_conclusion) for fields in given]
    answers = [a for (a,) in ask(ctx, questions, law, retries=retries)]
    return [Critique(a.text.replace(END_MARK, "").strip(), a.value, a.finish, a.cost) for a in answers]
