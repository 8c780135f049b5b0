"""Rows of data files, one by one: JSONL, JSON, CSV, Parquet, folders of these, saved `datasets` and hub data sets.

Memory does not grow with the file, JSON arrays excepted. A broken row is yielded as `Bad` with its line and the rest goes
on; a file that cannot be read at all raises DataError. Knows nothing of prompts.
"""

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.errors import ConfigError, DataError, MissingExtra, nearest

Format = Literal["auto", "jsonl", "json", "csv", "parquet", "datasets", "hub"]
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_TRAIN, _HELDOUT = ("train", "training"), ("heldout", "held-out", "test", "validation", "valid", "val", "dev", "eval")
_LONGEST_FIELD = 1 << 27
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Row:
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
        """The base name, as it stands in `Row.where`."""
        return self.path if self.format == "hub" else os.path.basename(self.path)


def split_name(value: str) -> str:
    """Return "train" or "heldout" for the usual names of splits ("test", "validation", "dev"...), "" for others."""
    name = value.strip().casefold()
    return "train" if name in _TRAIN else "heldout" if name in _HELDOUT else ""


def locate(path: str, format: Format = "auto") -> list[Source]:
    """Return what has to be read for a path: a file, a folder of files, a saved data set, or "hub:org/name".

    Raises DataError when there is nothing there or the format cannot be told.
    """
    if path.startswith("hub:"):
        return [Source(path, "hub")]
    place = Path(path).expanduser()
    if place.is_symlink() and not place.exists():
        raise DataError(f"'{path}' is a link to '{place.readlink()}', which is not there")
    if not place.exists():
        raise DataError(f"there is no file or folder '{path}'", hint=_neighbour(place))
    if place.is_dir():
        return _in_folder(place, format)
    if not place.is_file():
        raise DataError(f"'{path}' is neither a file nor a folder", hint="Write what it gives into a file first.")
    return [Source(str(place), _format_of(place, format))]


def _neighbour(place: Path) -> str:
    names = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    return nearest(place.name, names) if names else f"The folder '{place.parent}' is not there either."


def _format_of(place: Path, format: Format) -> Format:
    if format != "auto":
        return format
    suffix = place.with_suffix("").suffix if place.suffix == ".gz" else place.suffix
    if suffix.lower() not in _FORMATS:
        raise DataError(
            f"the format of '{place.name}' cannot be told from its name",
            hint=f"Known endings: {', '.join(_FORMATS)} (each also with .gz); or say it with the option 'format'.",
        )
    return _FORMATS[suffix.lower()]


def _in_folder(folder: Path, format: Format) -> list[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = _saved(folder / "dataset_dict.json", "splits")
        return _with_splits([Source(str(folder / s), "datasets", split_name(s)) for s in splits])
    if (folder / "state.json").is_file():
        return [Source(str(folder), "datasets")]
    kinds = (".gz", *_FORMATS)
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in kinds and p.name[0] not in "._")
    if not files:
        raise DataError(f"the folder '{folder}' holds no data file", hint=f"Known endings: {', '.join(_FORMATS)}.")
    stems = [p.name.split(".")[0].split("-")[0].split("_")[0] for p in files]
    pairs = zip(files, stems, strict=True)
    return _with_splits([Source(str(p), _format_of(p, format), split_name(stem)) for p, stem in pairs])


def _saved(path: Path, field: str) -> list[Any]:
    """Return a list out of a file that `datasets` wrote beside the data."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[field])
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(
            f"is not what `datasets` writes (no list '{field}')", where=str(path), hint="Save the data set again."
        ) from None


def _with_splits(sources: list[Source]) -> list[Source]:
    """Keep the splits that names suggest only where both sides are there and every source has one."""
    if {s.split for s in sources} == {"train", "heldout"}:
        return sources
    return [Source(s.path, s.format) for s in sources]


def files(source: Source) -> list[Path]:
    """Return the files a source consists of; none for a hub data set."""
    if source.format == "hub":
        return []
    place = Path(source.path)
    return sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]


def read(source: Source) -> Iterator[Row | Bad]:
    """Yield the rows of a source. Raises DataError when the file as a whole cannot be read."""
    readers = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _csv,
        "parquet": _parquet,
        "datasets": _saved_dataset,
        "hub": _hub,
    }
    try:
        yield from readers[source.format](source)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(f"the file cannot be read: {error}", where=source.name) from error


def _open(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(source: Source) -> Iterator[tuple[int, bytes]]:
    with _open(source.path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError("the file is UTF-16", where=source.name, hint="Save it as UTF-8.")
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line


def _jsonl(source: Source) -> Iterator[Row | Bad]:
    for number, line in _lines(source):
        if line.strip():
            yield _json_row(line, f"{source.name}:{number}", source.split)


def _json_row(line: bytes, where: str, split: str) -> Row | Bad:
    try:
        value = json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Bad(where, "not UTF-8", f"byte {error.start}")
    except json.JSONDecodeError as error:
        return Bad(where, "broken JSON", f"{error.msg.removesuffix(' at')} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Bad(where, "broken JSON", str(error))
    return _row(value, where, split)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"a name stands twice among {[name for name, _ in pairs]}")
    return made


def _row(value: Any, where: str, split: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(where, value, split)
    return Bad(where, "not an object with named fields", f"found {type(value).__name__}")


def _json(source: Source) -> Iterator[Row | Bad]:
    with _open(source.path) as file:
        text = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise DataError("the file is not UTF-8", where=f"{source.name}:{line}", hint="Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(source)
            return
        raise DataError(f"broken JSON: {error.msg}", where=f"{source.name}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON: {error}", where=source.name) from None
    for number, item in enumerate(_items(value, source.name), 1):
        yield _row(item, f"{source.name}:{number}", source.split)


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


def _csv(source: Source) -> Iterator[Row | Bad]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _open(source.path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text:
        header = text.readline()
        if not header:
            return
        if header.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise DataError("the file is UTF-16", where=source.name, hint="Save it as UTF-8.")
        delimiter = max("\t,;", key=header.count)
        names = next(csv.reader([header], delimiter=delimiter), [])
        if not names or len(set(names)) < len(names):
            raise DataError(f"the header has no or repeated names: {names}", where=f"{source.name}:1")
        reader, before = csv.reader(text, delimiter=delimiter, strict=True), 0
        while True:
            where, before = f"{source.name}:{reader.line_num + 2}", reader.line_num
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Bad(where, "broken CSV", str(error))
                if reader.line_num == before:
                    return
                continue
            if values:
                yield _csv_row(names, values, where, source.split)


def _csv_row(names: list[str], values: list[str], where: str, split: str) -> Row | Bad:
    if len(values) != len(names):
        return Bad(where, "wrong number of columns", f"{len(values)} for {len(names)} names")
    if any("\udc80" <= c <= "\udcff" for value in values for c in value):
        return Bad(where, "not UTF-8")
    return Row(where, {n: v if v != "" else None for n, v in zip(names, values, strict=True)}, split)


def _parquet(source: Source) -> Iterator[Row | Bad]:
    with pq.ParquetFile(source.path) as file:
        yield from _batches(file.iter_batches(batch_size=_BATCH), source)


def _batches(batches: Iterator[pa.RecordBatch], source: Source) -> Iterator[Row | Bad]:
    number = 0
    for batch in batches:
        try:
            rows: list[Any] = batch.to_pylist()
        except (UnicodeDecodeError, ValueError, OverflowError):
            rows = [_one(batch, i) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            where = f"{source.name}:{number}"
            yield Bad(where, row.reason, row.detail) if isinstance(row, Bad) else Row(where, row, source.split)


def _one(batch: pa.RecordBatch, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return Bad(f"row {index}", "unreadable value", str(error))


def _saved_dataset(source: Source) -> Iterator[Row | Bad]:
    folder = Path(source.path)
    files = [folder / item["filename"] for item in _saved(folder / "state.json", "_data_files")]

    def batches() -> Iterator[pa.RecordBatch]:
        for path in files:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, _BATCH):
                        yield batch.slice(start, _BATCH)

    yield from _batches(batches(), source)


def hub_name(path: str) -> tuple[str, str | None, str]:
    """Return (repository, configuration, split) of "hub:org/name[/configuration][@split]"; the split defaults to train.

    Raises ConfigError for any other form.
    """
    name, _, split = path.removeprefix("hub:").partition("@")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ConfigError(f"'{path}' names no hub data set", hint="Write hub:org/name[/configuration][@split].")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"


def _hub(source: Source) -> Iterator[Row | Bad]:
    repository, configuration, split = hub_name(source.path)
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "data", "Reading a data set from the hub") from None
    try:
        rows = datasets.load_dataset(repository, configuration, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield Row(f"{source.name}:{number}", row, source.split)
    except Exception as error:
        raise DataError(
            f"the hub data set cannot be read: {type(error).__name__}: {error}",
            where=source.path,
            hint="Check the name, the configuration and the split (hub:org/name/configuration@split) and the network; "
            "or download the file and give its path.",
        ) from error


def missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, or the NaN that spreadsheets and data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
