"""Wordings of questions to models: YAML files with a version, packaged in `asking/templates` or a user's own.

    version: 1
    about: Is an answer right?
    messages:
      - {role: user, content: "Question: {{ question }} Answer: {{ answer }} Is it right? Say yes or no."}

Contents are Jinja templates in a sandbox; a field that is missing is an error, never an empty text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import jinja2
from jinja2 import StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tamis.errors import ConfigError, nearest
from tamis.hashing import digest
from tamis.plain import file_text, parse
from tamis.records import Message

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True)


@dataclass(frozen=True)
class Template:
    """A wording: its name, version, and messages as (role, Jinja text)."""

    name: str
    version: int
    about: str
    messages: tuple[tuple[str, str], ...]

    @cached_property
    def fields(self) -> set[str]:
        """Names of the fields that the messages use."""
        return {name for _, text in self.messages for name in find_undeclared_variables(_JINJA.parse(text))}

    @property
    def digest(self) -> str:
        """Content hash of the messages: part of the key of every stage that asks with this wording."""
        return digest("template", self.messages)

    def render(self, **values: Any) -> tuple[Message, ...]:
        """Return the messages with their fields filled in. Raises ConfigError for a field that is not given."""
        try:
            return tuple(Message(r, _compiled(text).render(values).strip()) for r, text in self.messages)
        except TemplateError as error:
            raise ConfigError(
                f"the template cannot be filled in: {error}",
                where=self.name,
                hint=f"Fields that are given here: {', '.join(sorted(values))}.",
            ) from None


@cache
def _compiled(text: str) -> jinja2.Template:
    return _JINJA.from_string(text)


def names() -> list[str]:
    """Return the names of the packaged templates."""
    folder = files("tamis.asking").joinpath("templates")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def template(source: str, given: tuple[str, ...] = ()) -> Template:
    """Return the packaged template `source`, or the one in a YAML file of that path, as it is now.

    `given` are the fields that the caller will fill in. Raises ConfigError for an unknown name, a file that is no template,
    or one that uses another field.
    """
    if source.endswith((".yaml", ".yml")):
        text = file_text(source, "template")
    elif source in names():
        text = files("tamis.asking").joinpath("templates", f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"unknown template '{source}'", hint=f"{nearest(source, names())} A path to a .yaml file works too."
        )
    made = _parsed(text, source)
    unknown = sorted(made.fields.difference(given)) if given else []
    if unknown:
        raise ConfigError(
            f"the template uses the field '{unknown[0]}', which is not given here",
            where=source,
            hint=nearest(unknown[0], given),
        )
    return made


@cache
def _parsed(text: str, where: str) -> Template:
    raw = parse(text, where)

    def refuse(why: str) -> ConfigError:
        hint = "A template is {version: 1, messages: [{role: user, content: TEXT}]}."
        return ConfigError(why, where=where, hint=hint)

    if not isinstance(raw, dict) or not isinstance(raw.get("messages"), list) or not raw["messages"]:
        raise refuse("this is not a template: it has no list of messages")
    unknown = sorted(str(k) for k in raw.keys() - {"version", "about", "messages"})
    if unknown:
        raise refuse(f"a template has no field '{unknown[0]}'")
    if type(raw.get("version")) is not int:
        raise refuse("a template's version is a whole number")
    messages = [_message(m, number, refuse) for number, m in enumerate(raw["messages"])]
    return Template(where, raw["version"], str(raw.get("about", "")), tuple(messages))


def _message(raw: Any, number: int, refuse: Any) -> tuple[str, str]:
    if (
        not isinstance(raw, dict)
        or set(raw) != {"role", "content"}
        or not all(isinstance(v, str) for v in raw.values())
    ):
        raise refuse(f"messages[{number}] is not {{role: TEXT, content: TEXT}}")
    if raw["role"] not in ("system", "user", "assistant"):
        raise refuse(f"messages[{number}].role is '{raw['role']}', not system, user or assistant")
    try:
        _JINJA.parse(raw["content"])
    except TemplateError as error:
        raise refuse(f"messages[{number}].content is not a Jinja template: {error}") from None
    return raw["role"], raw["content"]


def fingerprint(*templates: Template) -> Sequence[str]:
    """Return what of the templates enters a stage's key: a component's `fingerprint()` returns it."""
    return [t.digest for t in templates]
