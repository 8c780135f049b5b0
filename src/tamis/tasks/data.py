"""Prompts from the user's own files, and what a file looks like before a run starts (`inspect`)."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tamis.context import Context
from tamis.errors import ConfigError, DataError, nearest
from tamis.hashing import digest, file_digest
from tamis.records import Message, Prompt
from tamis.registry import option, task
from tamis.tasks import readers, shapes, splits

Drop = Callable[..., None]
_SHARE = 0.2
_HOPELESS = 1000


@dataclass
class DataSummary:
    """What was found in a file: `rows` read, `accepted` as prompts, `duplicates` among those, `rejected` by reason.

    `shapes` counts rows by shape ("question/answer"), `fields` rows by field name, `with_reference` prompts that have a gold
    answer. `examples` of rejected rows are (where, reason, detail), at most ten; `example` is the first prompt.
    """

    path: str
    shapes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    accepted: int = 0
    with_reference: int = 0
    duplicates: int = 0
    example: Prompt | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    advice: str = ""

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

    def reject(self, where: str, reason: str, detail: str = "") -> None:
        """Count a rejected row and keep the first ten."""
        self.rejected[reason] += 1
        if len(self.examples) < 10:
            self.examples.append((where, reason, detail))


@dataclass
class _Plan:
    """What the first pass over the file settles: the keys of each side (train None: all that are not held out)."""

    heldout: set[bytes]
    train: set[bytes] | None

    def takes(self, key: bytes, split: str) -> bool:
        return key in self.heldout if split == "heldout" else self.train is None or key in self.train


@task("data")
class Data:
    """Read prompts and reference answers from the user's own file.

    Reads JSONL, JSON, CSV (TSV), Parquet, each also gzipped except Parquet, a folder of these, a folder saved by `datasets`,
    or `hub:org/name[/configuration][@split]`. Shapes (`tamis.tasks.shapes`) are recognised by field names; `map` overrides.
    Rows that give no prompt are dropped and written aside with file, line and reason; the rest goes on.

    Held out are the prompts with the smallest content hashes (`tamis.tasks.splits`): exactly `round(share * n)` or the given
    count, independent of order and seed. `size` caps the training prompts; the subset is drawn from the seed and each
    prompt's content. `heldout_path`, `split_column` or file names (train.jsonl and test.jsonl in one folder) give the split
    instead; a prompt on both sides is then refused. The file is read twice, and memory holds 16 bytes and a little per row.

    A prompt's references are the gold texts as given; metadata holds the row's "id", "rejected" (preference data) and the
    fields named by `keep`. Rows kept in spite of equal content carry a number "copy", so that their ids differ.

    Raises DataError when no row is usable, showing a row, the shapes known and a map that may fit.
    """

    path: str = option(..., "File, folder, or hub:org/name[/configuration][@split].", min_length=1)
    format: readers.Format = option("auto", "Format of the files; auto goes by the name's ending.")
    map: dict[str, str] = option({}, "Roles to field names: {prompt: question, answer: solution}; a.b reaches inside.")
    size: int | None = option(None, "Most training prompts to use; none means all.", ge=1)
    heldout: int | float = option(
        _SHARE, "Share (below 1) or count of held-out prompts; a count caps a given held-out side."
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
        plan = self._plan(ctx.seed)
        seen: Counter[bytes] = Counter()
        for prompt, side, shape in self._rows(ctx.drop):
            key, mark = self._keys(prompt)
            split = side or ("heldout" if key in plan.heldout else "train")
            if side == "train" and key in plan.heldout and self.leakage == "drop":
                ctx.drop(prompt.source, "also held out")
                continue
            if not plan.takes(key, split):
                ctx.count("left out by size")
                continue
            dedupe = mark + split.encode()
            if self.dedupe != "none" and seen[dedupe]:
                ctx.drop(prompt.source, "duplicate prompt")
                continue
            seen[dedupe] += 1
            ctx.count(f"shape: {shape}")
            if not prompt.references:
                ctx.count("without reference")
            yield _with(prompt, split, seen, key)

    def _keys(self, prompt: Prompt) -> tuple[bytes, bytes]:
        """Return the key that splits and finds leakage, and the mark that finds duplicates."""
        whole = "\n".join(m.content for m in prompt.messages if m.role != "system")
        key = splits.key(whole)
        return key, key if self.dedupe == "normalised" else splits.exact_key(whole)

    def _plan(self, seed: int) -> _Plan:
        """Read the file once: count keys per side, refuse leakage, and choose what is taken and what is held out."""
        summary, marks = DataSummary(self.path), set[bytes]()
        rows: dict[str, Counter[bytes]] = {"": Counter(), "train": Counter(), "heldout": Counter()}
        leak = ""
        for prompt, side, shape in self._rows(summary.reject, summary):
            key, mark = self._keys(prompt)
            mark += side.encode()
            summary.shapes[shape] += 1
            if side and key in rows["heldout" if side == "train" else "train"]:
                leak = leak or prompt.source
            if self.dedupe == "none" or mark not in marks:
                rows[side][key] += 1
                marks.add(mark)
        if not summary.shapes:
            raise _nothing_left(summary, self.map)
        given = bool(rows["train"] or rows["heldout"])
        if leak and self.leakage == "refuse":
            raise _leaking(rows, leak)
        return self._given(rows, seed) if given else self._own(rows[""], seed)

    def _own(self, rows: Counter[bytes], seed: int) -> _Plan:
        total, taken = rows.total(), None
        if self.size is not None:
            share = isinstance(self.heldout, float)
            wanted = round(self.size / (1 - self.heldout)) if share else self.size + int(self.heldout)
            taken = _first(splits.seeded(rows, seed), rows, wanted)
            total = sum(rows[k] for k in taken)
            rows = Counter({k: rows[k] for k in taken})
        heldout = splits.heldout_keys(rows, splits.heldout_count(total, self.heldout))
        if len(heldout) == len(rows):
            raise DataError(
                f"all {total} prompts are held out, none is left to train on",
                where=self.path,
                hint="Lower 'heldout' or give more data.",
            )
        return _Plan(heldout, taken)

    def _given(self, rows: Mapping[str, Counter[bytes]], seed: int) -> _Plan:
        if isinstance(self.heldout, float) and self.heldout != _SHARE:
            raise ConfigError(
                f"heldout: {self.heldout} does nothing, the data says what is held out",
                where="task 'data'",
                hint="Leave it out, or give a whole number to cap the held-out side.",
            )
        train, heldout = rows["train"], set(rows["heldout"])
        if isinstance(self.heldout, int):
            heldout = splits.heldout_keys(rows["heldout"], self.heldout)
        if self.leakage == "drop":
            train = Counter({k: n for k, n in train.items() if k not in heldout})
        if not train:
            raise DataError("no training prompt is left", where=self.path, hint="Check the split of the data.")
        if self.size is None:
            return _Plan(heldout, None)
        return _Plan(heldout, _first(splits.seeded(train, seed), train, self.size))

    def _rows(self, drop: Drop, summary: DataSummary | None = None) -> Iterator[tuple[Prompt, str, str]]:
        """Yield (prompt, given side or "", shape) of every usable row; hand the others to `drop`."""
        ids: set[bytes] = set()
        summary = summary or DataSummary(self.path)
        for source in self._sources():
            for row in readers.read(source):
                summary.rows += 1
                if isinstance(row, readers.Bad):
                    drop(row.where, row.reason, detail=row.detail)
                    continue
                summary.fields.update(map(str, row.fields))
                try:
                    found = self._prompt(row, ids)
                except shapes.Unfit as unfit:
                    drop(row.where, unfit.reason, detail=unfit.detail)
                    if unfit.shape and not summary.advice:
                        summary.advice = _advice(row, self.map)
                    if summary.rows >= _HOPELESS and not summary.accepted:
                        return
                    continue
                summary.accepted += 1
                yield found

    def _sources(self) -> list[readers.Source]:
        found = readers.locate(self.path, self.format)
        if not self.heldout_path:
            return found
        held = readers.locate(self.heldout_path, self.format)
        return [readers.Source(s.path, s.format, "train") for s in found] + [
            readers.Source(s.path, s.format, "heldout") for s in held
        ]

    def _prompt(self, row: readers.Row, ids: set[bytes]) -> tuple[Prompt, str, str]:
        parts = shapes.parts(row.fields, self.map)
        messages = self._filled(parts.messages, row.fields)
        if not messages[-1].content.strip():
            raise shapes.Unfit("empty prompt")
        length = sum(len(m.content) for m in messages)
        if self.max_prompt_chars and length > self.max_prompt_chars:
            raise shapes.Unfit("prompt too long", f"{length} characters, at most {self.max_prompt_chars}")
        side = self._side(row)
        metadata = {k: shapes.plain(v) for k, v in parts.metadata.items()}
        metadata |= {k: shapes.plain(row.fields[k]) for k in self.keep if k in row.fields}
        if "id" in metadata:
            mark = splits.exact_key(f"{side}:{metadata['id']!r}")
            if mark in ids:
                raise shapes.Unfit("duplicate id", str(metadata["id"]))
            ids.add(mark)
        prompt = Prompt(messages, parts.references, "data", metadata, side or "train", row.where)
        return prompt, side, parts.shape

    def _filled(self, messages: tuple[Message, ...], fields: Mapping[str, Any]) -> tuple[Message, ...]:
        if self.template:
            text = fill(self.template, {**fields, "prompt": messages[-1].content})
            messages = (*messages[:-1], Message(messages[-1].role, text))
        if self.system and messages[0].role != "system":
            messages = (Message("system", self.system), *messages)
        return messages

    def _side(self, row: readers.Row) -> str:
        if not self.split_column:
            return row.split
        value = row.fields.get(self.split_column)
        side = readers.split_name(str(value))
        if not side:
            raise shapes.Unfit("split not understood", f"{self.split_column} is {value!r}")
        return side


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Return the template with each {field} replaced by the field's text; other braces stay. Raises Unfit for a missing one."""

    def value(match: re.Match[str]) -> str:
        if readers.missing(fields.get(match[1])):
            raise shapes.Unfit(f"no field '{match[1]}' for the template", nearest(match[1], map(str, fields)))
        return str(fields[match[1]])

    return re.sub(r"\{([A-Za-z_]\w*)\}", value, template)


def _with(prompt: Prompt, split: str, seen: Counter[bytes], key: bytes) -> Prompt:
    """Return the prompt on its side of the split, numbered where equal content has been yielded before."""
    mark = b"id:" + bytes.fromhex(prompt.id)
    copies = seen[mark]
    seen[mark] += 1
    if not copies:
        return replace(prompt, split=split)
    return replace(prompt, split=split, metadata={**prompt.metadata, "copy": copies}, id="")


def _first(ordered: list[bytes], rows: Mapping[bytes, int], wanted: int) -> set[bytes]:
    taken, total = set(), 0
    for k in ordered:
        if total + rows[k] <= wanted:
            taken.add(k)
            total += rows[k]
    return taken


def _cut(text: str, most: int = 160) -> str:
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _advice(row: readers.Row, mapping: Mapping[str, str]) -> str:
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


def _leaking(rows: Mapping[str, Counter[bytes]], where: str) -> DataError:
    both = rows["train"].keys() & rows["heldout"].keys()
    return DataError(
        f"{len(both)} of {len(rows['heldout'])} held-out prompts are also training prompts",
        where=where,
        hint="Scores on them would mean nothing. Use leakage: drop to take them out of training, or leakage: allow.",
    )


def inspect(path: str, map: Mapping[str, str] | None = None, **options: Any) -> DataSummary:
    """Read a whole file as the task "data" would and return what was found. `options` are those of the task.

    Raises DataError when it cannot be read or holds no usable prompt, ConfigError for a wrong option.
    """
    data = Data.component.build({"path": path, "map": dict(map or {}), **options})  # type: ignore[attr-defined]
    summary, seen = DataSummary(path), set[bytes]()
    for prompt, _, shape in data._rows(summary.reject, summary):
        _, mark = data._keys(prompt)
        summary.duplicates += data.dedupe != "none" and mark in seen
        seen.add(mark)
        summary.shapes[shape] += 1
        summary.with_reference += bool(prompt.references)
        summary.example = summary.example or prompt
    if not summary.accepted:
        raise _nothing_left(summary, data.map)
    return summary
