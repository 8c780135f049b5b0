"""Rows as the readers of files give them, and what a source of rows is."""

import codecs
import contextlib
import gzip
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

from tamis.errors import DataError

Format = Literal["auto", "jsonl", "json", "csv", "parquet", "datasets", "hub"]


class Row(NamedTuple):
    """One row: "file:line" (line of the file; number of the row for JSON arrays, Parquet and data sets) and its fields.

    `split` is "train" or "heldout" where the file's place in its folder says so, else "".
    """

    where: str
    fields: Mapping[str, Any]
    split: str = ""


class Bad(NamedTuple):
    """A row that could not be read, or gives no prompt, and why."""

    where: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """One file or data set to read."""

    path: str
    format: Format
    split: str = ""

    @property
    def name(self) -> str:
        """The base name, as it stands in `Row.where`; what is not UTF-8 in it is escaped."""
        name = self.path if self.format == "hub" else os.path.basename(self.path)
        return name.encode(errors="backslashreplace").decode()


_GZIPPED = b"\x1f\x8b"


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """Open the file behind its byte order mark, unpacked where its name ends in .gz. Raises DataError for UTF-16."""
    unpacked: Any = gzip.open if source.path.lower().endswith(".gz") else open
    with unpacked(source.path, "rb") as file:
        start = file.peek(len(codecs.BOM_UTF8))
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError("the file is UTF-16", where=source.name, hint="Save it as UTF-8.")
        if start.startswith(_GZIPPED):
            raise DataError("the file is gzipped", where=source.name, hint="Let its name end in .gz.")
        if start.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        yield file


def missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, or the NaN that spreadsheets and data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
