"""A client for any OpenAI-compatible chat server (vLLM, llama.cpp, Ollama, hosted services), capability "text".

Candidates are separate requests, many in flight. Every (prompt, candidate) ends in exactly one completion: a request that
fails for good gives one with finish reason "error" and no text, and its reason in `Endpoint.errors`. What no retry can
mend (a refused key, an unknown model, no server at all) stops the call with a ModelError instead.

The key comes from TAMIS_API_KEY or OPENAI_API_KEY and appears in no error, record or log.
"""

import asyncio
import os
import queue
import random
import re
import threading
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import numpy as np

from tamis.errors import ModelError
from tamis.hashing import derive_seed, digest
from tamis.models.base import ModelRef
from tamis.records import Completion, Cost, Law, Prompt, Turn

KEYS = ("TAMIS_API_KEY", "OPENAI_API_KEY")
FATAL = frozenset({401, 402, 403, 404, 405})
PASSING = frozenset({408, 409, 425, 429})
DROPPABLE = ("seed", "logprobs")
"""Fields that change no law: left out for a server that refuses them."""
REPORTED = ("id", "root", "parent", "owned_by", "max_model_len", "meta", "system_fingerprint")
"""What of a server's /models entry enters the identity: nothing that changes from call to call."""
UNKNOWN_MODEL = re.compile(r"model_not_found|unknown model|model.{0,100}(not found|not exist)", re.IGNORECASE)
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Back-off in seconds: doubles from the first to the longest, with jitter; Retry-After is obeyed up to `timeout`."""


class _Passing(Exception):
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Unreachable(_Passing):
    """No connection could be made at all."""


class _Refused(Exception):
    """The server refuses this one request for good."""


@dataclass
class _Answer:
    text: str = ""
    finish: str = "error"
    logprobs: tuple[float, ...] = ()
    cost: Cost = Cost()
    error: str = ""


@dataclass
class _Dialect:
    """What the server was found not to understand, learnt from its refusals."""

    without: set[str] = field(default_factory=set)
    limit_field: str = "max_tokens"


class Endpoint:
    """Text model behind an OpenAI-compatible chat server.

    `ref.url` is `http(s)://host[:port]/v1#model`. `concurrency`: requests in flight (default 16). `timeout`: seconds for
    one request (default 120). `retries`: further tries after the first on 429 (Retry-After is obeyed), 5xx, time-outs, cut
    connections and answers that are not JSON (default 5), with doubling waits. `errors` maps the id of each error
    completion to its reason.

    Completions carry no token ids. `raw_logprobs` are what the server reports (none where it reports none), which by this
    protocol are those of the model itself; `logprobs` are given only where the law is the model's own.
    """

    def __init__(self, ref: ModelRef, *, concurrency: int = 16, timeout: float = 120.0, retries: int = 5) -> None:
        if concurrency < 1 or timeout <= 0 or retries < 0:
            raise ModelError("an endpoint needs concurrency >= 1, timeout > 0 and retries >= 0", where=ref.url)
        self.ref, self.name, self.identity = ref, ref.name, ref.identity
        self.base, _, self.model = ref.url.partition("#")
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.errors: dict[str, str] = {}
        self._dialect = _Dialect()

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
    ) -> Iterator[Completion]:
        """Yield one completion per prompt and candidate index, in that order.

        Candidate j of prompt i is asked for with the seed `derive_seed(seed, prompt.id, j) % 2**31`, where the server takes
        one. Each request's cost counts its prompt, since it is served (and billed) anew. Raises ModelError for a refused
        key, an unknown model, a law the server does not know, and when no server answers.
        """
        jobs = [(prompt, j) for prompt, wanted in zip(prompts, candidates, strict=True) for j in wanted]
        with closing(self._answers(jobs, law, seed)) as answers:
            for (prompt, j), answer in zip(jobs, answers, strict=True):
                yield self._completion(prompt, j, answer, law, seed, sampler)

    def _completion(self, prompt: Prompt, j: int, answer: _Answer, law: Law, seed: int, sampler: str) -> Completion:
        plain = law.temperature == 1.0 and law.top_p == 1.0 and not law.top_k and not law.min_p
        completion = Completion(
            prompt_id=prompt.id,
            turns=(Turn("assistant", answer.text),),
            index=j,
            logprobs=answer.logprobs if plain else (),
            raw_logprobs=answer.logprobs,
            finish_reason=answer.finish,
            model=self.identity,
            sampler=sampler,
            law=law,
            seed=seed,
            cost=answer.cost,
        )
        if answer.error:
            self.errors[completion.id] = answer.error
        return completion

    def _answers(self, jobs: Sequence[tuple[Prompt, int]], law: Law, seed: int) -> Generator[_Answer, None, None]:
        """Yield the answers in the order of the jobs, while later ones are on their way."""
        answers: queue.Queue[_Answer | BaseException] = queue.Queue()
        with _background(self._ask_all(jobs, law, seed, answers)):
            for _ in jobs:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer

    async def _ask_all(
        self,
        jobs: Sequence[tuple[Prompt, int]],
        law: Law,
        seed: int,
        answers: "queue.Queue[_Answer | BaseException]",
    ) -> None:
        gate = asyncio.Semaphore(self.concurrency)
        try:
            async with _client(self.timeout, self.concurrency) as client, asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(client, gate, prompt, j, law, seed)) for prompt, j in jobs]
                for task in asked:
                    answers.put(await task)
        except BaseExceptionGroup as failures:
            answers.put(failures.exceptions[0])
        except Exception as error:
            answers.put(error)

    async def _ask(self, client: Any, gate: asyncio.Semaphore, prompt: Prompt, j: int, law: Law, seed: int) -> _Answer:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        tries = AsyncRetrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=self._wait,
            retry=retry_if_exception_type(_Passing),
            reraise=True,
        )
        async with gate:
            try:
                return await tries(self._once, client, prompt, law, derive_seed(seed, prompt.id, j) % 2**31)
            except _Unreachable as failure:
                raise ModelError(
                    f"no server answers ({failure}; {self.retries + 1} tries)",
                    where=self.base,
                    hint="Start the server, or check host, port and path of the URL (it usually ends in /v1).",
                ) from None
            except _Passing as failure:
                return _Answer(error=f"{failure} ({self.retries + 1} tries)")
            except _Refused as failure:
                return _Answer(error=str(failure))

    def _wait(self, state: Any) -> float:
        failure = state.outcome.exception()
        if isinstance(failure, _Passing) and failure.wait is not None:
            return min(failure.wait, self.timeout)
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (state.attempt_number - 1))
        return longest * random.uniform(0.5, 1.0)

    async def _once(self, client: Any, prompt: Prompt, law: Law, seed: int) -> _Answer:
        import httpx

        while True:
            payload = self._payload(prompt, law, seed)
            try:
                async with asyncio.timeout(self.timeout):
                    response = await client.post(f"{self.base}/chat/completions", json=payload)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise _Unreachable(type(error).__name__) from None
            except (TimeoutError, httpx.TimeoutException):
                raise _Passing(f"no answer within {self.timeout:g} s") from None
            except httpx.RequestError as error:
                raise _Passing(f"the connection was cut ({type(error).__name__})") from None
            if response.is_success:
                return _read_answer(response)
            if not self._learn(response, payload):
                self._refuse(response, payload)

    def _payload(self, prompt: Prompt, law: Law, seed: int) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "temperature": law.temperature,
            "top_p": law.top_p,
            self._dialect.limit_field: law.max_new_tokens,
            "seed": seed,
            "logprobs": True,
        }
        optional = {"stop": list(law.stop), "top_k": law.top_k, "min_p": law.min_p}
        payload |= {name: value for name, value in optional.items() if value}
        return {name: value for name, value in payload.items() if name not in self._dialect.without}

    def _learn(self, response: Any, payload: dict[str, Any]) -> bool:
        """Note a field that the server does not understand; return whether asking again makes sense."""
        if response.status_code not in (400, 422):
            return False
        said = _said(response)
        if _names(said, "max_completion_tokens") and "max_tokens" in payload:
            self._dialect.limit_field = "max_completion_tokens"
            return True
        named = next((name for name in DROPPABLE if name in payload and _names(said, name)), None)
        if named:
            self._dialect.without.add(named)
        return named is not None

    def _refuse(self, response: Any, payload: dict[str, Any]) -> NoReturn:
        """Raise what a response other than success means."""
        status, said = response.status_code, _said(response)
        if status in PASSING or status >= 500:
            raise _Passing(f"HTTP {status}: {said}", _retry_after(response))
        unknown = next((name for name in ("top_k", "min_p") if name in payload and _names(said, name)), None)
        if status in FATAL or status < 400 or unknown or UNKNOWN_MODEL.search(said):
            raise ModelError(
                f"the request for model '{self.model}' was refused with HTTP {status}: {said}",
                where=self.base,
                hint=_advice(status, unknown, self.base),
            )
        raise _Refused(f"HTTP {status}: {said}")

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Fields the server was found to refuse and that are left out since ("seed", "logprobs")."""
        return tuple(sorted(self._dialect.without))


def endpoint_identity(base: str, model: str) -> str:
    """Return the digest of URL, model name and what the server's /models says of that model (nothing when unreachable)."""
    return digest("endpoint", base, model, _reported(base, model))


def _reported(base: str, model: str) -> dict[str, Any]:
    import httpx

    try:
        response = httpx.get(f"{base}/models", headers=_headers(), timeout=3.0)
        rows = response.json()["data"] if response.is_success else []
        row: dict[str, Any] = next((row for row in rows if row.get("id") == model), {})
        return {name: row[name] for name in REPORTED if name in row}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def api_key() -> str:
    """Return the key from the environment, "" without one. Raises ModelError for one that no header can carry."""
    for variable in KEYS:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"the key in {variable} has characters that no key has", hint="Set it again.")
        if key:
            return key
    return ""


def _headers() -> dict[str, str]:
    key = api_key()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _client(timeout: float, concurrency: int) -> Any:
    import httpx

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx.AsyncClient(timeout=timeout, limits=limits, headers=_headers())


def _read_answer(response: Any) -> _Answer:
    """Return the text, why it ended, log-probabilities and cost. Raises _Passing when the body is not what it should be."""
    try:
        body = response.json()
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        usage = body.get("usage") or {}
        cost = Cost(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Passing(f"the answer is not a chat completion ({type(error).__name__})") from None
    if not isinstance(text, str) or finish == "content_filter":
        return _Answer(cost=cost, error=f"the server gave no text (finish reason {finish})")
    finish = "length" if finish == "length" else "stop"
    return _Answer(text, finish, _read_logprobs(choice), cost)


def _read_logprobs(choice: dict[str, Any]) -> tuple[float, ...]:
    try:
        values = [token["logprob"] for token in choice["logprobs"]["content"]]
        return tuple(np.asarray(values, dtype=np.float32).tolist())
    except (KeyError, TypeError, ValueError):
        return ()


def _said(response: Any) -> str:
    """Return what the server says of a failure, short and without the key."""
    try:
        body = response.json()
        error = body.get("error", body)
        said = " ".join(str(error[k]) for k in ("message", "detail", "code") if error.get(k))
    except (ValueError, AttributeError, TypeError):
        said = ""
    said = " ".join((said or response.text or response.reason_phrase).split())
    key = api_key()
    return (said.replace(key, "[key]") if key else said)[:300]


def _names(said: str, field: str) -> bool:
    return re.search(rf"\b{field}\b", said) is not None


def _retry_after(response: Any) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date)."""
    given = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _advice(status: int, unknown: str | None, base: str) -> str:
    if unknown:
        return f"This server does not know {unknown}; leave it out of the sampler's options."
    if status in (401, 402, 403):
        return f"Set the right key in the environment: {' or '.join(KEYS)}."
    if status < 400:
        return "The server redirects; name the address it redirects to."
    return f"Check the name after # in the endpoint: GET {base}/models lists those the server has."


@contextmanager
def _background(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Run a coroutine on an event loop of its own thread (so that callers inside a loop, as notebooks, can wait for it)."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
