"""How many requests are in flight, when a failed one is tried again, and when the server is given up.

Three kinds of setback are told apart:

- **the server is busy or away** (429, 502, 503, 504, 529, no connection): says nothing of the request, which waits and is
  asked again for up to `patience` seconds. If nothing was answered in the later half of them, the call ends with a
  ModelError, so that the run stops and can go on later; if others were, this request alone has failed. A Retry-After
  beyond `patience` ends the call at once.
- **a try went wrong** (500, time-out, cut connection, an answer that is none): asked again `retries` times, then the
  request has failed. `LOST` requests that fail so in a row, with no answer between them, end the call too. So do time-outs
  of more than one request with nothing heard for `patience` seconds. Waits that it asks for may not exceed `patience`.
- **the request is refused** (too long, unsafe): it has failed at once.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TypeVar

from tamis.errors import ModelError

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Back-off in seconds: doubles from the first to the longest, with jitter of up to a half."""
FIRST_TRIES = 3
"""Tries to reach a server that has never been reached."""
LOST = 20
"""Requests in a row whose every try went wrong."""
ROUNDS = 16
"""Rounds of answers that bring the cap from nothing to full."""
T = TypeVar("T")


@dataclass(frozen=True)
class Setback:
    """Why a try gave no answer.

    `wait`: seconds that the server asked for. `away`: it is busy or cannot be reached. `crowded`: fewer requests may help.
    `reached`: it said something. `silent`: it took the request and said nothing in time. `final`: asking again is no use.
    """

    reason: str
    wait: float | None = None
    away: bool = False
    crowded: bool = False
    reached: bool = True
    silent: bool = False
    final: bool = False


class Traffic:
    """The requests in flight to one server, over all calls of one client. Lives in one event loop.

    The cap starts at `most`. 429, 503, 529 and time-outs halve it (to no less than 1, and once for all requests that were
    sent before the last cut); each answer raises it by `most / ROUNDS / cap`, so that `ROUNDS` rounds make it full again.
    A Retry-After that comes with those holds back every request, not only the one that was told.
    """

    def __init__(self, base: str, most: int, retries: int, patience: float) -> None:
        self.base, self.most, self.retries, self.patience = base, most, retries, patience
        self.cap, self.in_flight = float(most), 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._resume = self._cut = self._answered = float("-inf")
        self._reached = False
        self._lost = 0
        self._silence: tuple[float, object] | None = None

    def begin(self) -> None:
        """Forget the silence of an earlier call."""
        self._silence = None

    async def persist(self, once: Callable[[], Awaitable[T | Setback]]) -> T | Setback:
        """Return what `once` gives, after as many tries as make sense: an answer, or the setback that it failed with.

        Raises ModelError when it is the server that fails, not this request.
        """
        wrong, put_off, told = 0, 0.0, 0.0
        for tries in count(1):
            async with self._slot() as sent:
                outcome = await once()
            if not isinstance(outcome, Setback):
                self._answer()
                return outcome
            wait = outcome.wait or self._back_off(tries)
            told += outcome.wait or 0.0
            self._note(outcome, sent, wait)
            if outcome.away and wait > self.patience and outcome.wait:
                raise self._stopped(
                    outcome, tries, f"it asks to wait {wait:,.0f} s, and patience is {self.patience:g} s"
                )
            if outcome.final:
                return outcome
            long = outcome.silent and self._silent_too_long(once)
            if long and self._silence and self._silence[1] is not once:
                raise self._stopped(outcome, tries, f"no answer for {self.patience:g} s")
            if outcome.away:
                put_off = put_off or sent
                if self._given_up(outcome, tries, monotonic() + wait - put_off):
                    if self._answered < (put_off + monotonic()) / 2:  # what was on its way comes in the first half
                        raise self._stopped(outcome, tries, f"no answer for {self.patience:g} s")
                    return Setback(f"{outcome.reason} (put off for {monotonic() - put_off:.0f} s, {tries} tries)")
            elif (wrong := wrong + 1) > self.retries or long or told > self.patience:
                self._lost += 1
                if self._lost >= LOST:
                    raise self._stopped(outcome, tries, f"{LOST} requests in a row failed every try")
                asked = f", it asks to wait {told:,.0f} s" if told > self.patience else ""
                return Setback(f"{outcome.reason} ({tries} tries{asked})")
            await asyncio.sleep(wait)
        raise AssertionError

    def _given_up(self, setback: Setback, tries: int, waited: float) -> bool:
        return waited > self.patience or (not self._reached and tries >= FIRST_TRIES)

    def _note(self, setback: Setback, sent: float, wait: float) -> None:
        self._reached = self._reached or setback.reached
        if setback.reached and not setback.silent:
            self._silence = None
        if setback.final:
            self._lost, self._answered = 0, monotonic()
        if setback.crowded:
            if sent > self._cut:
                self.cap, self._cut = max(1.0, self.cap / 2), monotonic()
            if setback.wait and wait <= self.patience:
                self._resume = max(self._resume, monotonic() + wait)

    def _silent_too_long(self, request: object) -> bool:
        """Whether the server has been silent for longer than `patience`, since the time-out of the request kept with it."""
        self._silence = self._silence or (monotonic(), request)
        return monotonic() - self._silence[0] > self.patience

    def _answer(self) -> None:
        self._silence = None
        self._reached, self._lost, self._answered = True, 0, monotonic()
        self.cap = min(float(self.most), self.cap + max(1.0, self.most / ROUNDS) / self.cap)

    @staticmethod
    def _back_off(tries: int) -> float:
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries - 1, 16)) * random.uniform(0.5, 1.0)

    def _stopped(self, setback: Setback, tries: int, why: str) -> ModelError:
        if not self._reached:
            return ModelError(
                f"no server answers: {setback.reason} ({tries} tries)",
                where=self.base,
                hint="Start the server, or check host, port and path of the URL (it usually ends in /v1).",
            )
        never = (
            "" if self._answered > float("-inf") else "Check the URL (it usually ends in /v1) and the server's log. "
        )
        return ModelError(
            f"the server stopped answering: {why}; the last: {setback.reason}",
            where=self.base,
            hint=f"{never}When it answers again, run the same command: finished units are kept, "
            "and the run goes on after them.",
        )

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[float]:
        """Wait for a place among the requests in flight; gives the moment of sending."""
        await self._enter()
        self.in_flight += 1
        try:
            yield monotonic()
        finally:
            self.in_flight -= 1
            self._wake()

    async def _enter(self) -> None:
        while True:
            if (pause := self._resume - monotonic()) > 0:
                await asyncio.sleep(pause)
            elif self.in_flight < int(self.cap):
                return
            else:
                place = asyncio.get_running_loop().create_future()
                self._queue.append(place)
                try:
                    await place
                except asyncio.CancelledError:
                    self._wake()
                    raise

    def _wake(self) -> None:
        free = int(self.cap) - self.in_flight
        while free > 0 and self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
