"""Neither the key nor a proxy's password appears in errors, records, run folders, logs or on the terminal."""

import base64
import io
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tests.models.hostile_server import Server, chat, refusal, reply

from tamis.api import run
from tamis.errors import ModelError, TamisError
from tamis.models import load, resolve
from tamis.models.endpoint import http, traffic
from tamis.records import Completion, Law, Message, Prompt

KEY = "sk-very-secret-4711"
PASSWORD = "pass-secret-0815"
PROMPTS = [Prompt(messages=(Message("user", f"q{i}"),)) for i in range(3)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.005)
    made = Server()
    made.models = {"data": [{"id": "m", "owned_by": KEY}]}
    yield made
    made.close()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from chain(error.__cause__)
        error = error.__context__


def shown(error: BaseException) -> str:
    """All that can be read in an exception, in those behind it, and in the frames' variables that rich would print."""
    parts = ["".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())]
    return "".join(parts + [repr(e) + str(e) + repr(vars(e)) for e in chain(error)])


def ask(server: Server, **options: Any) -> tuple[str, list[Completion]]:
    model = load(resolve(f"{server.base}#m"), **{"timeout": 0.3, "retries": 1, "patience": 0.3, **options})
    try:
        found = list(model.generate(PROMPTS, Law(), candidates=[(0,)] * 3, seed=0))
    except ModelError as error:
        return shown(error), []
    return repr(found) + repr(model.errors) + repr(vars(model)) + repr(model), found


ECHOES = {
    **{
        f"HTTP {s}": refusal(s, f"bad header: Bearer {KEY}", X_Key=KEY)
        for s in (400, 401, 403, 404, 422, 429, 500, 503)
    },
    "plain text": reply(f"Authorization: Bearer {KEY}".encode(), 500),
    "redirect": reply(b"", 302, Location=f"http://127.0.0.1:9/{KEY}"),
    "text": chat(f"your key is {KEY}"),
    "finish": chat(None, KEY),
    "content type": reply(KEY.encode(), Content_Type=KEY),
    "in JSON": reply({KEY: KEY}),
    "escaped": reply(b'{"error": {"message": "' + "".join(f"\\u{ord(c):04x}" for c in KEY).encode() + b'"}}', 400),
    "cut off": refusal(400, "x" * (300 - len(KEY) // 2) + KEY),
    "header": lambda handler: handler.wfile.write(f"HTTP/1.1 999 {KEY}\r\n{KEY}\r\n\r\n".encode()),
}


@pytest.mark.parametrize("how", ECHOES)
def test_a_key_that_the_server_sends_back_is_shown_nowhere(server: Server, how: str) -> None:
    server.answer = lambda request, tries: ECHOES[how]
    said, _ = ask(server)
    assert server.keys[0] == f"Bearer {KEY}"
    assert KEY not in said
    assert KEY[: len(KEY) // 2] not in said


def test_a_server_that_is_gone_shows_nothing(server: Server) -> None:
    model = load(resolve(f"{server.base}#m"))
    server.close()
    with pytest.raises(ModelError) as caught:
        list(model.generate(PROMPTS, Law(), candidates=[(0,)] * 3, seed=0))
    assert KEY not in shown(caught.value)
    assert all(e is caught.value for e in chain(caught.value))
    server.open()


@pytest.mark.parametrize("form", ["http://{}@127.0.0.1:9", "socks5://{}@127.0.0.1:9", "http://{}@:x", "{}@127.0.0.1:9"])
def test_a_proxys_password_is_shown_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", form.format(f"user:{PASSWORD}"))
    with pytest.raises(ModelError, match="proxy") as caught:
        ask_through_proxy("http://models.invalid/v1")
    assert PASSWORD not in shown(caught.value)


def ask_through_proxy(base: str) -> list[Completion]:
    return list(load(resolve(f"{base}#m")).generate(PROMPTS, Law(), candidates=[(0,)] * 3, seed=0))


def test_a_proxy_is_used_and_told_its_password_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://user:{PASSWORD}@127.0.0.1:{server.port}")
    base = "http://models.invalid:81/v1"
    assert [c.finish_reason for c in ask_through_proxy(base)] == ["stop"] * 3
    assert {target for target, _ in server.heads} == {f"{base}/models", f"{base}/chat/completions"}
    login = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    assert all(head["proxy-authorization"] == f"Basic {login}" for _, head in server.heads)
    monkeypatch.setenv("no_proxy", "models.invalid")
    assert http.Server.of(base).proxy is None


@pytest.mark.parametrize("host", ["127.0.0.1:9", "[::1", "\uff0fx"])
def test_a_url_with_a_password_is_refused_without_showing_it(host: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(f"http://user:{PASSWORD}@{host}/v1#m")
    assert PASSWORD not in shown(caught.value)


RECIPE = {
    "name": "asked",
    "model": "nano-sums",
    "task": {"modular_sums": {"size": 12, "heldout": 4}},
    "stages": [{"sample": {"temperature": {"n": 2}}}, {"judge": "answer"}],
}


def test_a_run_folder_holds_every_failure_with_its_reason_and_no_key(server: Server, tmp_path: Path) -> None:
    """One prompt in three fails with the key in the reason; answers hold it too."""

    def answer(request: dict[str, Any], tries: int) -> Any:
        odd = sum(map(ord, request["messages"][-1]["content"])) % 3 == 0
        return refusal(400, f"not with {KEY}") if odd else chat(f"5 {KEY}")

    server.answer = answer
    recipe = {
        **RECIPE,
        "stages": [{"sample": {"temperature": {"n": 2}, "model": f"{server.base}#m"}}, *RECIPE["stages"][1:]],
    }
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        made = run(recipe, runs_dir=tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert files
    assert not [p for p, data in files.items() if KEY.encode() in data]
    assert KEY not in out.getvalue() + err.getvalue()
    reasons = [d["reason"] for d in made.dropped() if "[key]" in d["reason"]]
    failed = sum(refused for refused in (sum(map(ord, p)) % 3 == 0 for p in server_prompts(server)))
    assert len(reasons) == failed > 0


def server_prompts(server: Server) -> list[str]:
    return [r["messages"][-1]["content"] for r in server.requests]


def test_a_run_that_ends_by_an_error_shows_no_key(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request, tries: refusal(401, f"Incorrect API key provided: {KEY}")
    recipe = {
        **RECIPE,
        "stages": [{"sample": {"temperature": {"n": 2}, "model": f"{server.base}#m"}}, *RECIPE["stages"][1:]],
    }
    with pytest.raises(TamisError) as caught:
        run(recipe, runs_dir=tmp_path)
    assert KEY not in shown(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize("key", ["1", "EMPTY"])
def test_a_short_key_changes_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Yet it is taken out of what the server says of a failure."""
    monkeypatch.setenv("TAMIS_API_KEY", key)
    text = f"The answer is {key} #{key}"
    server.answer = lambda request, tries: chat(text)
    _, found = ask(server)
    assert [c.text for c in found] == [text] * 3
    server.answer = lambda request, tries: refusal(400, f"your key is <{key}>")
    said, _ = ask(server)
    assert "your key is <[key]>" in said
