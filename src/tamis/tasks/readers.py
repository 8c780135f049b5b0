"""Rows of data files, one by one: JSONL, JSON, CSV, Parquet, folders of these, saved `datasets` and hub data sets.

Memory does not grow with the file, except for a JSON file that is one object. A broken row is yielded as `Bad` with its line
and the rest goes on; a file that cannot be read at all raises DataError. Knows nothing of prompts.
"""

import csv
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tamis.errors import ConfigError, DataError, MissingExtra, nearest
from tamis.tasks import json_rows
from tamis.tasks.rows import Bad, Format, Row, Source, opened

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
_BUFFER = 1 << 16


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
    try:
        place = Path(path).expanduser()
        there = place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"is no path that can be read: {error}", where=repr(path[:80]), hint="Check it.") from None
    if place.is_symlink() and not there:
        raise DataError(f"'{path}' is a link to '{place.readlink()}', which is not there", hint="Name the file itself.")
    if not there:
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
    suffix = place.with_suffix("").suffix if place.suffix.lower() == ".gz" else place.suffix
    if suffix.lower() not in _FORMATS:
        raise DataError(
            f"the format of '{place.name}' cannot be told from its name",
            hint=f"Known endings: {', '.join(_FORMATS)} (each also with .gz); or say it with the option 'format'.",
        )
    return _FORMATS[suffix.lower()]


def _in_folder(folder: Path, format: Format) -> list[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = [
            _inside(folder / "dataset_dict.json", name) for name in _saved(folder / "dataset_dict.json", "splits")
        ]
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


def _inside(path: Path, name: Any) -> str:
    """Return a name that `path` lists, if it is that of a file or folder beside it."""
    if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
        raise DataError(f"lists {name!r:.80}, which is no name", where=str(path), hint="Save the data set again.")
    return name


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
        "jsonl": json_rows.read_lines,
        "json": json_rows.read_file,
        "csv": _csv,
        "parquet": _parquet,
        "datasets": _saved_dataset,
        "hub": _hub,
    }
    try:
        yield from readers[source.format](source)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(
            f"the file cannot be read as {source.format}: {error}",
            where=source.name,
            hint="Is it whole, and of that format?",
        ) from error


def _csv(source: Source) -> Iterator[Row | Bad]:
    csv.field_size_limit(_LONGEST_FIELD)
    with opened(source) as raw, io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline="") as text:
        header = text.readline()
        reader = csv.reader(chain([header], text), delimiter=max("\t,;", key=header.count), strict=True)
        names = _header(reader, source.name)
        while names:
            before = reader.line_num
            where = f"{source.name}:{before + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines = reader.line_num - before
                yield Bad(where, "broken CSV", str(error) + (f"; {lines} lines are lost" if lines > 1 else ""))
                if not lines:
                    return
                continue
            if values:
                yield _csv_row(names, values, where, source.split)


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    """Return the names of the columns, none for an empty file."""
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise DataError(f"the header cannot be read: {error}", where=f"{name}:1", hint="Mend its quotes.") from None
    if len(set(names)) < len(names):
        raise DataError(f"the header has repeated names: {names}", where=f"{name}:1", hint="Rename one of them.")
    if any("\udc80" <= c <= "\udcff" for column in names for c in column):
        raise DataError("the header is not UTF-8", where=f"{name}:1", hint="Save the file as UTF-8.")
    return names


def _csv_row(names: list[str], values: list[str], where: str, split: str) -> Row | Bad:
    if len(values) != len(names):
        return Bad(where, "wrong number of columns", f"{len(values)} for {len(names)} names")
    if any("\udc80" <= c <= "\udcff" for value in values for c in value):
        return Bad(where, "not UTF-8")
    return Row(where, {n: v if v != "" else None for n, v in zip(names, values, strict=True)}, split)


def _parquet(source: Source) -> Iterator[Row | Bad]:
    with pq.ParquetFile(source.path, buffer_size=_BUFFER, pre_buffer=False) as file:  # else it keeps what it has read
        yield from _batches(file.iter_batches(batch_size=_BATCH), source)


def _batches(batches: Iterator[pa.RecordBatch], source: Source) -> Iterator[Row | Bad]:
    number, name = 0, source.name
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise DataError(f"columns have the same name: {names}", where=name, hint="Rename one of them.")
        try:
            rows: list[Any] = batch.to_pylist()
        except _UNREADABLE:
            rows = [_one(batch, i) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            where = f"{name}:{number}"
            yield Bad(where, row.reason, row.detail) if isinstance(row, Bad) else Row(where, row, source.split)


_UNREADABLE = (UnicodeDecodeError, ValueError, OverflowError, KeyError, ImportError, NotImplementedError)
"""What a value raises that Python has no form for: text that is not UTF-8, dates beyond the calendar, unknown time zones."""


def _one(batch: pa.RecordBatch, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except _UNREADABLE as error:
        return Bad(f"row {index}", "unreadable value", str(error))


def _saved_dataset(source: Source) -> Iterator[Row | Bad]:
    state = Path(source.path) / "state.json"
    listed = [item.get("filename") if isinstance(item, dict) else item for item in _saved(state, "_data_files")]
    files = [state.with_name(_inside(state, name)) for name in listed]

    def batches() -> Iterator[pa.RecordBatch]:
        for path in files:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    batch.validate(full=True)
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
