"""Judge `unanswerable`: right where the content is gold's, or where there is no answer and the model says so."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamis.asking import Answer, Question, Template, ask, read_label, template
from tamis.asking.templates import fingerprint
from tamis.context import Context
from tamis.judges.asking import FACTS, AsksModel, asked, failed, prompt_of
from tamis.records import Completion, Cost, Prompt, Verdict
from tamis.refusals import refuses, unanswerable
from tamis.registry import judge, option

SAID = ("yes", "no")


@judge("unanswerable", row=8, paper="Selective Self-Rehearsal (Gupta et al. 2024, arXiv 2409.04787)", needs=("text",))
class Unanswerable(AsksModel):
    """Judge free answers to questions of which some have no answer: right, though perhaps worded otherwise.

    A question is unanswerable where its metadata says answerable: false or its first reference is a refusal. Whether an
    answer refuses is found first: by phrases (`tamis.refusals`), else by asking the model (`ask_refusals`). A refusal is right
    for an unanswerable question and wrong for any other ("refused"); an answer to an unanswerable one is wrong ("answered").
    For the rest the model is asked whether the answer agrees in content with gold (`template`): "right" or "wrong". The first
    word of a reply decides, yes or no.

    Score 1.0 or 0.0. An empty or cut answer is wrong ("empty", "cut"), and no model is asked. Where a reply cannot be read
    ("no_reply", "cut_reply", "unparseable_verdict") or an answerable question has no reference ("no_gold") there is no
    score, which counts as not right everywhere.
    """

    wording: ClassVar[str] = "agrees"
    gives: ClassVar[tuple[str, ...]] = FACTS

    max_new_tokens: int = option(16, "most tokens of a reply", ge=1)
    ask_refusals: bool = option(True, "ask the model whether an answer refuses where no phrase says so")

    def fingerprint(self) -> Sequence[str]:
        """Return the content of both wordings."""
        return fingerprint(self.asked_with, template("is_refusal"))

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order."""
        whole = [c for c in completions if c.finish_reason == "stop" and c.text.strip()]
        refusing = self._refusals(whole, prompts, ctx)
        compared = [c for c in whole if _compared(prompt_of(prompts, c), refusing[c.id].value)]
        agreeing = self._asked(self.asked_with, compared, prompts, ctx)
        for completion in completions:
            prompt, refused = prompt_of(prompts, completion), refusing.get(completion.id)
            agrees = agreeing.get(completion.id)
            score, label = _finding(completion, prompt, refused, agrees)
            cost = sum((a.cost for a in (refused, agrees) if a is not None), Cost())
            yield failed(completion, "unanswerable") or Verdict(
                prompt.id, (completion.id,), "unanswerable", score, label, cost=cost
            )

    def _refusals(
        self, completions: Sequence[Completion], prompts: Mapping[str, Prompt], ctx: Context
    ) -> dict[str, Answer[str]]:
        """Return for each completion whether it refuses, "yes" or "no", by phrases before any model is asked."""
        told = {c.id: _by_phrase("yes") for c in completions if refuses(c.text)}
        rest = [c for c in completions if c.id not in told]
        if not self.ask_refusals:
            return told | {c.id: _by_phrase("no") for c in rest}
        return told | self._asked(template("is_refusal"), rest, prompts, ctx)

    def _asked(
        self, wording: Template, completions: Sequence[Completion], prompts: Mapping[str, Prompt], ctx: Context
    ) -> dict[str, Answer[str]]:
        facts = [{**asked(prompt_of(prompts, c)), "answer": c.text} for c in completions]
        questions = [Question(wording.render(**given), _first_word) for given in facts]
        answers: list[list[Answer[Any]]] = ask(ctx, questions, self.law, retries=self.retries)
        return {c.id: answer for c, (answer,) in zip(completions, answers, strict=True)}


def _by_phrase(said: str) -> Answer[str]:
    return Answer(said, "", "stop", 0, Cost())


def _first_word(text: str) -> str | None:
    return read_label(text.split()[0], SAID) if text.split() else None


def _compared(prompt: Prompt, refused: str | None) -> bool:
    """Whether an answer has to be compared with gold: it is no refusal, and there is an answer to be compared with."""
    return refused == "no" and not unanswerable(prompt) and bool(prompt.references)


def _finding(
    completion: Completion, prompt: Prompt, refused: Answer[str] | None, agrees: Answer[str] | None
) -> tuple[float | None, str]:
    """Return score and label."""
    if refused is None:
        return 0.0, "empty" if completion.finish_reason == "stop" else "cut"
    if refused.value is None:
        return None, refused.fault
    if unanswerable(prompt):
        return (1.0, "right") if refused.value == "yes" else (0.0, "answered")
    if refused.value == "yes":
        return 0.0, "refused"
    if agrees is None:
        return None, "no_gold"
    if agrees.value is None:
        return None, agrees.fault
    return (1.0, "right") if agrees.value == "yes" else (0.0, "wrong")
