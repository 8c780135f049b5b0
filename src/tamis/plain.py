"""Plain data out of YAML text and Python values: what a recipe may hold, and nothing that would be read two ways.

Plain are null, true and false, text, finite numbers, lists, and mappings with text as keys. Knows nothing of recipes.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tamis.errors import ConfigError

_DEEPEST = 40
_MOST = 100_000
_LARGEST = 2**63


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once in a mapping, and aliases cannot multiply without end."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError):
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown} cannot be read as {node.tag}: put text in quotes", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' stands twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out. Raises ConstructorError where they are too many."""
    if id(node) not in known:
        known[id(node)] = _MOST
        items = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [n for item in items for n in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(n, known) for n in inner)
    if known[id(node)] > _MOST:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"more than {_MOST} values, or nested too deeply (an anchor that holds itself?)",
            node.start_mark,
        )
    return known[id(node)]


def file_text(path: str, what: str) -> str:
    """Return the text of a user's file, "~" allowed. Raises ConfigError that says why `what` cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the {what} cannot be read: {error}", where=path) from None


def parse(text: str, where: str) -> Any:
    """Return YAML text as plain data. Raises ConfigError that says where the text is wrong."""
    try:
        return plain(yaml.load(text, _Loader), where)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=where, hint="Mend it there.") from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=where, hint="Write it flatter.") from None


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy of `value` as plain data; paths become text, tuples lists. Raises ConfigError naming what is not plain."""
    if depth > _DEEPEST:
        raise ConfigError("is nested too deeply (does a YAML anchor hold itself?)", where=where[:80])
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        if abs(value) >= _LARGEST:
            raise ConfigError("a whole number of more than 63 bits is not a number that can be used", where=where)
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{value} is not a number that can be used", where=where)
        return value
    if isinstance(value, os.PathLike):
        return _text(os.fspath(value), where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"the key {key!r} is not text", where=where, hint="Put it in quotes.")
        return {_text(k, where): plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    raise ConfigError(
        f"{value!r:.80} is of the type {type(value).__name__}",
        where=where,
        hint="Give text (in quotes where it looks like a date), a number, true, false, null, a list or a mapping.",
    )


def _text(value: str, where: str) -> str:
    if "\0" in value or (not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise ConfigError(f"{value!r:.80} holds a character that no text file can hold", where=where)
    return value
