"""Recipes: YAML in, validated `Recipe` out, with `extends`, `--set` overrides and the lab twin.

A recipe is a list of stages; a stage is one kind with one component (`evaluate` takes several). Everything is checked
before anything runs: unknown names and fields are refused with the nearest valid one.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from tamis import registry
from tamis.errors import ConfigError, nearest
from tamis.hashing import digest

STAGE_ROOMS = {
    "sample": "sampler",
    "judge": "judge",
    "select": "selector",
    "compose": "composer",
    "tune": "objective",
    "evaluate": "evaluator",
}
STAGE_OPTIONS = {"sample": {"model"}, "evaluate": {"judge"}}
LAB_TWIN: dict[str, Any] = {"model": "nano-sums", "task": {"modular_sums": {"size": 128, "heldout": 200}}}


class Engine(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How models are run: device, dtype and rows per batch. None lets the machine decide."""

    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_rows: int = pydantic.Field(64, ge=1)


class Recipe(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A resolved recipe. `stages` holds plain data; components are built from it by the registry."""

    name: str
    row: int | None = None
    about: str = ""
    paper: str = ""
    model: str = "smollm2-135m"
    embedder: str = "minilm-l6-v2"
    task: dict[str, Any]
    seed: int = 0
    loop: int = pydantic.Field(1, ge=1)
    stages: list[dict[str, Any]] = pydantic.Field(min_length=1)
    engine: Engine = Engine()
    lab: dict[str, Any] | None = None

    @property
    def hash(self) -> str:
        """Hash of everything that decides the result (not of the description)."""
        return digest(self.model_dump(exclude={"about", "paper", "row", "lab"}))

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML."""
        data = self.model_dump(exclude={"lab"}, exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in files("tamis.recipes").iterdir() if p.name.endswith(".yaml"))


def load(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    model: str | None = None,
    data: str | None = None,
    mapping: Mapping[str, str] | None = None,
    seed: int | None = None,
    lab: bool = False,
) -> Recipe:
    """Return the recipe `source` (packaged name, YAML file or mapping) with everything overridden and checked.

    `overrides` are "path=value" with YAML values, e.g. "stages.sample.temperature.n=16"; `data` replaces the task by a data
    file, `mapping` its field map; `lab` swaps in the recipe's lab twin. Raises ConfigError.
    """
    raw = _resolve(source)
    if lab:
        raw = _lab_twin(raw)
    if model:
        raw["model"] = model
    if data:
        kept = raw["task"].get("data", {}) if isinstance(raw.get("task"), Mapping) else {}
        raw["task"] = {"data": {**kept, "path": data}}
    if mapping:
        _set(raw, ["task", "data", "map"], dict(mapping), "--map")
    if seed is not None:
        raw["seed"] = seed
    for override in overrides:
        apply_override(raw, override)
    return check(raw)


def _resolve(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else _read(str(source))
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    base = _resolve(parent)
    changes = raw.pop("set", {})
    base.update(raw)
    for path, value in changes.items():
        _set(base, path.split("."), value, f"set: {path}")
    return base


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError("there is no such recipe file", where=source, hint="tamis init writes a starter.")
        text, where = path.read_text(encoding="utf-8"), source
    elif source in names():
        text, where = files("tamis.recipes").joinpath(f"{source}.yaml").read_text(encoding="utf-8"), source
    else:
        raise ConfigError(
            f"unknown recipe '{source}'", hint=nearest(source, names()) + " A path to a YAML file works too."
        )
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=where) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "a recipe is a mapping with name, task and stages", where=where, hint="tamis init writes a starter."
        )
    raw.setdefault("name", path.stem)
    return raw


def _lab_twin(raw: dict[str, Any]) -> dict[str, Any]:
    twin = {**LAB_TWIN, **copy.deepcopy(raw.get("lab") or {})}
    changes = twin.pop("set", {})
    raw = {**raw, **twin, "name": f"{raw['name']}-lab"}
    for path, value in changes.items():
        _set(raw, path.split("."), value, f"lab.set: {path}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one "path=value". Raises ConfigError that names the part of the path that is wrong."""
    path, sep, text = override.partition("=")
    if not sep or not path.strip():
        raise ConfigError(f"'{override}' is not path=value", hint="Example: --set stages.sample.temperature.n=16")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of '{override}' is not valid YAML") from None
    _set(raw, path.strip().split("."), value, f"--set {path}")


def _set(raw: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    node: Any = raw
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if node is raw and part not in Recipe.model_fields:
            raise ConfigError(f"unknown field '{part}'", where=where, hint=nearest(part, Recipe.model_fields))
        if isinstance(node, list):
            node = _stage(node, part, where)
            if last:
                raise ConfigError("name a component and its field", where=where, hint=f"Stage: {list(node)}")
            node = node[_kind(part)[0]]
        elif isinstance(node, dict):
            if last:
                node[part] = value
                return
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            raise ConfigError(f"'{path[depth - 1]}' has no field '{part}' (it is {node!r})", where=where)


def _kind(part: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", part)
    return (match[1], int(match[2] or 0)) if match else (part, 0)


def _stage(stages: list[dict[str, Any]], part: str, where: str) -> dict[str, Any]:
    kind, index = _kind(part)
    found = [s for s in stages if isinstance(s, dict) and kind in s]
    if not found:
        kinds = {k for s in stages for k in s}
        raise ConfigError(f"the recipe has no stage '{kind}'", where=where, hint=nearest(kind, kinds))
    if index >= len(found):
        raise ConfigError(f"the recipe has {len(found)} '{kind}' stage(s); [{index}] is not there", where=where)
    stage = found[index]
    if isinstance(stage[kind], str):
        stage[kind] = {stage[kind]: {}}
    return stage


def check(raw: Mapping[str, Any]) -> Recipe:
    """Return `raw` as a validated recipe; every component is built once, so that a wrong option is found here."""
    for name in raw:
        if name not in Recipe.model_fields:
            raise ConfigError(
                f"unknown field '{name}'",
                where=str(raw.get("name", "recipe")),
                hint=nearest(str(name), Recipe.model_fields),
            )
    try:
        recipe = Recipe(**raw)
    except pydantic.ValidationError as error:
        raise ConfigError(registry.explain(error), where=str(raw.get("name", "recipe"))) from None
    registry.build("task", recipe.task, "task")
    for number, stage in enumerate(recipe.stages):
        check_stage(stage, f"stages[{number}]")
    _check_order(recipe)
    return recipe


def split_stage(stage: Mapping[str, Any], where: str = "stage") -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return kind, components and stage options of a stage. Raises ConfigError when it is not of that form."""
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise ConfigError(f"a stage is one kind with its component, found {stage!r}", where=where)
    ((kind, body),) = stage.items()
    if kind not in STAGE_ROOMS:
        raise ConfigError(f"unknown stage '{kind}'", where=where, hint=nearest(str(kind), STAGE_ROOMS))
    body = {body: {}} if isinstance(body, str) else body
    if not isinstance(body, Mapping) or not body:
        raise ConfigError(f"'{kind}' needs a component", where=where, hint=f"Example: {kind}: {{name: {{}}}}")
    known = STAGE_OPTIONS.get(kind, set())
    options = {k: v for k, v in body.items() if k in known}
    components = {k: v for k, v in body.items() if k not in known}
    if kind not in ("evaluate", "tune") and len(components) != 1:
        raise ConfigError(f"'{kind}' takes one component, found {sorted(components)}", where=where)
    return kind, components, options


def check_stage(stage: Mapping[str, Any], where: str) -> None:
    """Build the stage's components. Raises ConfigError at the first wrong name or option."""
    kind, components, options = split_stage(stage, where)
    at = f"{where}.{kind}"
    if kind == "tune":
        tune_parts(components, at)
        return
    for name, config in components.items():
        registry.build(STAGE_ROOMS[kind], {name: config or {}}, at)
    if "judge" in options:
        registry.build("judge", options["judge"], f"{at}.judge")


def tune_parts(body: Mapping[str, Any], where: str) -> tuple[Any, Any, Any]:
    """Return objective, adapter and `TuneConfig` of a tune stage."""
    from tamis.training.config import TuneConfig

    body = dict(body)
    objective = registry.build("objective", body.pop("objective", "sft"), f"{where}.objective")
    adapter = registry.build("adapter", body.pop("adapter", "lora"), f"{where}.adapter")
    return objective, adapter, TuneConfig.build(body, where)


def _check_order(recipe: Recipe) -> None:
    seen: set[str] = set()
    needs = {"judge": "sample", "select": "sample", "compose": "sample", "tune": "compose"}
    for number, stage in enumerate(recipe.stages):
        kind = next(iter(stage))
        if kind in needs and needs[kind] not in seen:
            raise ConfigError(
                f"'{kind}' comes before any '{needs[kind]}' stage", where=f"stages[{number}]", hint="Change the order."
            )
        seen.add(kind)
