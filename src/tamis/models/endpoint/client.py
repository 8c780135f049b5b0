"""The client of a chat server: completions, JSON by schema and log-probabilities of labels, many requests in flight."""

import asyncio
import json
import queue
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from tamis.errors import ModelError
from tamis.hashing import derive_seed
from tamis.models.base import LabelLogprobs, ModelRef
from tamis.models.endpoint.background import Background
from tamis.models.endpoint.http import Cut, Session, Unreachable
from tamis.models.endpoint.keys import api_key
from tamis.models.endpoint.traffic import Setback, Traffic
from tamis.models.endpoint.wire import FORMS, Answer, Dialect, Question, read
from tamis.records import Completion, Cost, Law, Prompt, Turn

AHEAD = 8
"""Answers held while an earlier one is awaited, for each request in flight."""
LARGEST_HEAD = 1 << 20
LARGEST_TOKEN = 1 << 12
"""Bytes of an answer: the first at most, and the second for each token that it may have."""
ALTERNATIVES = 20


@dataclass
class _Calls:
    """The requests of one call: taken from `questions` in turn, put into `found` as they end. An exception ends it."""

    questions: Iterator[tuple[int, Question]]
    room: asyncio.Semaphore
    headers: Mapping[str, str]
    found: "queue.SimpleQueue[tuple[int, Answer | Setback] | BaseException]" = field(default_factory=queue.SimpleQueue)


class Endpoint:
    """Text model behind an OpenAI-compatible chat server.

    `ref.url` is `http(s)://host[:port]/v1#model`. `concurrency`: most requests in flight (default 16). `timeout`: seconds
    for one try, from sending to the last byte (default 300). `retries`: further tries of a request that goes wrong
    (default 5). `patience`: seconds to wait for a server that is busy or gone (default 600). See `traffic` for what counts
    as what. `errors` maps the id of each error completion (of each prompt, in `label_logprobs`) to its reason.

    Completions carry no token ids. `raw_logprobs` are what the server reports (none where it reports none), which by this
    protocol are those of the model itself; `logprobs` are given only where the law is the model's own.

    Memory: requests are made when their turn comes, and at most `AHEAD * concurrency` answers wait for an earlier one.
    Connections, the cap and what was learnt of the server are kept from call to call.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        concurrency: int = 16,
        timeout: float = 300.0,
        retries: int = 5,
        patience: float = 600.0,
    ) -> None:
        if concurrency < 1 or timeout <= 0 or retries < 0 or patience < 0:
            raise ModelError(
                "an endpoint needs concurrency >= 1, timeout > 0, retries >= 0 and patience >= 0", where=ref.url
            )
        self.ref, self.name, self.identity = ref, ref.name, ref.identity
        self.base, _, self.model = ref.url.partition("#")
        self.concurrency, self.timeout = concurrency, timeout
        self.errors: dict[str, str] = {}
        self._dialect = Dialect(self.model)
        self._traffic = Traffic(self.base, concurrency, retries, patience)

    @cached_property
    def _session(self) -> Session:
        return Session(self.base)

    @cached_property
    def _background(self) -> Background:
        background = Background(self._session.close)
        weakref.finalize(self, background.close)
        return background

    @property
    def structured(self) -> bool:
        """Whether JSON by schema may be asked for: true until the server has refused every form of it."""
        return self._dialect.form < len(FORMS)

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Fields the server was found to refuse and that are left out since ("logprobs", "seed")."""
        return tuple(sorted(self._dialect.without))

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[Completion]:
        """Yield one completion per prompt and candidate index, in that order.

        Candidate j of prompt i is asked for with the seed `derive_seed(seed, prompt.id, j) % 2**31`, where the server takes
        one. Each request's cost counts its prompt, since it is served (and billed) anew. With `schema` (a JSON schema
        whose objects require all their fields and allow no others) the text is JSON that follows it as far as the server
        can see to that: by schema, as any JSON object, or not at all (`structured`); check what comes.

        A request that fails for good gives a completion with finish reason "error" and no text. Raises ModelError for what
        concerns every request: a refused key, an unknown model, a law the server does not know, no server, and one that
        stops answering.
        """
        jobs = [(prompt, j) for prompt, wanted in zip(prompts, candidates, strict=True) for j in wanted]
        questions = (Question(p.messages, law, derive_seed(seed, p.id, j) % 2**31, schema) for p, j in jobs)
        with closing(self._outcomes(questions, len(jobs))) as outcomes:
            for (prompt, j), outcome in zip(jobs, outcomes, strict=True):
                yield self._completion(prompt, j, outcome, law, seed, sampler)

    def label_logprobs(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> LabelLogprobs:
        """Return log p(label comes next) for each prompt and label, one request of one token a prompt.

        A label's probability is the sum over the reported alternatives (at most 20) that begin this label and no other,
        white space aside: exact where each label has a first token of its own, else too small. A prompt whose request
        fails has a row of nothing seen, and its reason in `errors`. Raises ModelError for labels that are empty, double
        or begin one another, and where the server reports no alternatives.
        """
        _check_labels(labels)
        questions = (Question(p.messages, Law(max_new_tokens=1), 0, None, ALTERNATIVES) for p in prompts)
        found = np.full((len(prompts), len(labels)), -np.inf, dtype=np.float32)
        silent, answered, reason = 0, 0, ""
        with closing(self._outcomes(questions, len(prompts))) as outcomes:
            for row, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
                if isinstance(outcome, Setback):
                    self.errors[prompt.id] = reason = outcome.reason
                    continue
                answered += 1
                silent += not outcome.alternatives
                found[row] = _label_row(outcome.alternatives, labels)
        if silent == answered and (answered or "logprobs" in reason):
            raise ModelError(
                f"the server reports no log-probabilities of alternatives for model '{self.model}'",
                where=self.base,
                hint="Take a judge that reads the text, or a server that knows top_logprobs (vLLM, llama.cpp, OpenAI).",
            )
        return LabelLogprobs(found, np.isfinite(found))

    def _completion(
        self, prompt: Prompt, j: int, outcome: Answer | Setback, law: Law, seed: int, sampler: str
    ) -> Completion:
        answer = Answer("", "error", (), Cost()) if isinstance(outcome, Setback) else outcome
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
        if isinstance(outcome, Setback):
            self.errors[completion.id] = outcome.reason
        return completion

    def _outcomes(self, questions: Iterable[Question], total: int) -> Generator[Answer | Setback, None, None]:
        """Yield the outcome of each question in their order, while later ones are on their way."""
        calls = _Calls(enumerate(questions), asyncio.Semaphore(AHEAD * self.concurrency), _headers())
        early: dict[int, Answer | Setback] = {}
        with self._background.running(self._ask_all(calls, min(total, self.concurrency))):
            for number in range(total):
                while number not in early:
                    item = calls.found.get()
                    if isinstance(item, BaseException):
                        raise item
                    early[item[0]] = item[1]
                self._background.call(calls.room.release)
                yield early.pop(number)

    async def _ask_all(self, calls: _Calls, workers: int) -> None:
        self._traffic.begin()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._ask_in_turn(calls))
        except BaseExceptionGroup as failures:
            calls.found.put(failures.exceptions[0])

    async def _ask_in_turn(self, calls: _Calls) -> None:
        try:
            while await calls.room.acquire():
                number, question = next(calls.questions, (0, None))
                if question is None:
                    return
                outcome = await self._traffic.persist(partial(self._once, calls.headers, question))
                calls.found.put((number, outcome))
        finally:
            calls.room.release()

    async def _once(self, headers: Mapping[str, str], question: Question) -> Answer | Setback:
        """Ask once, and once more for each field that the server is found not to know."""
        limit = LARGEST_HEAD + LARGEST_TOKEN * question.law.max_new_tokens
        while True:
            payload = self._dialect.payload(question)
            try:
                async with asyncio.timeout(self.timeout):
                    body = json.dumps(payload).encode()
                    response = await self._session.request("POST", "/chat/completions", headers, body, limit)
            except TimeoutError:
                return Setback(f"no answer within {self.timeout:g} s", crowded=True, silent=True)
            except Unreachable as error:
                return Setback(str(error), away=True, reached=False)
            except Cut as error:
                return Setback(str(error))
            if 200 <= response.status < 300:
                return read(response)
            if not self._dialect.learn(response, payload):
                return self._dialect.setback(response, payload, self.base)


def _headers() -> dict[str, str]:
    key = api_key()
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def _check_labels(labels: Sequence[str]) -> None:
    for i, label in enumerate(labels):
        other = next((b for j, b in enumerate(labels) if i != j and b.startswith(label)), None)
        if not label or label != label.strip() or other is not None:
            what = "is empty or begins or ends with white space" if other is None else f"begins the label '{other}'"
            raise ModelError(f"the label '{label}' {what}", hint="Take labels such as A, B and C.")


def _label_row(alternatives: Sequence[tuple[str, float]], labels: Sequence[str]) -> np.ndarray:
    """Return (labels,) log-probabilities: the sum over the tokens that begin this label and no other."""
    sums = np.zeros(len(labels))
    for token, logprob in alternatives:
        begun = [i for i, label in enumerate(labels) if token.strip() and label.startswith(token.strip())]
        if len(begun) == 1:
            sums[begun[0]] += np.exp(logprob)
    with np.errstate(divide="ignore"):
        return np.log(sums)
