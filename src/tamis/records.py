"""The nouns that flow through a run: Prompt, Completion, Verdict, Example, each with a fixed Arrow schema.

Records are frozen. Ids are content hashes, made on construction: the same content has the same id on every machine.
Costs held by records are deterministic counts; wall-clock seconds live in a stage's ledger, so that an interrupted
and resumed run stores the same bytes as an unbroken one.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import accumulate, chain
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from tamis.hashing import canonical, digest

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("by", pa.string())])
LAW = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int64()),
        ("min_p", pa.float64()),
        ("max_new_tokens", pa.int64()),
        ("stop", pa.list_(pa.string())),
    ]
)
COST = pa.struct(
    [(n, pa.int64()) for n in ("prompt_tokens", "sampled_tokens", "judge_calls", "trained_tokens")]
    + [("seconds", pa.float64())]
)
TARGET = pa.struct(
    [
        ("messages", pa.list_(MESSAGE)),
        ("ended", pa.bool_()),
        ("target_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("weights", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a completion, written by the model or by the world (an environment, a retriever)."""

    role: str
    content: str
    by: Literal["model", "world"] = "model"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a record, a stage or a run has spent. Costs add."""

    prompt_tokens: int = 0
    sampled_tokens: int = 0
    judge_calls: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*[getattr(self, name) + getattr(other, name) for name in _names(Cost)])


@dataclass(frozen=True, slots=True)
class Law:
    """The law a completion is drawn from: temperature (0 = greedy), truncations, length limit and stop strings.

    Truncations apply in the order temperature, top_k, top_p, min_p; 1.0, 0 and 0.0 switch them off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()


class Record:
    """Shared behaviour of the four record kinds: content id, row form and Arrow table."""

    __slots__ = ()
    schema: ClassVar[pa.Schema]
    not_in_id: ClassVar[frozenset[str]] = frozenset({"id", "cost"})

    def _set_id(self) -> None:
        if not self.id:  # type: ignore[attr-defined]
            content = {name: getattr(self, name) for name in _names(type(self)) if name not in self.not_in_id}
            object.__setattr__(self, "id", digest(type(self).__name__, content))

    def to_row(self) -> dict[str, Any]:
        """Return the record as a plain dictionary that fits `schema` (mappings become JSON text)."""
        return to_table([self], type(self)).to_pylist()[0]


_names: Callable[[Any], tuple[str, ...]] = cache(lambda kind: tuple(f.name for f in fields(kind)))


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """What a model is asked. `references` are gold answers or solutions as the data gives them.

    `split` is "train" or "heldout"; `source` is "file:line" of the row it came from. Neither is part of the id.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    source: str = ""
    cost: Cost = Cost()
    id: str = ""

    not_in_id: ClassVar[frozenset[str]] = frozenset({"id", "cost", "split", "source"})
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("messages", pa.list_(MESSAGE)),
            ("references", pa.list_(pa.string())),
            ("task", pa.string()),
            ("metadata", pa.string()),
            ("split", pa.string()),
            ("source", pa.string()),
            ("cost", COST),
            ("id", pa.string()),
        ]
    )

    def __post_init__(self) -> None:
        self._set_id()

    @property
    def text(self) -> str:
        """The last user message."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Completion(Record):
    """What a model answered.

    `token_ids` are the sampled tokens, the end token included where it was sampled. `logprobs` are their log-probabilities
    under the law that was sampled from, `raw_logprobs` under the model itself (temperature 1, no truncation); both natural
    logarithms, both empty where the model does not give them. `finish_reason` is "stop" (the model ended or a stop string
    was met), "length" (cut at `max_new_tokens`) or "error". `index` is the candidate number within the prompt. `asked` are the
    messages that the model saw where they are not the prompt's own; `metadata` is plain data that a sampler tells of it.
    """

    prompt_id: str
    turns: tuple[Turn, ...]
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    raw_logprobs: tuple[float, ...] = ()
    artifacts: tuple[str, ...] = ()
    finish_reason: str = "stop"
    model: str = ""
    sampler: str = ""
    law: Law = Law()
    seed: int = 0
    asked: tuple[Message, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()
    id: str = ""

    not_in_id: ClassVar[frozenset[str]] = frozenset({"id", "cost", "logprobs", "raw_logprobs"})
    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("turns", pa.list_(TURN)),
            ("index", pa.int64()),
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),
            ("raw_logprobs", pa.list_(pa.float32())),
            ("artifacts", pa.list_(pa.string())),
            ("finish_reason", pa.string()),
            ("model", pa.string()),
            ("sampler", pa.string()),
            ("law", LAW),
            ("seed", pa.int64()),
            ("asked", pa.list_(MESSAGE)),
            ("metadata", pa.string()),
            ("cost", COST),
            ("id", pa.string()),
        ]
    )

    def __post_init__(self) -> None:
        self._set_id()

    @property
    def text(self) -> str:
        """All that the model wrote, turns joined by a line break."""
        return "\n".join(t.content for t in self.turns if t.by == "model")


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """What a judge said of one completion (or of two, for a pairwise judge).

    `score` is None where the judge gives none or could not be understood: a parse failure is never 0 and never 1, it has a
    `label` of its own ("unparseable_answer", "unparseable_gold", "unparseable_verdict"...).
    """

    prompt_id: str
    completion_ids: tuple[str, ...]
    judge: str
    score: float | None = None
    label: str = ""
    probability: float | None = None
    rationale: str = ""
    cost: Cost = Cost()
    id: str = ""

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("completion_ids", pa.list_(pa.string())),
            ("judge", pa.string()),
            ("score", pa.float64()),
            ("label", pa.string()),
            ("probability", pa.float64()),
            ("rationale", pa.string()),
            ("cost", COST),
            ("id", pa.string()),
        ]
    )

    def __post_init__(self) -> None:
        self._set_id()


@dataclass(frozen=True, slots=True)
class Target:
    """A conversation to train on; the last message is the assistant's.

    `ended`: the end of the last turn is trained (False for a cut prefix or a truncated completion). `target_ids`: the exact
    tokens of the last assistant message without its end token; empty means: tokenise the text. `token_ids` and `weights`
    (same length) are filled by `models.chat.ChatFormat.render`: `weights[i]` is the loss weight of predicting
    `token_ids[i]` from all tokens before it, so `weights[0]` is always 0.
    """

    messages: tuple[Message, ...]
    ended: bool = True
    target_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Example(Record):
    """What is trained on. `kind` tells which fields are used.

    sft: `target`. preference: `target` (chosen), `rejected`, `margin`. rollout: `target`, `reward`, `behaviour_logprobs`
    (one per trained token). distill: `target`, `teacher_ids` and `teacher_logprobs` (per trained token, top-k).
    `weight` multiplies the example's token weights. `sources` are ids of the completions and verdicts it came from.
    """

    kind: Literal["sft", "preference", "rollout", "distill"]
    prompt_id: str
    target: Target
    rejected: Target | None = None
    margin: float | None = None
    reward: float | None = None
    behaviour_logprobs: tuple[float, ...] = ()
    teacher_ids: tuple[tuple[int, ...], ...] = ()
    teacher_logprobs: tuple[tuple[float, ...], ...] = ()
    weight: float = 1.0
    sources: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()
    id: str = ""

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("kind", pa.string()),
            ("prompt_id", pa.string()),
            ("target", TARGET),
            ("rejected", TARGET),
            ("margin", pa.float64()),
            ("reward", pa.float64()),
            ("behaviour_logprobs", pa.list_(pa.float32())),
            ("teacher_ids", pa.list_(pa.list_(pa.int32()))),
            ("teacher_logprobs", pa.list_(pa.list_(pa.float32()))),
            ("weight", pa.float64()),
            ("sources", pa.list_(pa.string())),
            ("metadata", pa.string()),
            ("cost", COST),
            ("id", pa.string()),
        ]
    )

    def __post_init__(self) -> None:
        self._set_id()


def to_table(records: Sequence[R], kind: type[R]) -> pa.Table:
    """Return the records as an Arrow table of `kind.schema` (also for no records)."""
    columns = [_array([getattr(r, f.name) for r in records], f.type) for f in kind.schema]
    return pa.Table.from_arrays(columns, schema=kind.schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return the values of a field, or of one inside a field, as Arrow holds them."""
    if pa.types.is_struct(kind):
        columns = [_array([getattr(v, f.name, None) for v in values], f.type) for f in kind]
        absent = pa.array([v is None for v in values], pa.bool_())
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=absent)
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        lists = [v or () for v in values]
        offsets = pa.array(accumulate(map(len, lists), initial=0), pa.int32())
        return pa.ListArray.from_arrays(offsets, _array(list(chain.from_iterable(lists)), kind.value_type))
    if values and isinstance(values[0], Mapping):
        values = [canonical(dict(v)) for v in values]
    return pa.array(values, kind)


def from_table(table: pa.Table, kind: type[R]) -> list[R]:
    """Return the records held by an Arrow table made by `to_table`."""
    hints = get_type_hints(kind)
    columns = []
    for name in _names(kind):
        make, values = _maker(hints[name]), table.column(name).to_pylist()
        columns.append(values if make is None else [None if value is None else make(value) for value in values])
    return [kind(*row) for row in zip(*columns, strict=True)]


@cache
def _maker(hint: Any) -> Callable[[Any], Any] | None:
    """Return what makes a value of type `hint` from what Arrow holds; None where that is the value already."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Mapping:
        return json.loads
    if is_dataclass(hint):
        struct: Any = hint
        makers = {name: _maker(inner) for name, inner in get_type_hints(hint).items() if name in _names(hint)}
        return lambda row: struct(
            **{n: row[n] if m is None or row[n] is None else m(row[n]) for n, m in makers.items()}
        )
    if origin is tuple:
        make = _maker(arguments[0])
        return tuple if make is None else lambda row: tuple(map(make, row))
    return _maker(arguments[0]) if type(None) in arguments else None


RECORD_KINDS: dict[str, type[Record]] = {
    "prompts": Prompt,
    "completions": Completion,
    "verdicts": Verdict,
    "examples": Example,
}


def total_cost(records: Iterable[Any]) -> Cost:
    """Return the sum of the records' costs."""
    costs = [record.cost for record in records]
    return Cost(*[sum([getattr(cost, name) for cost in costs], getattr(Cost(), name)) for name in _names(Cost)])
