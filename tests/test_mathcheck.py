"""The process that compares expressions: right, limited in time, and started again after it was ended."""

import os
import threading
import time

import pytest

from tamis import mathcheck

BOMB = "9^{9^{9^{9}}}"


@pytest.mark.parametrize(
    ("gold", "answer", "found"),
    [
        ("2x+1", "1+2x", "correct"),
        ("\\frac{1}{2}", "0.5", "correct"),
        ("\\sqrt{8}", "2\\sqrt{2}", "correct"),
        ("x^2-1", "(x-1)(x+1)", "correct"),
        ("x+1", "x-1", "wrong"),
        ("\\{1,2\\}", "\\{2,1\\}", "correct"),
        ("\\frac{", "2", "unparseable_gold"),
        ("2", "", "unparseable_answer"),
        ("2", "(" * 40 + "2" + ")" * 40, "unparseable_answer"),
        ("2", "2" + "+0" * 2000, "unparseable_answer"),
    ],
)
def test_compare(gold, answer, found):
    assert mathcheck.compare(gold, answer) == found


def test_an_endless_computation_is_ended_and_the_next_question_answered(monkeypatch):
    monkeypatch.setenv("TAMIS_MATH_SECONDS", "0.3")
    mathcheck.stop()
    started = time.monotonic()
    assert mathcheck.compare("2y", BOMB) == "unparseable_answer"
    assert mathcheck.compare("y+y", "2y") == "correct"
    assert time.monotonic() - started < 20
    mathcheck.stop()


def test_threads_share_one_process():
    found = []
    pairs = [("a+b", "b+a"), ("a+b", "b-a"), ("3c", "c+2c")]
    threads = [threading.Thread(target=lambda p=p: found.append(mathcheck.compare(*p))) for p in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == ["correct", "correct", "wrong"]


def test_text_is_not_run(tmp_path):
    target = tmp_path / "made"
    for attack in (
        f"__import__('os').mkdir('{target}')",
        f"exec('import os; os.mkdir(\"{target}\")')",
        "\\x{__class__}",
    ):
        mathcheck.compare("x", attack)
        mathcheck.compare(attack, "x")
    assert not os.path.exists(target)
