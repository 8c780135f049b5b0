"""`tamis audit` from file to page: what it reads, asks, keeps, writes and refuses."""

import json
import math
import re
import sys

import numpy as np
import pytest
from tests.models.hostile_server import Server, chat, echo

import tamis.models.resolve  # noqa: F401
from oracle import Oracle
from tamis import cli
from tamis.audit import audit, run
from tamis.audit.trials import STYLES, styles
from tamis.errors import ConfigError, DataError, ModelError
from tamis.preferences import KnownAnswers, read
from tamis.records import Cost


@pytest.fixture
def model(monkeypatch):
    def use(reply):
        oracle = Oracle(reply, Cost(2, 1))
        monkeypatch.setattr(sys.modules["tamis.models.resolve"], "load", lambda ref: oracle)
        return oracle

    return use


ANSWER = re.compile(r"Answer:\n(.*)")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair_rows(n=24):
    return [
        {"instruction": f"q{i}", "response1": f"sound {i}" + " x" * i, "response2": f"poor {i}", "label": 1,
         "bias": "even" if i % 2 == 0 else "odd"}
        for i in range(n)
    ]  # fmt: skip


def better(text):
    return "Verdict: A" if text.index("sound") < text.index("poor") else "Verdict: B"


def test_a_second_run_asks_nothing_again(tmp_path, model):
    oracle = model(better)
    file = write(tmp_path / "pairs.jsonl", pair_rows())
    first = audit("prefer", file, model="nano-sums", out=tmp_path / "out")
    assert (len(oracle.asked), oracle.temperatures.count(0.7)) == (120, 72)
    assert first.figures["cost"] | {"seconds": 0} == {
        "verdicts": 120, "known": 0, "judge_calls": 120, "prompt_tokens": 240, "sampled_tokens": 120, "seconds": 0,
        "unreadable": 0, "examples": [],
    }  # fmt: skip
    again = audit("prefer", file, model="nano-sums", out=tmp_path / "out")
    assert len(oracle.asked) == 120
    assert again.figures["cost"]["known"] == 120
    volatile = {"cost", "made"}
    assert {k: v for k, v in again.figures.items() if k not in volatile} == {
        k: v for k, v in first.figures.items() if k not in volatile
    }
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["summary"] == again.summary
    audit({"prefer": {"max_new_tokens": 9}}, file, model="nano-sums", out=tmp_path / "out")
    assert len(oracle.asked) == 240


def test_the_page_escapes_what_it_shows_and_needs_nothing(tmp_path, model):
    model(lambda text: "<script>alert(1)</script>")
    rows = [row | {"bias": "<b>bold</b>" if i % 2 else "plain"} for i, row in enumerate(pair_rows())]
    audit("prefer", write(tmp_path / "p.jsonl", rows), model="nano-sums", out=tmp_path / "out", repeats=0)
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script" not in page
    assert "<b>bold</b>" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page
    assert "none of 48 verdicts" in page


def test_a_judge_of_single_answers_is_audited_on_pairs(tmp_path, model):
    oracle = model(lambda text: json.dumps({"reason": "", "score": 9 if "Answer:\nsound" in text else 2}))
    found = audit("score", write(tmp_path / "p.jsonl", pair_rows()), model="nano-sums", repeats=0)
    assert found.figures["agreement"]["accuracy"]["value"] == 1
    assert "no place can sway it" in found.summary[1]
    assert len(oracle.asked) == 48


def test_chance_is_that_of_either_side_where_no_order_is_shown(tmp_path, model):
    wrong = {f"sound {i}" for i in range(0, 24, 4)}
    model(
        lambda text: json.dumps(
            {"reason": "", "score": 2 if ANSWER.search(text)[1] in wrong else 5 if "sound" in text else 3}
        )
    )
    rows = [
        {"prompt": r["instruction"], "chosen": f"sound {i}", "rejected": f"poor {i}"} for i, r in enumerate(pair_rows())
    ]
    found = audit("score", write(tmp_path / "p.jsonl", rows), model="nano-sums", repeats=0).figures["agreement"]
    assert found["accuracy"]["value"] == 0.75
    assert found["kappa"]["value"] == pytest.approx(0.5)
    assert found["kappa"]["low"] > 0


def item_rows(n=40):
    return [
        {"prompt": f"q{i}", "answer": f"{'sound' if i % 2 else 'poor'} {i}" + " x" * (i % 7), "rating": i % 2 + i / 99,
         "label": ["no", "yes"][i % 2], "category": "ab"[i % 3 == 0]}
        for i in range(n)
    ]  # fmt: skip


def test_single_answers_with_labels(tmp_path, model):
    model(lambda text: json.dumps({"reason": "", "score": 9 if "Answer:\nsound" in text or " 8" in text else 2}))
    found = audit("score", write(tmp_path / "i.jsonl", item_rows()), model="nano-sums", out=tmp_path / "o").figures
    assert found["agreement"]["table"] == [[20, 0], [1, 19]]
    assert found["agreement"]["accuracy"]["value"] == 39 / 40
    assert found["agreement"]["kappa"]["value"] == pytest.approx(0.95)
    assert found["rating"]["value"] > 0.7
    assert [(row["group"], row["n"]) for row in found["groups"]] == [("b", 14), ("a", 26)]
    assert found["data"]["kind"] == "items"


def test_labels_of_the_judges_own(tmp_path, model):
    model(lambda text: "helpful" if "Answer:\nsound" in text else "refusal")
    rows = [row | {"label": "Helpful" if row["label"] == "yes" else "refusal"} for row in item_rows(20)]
    judge = {"label": {"labels": ["helpful", "refusal", "other"]}}
    found = audit(judge, write(tmp_path / "i.jsonl", rows), model="nano-sums", repeats=0).figures
    assert found["agreement"]["accuracy"]["value"] == 1
    assert len(found["agreement"]["table"]) == 3


def test_a_rule_needs_no_model(tmp_path):
    rows = [{"question": f"{i}+1?", "answer": f"#### {i + 1 + i % 3}", "gold": str(i + 1), "label": int(i % 3 == 0)}
            for i in range(30)]  # fmt: skip
    found = audit("answer", write(tmp_path / "i.jsonl", rows)).figures
    assert (found["judge"]["model"], found["agreement"]["accuracy"]["value"]) == (None, 1)


def test_bad_rows_are_counted_and_written_aside(tmp_path, model):
    model(better)
    rows = pair_rows()
    rows[1]["label"] = "tie"
    rows[2]["label"] = 7
    del rows[3]["label"]
    rows[4]["response2"] = rows[4]["response1"]
    rows.append(dict(rows[0]))
    found = audit("prefer", write(tmp_path / "p.jsonl", rows), model="nano-sums", out=tmp_path / "o", repeats=0).figures
    assert found["data"]["used"] == 20
    assert found["data"]["left_out"] == {
        "known to be a tie": 1, "label not understood": 1, "no label": 1, "the two answers are the same": 1,
        "the same row again": 1,
    }  # fmt: skip
    aside = [json.loads(line) for line in (tmp_path / "o" / "rejected.jsonl").read_text().splitlines()]
    assert [row["record"] for row in aside] == [f"p.jsonl:{n}" for n in (2, 3, 4, 5, 25)]


def test_shapes_of_files(tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(
        json.dumps({"length bias": pair_rows(2), "other": [row | {"label": 2} for row in pair_rows(3)[2:]]})
    )
    cases = read(str(bench)).pairs
    assert [(c.group, c.better) for c in cases] == [("length bias", 0), ("length bias", 0), ("other", 1)]
    assert [c.where for c in cases] == [f"bench.json:{at}" for at in ("length bias[1]", "length bias[2]", "other[1]")]
    said = {"a": [row | {"critiques": ["clear", "", 3]} for row in pair_rows(1)], "b": pair_rows(2)[1:]}
    bench.write_text(json.dumps(said))
    assert [p.critiques for p in read(str(bench)).pairs] == [("clear",), ()]
    chat = [{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
             "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}]  # fmt: skip
    (case,) = read(write(tmp_path / "c.jsonl", chat)).pairs
    assert (case.pair.prompt.text, case.pair.first.text, case.pair.second.text, case.better) == ("q", "a", "b", 0)
    odd = [{"ask": "q", "x": {"one": "a", "two": "b"}, "who": "B"}]
    mapping = {"prompt": "ask", "first": "x.one", "second": "x.two", "label": "who"}
    (case,) = read(write(tmp_path / "o.jsonl", odd), mapping).pairs
    assert (case.pair.first.text, case.better) == ("a", 1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "q", "answer": "a"}], "no labels"),
        ([{"instruction": "q", "response1": "a", "response2": "b"}], "no labels"),
        ([{"x": "q"}], "no usable row"),
        ([{"prompt": "q", "answer": "a", "label": 1}, *pair_rows(1)], "1 rows are pairs and 1 are single answers"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read(write(tmp_path / "x.jsonl", rows))


def test_labels_all_the_same_tell_nothing(tmp_path):
    rows = [row | {"label": "yes"} for row in item_rows()]
    with pytest.raises(DataError, match="all 40 answers are labelled 'good'"):
        audit("answer", write(tmp_path / "i.jsonl", rows))


def test_labels_nobody_knows(tmp_path):
    with pytest.raises(DataError, match="the label 'meh' is none that is known"):
        audit("answer", write(tmp_path / "i.jsonl", [row | {"label": "meh"} for row in item_rows()]))


def test_few_pairs_say_what_can_be_concluded(tmp_path, model):
    model(better)
    found = audit("prefer", write(tmp_path / "p.jsonl", pair_rows()), model="nano-sums", n=5, repeats=0)
    assert found.figures["data"] | {"file": ""} == {
        "file": "", "kind": "pairs", "used": 5, "prompts": 5, "not_drawn": 19, "left_out": {},
    }  # fmt: skip
    assert "Nothing can be said about leanings to length or style: verdicts on 5 prompts" in found.summary[2]
    assert "known to be right in 57% or more only" in found.figures["notes"][0]


def test_refusals(tmp_path):
    pairs, items = write(tmp_path / "p.jsonl", pair_rows()), write(tmp_path / "i.jsonl", item_rows())
    with pytest.raises(ConfigError, match="unknown judge 'prefr'"):
        audit("prefr", pairs)
    with pytest.raises(ConfigError, match="compares two answers, and the data are single"):
        audit("prefer", items, model="nano-sums")
    with pytest.raises(ModelError, match="the judge 'prefer' needs"):
        audit("prefer", pairs, model="minilm-l6-v2")
    with pytest.raises(ConfigError, match="an audit has none"):
        audit({"auto_rubric": {"pairs": pairs}}, pairs, model="nano-sums")
    with pytest.raises(ConfigError, match="unknown role 'answr'"):
        audit("prefer", pairs, mapping={"answr": "x"})
    with pytest.raises(DataError, match="nothing to audit"):
        audit("answer", KnownAnswers("made here"))
    with pytest.raises(ConfigError, match="--repeats is 1"):
        audit("prefer", pairs, repeats=1)
    with pytest.raises(ConfigError, match="concurrency"):
        audit("prefer", pairs, endpoint={"concurency": 2})


def test_an_endpoint_is_asked_as_is_said(tmp_path):
    server = Server()
    server.answer = lambda request, tries: chat(better(echo(request)))
    try:
        pairs = write(tmp_path / "p.jsonl", pair_rows(6))
        found = audit("prefer", pairs, model=f"{server.base}#m", repeats=0, endpoint={"concurrency": 2})
    finally:
        server.close()
    assert found.figures["agreement"]["accuracy"]["value"] == 1
    assert server.most_in_flight <= 2


def test_the_judge_on_the_command_line(tmp_path):
    assert run.spec("prefer", ["votes=3", "temperature=0.5"]) == {"prefer": {"votes": 3, "temperature": 0.5}}
    assert run.spec("{score: {high: 5}}") == {"score": {"high": 5}}
    file = tmp_path / "judge.yaml"
    file.write_text("label: {labels: [good, bad]}")
    assert run.spec(str(file), ["samples=2"]) == {"label": {"labels": ["good", "bad"], "samples": 2}}
    for judge, options in (("[a, b]{", ()), (str(tmp_path / "no.yaml"), ()), ("prefer", ["votes"])):
        with pytest.raises(ConfigError):
            run.spec(judge, options) if judge != "[a, b]{" else run.build(run.spec(judge), None)
    with pytest.raises(ConfigError, match="options must be a mapping"):
        run.build(run.spec("{label: 3}", ["samples=2"]), None)


def test_the_command(tmp_path, model, monkeypatch, capsys):
    model(better)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", pair_rows())
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "prefer", "--data", "p.jsonl", "--model", "nano-sums", "--set", "max_new_tokens=9"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "names the better answer in 100.0%" in out
    assert "0 of 120 verdicts were there already" in out
    assert (tmp_path / "runs" / "audit-prefer-p" / "audit.html").is_file()
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "prefer", "--data", "none.jsonl"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("plain words", ""),
        ("# Head\ntext", "headings"),
        ("- a\n- b", "lists"),
        ("1. a\n2. b", "lists"),
        ("- only one", ""),
        ("a **bold** word", "bold"),
        ("there are 12 of them", "numbers"),
        ("it is 3.5 percent", "numbers"),
        ("see [3] or https://x.org", "citations numbers"),
        ("(Smith, 2020) says", "citations numbers"),
    ],
)
def test_features_of_style(text, has):
    found = {name for name, value in zip(STYLES, styles(text), strict=True) if value}
    assert found - ({"numbers"} if "[3]" in text else set()) == set(has.split()) - (
        {"numbers"} if "[3]" in text else set()
    )


def test_figures_are_plain_numbers(tmp_path, model):
    model(better)
    found = audit("prefer", write(tmp_path / "p.jsonl", pair_rows()), model="nano-sums").figures

    def finite(value):
        if isinstance(value, dict):
            return all(map(finite, value.values()))
        if isinstance(value, list):
            return all(map(finite, value))
        assert not isinstance(value, np.generic)
        return not isinstance(value, float) or math.isfinite(value)

    assert finite(found)
