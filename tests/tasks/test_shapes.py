"""Shapes of rows."""

import pytest

from tamis.errors import ConfigError
from tamis.records import Message
from tamis.tasks.shapes import Unfit, check_map, parts, suggest

CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "shape", "text", "references"),
    [
        ({"prompt": "q", "answer": "a"}, "prompt/answer", "q", ("a",)),
        ({"question": "q", "answer": "a", "id": 1}, "question/answer", "q", ("a",)),
        ({"instruction": "q", "input": "i", "output": "a"}, "instruction/input/output", "q\n\ni", ("a",)),
        ({"instruction": "q", "input": "", "output": "a"}, "instruction/input/output", "q", ("a",)),
        ({"input": "q", "output": "a"}, "input/output", "q", ("a",)),
        ({"problem": "q", "solution": 18}, "problem/solution", "q", ("18",)),
        ({"question": "q", "answers": ["a", "b", "a", None]}, "question/answers", "q", ("a", "b")),
        ({"question": "q", "answers": {"text": ["a"], "answer_start": [1]}}, "question/answers", "q", ("a",)),
        ({"prompt": "q"}, "prompt", "q", ()),
        ({"prompt": "q", "answer": float("nan")}, "prompt", "q", ()),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "prompt/chosen/rejected", "q", ("a",)),
        (
            {"chosen": CHAT, "rejected": [*CHAT[:2], {"role": "assistant", "content": "b"}]},
            "chosen/rejected",
            "q",
            ("a",),
        ),
        ({"messages": CHAT}, "messages", "q", ("a",)),
        ({"messages": CHAT[:2]}, "messages", "q", ()),
        ({"prompt": CHAT[:2], "completion": "a"}, "prompt/completion", "q", ("a",)),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "conversations",
            "q",
            ("a",),
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, "messages", "q", ()),
    ],
)
def test_known_shapes(row, shape, text, references):
    found = parts(row)
    assert (found.shape, found.messages[-1].content, found.references) == (shape, text, references)


def test_the_rest_of_a_conversation_is_kept():
    assert parts({"messages": CHAT}).messages == (Message("system", "s"), Message("user", "q"))
    assert parts({"prompt": "q", "chosen": "a", "rejected": "b", "id": 7}).metadata == {"id": 7, "rejected": "b"}
    assert parts({"question": "q", "system": "s"}).messages[0] == Message("system", "s")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"foo": "q"}, "fields not understood"),
        ({}, "fields not understood"),
        ({"prompt": None}, "fields not understood"),
        ({"chosen": "a", "rejected": "b"}, "fields not understood"),
        ({"prompt": True}, "prompt is not text"),
        ({"prompt": {"a": 1}}, "prompt is not text"),
        ({"prompt": "q", "answer": [{"x": 1}]}, "answer is not text"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"messages": "x"}, "messages are not a list"),
        ({"messages": "hello"}, "messages are not a list"),
        ({"messages": ["hello"]}, "a message is not an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a message has an unknown role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "a message has an unknown role"),
        ({"messages": []}, "messages are empty"),
        ({"messages": CHAT[2:]}, "messages hold no user message to answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "a message holds a part that is not text",
        ),
        ({"chosen": CHAT[:2], "rejected": CHAT}, "chosen or rejected does not end with the assistant"),
    ],
)
def test_rows_that_give_no_prompt(row, reason):
    with pytest.raises(Unfit) as caught:
        parts(row)
    assert caught.value.reason == reason


def test_a_map_overrides_names_and_reaches_inside():
    row = {"prompt": "no", "text": {"ask": "q"}, "gold.x": "a"}
    found = parts(row, {"prompt": "text.ask", "answer": "gold.x"})
    assert (found.messages[-1].content, found.references, found.shape) == ("q", ("a",), "text.ask/gold.x")
    with pytest.raises(Unfit, match="no field 'nothing'"):
        parts(row, {"prompt": "nothing"})


def test_maps_are_checked():
    with pytest.raises(ConfigError, match="Did you mean 'prompt'"):
        check_map({"promt": "x"})
    with pytest.raises(ConfigError, match="names no prompt"):
        check_map({"answer": "x"})


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"qestion": "q", "anwser": "a"}, {"prompt": "qestion", "answer": "anwser"}),
        ({"text": "q", "label": "a"}, {"prompt": "text", "answer": "label"}),
        ({"user_prompt": "q", "model_output": "a", "n": 3}, {"prompt": "user_prompt", "answer": "model_output"}),
        ({"n": 3}, {}),
    ],
)
def test_suggested_maps(row, found):
    assert suggest(row) == found
