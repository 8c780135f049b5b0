"""The endpoint client against a real local HTTP server."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.models.hostile_server import Reply, Server, chat, cut, echo, refusal, reply

from tamis import recipe
from tamis.errors import ModelError
from tamis.hashing import derive_seed
from tamis.models import endpoint as module
from tamis.models import keeper, load, resolve
from tamis.models.base import TextModel
from tamis.models.endpoint import traffic
from tamis.models.resolve import capabilities
from tamis.records import Completion, Law, Message, Prompt, from_table, to_table

KEY = "sk-very-secret-4711"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.01)
    made = Server()
    yield made
    made.close()


def model_of(server: Server, **options: Any) -> module.Endpoint:
    return load(resolve(f"{server.base}#m"), **{"timeout": 5.0, "retries": 2, **options})


PLAIN = Law()


def ask(model: module.Endpoint, texts: list[str], law: Law = PLAIN, n: int = 1) -> list[Completion]:
    prompts = [Prompt(messages=(Message("user", text),)) for text in texts]
    return list(model.generate(prompts, law, candidates=[range(n)] * len(prompts), seed=5))


def test_order_seeds_cost_and_records(server: Server) -> None:
    server.answer = lambda request, tries: (time.sleep(0.03 * (hash(echo(request)) % 4)), chat(echo(request)))[1]
    model = model_of(server)
    assert isinstance(model, TextModel)
    prompts = [Prompt(messages=(Message("system", "s"), Message("user", f"q{i}"))) for i in range(8)]
    wanted = [(2, 0), (1,), (), (0, 1, 2), (4,), (0,), (5, 6), (0,)]
    found = list(model.generate(prompts, Law(max_new_tokens=9), candidates=wanted, seed=5, sampler="mine"))
    jobs = [(p, j) for p, js in zip(prompts, wanted, strict=True) for j in js]
    assert [(c.prompt_id, c.index) for c in found] == [(p.id, j) for p, j in jobs]
    assert [c.text for c in found] == [f"{p.text}|{derive_seed(5, p.id, j) % 2**31}" for p, j in jobs]
    assert all(c.finish_reason == "stop" and c.sampler == "mine" and c.model == model.identity for c in found)
    assert all((c.cost.prompt_tokens, c.cost.sampled_tokens) == (7, 3) for c in found)
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "s"}
    assert from_table(to_table(found, Completion), Completion) == found
    assert not model.errors


def test_many_requests_in_flight_but_not_more_than_asked(server: Server) -> None:
    four = threading.Barrier(4, timeout=10)
    server.answer = lambda request, tries: (four.wait(), chat("x"))[1]
    found = ask(model_of(server, concurrency=4, timeout=20), [f"q{i}" for i in range(16)])
    assert [c.text for c in found] == ["x"] * 16
    assert server.most_in_flight == 4


def test_only_fields_of_the_law_are_sent(server: Server) -> None:
    ask(model_of(server), ["q"])
    plain = server.requests[-1]
    assert {"top_k", "min_p", "stop"}.isdisjoint(plain)
    assert (plain["temperature"], plain["top_p"], plain["max_tokens"], plain["model"]) == (1.0, 1.0, 256, "m")
    ask(model_of(server), ["q"], Law(temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, stop=("\n",)))
    full = server.requests[-1]
    assert (full["top_k"], full["min_p"], full["stop"], full["top_p"]) == (4, 0.1, ["\n"], 0.9)


def test_logprobs_belong_to_the_model_and_to_a_plain_law_only(server: Server) -> None:
    content = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.5}]
    server.answer = lambda request, tries: chat("ab", "length", logprobs={"content": content})
    (plain,) = ask(model_of(server), ["q"])
    (cold,) = ask(model_of(server), ["q"], Law(temperature=0.5))
    assert plain.raw_logprobs == plain.logprobs == pytest.approx((-0.1, -2.5))
    assert cold.raw_logprobs == plain.raw_logprobs
    assert cold.logprobs == ()
    assert plain.finish_reason == "length"
    assert from_table(to_table([plain], Completion), Completion) == [plain]


def test_retry_after_is_obeyed(server: Server) -> None:
    server.answer = lambda request, tries: refusal(429, "slow", Retry_After="0.4") if tries == 1 else chat("ok")
    started = time.monotonic()
    (found,) = ask(model_of(server), ["q"])
    assert found.text == "ok"
    assert 0.4 <= time.monotonic() - started < 3


@pytest.mark.parametrize("first", [refusal(500, "oops"), refusal(503, "busy"), reply(b"{not json"), cut])
def test_what_passes_is_asked_again(server: Server, first: Reply) -> None:
    server.answer = lambda request, tries: first if tries == 1 else chat("ok")
    model = model_of(server)
    (found,) = ask(model, ["q"])
    assert (found.text, found.finish_reason, model.errors) == ("ok", "stop", {})
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("bad", "reason", "tries"),
    [
        (refusal(500, "out of cheese"), "out of cheese", 3),
        (reply(b"<html>"), "not a chat completion", 3),
        (reply({"choices": []}), "not a chat completion", 3),
        (cut, "connection was cut", 3),
        (refusal(400, "prompt is too long for the context"), "too long", 1),
        (chat(None, "content_filter"), "no text", 1),
    ],
)
def test_a_failed_request_is_one_error_completion(server: Server, bad: Reply, reason: str, tries: int) -> None:
    server.answer = lambda request, tries: bad if "bad" in echo(request) else chat("fine")
    model = model_of(server)
    found = ask(model, ["good", "bad", "good too"])
    assert [c.finish_reason for c in found] == ["stop", "error", "stop"]
    assert (found[1].text, list(model.errors)) == ("", [found[1].id])
    assert reason in model.errors[found[1].id]
    assert sum("bad" in echo(r) for r in server.requests) == tries


def test_a_time_out_is_an_error_completion(server: Server) -> None:
    server.answer = lambda request, tries: (time.sleep(0.6), chat("late"))[1]
    model = model_of(server, timeout=0.2, retries=1)
    (found,) = ask(model, ["q"])
    assert found.finish_reason == "error"
    assert "no answer within 0.2 s" in model.errors[found.id]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once_and_is_never_shown(server: Server, status: int) -> None:
    server.answer = lambda request, tries: refusal(status, f"Incorrect API key provided: {KEY}")
    with pytest.raises(ModelError) as caught:
        ask(model_of(server, concurrency=2), [f"q{i}" for i in range(50)])
    said = str(caught.value)
    assert KEY not in said
    assert server.base in said
    assert "'m'" in said
    assert "TAMIS_API_KEY" in said
    assert len(server.requests) < 10
    assert server.keys[0] == f"Bearer {KEY}"


def test_the_key_is_in_no_error_completion(server: Server) -> None:
    server.answer = lambda request, tries: refusal(500, f"bad header Bearer {KEY}")
    model = model_of(server, retries=0)
    (found,) = ask(model, ["q"])
    assert KEY not in str(model.errors) + repr(found) + repr(vars(model))


@pytest.mark.parametrize("status", [404, 400])
def test_an_unknown_model_stops_at_once(server: Server, status: int) -> None:
    server.answer = lambda request, tries: refusal(status, "The model `m` does not exist.")
    with pytest.raises(ModelError, match=r"model 'm'.*HTTP 40[\s\S]*/models lists"):
        ask(model_of(server), ["q"])


def test_no_server_at_all_stops(server: Server) -> None:
    model = load(resolve("http://127.0.0.1:9/v1#m"), retries=1)
    with pytest.raises(ModelError, match="no server answers"):
        ask(model, ["q"])


def test_unknown_harmless_fields_are_left_out_and_told(server: Server) -> None:
    def strict(request: dict[str, Any], tries: int) -> Reply:
        if "max_tokens" in request:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        named = next((n for n in ("logprobs", "seed") if n in request), None)
        return refusal(400, f"Unknown field: {named}") if named else chat(echo(request))

    server.answer = strict
    model = model_of(server)
    assert [c.text for c in ask(model, ["a", "b"])] == ["a|None", "b|None"]
    assert model.unsupported == ("logprobs", "seed")
    assert server.requests[-1]["max_completion_tokens"] == 256


def test_a_law_the_server_does_not_know_stops(server: Server) -> None:
    server.answer = lambda request, tries: refusal(400, "Unrecognized request argument supplied: top_k")
    with pytest.raises(ModelError, match="does not know top_k"):
        ask(model_of(server), ["q"], Law(top_k=3))


def test_closing_early_stops_the_requests(server: Server) -> None:
    server.answer = lambda request, tries: (time.sleep(0.02), chat("x"))[1]
    prompts = [Prompt(messages=(Message("user", f"q{i}"),)) for i in range(200)]
    stream = model_of(server, concurrency=2).generate(prompts, Law(), candidates=[(0,)] * 200, seed=0)
    next(stream)
    stream.close()
    assert len(server.requests) < 20
    assert threading.active_count() < 20


def test_identity_is_url_model_and_what_the_server_reports(server: Server) -> None:
    first = resolve(f"{server.base}#m").identity
    server.models = {"data": [{"id": "m", "owned_by": "me", "created": 0, "permission": [{"id": "random"}]}]}
    assert resolve(f"{server.base}/#m").identity == first
    server.models = {"data": [{"id": "m", "owned_by": "me", "root": "other-weights"}]}
    assert resolve(f"{server.base}#m").identity != first
    for broken in ({"data": None}, [], {"data": ["m"]}, "x"):
        server.models = broken
        assert resolve(f"{server.base}#m").identity != first


def test_a_key_that_no_header_can_carry(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_API_KEY", "schlüssel-x")
    with pytest.raises(ModelError, match="TAMIS_API_KEY") as caught:
        ask(model_of(server), ["q"])
    assert "schlüssel" not in str(caught.value)


def test_options_are_checked(server: Server) -> None:
    with pytest.raises(ModelError, match="concurrency >= 1"):
        model_of(server, concurrency=0)


def test_a_recipe_says_how_endpoints_are_asked(server: Server) -> None:
    made = recipe.load("rft", overrides=["endpoint.concurrency=3", "endpoint.patience=1.5"])
    assert made.hash == recipe.load("rft").hash
    assert recipe.load(yaml.safe_load(made.to_yaml())).endpoint == made.endpoint
    model = keeper.Models(made, lambda event, **detail: None).get(resolve(f"{server.base}#m"))
    assert (model.concurrency, model.timeout, model._traffic.retries, model._traffic.patience) == (3, 300.0, 5, 1.5)


@pytest.mark.parametrize("find", [resolve, capabilities])
def test_a_host_that_cannot_be_read(find: Callable[[str], object]) -> None:
    with pytest.raises(ModelError, match=r"host cannot be read[\s\S]*http://\[::1\]:8000/v1#NAME"):
        find("http://[::1/v1#m")


def test_it_works_inside_a_running_event_loop(server: Server) -> None:
    async def notebook_cell() -> list[Completion]:
        return ask(model_of(server), ["q"], n=3)

    assert [c.index for c in asyncio.run(notebook_cell())] == [0, 1, 2]
