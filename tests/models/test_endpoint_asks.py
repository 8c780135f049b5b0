"""What else an endpoint can be asked: JSON by schema, log-probabilities of labels, and who it is."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.models.hostile_server import Server, chat, echo, refusal, reply

from tamis import asking
from tamis.context import Context
from tamis.errors import ModelError
from tamis.models import load, resolve
from tamis.models.base import StructuredModel
from tamis.models.endpoint import Endpoint, endpoint_identity, identity, traffic
from tamis.models.endpoint.wire import FORMS
from tamis.records import Law, Message, Prompt

SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Server]:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.005)
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path))
    made = Server()
    yield made
    made.close()


def model_of(server: Server) -> Endpoint:
    return load(resolve(f"{server.base}#m"), timeout=2.0, retries=1)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(messages=(Message("user", f"q{i}"),)) for i in range(count)]


def judge(model: Endpoint, count: int = 5) -> list[str]:
    found = model.generate(prompts(count), Law(), candidates=[(0,)] * count, seed=0, schema=SCHEMA)
    return [c.text for c in found]


@pytest.mark.parametrize("known", range(len(FORMS) + 1))
def test_json_is_asked_for_in_the_strictest_form_the_server_knows(server: Server, known: int) -> None:
    """The server refuses the first `known` forms; every request is answered, and later ones begin with what it knows."""
    refused = [form(SCHEMA) for form in FORMS[:known]]

    def answer(request: dict[str, Any], tries: int) -> Any:
        asked = request.get("response_format")
        return refusal(400, "Unknown response_format") if asked in refused else chat(str(asked))

    server.answer = answer
    model = model_of(server)
    wanted = FORMS[known](SCHEMA) if known < len(FORMS) else None
    assert judge(model) == [str(wanted)] * 5
    assert model.structured is (known < len(FORMS))
    before = len(server.requests)
    assert judge(model) == [str(wanted)] * 5
    assert len(server.requests) == before + 5


def test_an_asker_hands_its_schema_to_a_model_that_takes_one(server: Server) -> None:
    model = model_of(server)
    assert isinstance(model, StructuredModel)
    question = asking.Question((Message("user", "q"),), str, SCHEMA)
    server.answer = lambda request, tries: refusal(400, "no response_format") if tries <= 3 else chat("5")
    assert asking.ask(Context(model=model), [question])[0][0].value == "5"
    assert [form(SCHEMA) for form in FORMS] == [r.get("response_format") for r in server.requests[:3]]
    asking.ask(Context(model=model, seed=1), [question])
    assert "response_format" not in server.requests[-1]


def test_a_500_that_names_the_form_is_learnt_from(server: Server) -> None:
    """What llama-cpp-python's server says of a form it does not know."""
    said = "validation error: {'loc': ('body', 'response_format', 'type')}"
    server.answer = lambda request, tries: (
        refusal(500, said) if request["response_format"]["type"] == "json_schema" else chat("{}")
    )
    assert judge(model_of(server)) == ["{}"] * 5


@pytest.mark.parametrize("refused", [("top_logprobs",), ("logprobs",), ("seed", "top_logprobs", "logprobs")])
def test_fields_that_are_refused_are_left_out_one_by_one(server: Server, refused: tuple[str, ...]) -> None:
    def answer(request: dict[str, Any], tries: int) -> Any:
        named = next((name for name in refused if name in request), None)
        odd = "top_logprobs" in request and "logprobs" not in request
        return refusal(422, f"extra field: {named}") if named else refusal(400, "no") if odd else chat("x")

    server.answer = answer
    model = model_of(server)
    assert [c.text for c in model.generate(prompts(3), Law(), candidates=[(0,)] * 3, seed=0)] == ["x"] * 3
    assert model.unsupported == tuple(sorted(refused))


def test_without_a_schema_no_form_is_asked_for(server: Server) -> None:
    server.answer = lambda request, tries: chat(str("response_format" in request))
    (found,) = model_of(server).generate(prompts(1), Law(), candidates=[(0,)], seed=0)
    assert found.text == "False"


def tops(**found: float) -> dict[str, Any]:
    rows = [{"token": token.replace("_", " "), "logprob": math.log(p)} for token, p in found.items()]
    return {"content": [{"token": "x", "logprob": -1.0, "top_logprobs": rows}]}


def test_the_tokens_that_begin_a_label_are_summed(server: Server) -> None:
    found = tops(A=0.5, _A=0.1, B=0.2, Z=0.05, _=0.02)
    server.answer = lambda request, tries: chat("A", logprobs=found)
    scores = model_of(server).label_logprobs(prompts(3), ["A", "B", "C"])
    assert scores.logprobs.dtype == np.float32
    np.testing.assert_allclose(np.exp(scores.logprobs), np.tile([0.6, 0.2, 0.0], (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(scores.seen, np.tile([True, True, False], (3, 1)))
    assert {(r["max_tokens"], r["top_logprobs"], r["logprobs"]) for r in server.requests} == {(1, 20, True)}


def test_a_token_that_begins_two_labels_counts_for_none(server: Server) -> None:
    server.answer = lambda request, tries: chat("y", logprobs=tops(y=0.4, ye=0.1, yes=0.2, yell=0.1))
    scores = model_of(server).label_logprobs(prompts(1), ["yes", "yellow"])
    np.testing.assert_allclose(np.exp(scores.logprobs), [[0.2, 0.1]], atol=1e-6)


def test_a_failed_prompt_has_an_empty_row_and_a_reason(server: Server) -> None:
    server.answer = lambda request, tries: (
        refusal(400, "too long") if "q1" in echo(request) else chat("A", logprobs=tops(A=0.5))
    )
    model, asked = model_of(server), prompts(3)
    scores = model.label_logprobs(asked, ["A", "B"])
    assert scores.seen.tolist() == [[True, False], [False, False], [True, False]]
    assert "too long" in model.errors[asked[1].id]


def test_a_server_that_allows_five_alternatives_is_asked_for_five(server: Server) -> None:
    server.answer = lambda request, tries: (
        refusal(400, "top_logprobs must be at most 5")
        if request["top_logprobs"] > 5
        else chat("A", logprobs=tops(A=0.5))
    )
    assert model_of(server).label_logprobs(prompts(3), ["A", "B"]).seen[:, 0].all()


@pytest.mark.parametrize(
    "answer", [chat("A"), refusal(400, "logprobs are not supported"), refusal(400, "no top_logprobs")]
)
def test_a_server_without_alternatives_is_named(server: Server, answer: Any) -> None:
    server.answer = lambda request, tries: answer
    with pytest.raises(ModelError, match="no log-probabilities of alternatives"):
        model_of(server).label_logprobs(prompts(3), ["A", "B"])


def test_a_refusal_of_another_kind_is_not_taken_for_missing_alternatives(server: Server) -> None:
    server.answer = lambda request, tries: refusal(400, "the prompt is too long")
    model = model_of(server)
    assert not model.label_logprobs(prompts(3), ["A", "B"]).seen.any()
    assert all("the prompt is too long" in reason for reason in model.errors.values())
    assert len(model.errors) == 3


@pytest.mark.parametrize("labels", [["A", "AB"], ["A", "A"], ["", "A"], [" A", "B"]])
def test_labels_must_be_told_apart(server: Server, labels: list[str]) -> None:
    with pytest.raises(ModelError, match="the label"):
        model_of(server).label_logprobs(prompts(1), labels)


def test_the_identity_outlives_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first = endpoint_identity(server.base, "m")
    unknown = endpoint_identity(server.base, "other")
    server.close()
    assert endpoint_identity(server.base, "m") == first
    assert endpoint_identity(server.base, "other") == unknown
    server.open()
    server.models = {"data": [{"id": "m", "owned_by": "me", "root": "new weights"}]}
    assert endpoint_identity(server.base, "m") != first


@pytest.mark.parametrize(
    "models", [None, [], {"data": None}, {"data": ["m"]}, {"data": [{"id": "m", "meta": {"a": [1]}}]}]
)
def test_any_list_of_models_gives_an_identity(server: Server, models: Any) -> None:
    server.models = models
    assert len(endpoint_identity(server.base, "m")) == 32
    assert identity._reported(identity.Response(200, {}, reply(models)[2]), "m").keys() <= set(identity.REPORTED)


SENT = {"model": "m", "messages": [], "seed": 5, "logprobs": True, "top_logprobs": 0, "top_k": 3, "response_format": {}}
ECHOES = {
    "beside the message": {"error": {"message": "the prompt is too long"}, "request": SENT},
    "in the message": {"error": {"message": f"invalid request: {SENT}, the prompt is not supported"}},
    "as text": {"detail": f"bad request, not supported: {SENT}"},
    "pydantic": {"detail": [{"type": "too_long", "loc": ["body", "messages"], "msg": "too long", "input": SENT}]},
    "another field": {"error": {"message": "Unknown field: foo. Known are model, seed, logprobs, top_logprobs, top_k"}},
}


@pytest.mark.parametrize("how", ECHOES)
@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_that_repeats_the_request_teaches_nothing(server: Server, how: str, status: int) -> None:
    server.answer = lambda request, tries: reply(ECHOES[how], status) if "q1|" in echo(request) else chat("x")
    model = model_of(server)
    found = model.generate(prompts(4), Law(top_k=3), candidates=[(0,)] * 4, seed=0, schema=SCHEMA)
    assert [c.finish_reason for c in found] == ["stop", "error", "stop", "stop"]
    assert model.unsupported == ()
    assert all({"seed", "logprobs", "top_logprobs", "response_format"} <= r.keys() for r in server.requests)
    assert all(r["response_format"]["type"] == "json_schema" for r in server.requests)


@pytest.mark.parametrize(
    "said",
    [
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        {"error": {"message": "Unsupported value", "param": "seed", "code": "unsupported_parameter"}},
        {"error": "seed is not supported by this model"},
        {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'seed'), 'input': 5}]"},
    ],
)
def test_a_field_that_is_refused_by_name_is_left_out_and_told_once(server: Server, caplog: Any, said: Any) -> None:
    server.answer = lambda request, tries: reply(said, 400) if "seed" in request else chat("x")
    model = model_of(server)
    assert [c.text for c in model.generate(prompts(5), Law(), candidates=[(0,)] * 5, seed=0)] == ["x"] * 5
    assert model.unsupported == ("seed",)
    assert [r.getMessage() for r in caplog.records if "'seed'" in r.getMessage() and "left out" in r.getMessage()][
        1:
    ] == []
    assert "does not take 'seed'" in caplog.text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "FIRST_WAIT", 0.005)
    monkeypatch.setattr(identity, "PATIENCE", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
def test_an_identity_that_cannot_be_learnt_is_an_error_and_one_that_is_known_stays(server: Server, status: int) -> None:
    good, server.models = server.models, refusal(status, "not now")
    with pytest.raises(ModelError, match=f"/models gives HTTP {status}: not now"):
        endpoint_identity(server.base, "m")
    assert len([1 for path, _ in server.heads if path.endswith("/models")]) == (1 if status in (401, 403) else 4)
    server.models = good
    first = endpoint_identity(server.base, "m")
    server.models = refusal(status, "not now")
    assert endpoint_identity(server.base, "m") == first


@pytest.mark.usefixtures("quick")
def test_one_failure_of_the_list_of_models_is_passed_over(server: Server) -> None:
    good = server.models
    first = endpoint_identity(server.base, "m")
    (identity.cache_root() / "endpoints" / identity.digest(server.base, "m")).unlink()
    server.models = iter([refusal(500, "oops"), reply(good)]).__next__
    assert endpoint_identity(server.base, "m") == first


@pytest.mark.parametrize("none", [refusal(404, "x"), refusal(405, "x"), refusal(501, "x"), reply(b"<html>")])
def test_a_server_without_a_list_is_known_by_url_and_name(server: Server, none: Any) -> None:
    server.models = none
    assert endpoint_identity(server.base, "m") == identity.digest("endpoint", server.base, "m", {})


def test_what_does_not_name_the_weights_changes_no_identity(server: Server) -> None:
    row = {"id": "m", "root": "weights", "owned_by": "a", "max_model_len": 1024, "meta": None, "created": 1}
    server.models = {"data": [row]}
    first = endpoint_identity(server.base, "m")
    server.models = {"data": [{**row, "owned_by": "b", "max_model_len": 2048, "meta": {"n_ctx": 9}, "created": 2}]}
    assert endpoint_identity(server.base, "m") == first
    server.models = {"data": [{**row, "root": "others"}]}
    assert endpoint_identity(server.base, "m") != first


def test_half_a_character_in_the_list_of_models(server: Server) -> None:
    server.models = {"data": [{"id": "m", "root": "a\ud800b"}]}
    assert len(endpoint_identity(server.base, "m")) == 32
