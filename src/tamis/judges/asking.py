"""What judges that ask a model have in common: the model, the wording, the law, and what of a record the wording may show."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic.dataclasses import dataclass as validated

from tamis.asking import Answer, Question, Template, ask, template
from tamis.asking.templates import fingerprint
from tamis.context import Context
from tamis.errors import DataError
from tamis.records import Completion, Law, Prompt, Verdict
from tamis.registry import Component, option

T = TypeVar("T")


@validated(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class AsksModel:
    """Options of every judge that asks a model. A subclass names its packaged wording and the fields it fills in."""

    component: ClassVar[Component]
    wording: ClassVar[str]
    gives: ClassVar[tuple[str, ...]]

    model: str | None = option(
        None, "the model that judges: a name, folder, hub id or endpoint; none: the run's own model", min_length=1
    )
    template: str = option("", "wording: a packaged template or a YAML file of yours; empty: the judge's own")
    temperature: float = option(0.0, "temperature of the replies; 0 is greedy", ge=0)
    max_new_tokens: int = option(512, "most tokens of a reply", ge=1)
    retries: int = option(1, "further tries where a reply cannot be read, sampled at 0.7 or more", ge=0)

    def __post_init__(self) -> None:
        _ = self.asked_with

    @cached_property
    def asked_with(self) -> Template:
        """The wording in force, as it was when this was made. Raises ConfigError for a field that is not filled in here."""
        return template(self.template or self.wording, self.gives)

    @property
    def law(self) -> Law:
        """Law of the replies."""
        return Law(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def fingerprint(self) -> Sequence[str]:
        """Return the content of the wording, of which the options hold only the name."""
        return fingerprint(self.asked_with)

    def ask(
        self,
        ctx: Context,
        fields: Sequence[Mapping[str, Any]],
        read: Callable[[str], T | None],
        *,
        samples: int = 1,
        schema: Mapping[str, Any] | None = None,
    ) -> list[list[Answer[T]]]:
        """Return `samples` answers to the wording filled in with each of `fields`."""
        questions = [Question(self.asked_with.render(**given), read, schema) for given in fields]
        return ask(ctx, questions, self.law, samples=samples, retries=self.retries)


def conversation(prompt: Prompt) -> str:
    """Return what the prompt asks as one text: its only message, or its messages with their roles."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"[{m.role}]\n{m.content}" for m in prompt.messages)


def asked(prompt: Prompt) -> dict[str, str]:
    """Return the fields that say what was asked for: question, and the first reference ("" without one)."""
    return {"question": conversation(prompt), "reference": prompt.references[0] if prompt.references else ""}


FACTS = ("question", "answer", "reference")


def prompt_of(prompts: Mapping[str, Prompt], completion: Completion) -> Prompt:
    """Return the completion's prompt. Raises DataError where it is not there."""
    found = prompts.get(completion.prompt_id)
    if found is None:
        raise DataError(f"prompt {completion.prompt_id} is not there", where=f"completion {completion.id}")
    return found


def failed(completion: Completion, judge: str) -> Verdict | None:
    """Return the verdict on a recorded failure, which no model is asked about; None for every other completion."""
    if completion.finish_reason != "error":
        return None
    return Verdict(completion.prompt_id, (completion.id,), judge, label="no_answer", rationale="a recorded failure")


def answered(completions: Iterable[Completion]) -> list[Completion]:
    """Return the completions that are no recorded failures."""
    return [c for c in completions if c.finish_reason != "error"]


def by_prompt(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Return the completions of each prompt, recorded failures left out."""
    groups: dict[str, list[Completion]] = {}
    for completion in answered(completions):
        groups.setdefault(completion.prompt_id, []).append(completion)
    return groups


@validated(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class AsksEach(AsksModel):
    """Judges of single completions that ask a model. A subclass makes the verdicts."""

    gives: ClassVar[tuple[str, ...]] = FACTS

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order; no model is asked about a recorded failure."""
        shown = answered(completions)
        facts = [{**asked(prompt_of(prompts, c)), "answer": c.text} for c in shown]
        made = iter(self.verdicts(shown, facts, ctx))
        for completion in completions:
            yield failed(completion, self.component.name) or next(made)

    def verdicts(
        self, completions: Sequence[Completion], facts: Sequence[Mapping[str, Any]], ctx: Context
    ) -> Iterable[Verdict]:
        """Return one verdict per completion, in order; `facts` are the fields of its wording."""
        raise NotImplementedError
