"""tamis from Python: `tamis.run`, `tamis.sample`, `tamis.judge`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis import pipeline, recipe, registry
from tamis.context import Context
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

    loaded = load(resolve(model)) if isinstance(model, str) else model
    made = [as_prompt(p) for p in prompts]
    return list(loaded.generate(made, Law(**law), candidates=[range(n)] * len(made), seed=seed))


def judge(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    spec: str | Mapping[str, Any] = "answer",
    *,
    seed: int = 0,
) -> list[Verdict]:
    """Judge completions with a judge named as in a recipe, e.g. {"answer": {"kind": "numeric"}}."""
    component = registry.build("judge", spec)
    return list(component.judge({p.id: p for p in prompts}, completions, Context(seed=seed)))


def as_prompt(prompt: Promptish, references: Sequence[str] = ()) -> Prompt:
    """Return a Prompt from a string, a list of {"role", "content"} messages, or a Prompt."""
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(messages=(Message("user", prompt),), references=tuple(references))
    return Prompt(messages=tuple(Message(m["role"], m["content"]) for m in prompt), references=tuple(references))
