"""Reading values out of what models write. Every reader returns None where the text does not say it clearly.

Tolerant of what surrounds a value (a preamble, a code fence, a trailing comma), never of the value itself: nothing is
guessed, and a text that gives two different answers gives none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_DECIMAL = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w|\.\d)")


def read_json(text: str, schema: Mapping[str, Any] | None = None) -> Any:
    """Return the last JSON object in `text`, or None.

    With `schema` (a JSON schema of an object with flat properties: type, enum, minimum, maximum, required) the object must
    fit it; a missing or ill-typed required property gives None. Trailing commas are forgiven.
    """
    for source in (text, _TRAILING_COMMA.sub(r"\1", text)):
        fitting = [found for found in _objects(source) if schema is None or _fits(found, schema)]
        if fitting:
            return fitting[-1]
    return None


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text that lie in no other one, in order."""
    found, at = [], text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value fits the part of JSON schema that `read_json` knows."""
    kind = schema.get("type")
    flag = isinstance(value, bool) and kind in ("integer", "number")
    if kind is not None and (flag or not isinstance(value, _TYPES[kind])):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            return False
    if isinstance(value, list) and "items" in schema:
        return all(_fits(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        if any(name not in value for name in schema.get("required", ())):
            return False
        return all(_fits(value[name], part) for name, part in schema.get("properties", {}).items() if name in value)
    return True


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the one of `labels` that `text` says, or None.

    The whole text counts when it is one label (case, white space, quotes and closing punctuation aside), else its last line
    of the form "...: LABEL" that does not begin with a label itself, else its last line's one label in square brackets or
    asterisks.
    """
    known = {_bare(label): label for label in labels}
    if _bare(text) in known:
        return known[_bare(text)]
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        head, colon, said = line.rpartition(":")
        if colon and _bare(said) in known and _bare(head) not in known:
            return known[_bare(said)]
    marked = re.findall(r"\[\[?([^\[\]]+)\]\]?|\*\*([^*]+)\*\*", lines[-1]) if lines else []
    said_there = {known[_bare(a or b)] for a, b in marked if _bare(a or b) in known}
    return said_there.pop() if len(said_there) == 1 else None


def _bare(text: str) -> str:
    return text.strip().strip("\"'`*[]() ").rstrip(".!,;").strip("\"'`*[]() ").casefold()


def read_number(text: str, low: float, high: float) -> float | None:
    """Return the number in [low, high] that `text` says: its only number, else that of its last "...: NUMBER" line."""
    numbers = _DECIMAL.findall(text)
    if len(numbers) > 1:
        after = [line.rpartition(":")[2] for line in text.splitlines() if ":" in line]
        ends = [found for part in after if len(found := _DECIMAL.findall(part.split("/")[0])) == 1]
        numbers = ends[-1] if ends else []
    value = float(numbers[0]) if len(numbers) == 1 else None
    return value if value is not None and low <= value <= high else None
