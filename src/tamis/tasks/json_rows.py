"""Rows of JSON files: one object a line, an array that is read item by item, or one object that holds an array.

A name that stands twice in an object, text that is no Unicode and endless nesting are found here, so that nothing later has to
expect them.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from tamis.errors import DataError
from tamis.tasks.rows import Bad, Row, Source, opened

_DEEPEST = 100
_CHUNK = 1 << 18


def read_lines(source: Source) -> Iterator[Row | Bad]:
    """Yield the rows of a file that has one JSON object a line."""
    name = source.name
    with opened(source) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield _json_row(line, f"{name}:{number}", source.split)


def _json_row(line: bytes, where: str, split: str) -> Row | Bad:
    try:
        text = line.decode()
        value = _JSON.decode(text)
    except UnicodeDecodeError as error:
        return Bad(where, "not UTF-8", f"byte {error.start}")
    except json.JSONDecodeError as error:
        return Bad(where, "broken JSON", f"{error.msg.removesuffix(' at')} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Bad(where, "broken JSON", str(error))
    return _row(value, _doubtful(text), where, split)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"a name stands twice among {[name for name, _ in pairs]}")
    return made


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _row(value: Any, doubtful: bool, where: str, split: str) -> Row | Bad:
    if not isinstance(value, dict):
        return Bad(where, "not an object with named fields", f"found {type(value).__name__}")
    if doubtful and _depth(value) > _DEEPEST:
        return Bad(where, "nested too deeply", f"more than {_DEEPEST} levels")
    if doubtful and not _is_unicode(value):
        return Bad(where, "not valid Unicode", "a lone surrogate, or bytes that are not UTF-8")
    return Row(where, value, split)


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _doubtful(text: str) -> bool:
    """Whether what is read from the text may be nested deeply or hold a lone surrogate."""
    escaped = "\\ud" in text or "\\uD" in text
    deep = text.count("[") + text.count("{") > _DEEPEST
    return escaped or deep or (not text.isascii() and _SURROGATE.search(text) is not None)


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [v for item in level for v in (item.values() if isinstance(item, dict) else item)]:
        level = [v for v in level if isinstance(v, dict | list)]
        depth += 1
    return depth


def read_file(source: Source) -> Iterator[Row | Bad]:
    """Yield the rows of a JSON file: an array of objects, an object that holds one, or one object a line.

    Raises DataError with the line where the file is no JSON.
    """
    with opened(source) as file:
        start = file.read(_CHUNK).lstrip()
    if start.startswith(b"["):
        yield from _array(source)
    elif _is_lines(start):
        yield from read_lines(source)
    else:
        yield from _whole(source)


def _is_lines(start: bytes) -> bool:
    """Whether the first line of a file is an object by itself, and more follows it."""
    line, _, more = start.partition(b"\n")
    try:
        return bool(more.strip()) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _array(source: Source) -> Iterator[Row | Bad]:
    """Yield the items of a file that is one array, without holding more than a few of them."""
    with opened(source) as raw, io.TextIOWrapper(raw, "utf-8", errors="surrogateescape") as file:
        items = _Items(file, source.name)
        for number, (value, text) in enumerate(items, 1):
            yield _row(value, _doubtful(text), f"{source.name}:{number}", source.split)


class _Items:
    """Reads the items of a JSON array from a stream of text. Raises DataError with the line of what is wrong."""

    def __init__(self, file: IO[str], name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        self._expect("[")
        if self._next() == "]":
            self.at += 1
        else:
            while True:
                self._next()
                yield self._value()
                if self._expect(",]") == "]":
                    break
        if self._next():
            raise self._broken("the array has ended, and more follows")

    def _next(self) -> str:
        """Return the next character that is no space, "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _expect(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            raise self._broken(f"expected {' or '.join(wanted)}, found {found or 'the end of the file'!r}")
        self.at += 1
        return found

    def _value(self) -> tuple[Any, str]:
        while True:
            try:
                value, end = _JSON.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _LONGEST_WORD
                if self.ended or not cut:
                    raise self._broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from None
            else:
                if end < len(self.text) or self.ended:
                    text, self.at = self.text[self.at : end], end
                    return value, text
            self._more()

    def _more(self) -> bool:
        """Drop what is read and read on, more at a time the longer the item is; False at the end of the file."""
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        more = self.file.read(max(_CHUNK, len(self.text)))
        self.text += more
        self.ended = not more
        return bool(more)

    def _broken(self, what: str, at: int | None = None) -> DataError:
        line = self.line + self.text.count("\n", 0, self.at if at is None else at)
        return _broken(what, f"{self.name}:{line}")


def _broken(what: str, where: str) -> DataError:
    return DataError(f"broken JSON: {what}", where=where, hint="Mend it there, or write one object a line (.jsonl).")


_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_WORD = len("-Infinity")


def _whole(source: Source) -> Iterator[Row | Bad]:
    with opened(source) as file:
        data = file.read()
    try:
        text = data.decode()
        value = _JSON.decode(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("the file is not UTF-8", where=f"{source.name}:{line}", hint="Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise _broken(error.msg, f"{source.name}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(str(error), source.name) from None
    doubtful = _doubtful(text)
    for number, item in enumerate(_items(value, source.name), 1):
        yield _row(item, doubtful, f"{source.name}:{number}", source.split)


def _items(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    tables = {k: v for k, v in value.items() if isinstance(v, list)} if isinstance(value, dict) else {}
    if "data" in tables:
        return tables["data"]
    if len(tables) == 1 and all(isinstance(item, dict) for item in next(iter(tables.values()))):
        return next(iter(tables.values()))
    if isinstance(value, dict) and not tables:
        return [value]
    raise DataError(
        f"expected an array of objects, or an object with one array of them, found {sorted(tables) or type(value).__name__}",
        where=name,
        hint='Write the rows as [{...}, {...}], as {"data": [{...}, ...]}, or one a line in a .jsonl file.',
    )
