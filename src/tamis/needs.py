"""What the components of a recipe need: models that can do what is asked of them, and a judge."""

from collections.abc import Iterator, Sequence
from typing import Any

from tamis import registry
from tamis.errors import ConfigError, ModelError
from tamis.recipe import STAGE_ROOMS, Recipe, split_stage

WORDS = {
    "text": "text generation",
    "scoring": "log-probabilities of given text",
    "tokens": "token ids and next-token logits",
    "trainable": "weights that can be trained",
    "embedder": "text embeddings",
}
HINT = "Use a local folder, a hub id or a packaged model here."
Need = tuple[str, tuple[str, ...], str]
"""Who needs which capabilities of which model, by name."""


def asks(component: Any) -> bool:
    """Whether a component asks a model. An evaluator says so by `asks`: its `needs` are of the model that it measures."""
    known = component.component
    needs = known.room != "evaluator" and set(known.needs) - {"embedder"}
    return bool(needs or getattr(component, "asks", False))


def check(recipe: Recipe) -> None:
    """Refuse, before anything runs, what a model cannot do and a sampler that has no judge to ask.

    Raises ModelError and ConfigError.
    """
    for what, needs, model in _needs(recipe):
        require(what, needs, model, HINT)


def require(what: str, needs: Sequence[str], model: str, hint: str) -> None:
    """Raise ModelError with `hint` where the model of this name does not offer what something needs. Loads nothing."""
    from tamis.models.resolve import capabilities

    offered = capabilities(model) if needs else ()
    missing = [WORDS[need] for need in needs if need not in offered]
    if missing:
        raise ModelError(f"{what} needs {' and '.join(missing)}, and the model '{model}' does not offer it", hint=hint)


def _needs(recipe: Recipe) -> Iterator[Need]:
    for index, stage in enumerate(recipe.stages):
        kind, components, options = split_stage(stage)
        if kind == "tune":
            yield "tune", ("trainable",), recipe.model
            continue
        made = [registry.build(STAGE_ROOMS[kind], {name: config}) for name, config in components.items()]
        if kind == "sample":
            sampling_judge(recipe, index, made[0])
        if "judge" in options:
            made.append(registry.build("judge", options["judge"]))
        for component in made:
            yield from _needs_of(component, options.get("model", recipe.model), recipe)
    if any("compose" in stage for stage in recipe.stages):
        yield "compose", ("tokens",), recipe.model


def _needs_of(component: Any, model: str, recipe: Recipe) -> Iterator[Need]:
    known = component.component
    what = f"{known.room} '{known.name}'"
    asked = getattr(component, "model", None) or model
    if "embedder" in known.needs:
        yield what, ("embedder",), recipe.embedder
    measures = known.room == "evaluator"
    yield what, tuple(need for need in known.needs if need != "embedder"), recipe.model if measures else asked
    if measures and component.draws():
        yield what, ("text",), recipe.model
    if getattr(component, "asks", False):
        yield what, ("text",), asked


def sampling_judge(recipe: Recipe, at: int, sampler: Any) -> Any:
    """Return the judge that the sampler of stage `at` asks: that of the next judge stage, else of the first; None if none.

    Raises ConfigError where it asks one and the recipe has none.
    """
    if not getattr(sampler, "needs_judge", False):
        return None
    for stage in recipe.stages[at:] + recipe.stages:
        if "judge" in stage:
            return registry.build("judge", stage["judge"], "judge")
    raise ConfigError(
        f"the sampler '{sampler.component.name}' asks a judge while it samples, and the recipe has none",
        where=f"stages[{at}]",
        hint="Add a judge stage after the sample stage, e.g. judge: {answer: {}}.",
    )


def evaluating_judge(recipe: Recipe, options: dict[str, Any]) -> Any:
    """Return the judge of an evaluate stage with these options: its own, else that of the last judge stage, else `answer`."""
    if "judge" in options:
        return registry.build("judge", options["judge"], "evaluate.judge")
    found = [stage["judge"] for stage in recipe.stages if "judge" in stage]
    return registry.build("judge", found[-1] if found else {"answer": {}}, "judge")
