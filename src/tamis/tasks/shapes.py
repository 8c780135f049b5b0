"""Shapes of rows: which fields hold the prompt, the reference answers and the rest.

Known shapes: messages (also ShareGPT's conversations with from/value), prompt/chosen/rejected, instruction/input/output, and
any pair of a prompt field and an answer field under their usual names (prompt/answer, question/answer, problem/solution...),
or a prompt field alone. A map from roles to field names overrides all of them.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tamis.errors import ConfigError, nearest
from tamis.records import Message
from tamis.tasks.rows import missing

PROMPT_FIELDS = ("prompt", "question", "instruction", "problem", "query", "input")
ANSWER_FIELDS = (
    "answer",
    "answers",
    "solution",
    "output",
    "response",
    "completion",
    "reference",
    "references",
    "target",
    "gold",
    "final_answer",
)
MESSAGE_FIELDS = ("messages", "conversations", "conversation")
ROLES = ("prompt", "input", "answer", "chosen", "rejected", "messages", "system", "id")
KNOWN = (
    "messages [{role, content}]; prompt + chosen + rejected; instruction + input + output; "
    "one of {prompt, question, instruction, problem, query, input} with or without one of "
    "{answer, solution, output, response, completion, reference, target}"
)
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


class Unfit(Exception):
    """A row that gives no prompt: `reason` is counted, `detail` written aside; `shape` says that no shape was recognised."""

    def __init__(self, reason: str, detail: str = "", *, shape: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.shape = reason, detail, shape


@dataclass(frozen=True, slots=True)
class Parts:
    """What a row says: messages up to the last user's, reference texts, the shape's name and what goes to metadata."""

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    shape: str
    metadata: dict[str, Any] = field(default_factory=dict)


def check_map(mapping: Mapping[str, str]) -> None:
    """Raise ConfigError for a map with an unknown role, or without "prompt" and "messages"."""
    for role in mapping:
        if role not in ROLES:
            raise ConfigError(f"unknown role '{role}' in map", hint=nearest(role, ROLES))
    if mapping and not {"prompt", "messages", "chosen"} & mapping.keys():
        raise ConfigError("map names no prompt", hint="Give at least {prompt: FIELD}.")


def parts(fields: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> Parts:
    """Return what a row says. Raises Unfit with the reason when it gives no prompt."""
    names = mapping or _roles(tuple([k for k, v in fields.items() if v is not None and not missing(v)]))
    found = mapped(fields, mapping) if mapping else {role: fields[name] for role, name in names.items()}
    shape = "/".join(names.values())
    metadata = {"id": found["id"]} if not missing(found.get("id")) else {}
    shape = shape.removesuffix("/id")
    if "messages" in found:
        messages, references = _from_messages(found["messages"])
    elif "chosen" in found and "rejected" in found:
        messages, references, metadata["rejected"] = _from_preference(found)
    elif "prompt" in found:
        messages, references = _messages(found["prompt"], found.get("input")), _references(found.get("answer"))
    else:
        raise Unfit("fields not understood", f"fields: {', '.join(map(str, fields)) or 'none'}", shape=True)
    if not missing(found.get("system")) and messages[0].role != "system":
        messages = (Message("system", _text(found["system"], "system prompt")), *messages)
    return Parts(messages, references, shape, metadata)


@lru_cache(maxsize=1024)
def _roles(present: tuple[str, ...]) -> dict[str, str]:
    """Return which field plays which role, from the names of the fields that hold something."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in present), None)

    roles: dict[str, str | None] = {}
    if messages := first(MESSAGE_FIELDS):
        roles["messages"] = messages
    elif "chosen" in present and "rejected" in present:
        roles = {"prompt": first(PROMPT_FIELDS), "chosen": "chosen", "rejected": "rejected"}
    else:
        prompt = first(PROMPT_FIELDS)
        extra = "input" if prompt == "instruction" and "input" in present else None
        roles = {"prompt": prompt, "input": extra, "answer": first(ANSWER_FIELDS) if prompt else None}
    roles |= {"system": first(("system", "system_prompt")), "id": first(("id",))}
    return {role: name for role, name in roles.items() if name}


def mapped(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the mapped roles; "a.b" reaches into an object. Raises Unfit without a prompt."""
    found = {}
    for role, name in mapping.items():
        value = _reach(fields, name)
        if not missing(value):
            found[role] = value
        elif role in ("prompt", "messages", "chosen"):
            raise Unfit(f"no field '{name}'", f"fields: {', '.join(map(str, fields))}", shape=True)
    return found


def _reach(fields: Mapping[str, Any], name: str) -> Any:
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def suggest(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return a map that might fit a row of no known shape: the nearest names, else the first fields that hold text."""
    texts = [k for k, v in fields.items() if isinstance(v, str | list | int | float) and not missing(v)]
    found: dict[str, str] = {}
    for role, known in (("prompt", PROMPT_FIELDS), ("answer", ANSWER_FIELDS)):
        scored = [(_closeness(name, known), -i, name) for i, name in enumerate(texts) if name not in found.values()]
        best = max(scored, default=(0.0, 0, ""))
        if best[0] >= 0.7:
            found[role] = best[2]
    free = [name for name in texts if name not in found.values() and isinstance(fields[name], str)]
    for role in ("prompt", "answer"):
        if role not in found and free:
            found[role] = free.pop(0)
    return found if "prompt" in found else {}


def _closeness(name: str, known: Sequence[str]) -> float:
    lower = name.casefold()
    inside = any(k in lower for k in known)
    return max([difflib.SequenceMatcher(None, lower, k).ratio() for k in known] + [0.9 * inside])


def _text(value: Any, what: str) -> str:
    text = value
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unfit(f"{what} is not text", f"found {type(value).__name__}")
        text = str(value)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit("not valid Unicode", f"{what}: lone surrogate at character {error.start}") from None
    return text


def _messages(prompt: Any, extra: Any) -> tuple[Message, ...]:
    if isinstance(prompt, list):
        return _from_messages(prompt)[0]
    text = _text(prompt, "prompt")
    if not missing(extra) and str(extra).strip():
        text = f"{text}\n\n{_text(extra, 'input')}"
    return (Message("user", text),)


def _from_messages(value: Any) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Return the messages up to the last user's, and the assistant's answer to it as reference."""
    if value == []:
        raise Unfit("messages are empty")
    if not isinstance(value, list):
        raise Unfit("messages are not a list", f"found {type(value).__name__}")
    messages = [_message(item) for item in value]
    references: tuple[str, ...] = ()
    if messages[-1].role == "assistant":
        references = _references(messages.pop().content)
    if not messages or messages[-1].role not in ("user", "tool"):
        raise Unfit("messages hold no user message to answer", f"roles: {', '.join(m.role for m in messages)}")
    return tuple(messages), references


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Unfit("a message is not an object", f"found {type(item).__name__}")
    speaker = item.get("role", item.get("from"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise Unfit("a message has an unknown role", f"found {speaker!r}, known: {', '.join(_SPEAKERS)}")
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = "".join(_part(p) for p in content)
    return Message(_SPEAKERS[speaker], _text("" if content is None else content, "message"))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    raise Unfit("a message holds a part that is not text", f"found {part!r:.80}")


def _from_preference(found: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...], str]:
    chosen, rejected = found["chosen"], found["rejected"]
    if isinstance(chosen, list):
        messages, references = _from_messages(chosen)
        rejected = _from_messages(rejected)[1]
        if not references or not rejected:
            raise Unfit("chosen or rejected does not end with the assistant")
        return messages if "prompt" not in found else _messages(found["prompt"], None), references, rejected[0]
    if "prompt" not in found:
        raise Unfit("fields not understood", "chosen and rejected without a prompt", shape=True)
    return _messages(found["prompt"], None), _references(chosen), _text(rejected, "rejected")


def _references(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    values = value if isinstance(value, list) else [value]
    texts = [str(v) if isinstance(v, bool) else _text(v, "answer") for v in values if not missing(v)]
    return tuple(dict.fromkeys(t for t in texts if t.strip()))


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it (dates and the like as text, NaN as null), for metadata."""
    if isinstance(value, str | int):
        return value
    if missing(value):
        return None
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except ValueError:
        return str(value)
