import json
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composers.pools import completion, context, pool_of, prompt, sampled
from tamis.composers.offset_pairs import FAULTS, Offset, balance_length
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.pairs import Pair
from tamis.records import Completion, Cost, Message, Prompt, Turn
from tamis.registry import build
from tamis.stages import give_judge

PROMPTS = [prompt(i) for i in range(4)]
GOODS = [sampled(p, f"fair {i}") for i, p in enumerate(PROMPTS)]


@dataclass
class Writer:
    """Writes another request, a long answer, a faulty one, or a verdict; `wrong` replaces what it says, by kind."""

    wrong: dict = field(default_factory=dict)
    identity: str = "writer"
    asked: list = field(default_factory=list)

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature", **_):
        for asked, wanted in zip(prompts, candidates, strict=True):
            for j in wanted:
                kind, text = self.said(asked.text)
                self.asked.append((kind, asked.text))
                finish = "length" if text.endswith("...") else "stop"
                yield Completion(asked.id, (Turn("assistant", text),), index=j, finish_reason=finish, cost=Cost(1, 1))

    def said(self, text):
        subject = re.search(r"question (\d)", text)
        if "asks for something else" in text:
            kind, said = "request", json.dumps({"request": f"near question {subject[1]}"})
        elif "exactly one fault" in text:
            kind, said = "fault", json.dumps({"answer": f"a faulty answer {subject[1]}"})
        elif "Verdict" in text:
            kind, said = "verdict", "Verdict: A"
        else:
            kind, said = "answer", f"a shining answer {subject[1]}"
        changed = self.wrong.get(kind, said)
        return kind, changed(text) if callable(changed) else changed


def embed(texts):
    """Unit vectors: requests that begin with "near" have the cosine 0.8 to the others of their subject."""
    rows = np.zeros((len(texts), 20), np.float32)
    for row, text in zip(rows, texts, strict=True):
        number = int(re.search(r"\d", text)[0])
        row[2 * number] = 0.8 if text.startswith("near") else 1.0
        row[2 * number + 1] = 0.6 if text.startswith("near") else 0.0
    return rows


def compose(writer=None, pool=None, seed=0, **options):
    ctx = context(seed=seed)
    ctx.model, ctx.embed = writer or Writer(), embed
    pool = pool or pool_of(PROMPTS, GOODS)
    return list(build("composer", {"offset_pairs": options}).compose(pool, ctx)), ctx


def texts(example):
    return example.target.messages[-1].content, example.rejected.messages[-1].content


def test_both_ways_of_writing_bad_answers():
    made, ctx = compose(make="preferences")
    found = [(e.metadata["method"], *texts(e)) for e in made]
    assert found == [("off_topic", f"fair {i}", f"a shining answer {i}") for i in range(4)] + [
        ("erroneous", f"fair {i}", f"a faulty answer {i}") for i in range(4)
    ]
    assert all(e.metadata["generator"] == "writer" for e in made)
    assert {e.metadata["fault"] for e in made[4:]} <= set(FAULTS)
    asked = [text for kind, text in ctx.model.asked if kind == "fault"]
    assert all(FAULTS[e.metadata["fault"]] in text for e, text in zip(made[4:], asked, strict=True))
    assert [text for kind, text in ctx.model.asked if kind == "answer"] == [f"near question {i}" for i in range(4)]
    assert (ctx.counts["offset pairs"], ctx.counts["offset pairs whose good answer is longer"]) == (8, 0)


def test_a_judge_learns_the_verdict_alone_in_a_random_order():
    prompts = [Prompt((Message("user", f"question {i % 9} about {i}"),)) for i in range(60)]
    pool = pool_of(prompts, [sampled(p, f"fair {i}") for i, p in enumerate(prompts)])
    made, ctx = compose(pool=pool, methods=["off_topic"])
    said = [e.target.messages[-1].content for e in made]
    assert 15 < said.count("Verdict: A") < 45
    for example, line in zip(made, said, strict=True):
        first, second = re.split(r"Answer [AB]:\n", example.target.messages[0].content)[1:]
        assert ("shining" in second) == (line == "Verdict: A") == ("shining" not in first)
        trained = [i for i, w in zip(example.target.token_ids, example.target.weights, strict=True) if w]
        assert ctx.chat.decode(trained).startswith(line)


def test_the_data_own_pairs_are_ordinary_training_pairs():
    asked = Prompt((Message("user", "question 1?"),), ("chosen",), metadata={"rejected": "rejected"})
    pool = pool_of([asked], [completion(asked, "chosen")])
    made, _ = compose(pool=pool, make="preferences")
    assert texts(made[0]) == ("chosen", "rejected")
    assert [e.metadata["method"] for e in made] == ["own", "off_topic", "erroneous"]
    assert len(compose(pool=pool, own_pairs=False)[0]) == 2
    judged, _ = compose(pool=pool)
    assert "A correct answer" not in judged[0].target.messages[0].content


@pytest.mark.parametrize(
    ("wrong", "options", "reason", "left"),
    [
        ({"request": "no JSON"}, {}, "no other request was written", 4),
        ({"request": lambda t: json.dumps({"request": re.search(r"question \d\?", t)[0].upper()})}, {}, "too near", 4),
        ({}, {"similarity": [0.0, 0.79]}, "too near or too far", 4),
        ({}, {"similarity": [0.81, 1.0]}, "too near or too far", 4),
        ({"answer": "and then..."}, {}, "no whole answer", 4),
        ({"answer": " "}, {}, "no whole answer", 4),
        ({"fault": "Sure!"}, {}, "no erroneous answer", 4),
        ({"fault": '{"answer": "bad"}'}, {"faults": ["fact"]}, "shorter than the good one", 4),
        ({"fault": lambda t: json.dumps({"answer": re.search(r"fair \d", t)[0].upper()})}, {}, "is the good one", 4),
    ],
)
def test_what_cannot_be_used_is_left_out_and_counted(wrong, options, reason, left):
    made, ctx = compose(Writer(wrong), **options)
    assert len(made) == left
    assert sum(n for what, n in ctx.counts.items() if what.startswith("dropped: ") and reason in what) == 4


def test_some_faults_may_shorten():
    made, _ = compose(Writer({"fault": '{"answer": "bad"}'}), methods=["erroneous"], faults=["unfinished", "omission"])
    assert len(made) == 4


def test_a_bad_answer_that_the_checker_calls_right_is_left_out():
    prompts = [prompt(i, ("7",)) for i in range(2)]
    pool = pool_of(prompts, [sampled(p, "so the answer is 7") for p in prompts])
    writer = Writer(
        {"fault": lambda t: json.dumps({"answer": f"surely the answer is {7 if 'question 1' in t else 8}"})}
    )
    made, ctx = compose(writer, pool, methods=["erroneous"], make="preferences", checker={"answer": {}})
    assert [texts(e)[1] for e in made] == ["surely the answer is 8"]
    assert ctx.counts["dropped: the bad answer is right"] == 1


def knows(text):
    """A judge that is right about the first two questions, and follows the place in the others."""
    if not re.search("question [01]", text):
        return "Verdict: A"
    return "Verdict: A" if text.index("fair") < text.index("faulty") else "Verdict: B"


def test_easy_pairs_are_left_out():
    for easy, left in ((0.0, 2), (0.5, 3), (1.0, 4)):
        ctx = context()
        ctx.model, ctx.embed = Writer(), embed
        give_judge(ctx, build("judge", "prefer"), Context(model=Writer({"verdict": knows})))
        options = {"methods": ["erroneous"], "make": "preferences", "easy": easy}
        made = list(build("composer", {"offset_pairs": options}).compose(pool_of(PROMPTS, GOODS), ctx))
        assert len(made) == left
        assert {texts(e)[0] for e in made} >= {"fair 2", "fair 3"}
        assert ctx.counts["easy pairs kept"] == left - 2
    give_judge(ctx := context(), build("judge", "answer"), Context())
    with pytest.raises(ConfigError, match="does not compare"):
        list(build("composer", "offset_pairs").compose(pool_of([], []), ctx))


def test_requests_of_the_bench_are_never_seeds(tmp_path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"prompt": "Question 1", "chosen": "a", "rejected": "b", "bias": "length"}))
    made, ctx = compose(make="preferences", exclude=str(bench))
    assert {texts(e)[0] for e in made} == {"fair 0", "fair 2", "fair 3"}
    assert ctx.counts["dropped: the request is in the bench, or nearly"] == 1
    one = build("composer", {"offset_pairs": {"exclude": str(bench)}}).fingerprint()
    bench.write_text(bench.read_text() + "\n")
    assert build("composer", {"offset_pairs": {"exclude": str(bench)}}).fingerprint() != one


def test_only_accepted_whole_answers_are_good():
    pool = pool_of(PROMPTS, GOODS, [1.0, 0.0, 1.0, None])
    made, ctx = compose(pool=pool, methods=["off_topic"], make="preferences")
    assert [texts(e)[0] for e in made] == ["fair 0", "fair 2"]
    assert ctx.counts["dropped: no good answer to set against"] == 2


def test_it_depends_on_the_seed_and_the_records_alone():
    ids = [e.id for e in compose()[0]]
    assert [e.id for e in compose()[0]] == ids
    backwards, _ = compose(pool=pool_of(PROMPTS[::-1], GOODS[::-1]))
    assert {e.id for e in backwards} == set(ids)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"faults": ["fakt"]}, "Did you mean 'fact'"),
        ({"methods": ["offtopic"]}, "off_topic"),
        ({"methods": []}, "methods"),
        ({"similarity": [0.9, 0.5]}, "least < greatest"),
        ({"similarity": [0.5, 1.5]}, "least < greatest"),
        ({"checker": {"score": {}}}, "asks no model"),
        ({"fault_wording": "prefer"}, "not given here"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ConfigError) as caught:
        build("composer", {"offset_pairs": options})
    assert says in str(caught.value)


sides = st.lists(st.tuples(st.sampled_from(["fact", "format"]), st.booleans()), max_size=30)


@given(sides, st.integers(0, 9))
def test_lengths_are_balanced_by_leaving_out_alone(kinds, seed):
    made = [
        Offset(
            PROMPTS[0], completion(PROMPTS[0], "xx" if longer else "x"), completion(PROMPTS[0], "y", i + 1), "e", fault
        )
        for i, (fault, longer) in enumerate(kinds)
    ]
    kept = balance_length(made, seed)
    assert [o for o in made if o in kept] == kept
    for fault in ("fact", "format"):
        before, after = ([o.good_is_longer for o in part if o.fault == fault] for part in (made, kept))
        smaller = min(sum(before), len(before) - sum(before))
        assert abs(2 * sum(after) - len(after)) <= 1
        assert min(sum(after), len(after) - sum(after)) == smaller


def test_the_pair_has_the_good_answer_first():
    offset = Offset(PROMPTS[0], GOODS[0], completion(PROMPTS[0], "bad"), "off_topic")
    assert offset.pair == Pair(PROMPTS[0], offset.good, offset.bad)
