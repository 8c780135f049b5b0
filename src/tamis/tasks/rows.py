"""Rows as the readers of files give them, and what a source of rows is."""

import gzip
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

Format = Literal["auto", "jsonl", "json", "csv", "parquet", "datasets", "hub"]


class Row(NamedTuple):
    """One row: "file:line" (line of the file; number of the row for JSON arrays, Parquet and data sets) and its fields.

    `split` is "train" or "heldout" where the file's place in its folder says so, else "".
    """

    where: str
    fields: Mapping[str, Any]
    split: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be read, and why."""

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


def opened(path: str) -> IO[bytes]:
    """Return the file, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, or the NaN that spreadsheets and data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
