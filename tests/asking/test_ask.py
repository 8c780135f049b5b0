"""Asking: what is read, what is asked again, what is never asked twice."""

import sqlite3
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.asking import Question, ask, label_probabilities, read_json, read_label, read_number, template
from tamis.asking.templates import names
from tamis.context import Context
from tamis.errors import ConfigError, StoreError
from tamis.models.base import LabelLogprobs
from tamis.records import Completion, Cost, Message, Turn
from tamis.replies import Replies


@dataclass
class Talker:
    """Answers by a function of (prompt text, candidate, temperature); remembers what it was asked."""

    answer: object
    identity: str = "talker"
    name: str = "talker"
    asked: list = field(default_factory=list)

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature", schema=None):
        for prompt, wanted in zip(prompts, candidates, strict=True):
            for j in wanted:
                self.asked.append((prompt.text, j, law.temperature, seed))
                text = self.answer(prompt.text, j, law.temperature)
                finish = "error" if text is None else "stop"
                yield Completion(
                    prompt.id,
                    (Turn("assistant", text or ""),),
                    index=j,
                    finish_reason=finish,
                    law=law,
                    seed=seed,
                    cost=Cost(3, len(text or "")),
                )


def question(text, read=lambda reply: reply or None):
    return Question((Message("user", text),), read)


def yes_or_no(text):
    return read_label(text, ("yes", "no"))


def test_nothing_is_asked_twice_and_costs_stay(tmp_path):
    talker = Talker(lambda text, j, t: f"{text}!{j}")
    first = Context(model=talker, replies=Replies(tmp_path / "r" / "replies.sqlite"))
    answers = ask(first, [question("a"), question("b"), question("a")], samples=2)
    assert [[a.value for a in row] for row in answers] == [["a!0", "a!1"], ["b!0", "b!1"], ["a!0", "a!1"]]
    assert len(talker.asked) == 4
    first.replies.close()
    again = Context(model=talker, replies=Replies(tmp_path / "r" / "replies.sqlite"))
    assert ask(again, [question("b"), question("a")], samples=3)[0][:2] == answers[1]
    assert len(talker.asked) == 6, "only the third samples are new"
    other = Context(seed=1, model=talker, replies=again.replies)
    ask(other, [question("a")])
    assert len(talker.asked) == 7, "another seed is another question"


def test_unreadable_answers_are_asked_again_hot_and_counted():
    talker = Talker(lambda text, j, t: "yes" if t > 0 and text == "a" else "hm")
    ctx = Context(model=talker)
    good, bad = ask(ctx, [question("a", yes_or_no), question("b", yes_or_no)], retries=2)
    assert (good[0].value, good[0].tries, good[0].fault) == ("yes", 2, "")
    assert (bad[0].value, bad[0].tries, bad[0].fault) == (None, 3, "unparseable_verdict")
    assert bad[0].cost == Cost(9, 6, 3)
    assert [t for _, _, t, _ in talker.asked] == [0.0, 0.0, 0.7, 0.7, 0.7]
    assert ctx.counts == {"questions asked": 5, "answers without a value: unparseable_verdict": 1}


def test_a_failed_reply_is_not_kept():
    talker = Talker(lambda text, j, t: None)
    ctx = Context(model=talker)
    assert ask(ctx, [question("a")], retries=3)[0][0].fault == "no_reply"
    ask(ctx, [question("a")], retries=0)
    assert len(talker.asked) == 2


def test_replies_are_kept_while_others_are_waited_for():
    def answer(text, j, t):
        if text == "100":
            raise StoreError("the server is gone")
        return text

    talker, many = Talker(answer), [question(str(i)) for i in range(150)]
    ctx = Context(model=talker)
    with pytest.raises(StoreError):
        ask(ctx, many)
    ctx.model = Talker(lambda text, j, t: text)
    assert [a.value for (a,) in ask(ctx, many)] == [str(i) for i in range(150)]
    assert len(talker.asked) == 101
    assert len(ctx.model.asked) == 150 - 64


def test_a_damaged_file_of_replies_is_set_aside(tmp_path):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    replies = Replies(path)
    replies.put({"k": {"text": "x"}})
    assert replies.get(["k", "l"]) == {"k": {"text": "x"}}
    assert (tmp_path / "replies.sqlite.damaged").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises((StoreError, OSError)):
        Replies(tmp_path / "file" / "replies.sqlite").put({"k": 1})


def test_two_handles_on_one_file(tmp_path):
    one, two = (Replies(tmp_path / "replies.sqlite") for _ in range(2))
    one.put({str(i): i for i in range(1200)})
    two.put({"0": 5, "x": 7})
    assert one.get([str(i) for i in range(1200)] + ["x"]) == {str(i): i or 5 for i in range(1200)} | {"x": 7}
    with sqlite3.connect(tmp_path / "replies.sqlite") as database:
        assert database.execute("SELECT count(*) FROM replies").fetchone() == (1201,)


def test_label_probabilities_are_exact_where_the_model_gives_them_else_shares():
    class Exact(Talker):
        def label_logprobs(self, prompts, labels):
            given = np.array([[0.06, 0.02], [0.5, 0.0]])
            with np.errstate(divide="ignore"):
                return LabelLogprobs(np.log(given), given > 0)

    two = [(Message("user", "a"),), (Message("user", "b"),)]
    exact, costs = label_probabilities(Context(model=Exact(None)), two, ("yes", "no"))
    assert costs == [Cost(0, 0, 1)] * 2
    np.testing.assert_allclose(exact, [[0.75, 0.25], [1.0, 0.0]])
    talker = Talker(lambda text, j, t: ("yes" if j < 3 else "no") if text == "a" else "perhaps")
    shares, costs = label_probabilities(Context(model=talker), two, ("yes", "no"), samples=4)
    assert costs == [Cost(12, 11, 4), Cost(12, 28, 4)]
    np.testing.assert_allclose(shares[0], [0.75, 0.25])
    assert np.isnan(shares[1]).all()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Sure: {"score": 3}', {"score": 3}),
        ('```json\n{"score": 3,}\n``` and that is it', {"score": 3}),
        ('{"score": 9} no, {"score": 4}', {"score": 4}),
        ('{"score": 11}', None),
        ('{"score": true}', None),
        ('{"score": "3"}', None),
        ('{"note": "x"}', None),
        ('{"note": {"score": 4}}', None),
        ("score 3", None),
        ("{" * 5000, None),
    ],
)
def test_json_that_fits_its_schema_is_read(text, found):
    schema = {
        "type": "object",
        "required": ["score"],
        "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 10}},
    }
    assert read_json(text, schema) == found


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=8) | st.lists(st.booleans()), max_size=4))
def test_any_object_is_read_back_from_among_words(value):
    import json

    assert read_json(f"I think: {json.dumps(value, ensure_ascii=False)}\nThat is all.") == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes.", "yes"),
        ("  **no** ", "no"),
        ("It is right, yes or no?\nVerdict: Yes", "yes"),
        ("Verdict: no\nThen again.\nVerdict: yes", "yes"),
        ("I would say [[no]]", "no"),
        ("[yes] or [no]", None),
        ("yes and no", None),
        ("not", None),
        ("Yes: yes\nNo: no", None),
        ("", None),
    ],
)
def test_labels_are_said_clearly_or_not_at_all(text, found):
    assert yes_or_no(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7", 7.0),
        ("Score: 7/10", 7.0),
        ("I give 3 points for style and 4 for facts.\nScore: 7", 7.0),
        ("3 or 4", None),
        ("11", None),
        ("a7", None),
        ("7.5", 7.5),
        ("", None),
    ],
)
def test_numbers(text, found):
    assert read_number(text, 1, 10) == found


def test_templates_refuse_what_they_cannot_fill(tmp_path):
    for name in names():
        assert template(name).messages
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nmessages:\n  - {role: user, content: 'Is {{ answer }} right?'}\n")
    made = template(str(mine), ("answer", "question"))
    assert made.render(answer="{{ 7 }}", question="?") == (Message("user", "Is {{ 7 }} right?"),)
    with pytest.raises(ConfigError, match="'answer'"):
        template(str(mine), ("question",))
    with pytest.raises(ConfigError, match="answer"):
        made.render(question="?")
    mine.with_name("bad.yaml").write_text("version: 1\nmessages:\n  - {role: user, content: '{{ a'}\n")
    for wrong in (str(mine.with_name("bad.yaml")), str(tmp_path / "none.yaml"), "no-such-template"):
        with pytest.raises(ConfigError):
            template(wrong)
