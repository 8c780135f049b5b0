"""Rows put aside until it is settled which of them are taken."""

import contextlib
import json
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any

from tamis.errors import DataError

_IN_MEMORY = 1 << 20
_TOGETHER = 256
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))


class Spill:
    """Values that JSON can hold, in the order they were added; tuples come back as lists. Beyond 1 MB a temporary file.

    Raises DataError when the file cannot be written.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._part: list[Any] = []

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, told already
            self._file.close()

    def add(self, value: Any) -> None:
        """Add a value; none comes after the first was read back."""
        self._part.append(value)
        if len(self._part) == _TOGETHER:
            self._write()

    def _write(self) -> None:
        try:
            self._file.write(_JSON.encode(self._part).encode(errors="surrogatepass") + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"rows cannot be put aside: {error.strerror}",
                where=gettempdir(),
                hint="Free space there, or name another folder with TMPDIR.",
            ) from error
        self._part = []

    def __iter__(self) -> Iterator[Any]:
        self._write()
        self._file.seek(0)
        for part in self._file:
            yield from json.loads(part)
