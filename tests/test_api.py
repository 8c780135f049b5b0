"""`tamis.run`, `tamis.sample`, `tamis.judge`: wrong input ends with a TamisError that teaches."""

import pytest

import tamis
from tamis.api import as_prompt
from tamis.errors import TamisError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": 3}, "a name, a file or a mapping"),
        ({"model": 3}, "model"),
        ({"data": [{"prompt": "x"}]}, "path"),
        ({"map": {"prompt": "q"}}, "reads no data file"),
        ({"set": {"seed": object()}}, "set.seed"),
        ({"set": {1: 2}}, "the key 1 is not text"),
        ({"seed": 1.5}, "seed"),
        ({"runs_dir": None}, "runs_dir"),
        ({"progress": "loud"}, "unknown progress 'loud'"),
    ],
)
def test_run_refuses_wrong_input(tmp_path, options, says):
    with pytest.raises(TamisError, match=says):
        tamis.run(**{"source": "rft", "lab": True, "runs_dir": tmp_path} | options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": "1+2="}, "list of prompts"),
        ({"prompts": [3]}, "a prompt is a text"),
        ({"prompts": [[{"role": "user"}]]}, "a prompt is a text"),
        ({"n": 0}, "n is 0"),
        ({"n": "3"}, "n is '3'"),
        ({"temprature": 1}, "Did you mean 'temperature'"),
        ({"temperature": "hot"}, "temperature"),
        ({"model": None}, "no model"),
    ],
)
def test_sample_refuses_wrong_input(options, says):
    with pytest.raises(TamisError, match=says):
        tamis.sample(**{"model": "nano-sums", "prompts": ["1+2="]} | options)


def test_sample_and_judge_work_on_texts():
    prompt = as_prompt("1+2+0+0=", ["#3"])
    drawn = tamis.sample("nano-sums", [prompt, "2+2+0+0="], n=2, max_new_tokens=24)
    assert [c.prompt_id for c in drawn][:2] == [prompt.id, prompt.id]
    verdicts = tamis.judge([prompt], drawn[:2], {"answer": {"kind": "regex", "pattern": r"#(\d+)"}})
    assert [v.completion_ids for v in verdicts] == [(c.id,) for c in drawn[:2]]
    with pytest.raises(TamisError, match="expected a Prompt"):
        tamis.judge("text", drawn)


def test_one_reference_may_be_a_plain_text():
    assert as_prompt("9+9=", "18").references == ("18",)
    assert as_prompt([{"role": "user", "content": "9+9="}], ["18", "eighteen"]).references == ("18", "eighteen")
