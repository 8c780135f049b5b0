"""Prompts from the user's own files, and what a file looks like before a run starts (`inspect`)."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from tamis.context import Context
from tamis.errors import ConfigError, DataError, nearest
from tamis.hashing import digest, file_digest
from tamis.records import Message, Prompt
from tamis.registry import option, task
from tamis.tasks import partition, readers, shapes, splits
from tamis.tasks.partition import Partition
from tamis.tasks.rows import Bad, Format, Row, Source, missing
from tamis.tasks.spill import Spill

_HOPELESS = 1000
_REASONS = {
    partition.ALSO_HELDOUT: "also held out",
    partition.DUPLICATE: "duplicate prompt",
    partition.DUPLICATE_ID: "duplicate id",
}


@dataclass
class DataSummary:
    """What was found in a file: `rows` read, `accepted` as prompts, `duplicates` among those, `rejected` by reason.

    `shapes` counts rows by shape ("question/answer"), `columns` by the names of their fields; `with_reference` prompts have a
    gold answer. `examples` of rejected rows are (where, reason, detail), at most ten; `example` is the first prompt.
    """

    path: str
    shapes: Counter[str] = field(default_factory=Counter)
    columns: Counter[tuple[str, ...]] = field(default_factory=Counter)
    rows: int = 0
    accepted: int = 0
    with_reference: int = 0
    duplicates: int = 0
    example: Prompt | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    advice: str = ""

    @property
    def fields(self) -> Counter[str]:
        """How many rows have a field, by its name."""
        found: Counter[str] = Counter()
        for names, rows in self.columns.items():
            found.update(dict.fromkeys(names, rows))
        return found

    @property
    def shape(self) -> str:
        """The most frequent shape, "" when no row was understood."""
        return self.shapes.most_common(1)[0][0] if self.shapes else ""

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.rows} rows, shape {self.shape or 'unknown'}",
            f"prompts: {self.accepted} ({self.with_reference} with a reference answer, {self.duplicates} duplicates)",
        ]
        lines += [f"rejected: {reason}: {n}" for reason, n in self.rejected.most_common()]
        lines += [f"  {where}: {reason} {detail}".rstrip() for where, reason, detail in self.examples[:3]]
        if self.example:
            lines.append(f"first prompt ({self.example.source}): {_cut(self.example.text)}")
            lines += [f"its reference: {_cut(r)}" for r in self.example.references[:1]]
        return "\n".join(lines)

    def accept(self, found: "_Found") -> None:
        """Count a usable row and keep the first."""
        self.accepted += 1
        self.shapes[found.shape] += 1
        self.with_reference += bool(found.references)
        self.example = self.example or found.prompt()

    def reject(self, where: str, reason: str, detail: str = "") -> None:
        """Count a rejected row and keep the first ten."""
        self.rejected[reason] += 1
        if len(self.examples) < 10:
            self.examples.append((where, reason, detail))


class _Found(NamedTuple):
    """A usable row: its place, given side or "", messages as (role, content), reference texts, metadata and shape."""

    where: str
    side: str
    messages: Sequence[Sequence[str]]
    references: Sequence[str]
    metadata: dict[str, Any]
    shape: str

    @property
    def whole(self) -> str:
        """The text by which prompts are compared: all messages but the system's."""
        return "\n".join([content for role, content in self.messages if role != "system"])

    def prompt(self, split: str = "train", copies: int = 0) -> Prompt:
        metadata = {**self.metadata, "copy": copies} if copies else self.metadata
        messages = tuple([Message(role, content) for role, content in self.messages])
        return Prompt(messages, tuple(self.references), "data", metadata, split, self.where)


@task("data")
class Data:
    """Read prompts and reference answers from the user's own file.

    Reads JSONL, JSON, CSV (TSV), Parquet, each also gzipped except Parquet, a folder of these, a folder saved by `datasets`,
    or `hub:org/name[/configuration][@split]`. Shapes (`tamis.tasks.shapes`) are recognised by field names; `map` overrides.
    Rows that give no prompt are dropped and written aside with file, line and reason; the rest goes on.

    Held out are the prompts with the smallest content hashes (`tamis.tasks.splits`): exactly `round(share * n)` or the given
    count, independent of order and seed. `size` caps the training prompts; the subset is drawn from the seed and each
    prompt's content. `heldout_path`, `split_column` or file names (train.jsonl and test.jsonl in one folder) give the split
    instead; a prompt on both sides is then refused. The file is read once: its rows wait in a temporary file until the sides
    are settled, and a few bytes of each are in memory (`tamis.tasks.partition`), which so hardly grows with the file.

    A prompt's references are the gold texts as given; metadata holds the row's "id", "rejected" (preference data) and the
    fields named by `keep`. Rows kept in spite of equal content carry a number "copy", so that their ids differ.

    Raises DataError when no row is usable, showing a row, the shapes known and a map that may fit.
    """

    path: str = option(..., "File, folder, or hub:org/name[/configuration][@split].", min_length=1)
    format: Format = option("auto", "Format of the files; auto goes by the name's ending.")
    map: dict[str, str] = option({}, "Roles to field names: {prompt: question, answer: solution}; a.b reaches inside.")
    size: int | None = option(None, "Most training prompts to use; none means all.", ge=1)
    heldout: int | float = option(
        partition.DEFAULT_SHARE, "Share (below 1) or count of held-out prompts; a count caps a given held-out side."
    )
    heldout_path: str = option("", "Separate file of held-out prompts.")
    split_column: str = option("", "Field that says train or test (validation, dev, eval...).")
    dedupe: Literal["normalised", "exact", "none"] = option("normalised", "Which prompts count as the same.")
    leakage: Literal["refuse", "drop", "allow"] = option(
        "refuse",
        "A training prompt that is also in the given held-out side: refuse the data, drop the row, or allow it.",
    )
    max_prompt_chars: int | None = option(None, "Longest prompt in characters; longer ones are dropped.", ge=1)
    system: str = option("", "System prompt put before prompts that have none.")
    template: str = option("", "Text of the user message, with {field} or {prompt} filled in.")
    keep: list[str] = option([], "Fields to keep in the prompt's metadata.")

    contract = {"path": "prompts.jsonl"}  # noqa: RUF012

    def __post_init__(self) -> None:
        splits.check_heldout(self.heldout, "task 'data'")
        shapes.check_map(self.map)
        if self.heldout_path and self.split_column:
            raise ConfigError("heldout_path and split_column exclude each other", where="task 'data'")

    def fingerprint(self) -> str:
        """Return the digest of the files' names and contents, for cache keys; of a hub data set its name alone."""
        paths = [self.path, self.heldout_path] if self.heldout_path else [self.path]
        sources = [s for p in paths for s in readers.locate(p, self.format)]
        return digest([(s.name, s.split, [file_digest(f) for f in readers.files(s)]) for s in sources])

    def prompts(self, ctx: Context) -> Iterator[Prompt]:
        """Yield the prompts in file order, training and held out as they come."""
        seen: Counter[str] = Counter()
        with Spill() as spill:
            settled = zip(*self._settle(ctx.seed, spill), strict=True)
            for item in _spilled(spill):
                if isinstance(item, Bad):
                    ctx.drop(item.where, item.reason, detail=item.detail)
                    continue
                fate, several = next(settled)
                if fate == partition.LEFT_OUT:
                    ctx.count("left out by size")
                    continue
                if fate in _REASONS:
                    ctx.drop(item.where, _REASONS[fate])
                    continue
                ctx.count(f"shape: {item.shape}")
                if not item.references:
                    ctx.count("without reference")
                prompt = item.prompt(partition.SIDES[1 + fate])
                if several:
                    seen[prompt.id] += 1
                    prompt = item.prompt(prompt.split, seen[prompt.id] - 1)
                yield prompt

    def _settle(self, seed: int, spill: Spill) -> tuple[bytes, bytes]:
        """Read the data into `spill`; return each usable row's fate, and whether rows with an equal prompt stay beside it."""
        wishes = partition.Wishes(self.heldout, self.size, self.dedupe, self.leakage, seed)
        summary = DataSummary(self.path)
        with Partition() as rows:
            for item in self._survey(summary, rows):
                spill.add(item)
            if not summary.accepted:
                raise _nothing_left(summary, self.map)
            try:
                fates, several = rows.settle(wishes, self.path)
            except partition.Leak as leak:
                usable = (item for item in _spilled(spill) if isinstance(item, _Found))
                raise _leaking(leak, next(islice(usable, leak.row, None))) from None
        return fates.tobytes(), several.tobytes()

    def _survey(self, summary: DataSummary, rows: Partition) -> Iterator[_Found | Bad]:
        """Yield what becomes of every row, told to `summary`, and added to `rows` where it is usable."""
        for item in self._rows(summary):
            if isinstance(item, Bad):
                summary.reject(item.where, item.reason, item.detail)
            else:
                whole, given = item.whole, item.metadata.get("id")
                mark = splits.exact_key(whole) if self.dedupe == "exact" else None
                own = None if given is None else splits.exact_key(repr(given))
                rows.add(item.side, splits.key(whole), mark, own)
                summary.accept(item)
            yield item

    def _rows(self, summary: DataSummary) -> Iterator[_Found | Bad]:
        """Yield what becomes of every row; no more after many of which none is of use."""
        for source in self._sources():
            for row in readers.read(source):
                summary.rows += 1
                if isinstance(row, Bad):
                    yield row
                    continue
                summary.columns[tuple(row.fields)] += 1
                try:
                    yield self._found(row)
                except shapes.Unfit as unfit:
                    if unfit.shape and not summary.advice:
                        summary.advice = _advice(row, self.map)
                    yield Bad(row.where, unfit.reason, unfit.detail)
                    if summary.rows >= _HOPELESS and not summary.accepted:
                        return

    def _sources(self) -> list[Source]:
        found = readers.locate(self.path, self.format)
        if not self.heldout_path:
            return found
        held = readers.locate(self.heldout_path, self.format)
        return [Source(s.path, s.format, "train") for s in found] + [Source(s.path, s.format, "heldout") for s in held]

    def _found(self, row: Row) -> _Found:
        parts = shapes.parts(row.fields, self.map)
        messages = self._filled(parts.messages, row.fields)
        if not messages[-1].content.strip():
            raise shapes.Unfit("empty prompt")
        if self.max_prompt_chars:
            length = sum(len(m.content) for m in messages)
            if length > self.max_prompt_chars:
                raise shapes.Unfit("prompt too long", f"{length} characters, at most {self.max_prompt_chars}")
        metadata = {k: shapes.plain(v) for k, v in parts.metadata.items()}
        metadata |= {k: shapes.plain(row.fields[k]) for k in self.keep if k in row.fields}
        pairs = [(m.role, m.content) for m in messages]
        return _Found(row.where, self._side(row), pairs, parts.references, metadata, parts.shape)

    def _filled(self, messages: tuple[Message, ...], fields: Mapping[str, Any]) -> tuple[Message, ...]:
        if self.template:
            text = fill(self.template, {**fields, "prompt": messages[-1].content})
            messages = (*messages[:-1], Message(messages[-1].role, text))
        if self.system and messages[0].role != "system":
            messages = (Message("system", self.system), *messages)
        return messages

    def _side(self, row: Row) -> str:
        if not self.split_column:
            return row.split
        value = row.fields.get(self.split_column)
        side = readers.split_name(str(value))
        if not side:
            raise shapes.Unfit("split not understood", f"{self.split_column} is {value!r}")
        return side


def _spilled(spill: Spill) -> Iterator[_Found | Bad]:
    """Yield the rows that were put aside."""
    for item in spill:
        yield _Found(*item) if len(item) == len(_Found._fields) else Bad(*item)


def _leaking(leak: partition.Leak, row: _Found) -> DataError:
    return DataError(
        f"{leak.both} of {leak.heldout} held-out prompts are also training prompts",
        where=row.where,
        hint="Scores on them would mean nothing. Use leakage: drop to take them out of training, or leakage: allow.",
    )


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Return the template with each {field} replaced by the field's text; other braces stay. Raises Unfit for a missing one."""

    def value(match: re.Match[str]) -> str:
        if missing(fields.get(match[1])):
            raise shapes.Unfit(f"no field '{match[1]}' for the template", nearest(match[1], map(str, fields)))
        return str(fields[match[1]])

    return re.sub(r"\{([A-Za-z_]\w*)\}", value, template)


def _cut(text: str, most: int = 160) -> str:
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _advice(row: Row, mapping: Mapping[str, str]) -> str:
    shown = ", ".join(f"{k}: {str(v)[:60]!r}" for k, v in list(row.fields.items())[:8])
    lines = [f"{row.where} holds {{{shown}}}."]
    if mapping:
        lines += [
            f"'{name}': {nearest(name, map(str, row.fields))}" for name in mapping.values() if name not in row.fields
        ]
    else:
        flags = " ".join(f"--map {role}={name}" for role, name in shapes.suggest(row.fields).items())
        lines += [
            f"Known shapes: {shapes.KNOWN}.",
            f"Try: {flags}" if flags else "Name the fields with --map prompt=FIELD.",
        ]
    return "\n".join(lines)


def _nothing_left(summary: DataSummary, mapping: Mapping[str, str]) -> DataError:
    if not summary.rows:
        return DataError("there is no row in it", where=summary.path)
    reasons = "; ".join(f"{reason} ({n})" for reason, n in summary.rejected.most_common(5))
    where, reason, detail = summary.examples[0]
    return DataError(
        f"no usable prompt in {summary.rows} rows: {reasons}",
        where=summary.path,
        hint=summary.advice or f"First: {where}: {reason}. {detail}".strip(),
    )


def inspect(path: str, map: Mapping[str, str] | None = None, **options: Any) -> DataSummary:
    """Read a whole file as the task "data" would and return what was found. `options` are those of the task.

    Raises DataError when it cannot be read or holds no usable prompt, ConfigError for a wrong option.
    """
    data = Data.component.build({"path": path, "map": dict(map or {}), **options})  # type: ignore[attr-defined]
    summary = DataSummary(path)
    with Partition() as rows:
        deque(data._survey(summary, rows), maxlen=0)
        same_id, same = rows.duplicates(data.dedupe)
        summary.duplicates = int(same_id.sum() + same.sum())
    if not summary.accepted:
        raise _nothing_left(summary, data.map)
    return summary
