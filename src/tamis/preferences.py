"""Answers that people have judged: pairs with a known better answer, or single answers with a known label.

Pairs: `prompt, chosen, rejected`, or `prompt, first, second, label` under their usual names (label 1 or 2, A or B), perhaps
with `critiques`. Single answers: `prompt, answer, label`. Any of them may have a `reference` and a `group`, single answers a
human `rating`. EvalBiasBench's file (a JSON object of lists) is read as it is, its lists as groups.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tamis.errors import ConfigError, DataError, nearest
from tamis.hashing import digest, rng
from tamis.judges.pairs import Pair
from tamis.records import Completion, Message, Prompt, Turn
from tamis.tasks import readers, shapes
from tamis.tasks.rows import Bad, Row, missing

FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": shapes.PROMPT_FIELDS,
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "first": ("first", "response1", "response_1", "response_a", "answer1", "answer_a", "output_1", "output_a"),
    "second": ("second", "response2", "response_2", "response_b", "answer2", "answer_b", "output_2", "output_b"),
    "answer": ("answer", "response", "completion", "output", "solution"),
    "label": ("label", "winner", "preference", "preferred", "better", "is_correct", "correct"),
    "reference": ("reference", "references", "gold", "gold_answer", "reference_answer"),
    "rating": ("rating", "human_rating", "human_score"),
    "group": ("group", "bias", "category", "subset"),
    "critiques": ("critiques",),
}
"""Roles, and the names under which fields are found when `--map` does not say otherwise; the first that is there counts."""

FIRST = {"1", "a", "first", "response1", "response_1", "response_a", "model_a", "answer1", "answer_a"}
SECOND = {"2", "b", "second", "response2", "response_2", "response_b", "model_b", "answer2", "answer_b"}
TIES = {"tie", "3", "c", "both", "equal"}
SHAPES = (
    "prompt + chosen + rejected; prompt + response1 + response2 + label (1 or 2); prompt + answer + label, each with or "
    "without reference and group"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, in the file's order; `better` is 0 where the first is the better one, else 1.

    `critiques` are what people said of them. Raises DataError for another `better`.
    """

    pair: Pair
    better: int
    critiques: tuple[str, ...] = ()
    where: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.better not in (0, 1):
            raise DataError("a pair has exactly one preferred answer", where=self.where or self.pair.prompt.id)

    def shown(self, swap: bool) -> tuple[Pair, str]:
        """Return the pair in one of its orders and the label of the better answer there."""
        return (self.pair.swapped() if swap else self.pair), "AB"[self.better != swap]

    @property
    def content(self) -> str:
        """Hash of what a judge is shown."""
        return digest(
            self.pair.prompt.messages, self.pair.prompt.references, self.pair.first.text, self.pair.second.text
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One answer with its known label, as text, and perhaps a human rating."""

    prompt: Prompt
    completion: Completion
    label: str
    rating: float | None
    group: str
    where: str

    @property
    def content(self) -> str:
        """Hash of what a judge is shown."""
        return digest(self.prompt.messages, self.prompt.references, self.completion.text)


@dataclass
class KnownAnswers:
    """What a file holds: pairs or items (never both), and the rows that were left out, each with its reason."""

    path: str
    pairs: list[Preference] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    unsampled: int = 0

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return dict(Counter(row["reason"] for row in self.rejected).most_common())

    def sample(self, n: int | None, seed: int) -> "KnownAnswers":
        """Return `n` random rows, in the file's order; all of them for None. Raises ConfigError for n < 1."""
        if n is None:
            return self
        if n < 1:
            raise ConfigError(f"--n is {n}; it must be 1 or more")
        count = len(self.pairs) + len(self.items)
        kept = sorted(rng(seed, "audit sample").permutation(count)[:n].tolist())
        pairs = [self.pairs[i] for i in kept] if self.pairs else []
        items = [self.items[i] for i in kept] if self.items else []
        return KnownAnswers(self.path, pairs, items, self.rejected, count - len(kept))


def read(path: str, mapping: Mapping[str, str] | None = None) -> KnownAnswers:
    """Return what the file at `path` holds. `mapping` gives fields of other names: role -> field ("a.b" reaches inside).

    Raises ConfigError for an unknown role, DataError for a file that cannot be read, holds no usable row, or holds pairs
    and single answers at once.
    """
    mapping = dict(mapping or {})
    for role in mapping:
        if role not in FIELDS:
            raise ConfigError(f"unknown role '{role}' in --map", hint=nearest(role, FIELDS))
    data, seen, first = KnownAnswers(path), set(), None
    for row in _rows(path):
        try:
            if isinstance(row, Bad):
                raise shapes.Unfit(row.reason, row.detail)
            first = first or row
            made = _made(row, mapping)
            key = made.content
            if key in seen:
                raise shapes.Unfit("the same row again")
        except shapes.Unfit as unfit:
            data.rejected.append({"record": row.where, "reason": unfit.reason, "detail": unfit.detail})
            continue
        seen.add(key)
        (data.items if isinstance(made, Item) else data.pairs).append(made)  # type: ignore[arg-type]
    _check(data, first, mapping)
    return data


def _rows(path: str) -> Iterator[Row | Bad]:
    for source in readers.locate(path):
        groups = _groups(source.path) if source.format == "json" else {}
        if not groups:
            yield from readers.read(source)
        for group, rows in groups.items():
            for number, fields in enumerate(rows, 1):
                yield Row(f"{source.name}:{group}[{number}]", {"group": group, **fields})


def _groups(path: str) -> dict[str, list[dict[str, Any]]]:
    """Return the lists of a JSON file that is an object of several lists of objects; nothing for other files."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # the readers say what is wrong with it
    lists = isinstance(value, dict) and len(value) > 1 and all(isinstance(v, list) for v in value.values())
    return value if lists and all(isinstance(row, dict) for rows in value.values() for row in rows) else {}


def _made(row: Row, mapping: Mapping[str, str]) -> Preference | Item:
    """Return what a row says. Raises Unfit with the reason where it says nothing that can be used."""
    found = _roles(row.fields, mapping)
    group, references = str(found.get("group", "")), tuple(map(str, _listed(found.get("reference"))))
    critiques = tuple(c for c in _listed(found.get("critiques")) if isinstance(c, str) and c.strip())
    if {"chosen", "rejected"} <= found.keys():
        parts = shapes.parts({k: found[k] for k in ("prompt", "chosen", "rejected") if k in found})
        texts = (parts.references[0], str(parts.metadata["rejected"]))
        return Preference(_pair(parts.messages, references, row.where, texts), 0, critiques, row.where, group)
    if "prompt" not in found:
        raise shapes.Unfit("fields not understood", f"no prompt among: {', '.join(map(str, row.fields))}")
    messages = shapes.parts({"prompt": found["prompt"]}).messages
    if {"first", "second"} <= found.keys():
        pair = _pair(messages, references, row.where, (_text(found, "first"), _text(found, "second")))
        return Preference(pair, _better(found), critiques, row.where, group)
    if "answer" not in found:
        raise shapes.Unfit("fields not understood", f"no answer among: {', '.join(map(str, row.fields))}")
    prompt = Prompt(messages, references, task="audit", metadata={"row": row.where})
    answer = Completion(prompt.id, (Turn("assistant", _text(found, "answer")),))
    return Item(prompt, answer, _label(found), _rating(found), group, row.where)


def _listed(value: Any) -> list[Any]:
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def _roles(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    names = {role: (mapping[role],) if role in mapping else known for role, known in FIELDS.items()}
    found = {}
    for role, known in names.items():
        values = (_reach(fields, name) for name in known)
        value = next((v for v in values if not missing(v)), None)
        if value is not None:
            found[role] = value
    return found


def _reach(fields: Mapping[str, Any], name: str) -> Any:
    return shapes.mapped(fields, {"value": name}).get("value")


def _pair(messages: tuple[Message, ...], references: tuple[str, ...], where: str, texts: tuple[str, str]) -> Pair:
    """Return the pair; the row's place in the metadata keeps pairs with the same prompt apart."""
    if texts[0].strip() == texts[1].strip():
        raise shapes.Unfit("the two answers are the same")
    prompt = Prompt(messages, references, task="audit", metadata={"row": where})
    first, second = (Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts))
    return Pair(prompt, first, second)


def _text(found: Mapping[str, Any], role: str) -> str:
    value = found[role]
    if not isinstance(value, str):
        raise shapes.Unfit(f"{role} is not text", f"found {type(value).__name__}")
    return value


def _label(found: Mapping[str, Any]) -> str:
    if "label" not in found or not str(found["label"]).strip():
        raise shapes.Unfit("no label", f"fields: {', '.join(found)}")
    return str(found["label"]).strip()


def _better(found: Mapping[str, Any]) -> int:
    said = _label(found).casefold().removesuffix(".0")
    if said in TIES:
        raise shapes.Unfit("known to be a tie")
    if said not in FIRST | SECOND:
        raise shapes.Unfit("label not understood", f"{said!r} is neither 1 (or A) nor 2 (or B)")
    return int(said in SECOND)


def _rating(found: Mapping[str, Any]) -> float | None:
    try:
        value = float(found["rating"]) if "rating" in found else None
    except (TypeError, ValueError):
        raise shapes.Unfit("rating is no number", f"{found['rating']!r}") from None
    return value if value is None or np.isfinite(value) else None


def _check(data: KnownAnswers, first: Row | None, mapping: Mapping[str, str]) -> None:
    """Raise DataError where nothing is left, or pairs stand beside single answers."""
    if data.pairs and data.items:
        raise DataError(
            f"{len(data.pairs)} rows are pairs and {len(data.items)} are single answers",
            where=data.path,
            hint=f"Split the file: the single answers begin with {data.items[0].where}.",
        )
    if data.pairs or data.items:
        return
    if first is None:
        raise DataError("there is no row in it that can be read", where=data.path, hint=_reasons(data))
    lacking = [f"'{name}'" for name in mapping.values() if _reach(first.fields, name) is None]
    advice = f"{first.where} has no {' and no '.join(lacking)}. " if lacking else ""
    what = "labels: nothing says which answer is better or right" if "no label" in data.reasons else "usable row"
    raise DataError(
        f"it has no {what} ({_reasons(data)})",
        where=data.path,
        hint=f"{advice}{first.where} has the fields {', '.join(map(str, first.fields))}. An audit takes {SHAPES}. Other names: "
        "--map label=FIELD.",
    )


def _reasons(data: KnownAnswers) -> str:
    return "; ".join(f"{reason}: {n}" for reason, n in data.reasons.items())
