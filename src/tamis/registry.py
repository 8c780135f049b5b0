"""The registry: one decorator per room turns a class into a named, validated, documented component.

A component is a class whose annotated attributes are its options. Registering makes it a frozen, keyword-only pydantic
dataclass (unknown options are refused), and gives it a name in recipes and on the command line, a documentation page and
the contract tests. Third-party packages register through the entry point group `tamis.methods`: each entry point names a
module that is imported.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, dataclass_transform, get_args

import pydantic
from pydantic.dataclasses import dataclass as validated
from pydantic.fields import FieldInfo

from tamis.errors import ConfigError, nearest

METHODS = {
    "task": ("prompts",),
    "sampler": ("sample",),
    "judge": ("judge",),
    "selector": ("select",),
    "composer": ("compose",),
    "objective": ("weight", "loss"),
    "adapter": ("attach",),
    "evaluator": ("draws", "measure"),
}
"""What a component of each room must be able to do."""
ROOMS = tuple(METHODS)
Source = Literal["paper", "code", "ours"]
T = TypeVar("T")


def option(default: Any = ..., about: str = "", *, source: Source = "ours", **constraints: Any) -> Any:
    """Declare an option: default, one-line meaning, where the default comes from, and pydantic constraints (ge, le...)."""
    return pydantic.Field(default, description=about, json_schema_extra={"source": source}, **constraints)


@dataclass(frozen=True)
class Component:
    """A registered component and what is known of it without running it."""

    room: str
    name: str
    cls: type
    row: int | None
    paper: str
    version: str
    needs: tuple[str, ...]

    @property
    def about(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    @property
    def page(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.cls) or ""

    def options(self) -> list[dict[str, Any]]:
        """Return name, type, default, meaning and source of every option."""
        rows = []
        for f in dataclasses.fields(self.cls):
            info = self.cls.__pydantic_fields__[f.name]  # type: ignore[attr-defined]
            extra = info.json_schema_extra or {}
            rows.append(
                {
                    "name": f.name,
                    "type": _type_name(f.type),
                    "default": None if info.is_required() else info.get_default(call_default_factory=True),
                    "required": info.is_required(),
                    "about": info.description or "",
                    "source": extra.get("source", "ours"),
                }
            )
        return rows

    def build(self, config: Mapping[str, Any] | None = None, where: str = "") -> Any:
        """Return an instance. Raises ConfigError that names the option and the nearest valid one."""
        fields = self.cls.__pydantic_fields__  # type: ignore[attr-defined]
        return construct(self.cls, fields, config, where or f"{self.room} '{self.name}'")


def construct(
    cls: type[T], fields: Mapping[str, FieldInfo], options: Mapping[str, Any] | None, where: str, what: str = "option"
) -> T:
    """Return `cls` made with `options`. Raises ConfigError that names the option that is wrong, or the nearest valid one.

    true and false are refused where a number or text is meant; pydantic would take them for 1 and 0.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(
            f"{what}s must be a mapping, not {options!r:.80}", where=where, hint=f"Known: {sorted(fields)}"
        )
    for name, value in (options or {}).items():
        if name not in fields:
            hint = nearest(str(name), fields) if fields else "It has no options."
            raise ConfigError(f"unknown {what} '{name}'", where=where, hint=hint)
        if isinstance(value, bool) and not _takes_flag(fields[name].annotation):
            raise ConfigError(f"{name}: {str(value).lower()} is not a value for it", where=where)
    try:
        return cls(**(options or {}))
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error), where=where) from None
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None


def _takes_flag(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_flag, get_args(annotation)))


def explain(error: pydantic.ValidationError) -> str:
    """Return a pydantic error as one plain sentence per field."""
    lines = []
    for item in error.errors():
        said = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            lines.append(said)
            continue
        given = repr(item.get("input"))
        shown = given if len(given) < 80 else given[:77] + "..."
        field = ".".join(str(p) for p in item["loc"])
        lines.append(f"{field}: {said}" + ("" if item["type"] == "missing" else f" (given: {shown})"))
    return "; ".join(lines)


def config_of(component: Any) -> dict[str, Any]:
    """Return the options of a component instance as plain data, for hashes and recipes."""
    return {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


_COMPONENTS: dict[tuple[str, str], Component] = {}


def _register(
    room: str, name: str, row: int | None, paper: str, version: str, needs: tuple[str, ...]
) -> Callable[[type[T]], type[T]]:
    def decorate(cls: type[T]) -> type[T]:
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"'{name}' cannot be the name of a {room}", hint="Use letters, digits, _ and -.")
        lacking = [method for method in METHODS[room] if not callable(getattr(cls, method, None))]
        if lacking:
            raise ConfigError(f"{room} '{name}' lacks the method {' and '.join(lacking)}", where=cls.__module__)
        config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
        made = validated(config=config, frozen=True, kw_only=True)(cls)
        known = _COMPONENTS.get((room, name))
        if known and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{room} '{name}' is registered twice: by {known.cls.__module__} and by {cls.__module__}",
                hint="Rename one of them.",
            )
        _COMPONENTS[room, name] = Component(room, name, made, row, paper, version, needs)
        made.component = _COMPONENTS[room, name]  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    return decorate


def _room_decorator(room: str) -> Callable[..., Callable[[type[T]], type[T]]]:
    @dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option, FieldInfo))
    def decorator(
        name: str,
        *,
        row: int | None = None,
        paper: str = "",
        version: str = "1",
        needs: tuple[str, ...] = (),
    ) -> Callable[[type[T]], type[T]]:
        return _register(room, name, row, paper, version, needs)

    decorator.__doc__ = (
        f"Register a {room}: name in recipes, row of its method sheet, paper, version (part of every cache key: raise it "
        "when results change) and the model capabilities it needs."
    )
    return decorator


task = _room_decorator("task")
sampler = _room_decorator("sampler")
judge = _room_decorator("judge")
selector = _room_decorator("selector")
composer = _room_decorator("composer")
objective = _room_decorator("objective")
adapter = _room_decorator("adapter")
evaluator = _room_decorator("evaluator")


@cache
def load_all() -> None:
    """Import every module of every room and every `tamis.methods` entry point, once."""
    from importlib.metadata import entry_points

    for room in ROOMS:
        package = importlib.import_module(f"tamis.{room}s")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in entry_points(group="tamis.methods"):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the package behind entry point '{entry.name}' ({entry.value}) failed to load: {error}",
                hint="Update or remove that package.",
            ) from error


def components(room: str | None = None) -> list[Component]:
    """Return all registered components, of one room if given, by room and name. Raises ConfigError for an unknown room."""
    load_all()
    if room is not None and room not in ROOMS:
        raise ConfigError(f"unknown room '{room}'", hint=nearest(room, ROOMS))
    found = [c for c in _COMPONENTS.values() if room in (None, c.room)]
    return sorted(found, key=lambda c: (ROOMS.index(c.room), c.name))


def get(room: str, name: str, where: str = "") -> Component:
    """Return the component `name` of a room. Raises ConfigError that names the nearest valid name."""
    load_all()
    try:
        return _COMPONENTS[room, name]
    except KeyError:
        known = [n for r, n in _COMPONENTS if r == room]
        raise ConfigError(f"unknown {room} '{name}'", where=where or None, hint=nearest(name, known)) from None


def split(room: str, spec: Mapping[str, Any] | str, where: str = "") -> tuple[str, Any]:
    """Return name and options of a component's recipe form: `name` or `{name: {option: value}}`."""
    if isinstance(spec, str):
        spec = {spec: None}
    if not isinstance(spec, Mapping) or len(spec) != 1 or not all(isinstance(name, str) for name in spec):
        raise ConfigError(
            f"expected one {room} as `name` or `{{name: {{option: value}}}}`, found {spec!r:.80}", where=where or None
        )
    ((name, config),) = spec.items()
    return name, config


def build(room: str, spec: Mapping[str, Any] | str, where: str = "") -> Any:
    """Build a component from its recipe form."""
    name, config = split(room, spec, where)
    return get(room, name, where).build(config, f"{where}.{name}" if where else f"{room} '{name}'")
