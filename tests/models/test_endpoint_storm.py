"""The endpoint client in bad weather: every prompt ends in one completion or one recorded failure."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.hostile_server import STORM, Server, chat, echo, hang, refusal, reply

from tamis.errors import ModelError
from tamis.models import load, resolve
from tamis.models.endpoint import Endpoint, http, traffic, wire
from tamis.records import Completion, Law, Message, Prompt, from_table, to_table


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.005)
    monkeypatch.setattr(traffic, "LONGEST_WAIT", 0.05)
    made = Server()
    yield made
    made.close()


def model_of(server: Server, **options: float) -> Endpoint:
    return load(resolve(f"{server.base}#m"), **{"timeout": 1.0, "retries": 3, "patience": 5.0, **options})


def prompts(count: int, word: str = "q") -> list[Prompt]:
    return [Prompt(messages=(Message("user", f"{word}{i}"),)) for i in range(count)]


def ask(model: Endpoint, asked: list[Prompt], law: Law = Law(max_new_tokens=100)) -> list[Completion]:  # noqa: B008
    return list(model.generate(asked, law, candidates=[(0,)] * len(asked), seed=5))


@pytest.mark.parametrize("weather", STORM)
def test_each_misbehaviour_once(server: Server, weather: str) -> None:
    server.answer = lambda request, tries: STORM[weather] if tries == 1 else chat(echo(request))
    model = model_of(server, timeout=0.3)
    asked = prompts(3)
    found = ask(model, asked)
    assert [c.text.partition("|")[0] for c in found] == [p.text for p in asked]
    assert not model.errors
    assert set(server.answered.values()) <= {1, 2}


@pytest.mark.parametrize("weather", [w for w in STORM if not w.startswith(("429", "502", "503"))])
def test_each_misbehaviour_for_ever_is_one_failure(server: Server, weather: str) -> None:
    server.answer = lambda request, tries: STORM[weather] if "q1|" in echo(request) else chat(echo(request))
    model = model_of(server, timeout=0.2, retries=1)
    found = ask(model, prompts(3))
    assert [c.finish_reason for c in found] == ["stop", "error", "stop"]
    assert list(model.errors) == [found[1].id]
    assert "(2 tries)" in model.errors[found[1].id]
    assert from_table(to_table(found, Completion), Completion) == found


def test_a_long_storm_of_everything(server: Server) -> None:
    """Each request goes wrong in up to three random ways; the right text comes, once for each, and the cap is full again."""
    names = [n for n in STORM if n not in ("hang", "slow drip")] + ["hang"]

    def answer(request: dict, tries: int):
        chance = random.Random(f"{echo(request)}{tries}")
        return STORM[chance.choice(names)] if tries <= 3 and chance.random() < 0.6 else chat(echo(request))

    server.answer = answer
    model = model_of(server, concurrency=32, timeout=0.5)
    asked = prompts(300)
    found = ask(model, asked)
    assert [c.prompt_id for c in found] == [p.id for p in asked]
    assert [c.text.partition("|")[0] for c in found] == [p.text for p in asked]
    assert not model.errors
    assert len(server.asked) == 300
    assert sum(server.asked.values()) > 400
    assert model._traffic.in_flight == 0
    server.answer = lambda request, tries: chat(echo(request))
    ask(model, prompts(600, "calm"))
    assert model._traffic.cap == 32


def test_too_many_requests_shrink_the_cap_and_answers_raise_it(server: Server) -> None:
    """A server that takes four at once is found out; no prompt is lost to it although each is refused many times."""
    gate = threading.Semaphore(4)

    def narrow(request: dict, tries: int):
        if not gate.acquire(blocking=False):
            return refusal(429, "too many")
        time.sleep(0.005)
        gate.release()
        return chat(echo(request))

    server.answer = narrow
    model = model_of(server, concurrency=32, retries=0, patience=20.0)
    found = ask(model, prompts(200))
    assert {c.finish_reason for c in found} == {"stop"}
    assert model._traffic.cap < 32
    assert set(server.answered.values()) == {1}
    server.answer = lambda request, tries: chat(echo(request))
    ask(model, prompts(600, "wide"))
    assert model._traffic.cap == 32


def test_retry_after_holds_back_every_request(server: Server) -> None:
    moments: list[float] = []
    told: list[float] = []
    lock = threading.Lock()

    def answer(request: dict, tries: int):
        with lock:
            if len(moments) == 10:
                told.append(time.monotonic())
                moments.append(told[0])
                return refusal(429, "later", Retry_After="0.5")
            moments.append(time.monotonic())
        time.sleep(0.01)
        return chat(echo(request))

    server.answer = answer
    ask(model_of(server, concurrency=4), prompts(40))
    assert not [m for m in moments if told[0] + 0.1 < m < told[0] + 0.49]


@pytest.mark.parametrize("wait", ["3600", "inf", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_retry_after_beyond_patience_ends_the_call(server: Server, wait: str) -> None:
    server.answer = lambda request, tries: refusal(429, "come back tomorrow", Retry_After=wait)
    with pytest.raises(ModelError, match=r"come back tomorrow[\s\S]*run the same command"):
        ask(model_of(server), prompts(5))


def test_no_credit_ends_the_call_at_once(server: Server) -> None:
    server.answer = lambda request, tries: refusal(429, "You exceeded your current quota: insufficient_quota")
    with pytest.raises(ModelError, match="no credit left"):
        ask(model_of(server, concurrency=1), prompts(5))
    assert len(server.requests) == 1


def test_a_prompt_that_is_put_off_for_ever_fails_alone(server: Server) -> None:
    server.answer = lambda request, tries: (
        refusal(429, "request too large") if "q1|" in echo(request) else chat(echo(request))
    )
    model = model_of(server, patience=0.3, concurrency=2)
    server.answer, steady = (
        (lambda request, tries: (time.sleep(0.02), steady(request, tries))[1]),
        server.answer,
    )
    found = ask(model, prompts(60))
    assert [c.finish_reason for c in found] == ["stop", "error"] + ["stop"] * 58
    assert "put off" in model.errors[found[1].id]


def test_a_moderated_prompt_fails_alone(server: Server) -> None:
    server.answer = lambda request, tries: (
        refusal(403, "your input was flagged") if "q1|" in echo(request) else chat("x")
    )
    assert [c.finish_reason for c in ask(model_of(server), prompts(3))] == ["stop", "error", "stop"]


def test_hanging_requests_do_not_hold_up_the_others(server: Server) -> None:
    server.answer = lambda request, tries: hang if "q0|" in echo(request) else chat(echo(request))
    model = model_of(server, concurrency=4, timeout=0.6, retries=0)
    stream = model.generate(prompts(30), Law(), candidates=[(0,)] * 30, seed=0)
    started = time.monotonic()
    found = list(stream)
    assert time.monotonic() - started < 5
    assert [c.finish_reason for c in found] == ["error"] + ["stop"] * 29
    assert len(server.answered) == 29


def test_answers_held_for_a_slow_one_are_bounded(server: Server) -> None:
    free = threading.Event()
    server.answer = lambda request, tries: (free.wait(20) if "q0|" in echo(request) else None, chat(echo(request)))[1]
    model = model_of(server, concurrency=2, timeout=30)
    stream = model.generate(prompts(200), Law(), candidates=[(0,)] * 200, seed=0)
    first: list[Completion] = []
    reader = threading.Thread(target=lambda: first.append(next(stream)))
    reader.start()
    deadline = time.monotonic() + 5
    while len(server.answered) < 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(server.answered) == 8 * 2 - 1
    free.set()
    reader.join()
    assert first[0].text.startswith("q0")
    assert len(list(stream)) == 199


def test_a_server_that_dies_and_comes_back_within_patience(server: Server) -> None:
    def answer(request: dict, tries: int):
        time.sleep(0.01)
        return chat(echo(request))

    server.answer = answer
    model = model_of(server, concurrency=4, patience=20.0)
    stream = model.generate(prompts(60), Law(), candidates=[(0,)] * 60, seed=0)
    found = [next(stream) for _ in range(10)]
    server.close()
    again = threading.Timer(0.3, server.open)
    again.start()
    found += list(stream)
    again.join()
    assert [c.finish_reason for c in found] == ["stop"] * 60
    assert not model.errors


def test_a_server_that_dies_for_good_ends_the_call_and_poisons_nothing(server: Server) -> None:
    model = model_of(server, concurrency=4, patience=0.5)
    stream = model.generate(prompts(500), Law(), candidates=[(0,)] * 500, seed=0)
    found = [next(stream) for _ in range(10)]
    server.close()
    with pytest.raises(ModelError, match=r"stopped answering: no answer for 0.5 s[\s\S]*run the same command"):
        found += list(stream)
    server.open()
    assert all(c.finish_reason == "stop" for c in found)
    assert not model.errors


@pytest.mark.parametrize("weather", ["500", "hang", "reset", "a page"])
def test_a_server_that_only_errs_ends_the_call(server: Server, weather: str) -> None:
    server.answer = lambda request, tries: chat("x") if len(server.requests) <= 10 else STORM[weather]
    model = model_of(server, retries=1, timeout=0.1)
    with pytest.raises(ModelError, match="20 requests in a row failed every try"):
        ask(model, prompts(500))
    assert len(model.errors) < 20


def test_nothing_listens_from_the_start(server: Server) -> None:
    model = load(resolve("http://127.0.0.1:9/v1#m"), retries=50)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"no server answers: .*refused.*3 tries"):
        ask(model, prompts(50))
    assert time.monotonic() - started < 5


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answer = lambda request, tries: reply(b"", 307, Location="http://127.0.0.1:9/elsewhere")
    with pytest.raises(ModelError, match=r"HTTP 307[\s\S]*elsewhere"):
        ask(model_of(server), prompts(3))


def test_bytes_nobody_asked_for_are_no_answer(server: Server) -> None:
    """A second response after the first must not become the answer of the next request on that connection."""
    body = chat("wrong")[2]
    extra = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def twice(handler) -> None:
        handler.close_connection = False
        right = chat(handler.asked)[2]
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(right) + right + extra)

    def answer(request: dict, tries: int):
        return lambda handler: (setattr(handler, "asked", echo(request)), twice(handler))

    server.answer = answer
    asked = prompts(20)
    found = ask(model_of(server, concurrency=2), asked)
    assert [c.text.partition("|")[0] for c in found] == [p.text for p in asked]


def test_bytes_that_come_while_nothing_is_asked_are_no_answer(server: Server) -> None:
    """Nor must one that comes later, on a connection that is kept."""

    def answer(request: dict, tries: int):
        def twice(handler) -> None:
            handler.close_connection = False
            handler.send(chat(echo(request)))
            time.sleep(0.05)
            handler.send(chat("wrong"))

        return twice if "q0|" in echo(request) else chat(echo(request))

    server.answer = answer
    model = model_of(server, concurrency=1)
    assert ask(model, prompts(1))[0].text.startswith("q0|")
    time.sleep(0.2)
    assert ask(model, prompts(1, "later"))[0].text.startswith("later0|")


def test_connections_are_kept(server: Server) -> None:
    model = model_of(server, concurrency=4)
    before = server.connections
    ask(model, prompts(40))
    ask(model, prompts(40, "again"))
    assert server.connections - before <= 4


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, "it calls a tool"),
        ({"content": ["part"]}, "no text"),
        ({"content": 3}, "no text"),
    ],
)
def test_answers_without_text_fail_at_once(server: Server, message: dict, reason: str) -> None:
    server.answer = lambda request, tries: reply({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    model = model_of(server)
    (found,) = ask(model, prompts(1))
    assert reason in model.errors[found.id]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": "x"}, {"prompt_tokens": 10**30, "completion_tokens": -4}]
)
def test_odd_usage_and_log_probabilities_are_left_out(server: Server, usage: object) -> None:
    odd = {"content": [{"logprob": -1e400}, {"logprob": None}]}
    choice = {"message": {"content": "fine \ud800 \U0001f600"}, "finish_reason": "stop", "logprobs": odd}
    server.answer = lambda request, tries: reply({"choices": [choice], "usage": usage})
    model = model_of(server)
    found = ask(model, prompts(1))
    if usage == []:
        usage = None
    assert (found[0].text, found[0].raw_logprobs) == ("fine � \U0001f600", ())
    assert (found[0].cost.prompt_tokens, found[0].cost.sampled_tokens) == (0, 0)
    assert from_table(to_table(found, Completion), Completion) == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["token", "logprob", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "message": st.fixed_dictionaries({}, optional={"content": JSON}) | JSON,
        "logprobs": JSON,
        "finish_reason": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={"choices": st.lists(CHOICE, max_size=2) | JSON, "usage": JSON}) | JSON)
def test_any_JSON_is_an_answer_or_a_setback(body: object) -> None:
    found = wire.read(http.Response(200, {}, reply(body)[2]))
    assert isinstance(found, wire.Answer | traffic.Setback)


@settings(max_examples=300, deadline=None)
@given(st.integers(400, 599).filter(lambda s: s not in wire.FATAL), st.binary(max_size=60), st.text(max_size=20))
def test_any_refusal_is_a_setback_or_a_clear_error(status: int, body: bytes, after: str) -> None:
    response = http.Response(status, {"retry-after": after}, body)
    with suppress(ModelError):
        assert wire.Dialect("m").setback(response, {}, "http://x").reason


def test_unused_ports_and_names_that_are_no_address() -> None:
    for url in ("http://127.0.0.1:99999/v1#m", "http://ex ample/v1#m"):
        with pytest.raises(ModelError, match="not the address of a server"):
            resolve(url)


def test_a_listener_that_never_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        model = load(resolve("http://127.0.0.1:9/v1#m"), timeout=0.1, retries=1)
        model.base = model._traffic.base = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        (found,) = ask(model, prompts(1))
    assert "no answer within 0.1 s" in model.errors[found.id]


@pytest.mark.parametrize("status", [429, 503])
def test_one_long_retry_after_among_answers_ends_the_call(server: Server, status: int) -> None:
    server.answer = lambda request, tries: (
        refusal(status, "tomorrow", Retry_After="86400") if "q9|" in echo(request) else chat(echo(request))
    )
    model = model_of(server, concurrency=4)
    with pytest.raises(ModelError, match=r"asks to wait 86,400 s[\s\S]*run the same command"):
        ask(model, prompts(40))
    server.answer = lambda request, tries: chat(echo(request))
    assert len(ask(model, prompts(5, "later"))) == 5


@pytest.mark.parametrize("status", [500, 408, 409, 425])
@pytest.mark.parametrize("wait", ["86400", "0.3"])
def test_waits_that_other_setbacks_ask_for_stay_within_patience(server: Server, status: int, wait: str) -> None:
    server.answer = lambda request, tries: (
        refusal(status, "not now", Retry_After=wait) if "q1|" in echo(request) else chat(echo(request))
    )
    model = model_of(server, patience=0.5, retries=50)
    found = ask(model, prompts(3))
    assert [c.finish_reason for c in found] == ["stop", "error", "stop"]
    assert "it asks to wait" in model.errors[found[1].id]
    assert len(server.requests) <= 4


def test_a_server_that_takes_requests_and_never_answers_is_given_up(server: Server) -> None:
    server.answer = lambda request, tries: hang
    model = model_of(server, timeout=0.1, retries=1000, patience=0.5)
    with pytest.raises(ModelError, match=r"no answer for 0.5 s; the last: no answer within[\s\S]*run the same command"):
        ask(model, prompts(60))
    assert len(server.requests) < 100


def test_one_prompt_that_hangs_on_a_single_connection_fails_alone(server: Server) -> None:
    server.answer = lambda request, tries: hang if "q0|" in echo(request) else chat(echo(request))
    model = model_of(server, timeout=0.1, retries=1000, patience=0.3, concurrency=1)
    assert [c.finish_reason for c in ask(model, prompts(3))] == ["error", "stop", "stop"]


@pytest.mark.parametrize("page", [reply(b"<html>welcome</html>", Content_Type="text/html"), reply(b"", 204)])
def test_a_page_instead_of_an_answer_points_to_the_url(server: Server, page: tuple) -> None:
    server.answer = lambda request, tries: page
    model = model_of(server, retries=0)
    (found,) = ask(model, prompts(1))
    assert "check the URL: it usually ends in /v1" in model.errors[found.id]
    with pytest.raises(ModelError, match="Check the URL"):
        ask(model, prompts(30))


@pytest.mark.parametrize("usage", ["many", 7, [1], {"prompt_tokens": {}}, True])
def test_nonsense_usage_fails_no_answer(server: Server, usage: object) -> None:
    choice = {"message": {"content": "fine"}, "finish_reason": "stop"}
    server.answer = lambda request, tries: reply({"choices": [choice], "usage": usage})
    (found,) = ask(model_of(server), prompts(1))
    assert (found.text, found.cost.prompt_tokens, len(server.requests)) == ("fine", 0, 1)


def test_parts_of_text_are_joined(server: Server) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    server.answer = lambda request, tries: chat(parts)
    assert ask(model_of(server), prompts(1))[0].text == "one two"
