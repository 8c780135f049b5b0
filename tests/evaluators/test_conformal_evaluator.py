import pytest

from tamis.errors import DataError, ModelError
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, judged_view
from tamis.records import Message, Prompt
from tamis.registry import build

OPTIONS = {"eps": 0.3, "delta": 0.1, "k_max": 6, "n_grid": 4, "quality": "agreement"}


def measured(n=120, rate=0.6, **options):
    prompts = [Prompt((Message("user", f"{i}?"),), metadata={"answer": 7}, split="heldout") for i in range(n)]
    evaluator = build("evaluator", {"conformal": {**OPTIONS, **options}})
    return evaluator.measure(judged_view(evaluator, prompts, ScriptedModel(rate), ScriptedJudge()))


def test_risk_size_and_draws_are_of_the_test_half():
    risk, size, draws = measured()
    assert [m.name for m in (risk, size, draws)] == ["conformal risk", "conformal set size", "conformal draws"]
    assert 40 < risk.n == size.n == draws.n == len(risk.per_item) < 80
    assert 0 < risk.value < 0.5
    assert 0 < size.value <= draws.value <= 6
    assert risk.notes["promise"].startswith(
        "At most 30% of prompts will lack an acceptable answer, with 90% confidence."
    )


def test_an_abstention_is_a_risk_of_one():
    (risk,) = measured(rate=0.01)
    assert (risk.value, risk.low < 1) == (1.0, True)
    assert "No set is returned" in risk.notes["promise"]


def test_errors():
    with pytest.raises(DataError, match="too few"):
        measured(n=1)
    with pytest.raises(ModelError, match="gives none"):
        measured(quality="likelihood")
