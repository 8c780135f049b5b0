"""Recipes: YAML in, validated `Recipe` out, with `extends`, `--set` overrides and the lab twin.

A recipe is a list of stages; a stage is one kind with one component (`evaluate` takes several). Everything is checked
before anything runs: unknown names and fields are refused with the nearest valid one.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydantic
import yaml

from tamis import registry
from tamis.errors import ConfigError, nearest
from tamis.hashing import digest
from tamis.models.options import Asking, Engine
from tamis.plain import parse, plain

STAGE_ROOMS = {
    "sample": "sampler",
    "judge": "judge",
    "select": "selector",
    "compose": "composer",
    "tune": "objective",
    "evaluate": "evaluator",
}
STAGE_OPTIONS = {"sample": {"model"}, "select": {"judge"}, "compose": {"judge"}, "evaluate": {"judge"}}
LAB_TWIN: dict[str, Any] = {"model": "nano-sums", "task": {"modular_sums": {"size": 128, "heldout": 200}}}

_LONGEST_NAME = 48
_NAME = re.compile(r"\w[\w.+-]*")


class Recipe(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A resolved recipe. `stages` holds plain data; components are built from it by the registry."""

    name: str
    """Letters, digits and . _ + -: it begins the name of the run folder."""
    row: int | None = None
    about: str = ""
    paper: str = ""
    model: str = pydantic.Field("smollm2-135m", min_length=1)
    embedder: str = pydantic.Field("minilm-l6-v2", min_length=1)
    task: dict[str, Any]
    seed: int = 0
    loop: int = pydantic.Field(1, ge=1)
    stages: list[dict[str, Any]] = pydantic.Field(min_length=1)
    engine: Engine = Engine()
    endpoint: Asking = Asking()
    lab: dict[str, Any] | None = None

    @pydantic.field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or len(name.encode()) > 4 * _LONGEST_NAME:
            raise ValueError("a name is made of letters, digits and . _ + -, and is not long; it names the run folder")
        return name

    @pydantic.field_validator("task", mode="before")
    @classmethod
    def _by_name(cls, task: Any) -> Any:
        return {task: {}} if isinstance(task, str) else task

    @pydantic.field_validator("endpoint", mode="before")
    @classmethod
    def _by_field(cls, endpoint: Any) -> Any:
        return registry.construct(Asking, Asking.model_fields, endpoint, "endpoint")

    @property
    def hash(self) -> str:
        """Hash of everything that decides the result (not of the description, nor of how endpoints are asked)."""
        return digest(self.model_dump(exclude={"about", "paper", "row", "lab", "endpoint"}))

    @property
    def run_name(self) -> str:
        """Name of the run folder: the recipe's name and the beginning of its hash."""
        return f"{self.name}-{self.hash[:8]}"

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
    overrides: Sequence[str] | Mapping[str, Any] = (),
    model: str | None = None,
    data: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    seed: int | None = None,
    lab: bool = False,
) -> Recipe:
    """Return the recipe `source` (packaged name, YAML file or mapping) with everything overridden and checked.

    `overrides` are "path=value" with YAML values, e.g. "stages.sample.temperature.n=16", or a mapping of paths to values;
    `data` replaces the task by a data file, `mapping` its field map; `lab` swaps in the recipe's lab twin.
    Raises ConfigError.
    """
    raw = _resolve(source)
    if lab:
        raw = _lab_twin(raw)
    if model is not None:
        raw["model"] = plain(model, "model")
    if data is not None:
        raw["task"] = {"data": {**_data_options(raw), "path": plain(data, "data")}}
    if mapping:
        if not _data_options(raw):
            raise ConfigError("--map says which column is what, and this recipe reads no data file", hint="Add --data.")
        _set(raw, ["task", "data", "map"], plain(mapping, "map"), "--map")
    if seed is not None:
        raw["seed"] = plain(seed, "seed")
    for path, value in assignments(overrides):
        _set(raw, path.split("."), value, f"--set {path}")
    return check(raw)


def _data_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    task = raw.get("task")
    options = task.get("data") if isinstance(task, Mapping) else None
    return dict(options) if isinstance(options, Mapping) else {}


def _resolve(source: str | Path | Mapping[str, Any], chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the recipe as plain data, laid over the one that it extends. `chain` is what extends it."""
    raw, where = _read(source)
    if where in chain:
        raise ConfigError(f"extends itself: {' -> '.join((*chain, where))}", where=chain[0])
    parent = raw.pop("extends", None)
    if parent is None:
        if "set" in raw:
            raise ConfigError("'set' changes a recipe that is extended, and this one extends none", where=where)
        return raw
    if not isinstance(parent, str):
        raise ConfigError(
            f"'extends' takes one name or file, not {parent!r:.80}", where=where, hint="Example: extends: rft"
        )
    if "/" in parent or parent.endswith((".yaml", ".yml")):
        parent = str(Path(where).parent / _home(parent, where))
    base = _resolve(parent, (*chain, where))
    changes = raw.pop("set", None)
    base.update(raw)
    return _with_changes(base, changes, f"{where}: set")


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a recipe as it is written, and its path or name."""
    if isinstance(source, Mapping):
        return plain(source, "recipe"), str(source.get("name", "recipe"))
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"a recipe is a name, a file or a mapping, not {source!r:.80}", hint=f"Known: {', '.join(names())}."
        )
    path, where = Path(source), str(source)
    if where in names():
        text = files("tamis.recipes").joinpath(f"{where}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") or _is_file(path):
        text = _file_text(path)
    else:
        raise ConfigError(
            f"unknown recipe '{where}'", hint=nearest(where, names()) + " A path to a YAML file works too."
        )
    raw = parse(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(
            "a recipe is a mapping with name, task and stages", where=where, hint="tamis init writes a starter."
        )
    return {"name": slug(path.stem), **raw}, where


def _home(path: str, where: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"extends '{path}': {error}", where=where, hint="Write the whole path.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _file_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            "there is no such recipe file", where=str(path), hint="tamis init writes a starter."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"is not UTF-8 text (byte {error.start})", where=str(path), hint="Save it as UTF-8."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None


def slug(text: str) -> str:
    """Return `text` as the name of a recipe: letters, digits and . _ + - stay, the rest becomes one dash."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.+")[:_LONGEST_NAME] or "mine"


def _lab_twin(raw: dict[str, Any]) -> dict[str, Any]:
    own = raw.get("lab") or {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"lab must be a mapping, not {own!r:.80}", where=str(raw.get("name", "recipe")))
    twin = {**copy.deepcopy(LAB_TWIN), **own}
    changes = twin.pop("set", None)
    name = raw.get("name")
    raw = {**raw, **twin, **({"name": f"{name}-lab"} if name else {})}
    return _with_changes(raw, changes, "lab.set")


def _with_changes(raw: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    if not isinstance(changes, Mapping | None):
        raise ConfigError(f"must map paths to values, not {changes!r:.80}", where=where, hint="Example: set: {seed: 3}")
    for path, value in (changes or {}).items():
        _set(raw, path.split("."), copy.deepcopy(value), f"{where}: {path}")
    return raw


def assignments(
    overrides: Sequence[str] | Mapping[str, Any],
    example: str = "stages.sample.temperature.n=16",
    flag: str = "--set",
) -> list[tuple[str, Any]]:
    """Return overrides as paths and plain values. Raises ConfigError, with the `example`, for one without "="."""
    if isinstance(overrides, Mapping):
        return list(plain(overrides, "set").items())
    found = []
    for override in overrides:
        path, sep, text = override.partition("=")
        if not sep or not path.strip():
            raise ConfigError(f"'{override}' is not path=value", hint=f"Example: {flag} {example}")
        found.append((path.strip(), parse(text, f"{flag} {path.strip()}")))
    return found


def _set(raw: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set one field. Raises ConfigError that names the part of the path that is wrong."""
    if path[0] not in Recipe.model_fields:
        raise ConfigError(f"unknown field '{path[0]}'", where=where, hint=nearest(path[0], Recipe.model_fields))
    if path[0] == "lab":
        raise ConfigError("the lab twin is settled already", where=where, hint="Set the field itself, without 'lab.'.")
    if len(path) > 1 and path[0] == "engine" and isinstance(raw.get("engine"), str):
        raw["engine"] = {"name": raw["engine"]}
    node: Any = raw
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, list):
            if path[depth - 1] != "stages" or depth != 1:
                raise ConfigError(f"'{path[depth - 1]}' is a list and is set as a whole", where=where)
            node, part = _stage(node, part, where), _kind(part)[0]
        elif not isinstance(node, dict):
            raise ConfigError(f"'{path[depth - 1]}' has no field '{part}' (it is {node!r:.80})", where=where)
        if last:
            node[part] = value
            return
        if node.get(part) is None:
            node[part] = {}
        node = node[part]


def _kind(part: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\w+)(?:\[(\d{1,9})\])?", part)
    return (match[1], int(match[2] or 0)) if match else (part, 0)


def _stage(stages: list[dict[str, Any]], part: str, where: str) -> dict[str, Any]:
    kind, index = _kind(part)
    found = [s for s in stages if isinstance(s, dict) and kind in s]
    if not found:
        kinds = {str(k) for s in stages if isinstance(s, dict) for k in s}
        raise ConfigError(f"the recipe has no stage '{kind}'", where=where, hint=nearest(kind, kinds))
    if index >= len(found):
        raise ConfigError(f"the recipe has {len(found)} '{kind}' stage(s); [{index}] is not there", where=where)
    stage = found[index]
    if isinstance(stage[kind], str):
        stage[kind] = {stage[kind]: {}}
    return stage


def check(raw: Mapping[str, Any]) -> Recipe:
    """Return `raw` as a validated recipe; every component is built once, so that a wrong option is found here."""
    recipe = registry.construct(Recipe, Recipe.model_fields, raw, str(raw.get("name") or "recipe"), "field")
    registry.build("task", recipe.task, "task")
    for number, stage in enumerate(recipe.stages):
        check_stage(stage, f"stages[{number}]")
    _check_order(recipe)
    return recipe


def split_stage(stage: Mapping[str, Any], where: str = "stage") -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return kind, components and stage options of a stage. Raises ConfigError when it is not of that form."""
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise ConfigError(f"a stage is one kind with its component, found {stage!r:.80}", where=where)
    ((kind, body),) = stage.items()
    if kind not in STAGE_ROOMS:
        raise ConfigError(f"unknown stage '{kind}'", where=where, hint=nearest(str(kind), STAGE_ROOMS))
    body = {body: {}} if isinstance(body, str) else body
    body = body if isinstance(body, Mapping) else {}
    known = STAGE_OPTIONS.get(kind, set())
    options = {k: v for k, v in body.items() if k in known}
    components = {k: v for k, v in body.items() if k not in known}
    if not components:
        raise ConfigError(f"'{kind}' needs a component", where=where, hint=f"Example: {kind}: {{name: {{}}}}")
    if kind not in ("evaluate", "tune") and len(components) != 1:
        raise ConfigError(
            f"'{kind}' takes one component, found {sorted(components)}",
            where=where,
            hint=f"To put another in its place: --set 'stages.{kind}={{NAME: {{OPTION: VALUE}}}}'",
        )
    return kind, components, options


def check_stage(stage: Mapping[str, Any], where: str) -> None:
    """Build the stage's components. Raises ConfigError at the first wrong name or option."""
    kind, components, options = split_stage(stage, where)
    at = f"{where}.{kind}"
    if kind == "tune":
        tune_parts(components, at)
        return
    for name, config in components.items():
        registry.build(STAGE_ROOMS[kind], {name: config}, at)
    if not isinstance(options.get("model", ""), str) or options.get("model") == "":
        raise ConfigError(f"model is the name of a model, not {options['model']!r:.80}", where=at)
    if "judge" in options:
        registry.build("judge", options["judge"], f"{at}.judge")
    elif kind == "select" and any(getattr(registry.get("selector", n).cls, "needs_judge", False) for n in components):
        raise ConfigError(
            "this selector asks a judge", where=at, hint="Add one beside it, e.g. judge: {prefer: {model: NAME}}."
        )


def tune_parts(body: Mapping[str, Any], where: str) -> tuple[Any, Any, Any]:
    """Return objective, adapter and `TuneConfig` of a tune stage."""
    from tamis.training.config import TuneConfig

    body = dict(body)
    objective = registry.build("objective", body.pop("objective", "sft"), f"{where}.objective")
    adapter = registry.build("adapter", body.pop("adapter", "lora"), f"{where}.adapter")
    return objective, adapter, TuneConfig.build(body, where)


def _check_order(recipe: Recipe) -> None:
    seen: set[str] = set()
    selected = sampled = False
    needs = {"judge": "sample", "select": "sample", "compose": "sample", "tune": "compose"}
    for number, stage in enumerate(recipe.stages):
        kind = next(iter(stage))
        if kind in needs and needs[kind] not in seen:
            raise ConfigError(
                f"'{kind}' comes before any '{needs[kind]}' stage", where=f"stages[{number}]", hint="Change the order."
            )
        if kind == "sample" and selected:
            raise ConfigError(
                "'sample' comes after 'select' in the same pool, so that the selection would be lost",
                where=f"stages[{number}]",
                hint="Put every sample stage before the select stage, or a compose stage between them.",
            )
        if kind == "tune" and sampled:
            raise ConfigError(
                "no 'compose' stage makes examples of what was sampled last, so that it would be lost",
                where=f"stages[{number}]",
                hint="Put a compose stage between sample and tune.",
            )
        selected = kind == "select" or (selected and kind != "compose")
        sampled = kind == "sample" or (sampled and kind != "compose")
        seen.add(kind)
