"""Evaluators that let the measured model judge pairs: `calibration` and `bias_bench`."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.evaluators import stats
from tamis.evaluators.bias_bench import TYPES, BiasCase, bias_bench, bias_type, cases_of, macro
from tamis.judges.pairs import Pair
from tamis.lab.judges import BiasedJudge
from tamis.metrics import View
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict
from tamis.registry import build


@dataclass
class Talker:
    """Replies by a function of the question's text."""

    reply: object
    identity: str = "talker"

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        for prompt, wanted in zip(prompts, candidates, strict=True):
            for j in wanted:
                yield Completion(prompt.id, (Turn("assistant", self.reply(prompt.text)),), index=j, cost=Cost(1, 1))


def shown(text):
    first, second = text.split("Answer A:\n")[1].split("Answer B:\n")
    return first.split("\n")[0], second.split("\n")[0]


def row(number, answers=("7", "2"), **metadata):
    return Prompt((Message("user", f"q{number}"),), answers, metadata=metadata, split="heldout")


def measure(evaluator, prompts, reply, **options):
    found = build("evaluator", {evaluator: options}).measure(View(prompts, {}, Talker(reply)))
    return {m.name: m for m in found}


RATED = [row(0, ratings=[1, 1, 0, 1]), row(1, ("1", "3"), ratings=[0, 0, 0, 1]), row(2, ("4", "4.5"), ratings=[1, 0])]


def honest(text):
    """States 3/4 for the answer that most prefer, 1/2 for the third pair."""
    first, _ = shown(text)
    preferred = {"7": 0.75, "2": 0.25, "1": 0.25, "3": 0.75}
    return f"[P: {preferred.get(first, 0.5):.2f}]"


def test_an_honest_judge_is_calibrated():
    found = measure("calibration", RATED, honest)
    assert {name: m.value for name, m in found.items() if name in ("mse", "ece", "positional bias", "invalid")} == {
        "mse": 0, "ece": pytest.approx(0), "positional bias": 0, "invalid": 0,
    }  # fmt: skip
    assert found["brier"].value == pytest.approx(np.mean([3 / 16, 3 / 16, 1 / 4]))
    assert (found["mse"].n, found["mse"].unit, found["invalid"].unit) == (3, "squared probability", "share")
    assert found["agreement"].higher_is_better
    assert not found["ece"].higher_is_better
    assert set(found["ece"].per_item) == {p.id for p in RATED}


def test_a_favoured_place_and_silence_show():
    assert measure("calibration", RATED, lambda text: "[P: 0.80]")["positional bias"].value == pytest.approx(0.6)
    silent = measure("calibration", RATED, lambda text: "A")
    assert (silent["invalid"].value, silent["mse"].value, silent["ece"].value) == (1, 1, 1)


def test_single_ratings_have_no_known_share():
    found = measure("calibration", [row(0, ("7",), rejected="2"), row(9, ("a",))], honest)
    assert "mse" not in found
    assert found["brier"].value == pytest.approx(1 / 16)
    assert found["brier"].notes == {"without a pair": 1}


def test_another_judge_may_be_measured():
    found = measure("calibration", RATED, lambda text: "Verdict: A", judge={"prefer": {"votes": 2, "temperature": 1.0}})
    assert found["positional bias"].value == 1


@pytest.mark.parametrize("name", ["calibration", "bias_bench"])
def test_judges_that_cannot_be_measured(name):
    with pytest.raises(ConfigError, match="does not compare"):
        build("evaluator", {name: {"judge": "answer"}})
    with pytest.raises(ConfigError, match="Leave `model` out"):
        build("evaluator", {name: {"judge": {"prefer": {"model": "other"}}}})
    with pytest.raises(DataError, match="none of 1 held-out prompts has a pair"):
        measure(name, [row(0)], honest)


def case(i, bias, good="good", bad="bad and longer"):
    prompt = Prompt((Message("user", f"case {i}"),))
    return BiasCase(Pair(prompt, *(Completion(prompt.id, (Turn("assistant", t),)) for t in (good, bad))), bias)


CASES = [case(i, bias) for i, bias in enumerate(TYPES * 3)]


def judged(judge, cases=CASES):
    return bias_bench(lambda pairs: judge.compare(pairs, Context()), cases)


def biased(**options):
    return BiasedJudge(lambda prompt, done: float(done.text == "good"), sure=True, **options)


@pytest.mark.parametrize(
    ("judge", "single", "pair", "agreement"),
    [
        (biased(skill=0.0, position=1.0), 0.5, 0, 0),
        (biased(skill=0.0, length=1.0), 0, 0, 1),
        (biased(), 1, 1, 1),
        (biased(ties=1.0), 0, 0, 1),
        (biased(unparseable=1.0), 0, 0, 0),
    ],
)
def test_the_table_of_scripted_judges(judge, single, pair, agreement):
    table = judged(judge)
    assert list(table.by_type(table.pair)) == list(TYPES)
    assert (table.single == single).all()
    assert (table.pair == pair).all()
    assert (table.agreement == agreement).all()


def test_a_judge_must_keep_to_the_order_shown():
    def settles(pairs):
        return [Verdict(p.prompt.id, tuple(sorted(p.ids)), "settled", label="A") for p in pairs]

    with pytest.raises(ConfigError, match="orders pairs itself"):
        bias_bench(settles, CASES)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=6))
def test_every_type_counts_alike(rows):
    found = macro([np.array(row, dtype=float) for row in rows])
    assert found.value == pytest.approx(np.mean([np.mean(row) for row in rows]))
    assert 0 <= found.low <= found.value <= found.high <= 1
    if len(rows) == 1:
        assert found == pytest.approx(stats.wilson(sum(rows[0]), len(rows[0])))


def test_the_interval_of_the_macro_mean_covers():
    rng = np.random.default_rng(0)
    truth, sizes = np.array([0.1, 0.5, 0.95]), (17, 12, 12)
    inside = 0
    for _ in range(1000):
        found = macro([(rng.random(n) < p).astype(float) for p, n in zip(truth, sizes, strict=True)])
        inside += found.low <= truth.mean() <= found.high
    assert 0.92 < inside / 1000 < 0.99


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("length bias", "length"),
        ("concreteness", "concreteness"),
        ("empty reference", "empty_reference"),
        ("content_continuation", "content_continuation"),
        ("nested_instruction", "nested_instruction"),
        ("familiar knowledge preference bias", "familiar_knowledge"),
    ],
)
def test_names_of_the_released_file(name, said):
    assert bias_type(name) == said


def write(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


ROW = {"bias": "length bias", "instruction": "Say 7.", "response1": "7", "response2": "It is rather 2", "label": 1}


def test_a_file_of_cases(tmp_path):
    other = {**ROW, "bias": "concreteness", "instruction": "Say 2.", "label": 2}
    path = write(tmp_path / "bench.json", {"length bias": [ROW], "concreteness": [other]})
    assert [(c.bias, c.pair.first.text) for c in cases_of(path)] == [
        ("length", "7"),
        ("concreteness", "It is rather 2"),
    ]
    found = measure("bias_bench", [row(0)], lambda text: f"Verdict: {'AB'[shown(text)[1] == '7']}", path=path)
    assert found["pair accuracy"].value == 0.5
    assert found["pair accuracy: length"].value == 1
    assert found["pair accuracy: concreteness"].notes == {"single accuracy": 0, "agreement": 1}
    assert found["agreement"].value == 1
    assert found["pair accuracy"].notes == {"good answer longer": 0.5, "length correlation": -1}
    one = build("evaluator", {"bias_bench": {"path": path}}).fingerprint()
    write(tmp_path / "bench.json", {"length bias": [ROW], "concreteness": [{**other, "label": 1}]})
    assert build("evaluator", {"bias_bench": {"path": path}}).fingerprint() != one


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([{**ROW, "bias": "lenght bias"}], ConfigError, "Did you mean 'length'"),
        ([ROW, {**{k: v for k, v in ROW.items() if k != "label"}, "instruction": "x"}], DataError, "no label"),
        ([ROW, {**ROW, "instruction": "x", "response2": " 7"}], DataError, "the two answers are the same"),
        ([{"prompt": "q", "answer": "a", "label": 1}], DataError, "single answers"),
        ([], DataError, "no"),
    ],
)
def test_files_that_are_no_bench(tmp_path, rows, error, says):
    with pytest.raises(error) as caught:
        cases_of(write(tmp_path / "bench.json", rows))
    assert says in str(caught.value)


def test_heldout_pairs_are_ordinary_ones():
    prompts = [row(0, ("7",), rejected="2"), row(1, ("1", "3"), ratings=[0]), row(2, ratings=[1, 0]), row(3)]
    typed = [*prompts, row(4, ("9",), rejected="8", bias="length bias")]
    found = measure(
        "bias_bench", prompts, lambda text: "Verdict: " + "AB"[float(shown(text)[1]) > float(shown(text)[0])]
    )
    assert list(found) == ["pair accuracy", "single accuracy", "agreement"]
    assert (found["pair accuracy"].value, found["pair accuracy"].n) == (1, 2)
    assert found["pair accuracy"].notes["without a better answer"] == 2
    assert "pair accuracy: length" in measure("bias_bench", typed, lambda text: "Verdict: A")
    assert not math.isnan(found["pair accuracy"].notes["good answer longer"])
    with pytest.raises(DataError, match="All ratings are ties"):
        measure("bias_bench", [row(2, ratings=[1, 0])], lambda text: "Verdict: A")
