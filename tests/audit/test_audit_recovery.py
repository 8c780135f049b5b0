"""An audit finds the bias that was planted inside its intervals, and none where none was planted."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tamis.audit import audit
from tamis.audit.asking import Asker
from tamis.audit.figures import calibration, effects
from tamis.audit.statistics import share
from tamis.audit.trials import STYLES, trials
from tamis.judges.pairs import Pair
from tamis.lab.judges import BiasedJudge
from tamis.preferences import KnownAnswers, Preference
from tamis.records import Completion, Message, Prompt, Turn

RUNS = 200


def has_list(text):
    return float(bool(STYLES["lists"].search(text)))


def quality(prompt, completion):
    return float("sound" in completion.text)


def pairs(n, seed):
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        prompt = Prompt((Message("user", f"question {i}"),))
        listed = ["- one\n- two\n" * (rng.random() < 0.4) for _ in range(2)]
        texts = [
            f"{kind}\n{x}" + "word " * int(rng.integers(5, 60))
            for kind, x in zip(("sound", "poor"), listed, strict=True)
        ]
        made = [Completion(prompt.id, (Turn("assistant", t),), index=k) for k, t in enumerate(texts)]
        better = int(rng.integers(2))
        cases.append(Preference(Pair(prompt, *(made[::-1] if better else made)), better, where=f"made:{i}"))
    return KnownAnswers("made", cases)


def simulate(judge, n=60):
    """Return the share of audits whose interval holds the truth, by figure, and the shares of them that stand out."""
    held, out, anything, accuracies = {}, {}, 0, []
    for seed in range(RUNS):
        data = pairs(n, seed)
        found = trials(data, Asker(judge).sit(data, seed=seed, repeats=0))
        fit = effects(found)
        style = next(iter(judge.style.values()), 0.0)
        truth = {"place": judge.position, "quality": judge.skill, "lists": style}
        truth["length"] = judge.length * fit["length_sd"] / 100
        for one in fit["fitted"]:
            held.setdefault(one["name"], []).append(one["low"] <= truth[one["name"]] <= one["high"])
            out.setdefault(one["name"], []).append(one["stands_out"])
        anything += any(one["stands_out"] for one in fit["fitted"])
        shown = [p for c in data.pairs for p in (c.pair, c.pair.swapped())]
        odds = np.array([judge.log_odds(p) for p in shown])
        sides = np.array([1 if quality(p.prompt, p.first) else -1 for p in shown])
        accuracy = share(found.right, found.prompts)
        accuracies.append((accuracy, (1 / (1 + np.exp(-odds * sides))).mean()))
    mean = np.mean([true for _, true in accuracies])
    held["accuracy"] = [one.low <= mean <= one.high for one, _ in accuracies]
    return {k: np.mean(v) for k, v in held.items()}, {k: np.mean(v) for k, v in out.items()}, anything / RUNS


def test_planted_biases_lie_inside_the_intervals():
    judge = BiasedJudge(quality, skill=1.0, position=1.0, length=0.5, style={has_list: 0.8})
    held, out, _ = simulate(judge)
    assert held.keys() == {"place", "quality", "length", "lists", "accuracy"}
    assert all(0.90 <= share <= 0.99 for share in held.values()), held
    assert out["place"] > 0.9


def test_no_bias_is_found_where_none_was_planted():
    held, out, anything = simulate(BiasedJudge(quality, skill=1.0))
    limit = 0.05 + 4 * math.sqrt(0.05 * 0.95 / RUNS)
    assert all(0.90 <= share <= 0.99 for share in held.values()), held
    assert all(share <= limit for share in out.values()), out
    assert anything <= limit


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (
            BiasedJudge(quality, skill=0, position=30, sure=True),
            ["compatible with guessing", "favours the first place"],
        ),
        (BiasedJudge(quality, skill=0, position=-30, sure=True), ["compatible with guessing", "the second place"]),
        (BiasedJudge(quality, skill=0, length=30, sure=True), ["in 0.0%", "favours longer answers"]),
        (BiasedJudge(quality, skill=30, sure=True), ["in 100.0%", "one place does not stand out", "or style does not"]),
    ],
)
def test_sure_judges_are_seen_through(judge, said):
    text = " ".join(audit(judge, pairs(60, 0), repeats=0).summary)
    assert all(part in text for part in said), text


def test_ties_and_missing_answers_stand_apart():
    judge = BiasedJudge(quality, skill=30, ties=0.3, unparseable=0.2, sure=True)
    found = audit(judge, pairs(100, 0), repeats=0).figures
    assert found["agreement"]["accuracy"]["value"] == 1
    assert found["agreement"]["ties"]["low"] < 0.24 < found["agreement"]["ties"]["high"]
    assert found["agreement"]["no_answer"]["low"] < 0.2 < found["agreement"]["no_answer"]["high"]
    assert found["cost"]["unreadable"] == round(found["agreement"]["no_answer"]["value"] * 200)
    assert sum(found["outcomes"][k]["value"] for k in found["outcomes"]) == pytest.approx(1)


def test_repeats_of_a_coin_agree_by_chance_alone():
    judge = BiasedJudge(lambda *_: 0.0, skill=0)
    found = audit(judge, pairs(150, 0), repeats=4).figures["consistency"]
    assert found["equal"]["low"] < 0.5 < found["equal"]["high"]
    assert found["kappa"]["low"] < 0 < found["kappa"]["high"]


def test_honest_probabilities_are_calibrated_and_exaggerated_ones_are_not():
    rng = np.random.default_rng(0)
    p = rng.random(800)
    y = rng.random(800) < p
    prompts = np.arange(800)
    honest = calibration(p, y, prompts, rng)
    loud = calibration(np.where(p > 0.5, 0.99, 0.01), y, prompts, rng)
    assert honest["ece"]["low"] < 0.03
    assert loud["ece"]["low"] > 0.15
    assert loud["brier"]["low"] > honest["brier"]["high"]
    assert loud["log_loss"]["low"] > honest["log_loss"]["high"]
    assert calibration(np.full(9, 0.5), np.ones(9), np.arange(9), rng) is None


def test_equal_prompts_are_one_unit():
    data = pairs(30, 0)
    asked = data.pairs[0].pair.prompt
    same = [replace(p, pair=Pair(asked, p.pair.first, p.pair.second)) for p in data.pairs]
    same = KnownAnswers("made", same)
    judge = BiasedJudge(quality, skill=1.0)
    assert audit(judge, same, repeats=0).figures["data"]["prompts"] == 1
    assert "Nothing can be said about leanings" in audit(judge, same, repeats=0).summary[2]
