"""What goes over the wire: a question as JSON in the server's dialect, its answer as plain data, its refusals sorted."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from tamis.errors import ModelError
from tamis.models.endpoint.http import Response
from tamis.models.endpoint.keys import SHORTEST_SECRET, VARIABLES, redact
from tamis.models.endpoint.traffic import Setback
from tamis.records import Cost, Law, Message

FATAL = frozenset({401, 402, 403, 404, 405})
AWAY = frozenset({429, 502, 503, 504, 529})
CROWDED = frozenset({429, 503, 529})
AGAIN = frozenset({408, 409, 425})
DROPPABLE = ("seed", "top_logprobs", "logprobs")
"""Fields that change no law: left out for a server that refuses them."""
UNKNOWN_MODEL = re.compile(r"model_not_found|unknown model|model.{0,100}(not found|not exist)", re.IGNORECASE)
NO_MONEY = re.compile(r"insufficient_quota|exceeded your current quota|billing", re.IGNORECASE)
UNSAFE = re.compile(r"moderat|flagged|content.?(policy|filter)", re.IGNORECASE)
SCHEMA_WORDS = re.compile(r"response_format|json_schema|json_object|schema|grammar|guided|structured", re.IGNORECASE)
REFUSED = (
    r"unknown|un-?supported|not (?:currently )?support|unrecogni[sz]ed|unexpected|extra[ _]|not (?:permitted|allowed|known)"
    r"|not (?:implemented|available|enabled)|forbidden|does(?:n't| not) (?:support|know|accept|recogni[sz]e)|disabled|\bno\b"
    r"|not (?:a )?valid|invalid (?:parameter|field|argument|option)|must be|at most|exceed|out of range"
)
"""How servers say that they do not know a field, or not that much of it."""
REPEATED = re.compile(r"""["']\w+["']\s*:\s*(?=["'\[{]|-?\d|true|false|null|none)""", re.IGNORECASE)
"""A key of JSON (or of a Python dict) with its value, as in a request that a server sends back."""
FEW_ALTERNATIVES = 5
"""Top log-probabilities asked of a server that refuses the usual 20."""
LARGEST_COUNT = 2**31
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One request: `alternatives` > 0 asks for that many top log-probabilities of each token."""

    messages: tuple[Message, ...]
    law: Law
    seed: int
    schema: Mapping[str, Any] | None = None
    alternatives: int = 0


@dataclass(frozen=True)
class Answer:
    """A chat completion. `alternatives`: token text and log-probability of the likeliest first tokens."""

    text: str
    finish: str
    logprobs: tuple[float, ...]
    cost: Cost
    alternatives: tuple[tuple[str, float], ...] = ()


def _by_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


FORMS = (_by_schema, lambda schema: {"type": "json_object", "schema": schema}, lambda schema: {"type": "json_object"})
"""Ways to ask for JSON, the strictest first: OpenAI and vLLM; llama.cpp and others; any JSON object."""


@dataclass
class Dialect:
    """What the server was found not to understand, learnt from its refusals."""

    model: str
    without: set[str] = field(default_factory=set)
    limit_field: str = "max_tokens"
    form: int = 0
    most_alternatives: int = 20

    def payload(self, question: Question) -> dict[str, Any]:
        """Return the request's JSON."""
        law = question.law
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in question.messages],
            "temperature": law.temperature,
            "top_p": law.top_p,
            self.limit_field: law.max_new_tokens,
            "seed": question.seed,
            "logprobs": True,
            "top_logprobs": min(question.alternatives, self.most_alternatives),
            "stop": list(law.stop),
            "top_k": law.top_k,
            "min_p": law.min_p,
        }
        if question.schema is not None and self.form < len(FORMS):
            payload["response_format"] = FORMS[self.form](question.schema)
        without = self.without | ({"top_logprobs"} if "logprobs" in self.without else set())
        optional = ("stop", "top_k", "min_p")
        return {k: v for k, v in payload.items() if k not in without and (v or k not in optional)}

    def learn(self, response: Response, payload: Mapping[str, Any]) -> bool:
        """Note a field that the server does not understand; return whether asking anew makes sense.

        What counts is what it says of a field, not that it repeats the request. A field left out is told once, in the log.
        """
        text = complaint(response)
        invalid = response.status == 500 and "validation error" in text  # llama-cpp-python's server
        if response.status not in (400, 422) and not invalid:
            return False
        if re.search(r"\bmax_completion_tokens\b", text) and "max_tokens" in payload:
            self.limit_field = "max_completion_tokens"
            return True
        if "response_format" in payload and SCHEMA_WORDS.search(text):
            form = payload["response_format"]
            self.form += self.form < len(FORMS) and FORMS[self.form](_schema_of(form)) == form
            return True
        asked = payload.get("top_logprobs", 0)
        if asked and _refuses(text, "top_logprobs"):
            self.most_alternatives = min(self.most_alternatives, FEW_ALTERNATIVES)
            return asked > FEW_ALTERNATIVES
        droppable = [name for name in DROPPABLE if name in payload and not (asked and name.endswith("logprobs"))]
        named = next((name for name in droppable if _refuses(text, name)), None)
        if named and named not in self.without:
            self.without.add(named)
            _LOGGER.warning("the server does not take '%s': it is left out from here on (%s)", named, said(response))
        return named is not None

    def setback(self, response: Response, payload: Mapping[str, Any], base: str) -> Setback:
        """Return what a response other than success means. Raises ModelError where it concerns every request."""
        status, text = response.status, said(response)
        reason, complained = f"HTTP {status}: {text}", complaint(response)
        if status == 403 and UNSAFE.search(text):
            return Setback(reason, final=True)
        poor = status == 429 and NO_MONEY.search(text)
        unknown = next((name for name in ("top_k", "min_p") if name in payload and _refuses(complained, name)), None)
        if status < 500 and (status in FATAL or status < 400 or poor or unknown or UNKNOWN_MODEL.search(text)):
            raise ModelError(
                f"the request for model '{self.model}' was refused with {reason}",
                where=base,
                hint=_advice(response, unknown, base),
            )
        if status >= 500 or status in AWAY or status in AGAIN:
            return Setback(reason, retry_after(response), away=status in AWAY, crowded=status in CROWDED)
        return Setback(reason, final=True)


def _schema_of(form: Mapping[str, Any]) -> Any:
    return form.get("json_schema", form).get("schema")


def read(response: Response) -> Answer | Setback:
    """Return the text, why it ended, log-probabilities and cost of a successful response, or why there are none."""
    try:
        body = json.loads(response.body)
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, usage = _text(message["content"]), body.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        kind = response.headers.get("content-type", "no content type")
        page = not response.body.strip() or response.body.lstrip().startswith(b"<")
        advice = f"; check the URL: it usually ends in /v1 (HTTP {response.status})" if page else ""
        return Setback(redact(f"the answer is not a chat completion ({type(error).__name__}, {kind[:80]}){advice}"))
    if finish in ("error", "abort"):
        return Setback(f"the server broke the answer off (finish reason {finish})")
    if not isinstance(text, str) or finish == "content_filter":
        tool = ", it calls a tool" if message.get("tool_calls") else ""
        return Setback(redact(f"the server gave no text (finish reason {str(finish)[:80]}{tool})"), final=True)
    ended = "length" if finish == "length" else "stop"
    counts = usage if isinstance(usage, dict) else {}
    cost = Cost(_count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens")))
    return Answer(whole(redact(text, SHORTEST_SECRET)), ended, _logprobs(choice), cost, _alternatives(choice))


def _text(content: Any) -> Any:
    """Return the content of a message; the texts joined where it is a list of parts that holds some."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the log-probability of each token; nothing unless every one is a number a file can hold."""
    try:
        values = np.asarray([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
    except (LookupError, TypeError, ValueError, OverflowError):
        return ()
    return tuple(values.tolist()) if values.ndim == 1 and np.isfinite(values).all() else ()


def _alternatives(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return text and log-probability of the likeliest first tokens, as far as they are reported."""
    try:
        rows = choice["logprobs"]["content"][0].get("top_logprobs") or ()
        return tuple((str(row["token"]), float(row["logprob"])) for row in rows if float(row["logprob"]) <= 0.0)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return ()


def _count(value: Any) -> int:
    """Return a number of tokens, 0 for what cannot be one."""
    return value if type(value) is int and 0 <= value < LARGEST_COUNT else 0


def whole(text: str) -> str:
    """Return text with halves of characters (lone surrogates, which no file can hold) replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def said(response: Response) -> str:
    """Return what the server says of a failure, in at most 300 characters and without the key."""
    raw = redact(response.body.decode("utf-8", "replace"))
    text = ""
    try:
        body = json.loads(raw)
        error = body.get("error", body)
        text = " ".join(str(error[k]) for k in ("message", "detail", "code") if error.get(k))
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    return redact(whole(" ".join((text or raw).split())))[:300]


def complaint(response: Response) -> str:
    """Return what the server says is wrong, without the values and the parts of the request that it repeats."""
    raw = response.body.decode("utf-8", "replace")
    try:
        body = json.loads(raw)
        error = body.get("error", body) if isinstance(body, dict) else body
        rows = error if isinstance(error, str) else _rows(error)
        raw = rows if isinstance(rows, str) else ". ".join(rows)
    except (ValueError, RecursionError):
        pass
    return REPEATED.sub(" ", " ".join(raw.split()))


def _rows(error: Any) -> list[str]:
    """Return what each complaint is about and what it says: OpenAI's `param` and `message`, pydantic's `loc` and `msg`."""
    if not isinstance(error, dict):
        return []
    detail = error.get("detail")
    listed = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    rows = [f"{row.get('loc')}: {row.get('msg')}" for row in listed]
    plain = [error.get(name) for name in ("param", "message", "error", "detail", "code")]
    return [*rows, ": ".join(value for value in plain if isinstance(value, str))]


def _refuses(text: str, name: str) -> bool:
    """Whether one sentence says that the field is not known, or not that much of it."""
    found = rf"(?:{REFUSED})[^.;]{{0,40}}\b{name}\b|\b{name}\b[^.;]{{0,60}}(?:{REFUSED})"
    return re.search(found, text, re.IGNORECASE) is not None


def retry_after(response: Response) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date), None without one."""
    given = response.headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _advice(response: Response, unknown: str | None, base: str) -> str:
    if unknown:
        return f"This server does not know {unknown}; leave it out of the sampler's options."
    if response.status in (401, 402, 403):
        return f"Set the right key in the environment: {' or '.join(VARIABLES)}."
    if response.status == 429:
        return "The account has no credit left. When it has, run the same command: the run goes on where it stopped."
    if response.status < 400:
        to = redact(response.headers.get("location", "another address"))[:200]
        return f"The server redirects to {to}; name the address it redirects to."
    return f"Check the name after # in the endpoint: GET {base}/models lists those the server has."
