"""The answer judge: compares each completion's final answer with the gold one."""

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from tamis import answers, gym
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.hashing import digest
from tamis.judges.asking import prompt_of
from tamis.records import Completion, Prompt, Verdict
from tamis.registry import judge, option

Kind = Literal["auto", "exact", "numeric", "math", "choice", "regex", "python", "reasoning_gym"]
Finding = tuple[float | None, str, str]
"""Score, label and rationale."""


@judge("answer")
class Answer:
    """Say whether the final answer of each completion is the gold one.

    Score 1.0 ("correct") when it matches any of the prompt's references, 0.0 ("wrong") when it matches none, and None
    where nothing could be compared, with the label "unparseable_answer", "unparseable_gold", "no_gold", "no_answer" (the
    completion is a recorded failure) or "judge_error" (the user's function raised). The rationale names what was compared:
    "extracted '18', gold '18'". No model is asked. How answers are found is told in `tamis.answers`.

    Kinds: *numeric* compares numbers (whole ones exactly); *math* compares expressions with math-verify; *choice* compares
    option letters (options from metadata "options" or "choices", else from the prompt's text); *regex* compares the last
    match of `pattern`; *exact* compares normalised text; *python* calls `callable(text, prompt)`, which returns a bool, a
    float (kept as the score) or None (unparseable); *reasoning_gym* asks the data set's own scorer, full marks only;
    *auto* picks numeric, reasoning_gym, choice, math or exact from the gold answer.
    """

    kind: Kind = option("auto", "How answers are compared; auto picks from the gold answer.")
    pattern: str = option("", "regex: the last match is the answer, group 1 where there is a group.")
    callable: str = option("", "python: `package.module:function`, called with (text, prompt).")
    tolerance: float = option(1e-6, "Largest relative difference from the gold number; whole numbers are exact.", ge=0)

    def __post_init__(self) -> None:
        for name, kind in (("pattern", "regex"), ("callable", "python")):
            if bool(getattr(self, name)) != (self.kind == kind):
                raise ConfigError(f"kind '{kind}' and the option '{name}' go together", where="judge 'answer'")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"pattern is no regular expression: {error}", where="judge 'answer'") from None
        if self.callable:
            _function(self.callable)

    def fingerprint(self) -> str:
        """Return the hash of the source of the user's function's module, of its name where there is no source; else ""."""
        if not self.callable:
            return ""
        try:
            return digest(inspect.getsource(sys.modules[_function(self.callable).__module__]))
        except (OSError, TypeError, AttributeError, KeyError):
            return digest(self.callable)

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order. Raises DataError for a completion of an unknown prompt."""
        for completion in completions:
            prompt = prompt_of(prompts, completion)
            score, label, rationale = self._find(completion, prompt)
            yield Verdict(
                prompt_id=prompt.id,
                completion_ids=(completion.id,),
                judge="answer",
                score=score,
                label=label,
                rationale=rationale,
            )

    def _find(self, completion: Completion, prompt: Prompt) -> Finding:
        if completion.finish_reason == "error":
            return None, "no_answer", "the completion is a recorded failure"
        if self.kind == "python":
            return _ask_function(self.callable, completion.text, prompt)
        if self.kind == "reasoning_gym" or (self.kind == "auto" and _scored_by_gym(prompt)):
            return _ask_gym(completion.text, prompt)
        if not prompt.references:
            return None, "no_gold", "the prompt has no reference"
        found = answers.check_any(
            completion.text,
            prompt.references,
            self.kind,
            options=_options(prompt),
            pattern=self.pattern,
            tolerance=self.tolerance,
        )
        return found.score, found.label, f"extracted {found.extracted!r}, gold {found.gold!r}"


def _options(prompt: Prompt) -> dict[str, str]:
    """Return the prompt's options by letter: metadata "options" or "choices" (list or mapping), else those in its text."""
    given = prompt.metadata.get("options", prompt.metadata.get("choices"))
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):
        given = given["text"]
    if isinstance(given, Mapping):
        return {str(letter).upper(): str(text) for letter, text in given.items()}
    if isinstance(given, list | tuple):
        return {chr(ord("A") + i): str(text) for i, text in enumerate(given[:26])}
    return answers.options_in(prompt.text)


def _scored_by_gym(prompt: Prompt) -> bool:
    own = prompt.metadata.get("scorer") == "own"
    return own and not (prompt.references and answers.kind_of(prompt.references[0]) == "numeric")


def _ask_gym(text: str, prompt: Prompt) -> Finding:
    missing = {"dataset", "seed", "index", "options"} - prompt.metadata.keys()
    if missing:
        raise ConfigError(
            f"kind 'reasoning_gym' needs prompts of the task reasoning_gym; this one lacks {sorted(missing)}",
            where=prompt.source or f"prompt {prompt.id}",
        )
    gold = next(iter(prompt.references), "")
    if gold and str(gym.entry(prompt.metadata)["answer"]) != gold:
        return None, "unparseable_gold", "the installed reasoning-gym draws another item than the one asked"
    said = answers.statements(text)
    right = gym.is_right(said, prompt.metadata)
    if right is None:
        return None, "unparseable_answer", f"extracted '', gold {gold!r}"
    return float(right), "correct" if right else "wrong", f"extracted {said[0]!r}, gold {gold!r}"


def _ask_function(spec: str, text: str, prompt: Prompt) -> Finding:
    try:
        found = _function(spec)(text, prompt)
    except ConfigError:
        raise
    except Exception as error:
        return None, "judge_error", f"{spec} raised {type(error).__name__}: {error}"
    if found is None:
        return None, "unparseable_answer", f"{spec} gave None"
    try:
        score = float(found)
    except (TypeError, ValueError):
        return None, "judge_error", f"{spec} gave {type(found).__name__}, not a bool, float or None"
    if not math.isfinite(score):
        return None, "judge_error", f"{spec} gave {score}"
    return score, "correct" if score >= 0.5 else "wrong", f"{spec} gave {score:g}"


@cache
def _function(spec: str) -> Callable[[str, Prompt], Any]:
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"cannot find '{spec}': {type(error).__name__}: {error}",
            where="judge 'answer'.callable",
            hint="Write it as package.module:function; the module must be importable (PYTHONPATH, or installed).",
        ) from error
    if not callable(found):
        raise ConfigError(f"'{spec}' cannot be called", where="judge 'answer'.callable")
    return found
