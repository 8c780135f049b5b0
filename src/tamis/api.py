"""tamis from Python: `tamis.run`, `tamis.sample`, `tamis.judge`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from tamis import pipeline, recipe, registry
from tamis.context import Context
from tamis.errors import ConfigError, nearest
from tamis.progress import Mode, listener
from tamis.records import Completion, Law, Message, Prompt, Verdict
from tamis.runs import Run

Promptish = Prompt | str | Sequence[Mapping[str, str]]


def run(
    source: str | Path | Mapping[str, Any],
    *,
    model: str | None = None,
    data: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    set: Mapping[str, Any] | None = None,
    seed: int | None = None,
    lab: bool = False,
    runs_dir: str | Path = "runs",
    fresh: bool = False,
    progress: Mode = "quiet",
) -> Run:
    """Run a recipe (packaged name, YAML file or mapping) and return the run: `.metrics`, `.model`, `.examples`, `.path`.

    `map` says which column of `data` is what, e.g. {"prompt": "question"}; `set` maps paths to values, e.g.
    {"stages.sample.temperature.n": 16}. Raises TamisError on wrong input.
    """
    made = recipe.load(source, overrides=set or {}, model=model, data=data, mapping=map, seed=seed, lab=lab)
    if not isinstance(runs_dir, str | Path):
        raise ConfigError(f"runs_dir is the path of a folder, not {runs_dir!r}")
    watch = listener(progress)
    try:
        return pipeline.run(made, runs_dir=Path(runs_dir), fresh=fresh, listener=watch)
    finally:
        watch.close()


def sample(
    model: str | Any, prompts: Sequence[Promptish], *, n: int = 1, seed: int = 0, **law: Any
) -> list[Completion]:
    """Draw `n` completions per prompt. `model` is a name or a loaded model; `law` are the fields of `records.Law`.

    Returns completions grouped by prompt, in prompt order.
    """
    from tamis.models.resolve import load, resolve

    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        raise ConfigError(f"prompts is a list of prompts, not {prompts!r:.80}", hint='Example: sample(model, ["2+2="])')
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n is {n!r}; it must be a whole number of 1 or more")
    made = [as_prompt(p) for p in prompts]
    drawn_from = _law(law)
    loaded = load(resolve(str(model))) if isinstance(model, str | Path) else model
    if not hasattr(loaded, "generate"):
        raise ConfigError(f"{model!r:.80} is no model that gives text", hint="Give a model's name or a loaded model.")
    return list(loaded.generate(made, drawn_from, candidates=[range(n)] * len(made), seed=seed))


def _law(law: Mapping[str, Any]) -> Law:
    known = [f.name for f in dataclasses.fields(Law)]
    for name in law:
        if name not in known:
            raise ConfigError(f"unknown field '{name}'", where="law", hint=nearest(name, known))
    try:
        return pydantic.TypeAdapter(Law).validate_python(law)
    except pydantic.ValidationError as error:
        raise ConfigError(registry.explain(error), where="law") from None


def judge(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    spec: str | Mapping[str, Any] = "answer",
    *,
    seed: int = 0,
) -> list[Verdict]:
    """Judge completions with a judge named as in a recipe, e.g. {"answer": {"kind": "numeric"}}."""
    for values, kind in ((prompts, Prompt), (completions, Completion)):
        for value in values:
            if not isinstance(value, kind):
                raise ConfigError(
                    f"expected a {kind.__name__}, not {value!r:.80}",
                    hint="judge(prompts, completions) takes Prompt and Completion records; tamis.api.as_prompt makes a Prompt.",
                )
    component = registry.build("judge", spec)
    return list(component.judge({p.id: p for p in prompts}, completions, Context(seed=seed)))


def as_prompt(prompt: Promptish, references: str | Sequence[str] = ()) -> Prompt:
    """Return a Prompt from a string, a list of {"role", "content"} messages, or a Prompt. Raises ConfigError for others."""
    if isinstance(prompt, Prompt):
        return prompt
    golds = (references,) if isinstance(references, str) else tuple(references)
    if isinstance(prompt, str):
        return Prompt(messages=(Message("user", prompt),), references=golds)
    messages: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else []
    if not messages or not all(map(_is_message, messages)):
        raise ConfigError(
            f"a prompt is a text, a Prompt or a list of messages, not {prompt!r:.80}",
            hint='Example: [{"role": "user", "content": "2+2="}]',
        )
    return Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages), references=golds)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))
