"""Giving a server up: one request's failure is told from the server's."""

import asyncio

import pytest

from tamis.errors import ModelError
from tamis.models.endpoint import traffic
from tamis.models.endpoint.traffic import Setback, Traffic

AWAY = Setback("Connection refused", away=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.02)


async def beside(until: float) -> str | Setback:
    """Put one request off for ever while others are answered every few milliseconds for `until` seconds."""
    lines = Traffic("http://host/v1", 8, 3, patience=0.3)

    async def away() -> str | Setback:
        return AWAY

    async def answered() -> str | Setback:
        await asyncio.sleep(0.005)
        return "answer"

    async def others() -> None:
        async with asyncio.timeout(until):
            while True:
                await lines.persist(answered)

    other = asyncio.create_task(others())
    try:
        return await lines.persist(away)
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


def test_an_answer_that_was_on_its_way_does_not_hide_that_the_server_is_gone() -> None:
    with pytest.raises(ModelError, match=r"stopped answering: no answer for 0.3 s"):
        asyncio.run(beside(until=0.02))


def test_a_request_put_off_while_others_are_answered_fails_alone() -> None:
    outcome = asyncio.run(beside(until=60))
    assert isinstance(outcome, Setback)
    assert "Connection refused (put off" in outcome.reason
