"""A server that fails for a while: the same command asks again once it is mended, and says meanwhile what it answered."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models.hostile_server import Server, chat, refusal

from tamis.api import run
from tamis.asking import Question, ask
from tamis.audit import audit
from tamis.context import Context
from tamis.errors import ModelError, StoreError
from tamis.models import load, resolve
from tamis.models.endpoint import traffic
from tamis.records import Message
from tamis.replies import Replies

JUDGE = [{"sample": {"temperature": {"n": 1}}}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.005)
    made = Server()
    made.answer = lambda request, tries: refusal(500, "the card is gone")
    yield made
    made.close()


def recipe(stages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "outage",
        "model": "nano-sums",
        "task": {"modular_sums": {"size": 8, "heldout": 2}},
        "stages": stages,
        "endpoint": {"retries": 0},
    }


def test_a_sample_stage_asks_again_after_an_outage(server: Server, tmp_path: Path) -> None:
    sampling = {"sample": {"temperature": {"n": 1}, "model": f"{server.base}#m"}}
    for _ in range(2):
        before = len(server.requests)
        with pytest.raises(ModelError, match=r"every completion failed.*HTTP 500.*the card is gone"):
            run(recipe([sampling]), runs_dir=tmp_path)
        assert len(server.requests) > before
    assert "the card is gone" in next(tmp_path.glob("*/log.jsonl")).read_text()
    server.answer = lambda request, tries: chat("The answer is 7.")
    found = run(recipe([sampling]), runs_dir=tmp_path)
    assert {c.finish_reason for c in found.completions()} == {"stop"}


def test_a_judge_stage_asks_again_after_an_outage(server: Server, tmp_path: Path) -> None:
    judging = {"judge": {"score": {"model": f"{server.base}#m"}}}
    for _ in range(2):
        before = len(server.requests)
        with pytest.raises(ModelError, match=r"every question to the model failed.*HTTP 500.*the card is gone"):
            run(recipe([*JUDGE, judging]), runs_dir=tmp_path)
        assert len(server.requests) > before
    server.answer = lambda request, tries: chat('{"reason": "so", "score": 7}')
    found = run(recipe([*JUDGE, judging]), runs_dir=tmp_path)
    assert {v.label for v in found.verdicts()} == {"scored"}


def test_a_question_without_a_reply_is_dropped_with_the_reason_and_not_kept(server: Server, tmp_path: Path) -> None:
    def answer(request: dict[str, Any], tries: int) -> Any:
        return refusal(500, "no luck") if request["messages"][-1]["content"] == "b" else chat("yes")

    server.answer = answer
    model = load(resolve(f"{server.base}#m"), retries=0)
    ctx = Context(model=model, replies=Replies(tmp_path / "replies.sqlite"))
    questions = [Question((Message("user", text),), str) for text in "abc"]
    assert [a.fault for (a,) in ask(ctx, questions)] == ["", "no_reply", ""]
    assert ctx.counts["answers without a value: no_reply"] == 1
    assert len(ctx.dropped) == 1
    assert "no luck" in ctx.dropped[0]["reason"]
    with sqlite3.connect(tmp_path / "replies.sqlite") as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (2,)


def test_an_audit_whose_every_request_is_refused_ends_with_the_reason(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.answer = lambda request, tries: refusal(400, "not today")
    for _ in range(2):
        before = len(server.requests)
        with pytest.raises(ModelError, match=r"every question to the model failed.*not today"):
            audit("prefer", data, model=f"{server.base}#m", repeats=0, out=tmp_path / "out")
        assert len(server.requests) > before
    server.answer = lambda request, tries: chat("A")
    found = audit("prefer", data, model=f"{server.base}#m", repeats=0, out=tmp_path / "out")
    assert found.figures["cost"]["unreadable"] == 0


@pytest.mark.parametrize("kept", ["[]", "{}", '{"text": 5}', "7", "null", '{"text": "x", "finish": "error"}'])
def test_a_kept_reply_that_is_none_is_asked_again(server: Server, tmp_path: Path, kept: str) -> None:
    server.answer = lambda request, tries: chat("yes")
    ctx = Context(model=load(resolve(f"{server.base}#m")), replies=Replies(tmp_path / "replies.sqlite"))
    question = Question((Message("user", "a"),), str)
    ask(ctx, [question])
    with sqlite3.connect(tmp_path / "replies.sqlite") as database:
        database.execute("UPDATE replies SET reply = ?", (kept,))
    assert ask(ctx, [question])[0][0].value == "yes"
    assert len(server.requests) == 2


def test_a_database_of_something_else_says_to_move_it_away(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "replies.sqlite") as database:
        database.execute("CREATE TABLE replies (other TEXT)")
    with pytest.raises(StoreError, match=r"Move replies\.sqlite away"):
        Replies(tmp_path / "replies.sqlite").get(["k"])
