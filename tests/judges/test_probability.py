"""The judges `probability` and `proper_score`."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.pairs import Pair
from tamis.models.base import LabelLogprobs
from tamis.records import Completion, Cost, Message, Prompt, Turn
from tamis.registry import build

ASKED = Prompt((Message("user", "Which?"),), ("secret",))
GOOD, BAD = (Completion(ASKED.id, (Turn("assistant", text),), index=i) for i, text in enumerate(("good", "bad")))
PAIR = Pair(ASKED, GOOD, BAD)


@dataclass
class Talker:
    """Replies by a function of the question's text and the candidate number."""

    reply: object
    identity: str = "talker"
    asked: list = field(default_factory=list)

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        for prompt, wanted in zip(prompts, candidates, strict=True):
            for j in wanted:
                self.asked.append((prompt.text, law.temperature))
                yield Completion(prompt.id, (Turn("assistant", self.reply(prompt.text, j)),), index=j, cost=Cost(1, 1))


def compare(reply, pairs=(PAIR,), **options):
    ctx = Context(model=Talker(reply) if callable(reply) else reply)
    return build("judge", {"probability": options}).compare(list(pairs), ctx), ctx


def likes_good(text, j):
    return f"so [P: {0.9 if text.index('good') < text.index('bad') else 0.3}]"


def test_the_probability_is_the_mean_of_the_samples():
    (found,), ctx = compare(lambda text, j: f"[P: 0.{j}]")
    assert found.probability == pytest.approx(np.mean([0.1 * j for j in range(8)]))
    assert (found.label, found.score, found.cost.judge_calls) == ("B", None, 8)
    assert {t for _, t in ctx.model.asked} == {1.0}
    assert "secret" not in ctx.model.asked[0][0]


def test_one_order_by_default_and_the_mean_of_both_when_asked():
    there, back = compare(likes_good, [PAIR, PAIR.swapped()])[0]
    assert (there.probability, back.probability) == pytest.approx((0.9, 0.3))
    (found,), _ = compare(likes_good, both_orders=True)
    assert found.probability == pytest.approx((0.9 + 1 - 0.3) / 2)
    assert (found.label, found.completion_ids) == ("A", PAIR.ids)
    (tied,), _ = compare(lambda text, j: "[P: 0.8]", both_orders=True)
    assert (tied.label, tied.probability) == ("tie", pytest.approx(0.5))


def test_the_label_of_both_orders_is_the_means():
    """0.9 for the first, then 0.55 for what is first: the first wins by 0.675, though the verdicts flip."""
    (found,), _ = compare(lambda t, j: f"[P: {0.9 if t.index('good') < t.index('bad') else 0.55}]", both_orders=True)
    assert found.label == "A"


def test_unreadable_replies_are_asked_for_again_then_counted():
    def reply(text, j):
        return "[P: 0.6]" if j else "60%"

    (found,), ctx = compare(reply)
    assert found.probability == pytest.approx(0.6)
    assert found.cost.judge_calls == 9
    assert ctx.counts["answers without a value: unparseable_verdict"] == 1
    (none,), _ = compare(lambda text, j: "A, surely")
    assert (none.probability, none.label) == (None, "unparseable_verdict")


class Labels(Talker):
    """Gives log-probabilities of labels."""

    def label_logprobs(self, prompts, labels):
        assert labels == ("A", "B")
        return LabelLogprobs(
            np.log(np.array([[0.3, 0.1]] * len(prompts), np.float32)), np.ones((len(prompts), 2), bool)
        )


def test_the_models_own_probability_of_the_labels():
    (found,), _ = compare(Labels(None), how="labels")
    assert (found.probability, found.label) == (pytest.approx(0.75), "A")
    (sampled,), _ = compare(lambda text, j: "A" if j < 2 else "B", how="labels", samples=8)
    assert sampled.probability == pytest.approx(0.25)
    (none,), _ = compare(lambda text, j: "both", how="labels")
    assert (none.probability, none.label) == (None, "unparseable_verdict")


def test_refusals():
    with pytest.raises(ConfigError, match="all replies are equal"):
        build("judge", {"probability": {"temperature": 0}})
    assert build("judge", {"probability": {"temperature": 0, "samples": 1}})


def scored(text, rating=1, finish="stop", **options):
    metadata = {} if rating is None else {"rating": rating}
    asked = Prompt((Message("user", "q"),), metadata=metadata, source="data.jsonl:3")
    done = Completion(asked.id, (Turn("assistant", text),), finish_reason=finish)
    (found,) = build("judge", {"proper_score": options}).judge({asked.id: asked}, [done], Context())
    return found


def test_rewards_are_proper_scores():
    assert scored("[P: 0.7]").score == pytest.approx(-0.09)
    assert scored("[P: 0.7]", rule="log").score == pytest.approx(math.log(0.7))
    assert scored("[P: 0.7]", 0.25).score == pytest.approx(-(0.25 * 0.09 + 0.75 * 0.49))
    assert (scored("[P: 0.7]").label, scored("[P: 0.7]").probability) == ("stated", 0.7)


@pytest.mark.parametrize("text", ["", "0.7", "[P: 0.7] [P: 0.2]", "[P: 70%]"])
def test_an_invalid_reply_earns_least_and_not_nothing(text):
    assert (scored(text).score, scored(text).label) == (-1, "invalid")
    assert scored(text, rule="log", clip=0.1).score == pytest.approx(math.log(0.1))


def test_without_a_rating_there_is_no_reward():
    assert (scored("[P: 0.7]", None).score, scored("[P: 0.7]", None).label) == (None, "no_rating")
    assert scored("[P: 0.7]", finish="error").score is None
    for rating in (2, -1, "A", [1]):
        with pytest.raises(ConfigError, match=r"data.jsonl:3.*not a number from 0 to 1"):
            scored("[P: 0.7]", rating)
    with pytest.raises(ConfigError, match="clip"):
        scored("[P: 0.7]", clip=0.5)
