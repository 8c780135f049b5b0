import numpy as np
import pytest

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.lab.scripted import ScriptedJudge, ScriptedModel
from tamis.models.base import TextModel
from tamis.records import Completion, Law, Message, Prompt, from_table, to_table

PROMPTS = [Prompt((Message("user", f"{i}+1="),), metadata={"answer": str(i + 1)}) for i in range(4)]


def draw(model, prompts=PROMPTS, n=1000, seed=0, law=Law()):  # noqa: B008
    return list(model.generate(prompts, law, candidates=[range(n)] * len(prompts), seed=seed))


def share_right(completions):
    answers = {p.id: f"#{p.metadata['answer']}" for p in PROMPTS}
    return np.mean([c.text == answers[c.prompt_id] for c in completions])


def test_pass_rates_hold_per_prompt():
    rates = dict(zip((p.id for p in PROMPTS), (0.0, 0.2, 0.7, 1.0), strict=True))
    assert isinstance(ScriptedModel(rates), TextModel)
    made = draw(ScriptedModel(rates))
    for prompt, rate in zip(PROMPTS, rates.values(), strict=True):
        assert share_right([c for c in made if c.prompt_id == prompt.id]) == pytest.approx(rate, abs=0.05)
    assert share_right(draw(ScriptedModel(lambda p: rates[p.id]))) == share_right(made)
    assert from_table(to_table(made[:50], Completion), Completion) == made[:50]
    assert len({c.id for c in made}) == len(made)


def test_candidates_do_not_depend_on_order_or_batch():
    model = ScriptedModel(0.5)
    together = draw(model, n=6)
    alone = [c for p in PROMPTS for j in range(6) for c in model.generate([p], Law(), candidates=[[j]], seed=0)]
    assert [c.id for c in alone] == [c.id for c in together]
    assert [c.text for c in draw(model, seed=1)] != [c.text for c in draw(model)]


def test_greedy_and_length_limit():
    greedy = Law(temperature=0.0)
    assert share_right(draw(ScriptedModel(0.5), n=3, law=greedy)) == 1.0
    assert share_right(draw(ScriptedModel(0.49), n=3, law=greedy)) == 0.0
    (cut,) = ScriptedModel(1.0).generate(PROMPTS[:1], Law(max_new_tokens=1), candidates=[[0]], seed=0)
    assert (cut.text, cut.finish_reason) == ("#", "length")
    made = draw(ScriptedModel(1.0, truncated=0.3))
    assert np.mean([c.finish_reason == "length" for c in made]) == pytest.approx(0.3, abs=0.03)


def test_costs_count_characters_and_each_prompt_once():
    made = draw(ScriptedModel(1.0), n=2)
    assert sum(c.cost.prompt_tokens for c in made) == sum(len(p.text) for p in PROMPTS)
    assert all(c.cost.sampled_tokens == len(c.text) for c in made)


@pytest.mark.parametrize("rates", [1.5, -0.1, {}])
def test_bad_rates_are_named(rates):
    with pytest.raises(ConfigError, match="pass rate"):
        draw(ScriptedModel(rates), n=1)


def test_judge_error_rates():
    by_id = {p.id: p for p in PROMPTS}
    made = draw(ScriptedModel(0.5))
    truth = np.array([c.text == f"#{by_id[c.prompt_id].metadata['answer']}" for c in made])
    exact = [v.score for v in ScriptedJudge().judge(by_id, made, Context())]
    assert exact == truth.astype(float).tolist()
    noisy = list(ScriptedJudge(false_positives=0.1, false_negatives=0.3, unparseable=0.2).judge(by_id, made, Context()))
    read = np.array([v.score is not None for v in noisy])
    score = np.array([v.score or 0.0 for v in noisy])
    assert (~read).mean() == pytest.approx(0.2, abs=0.03)
    assert score[read & ~truth].mean() == pytest.approx(0.1, abs=0.03)
    assert score[read & truth].mean() == pytest.approx(0.7, abs=0.03)
    assert {v.label for v in noisy} == {"correct", "wrong", "unparseable_verdict"}
    again = ScriptedJudge(false_positives=0.1, false_negatives=0.3, unparseable=0.2).judge(by_id, made[::-1], Context())
    assert [v.id for v in again] == [v.id for v in noisy][::-1]
    with pytest.raises(ConfigError, match="error rate"):
        ScriptedJudge(unparseable=2)
