"""Who asks which model and which judge, and what is refused before a run."""

from typing import ClassVar

import pytest

from tamis import needs, pipeline
from tamis import recipe as recipes
from tamis.errors import ConfigError, ModelError
from tamis.metrics import Metric
from tamis.models.base import ModelRef
from tamis.registry import _COMPONENTS, build, evaluator, option

FAR = "http://localhost:9/v1#m"


@pytest.fixture
def curious():
    @evaluator("curious", needs=("scoring",))
    class Curious:
        """Ask one question of a model while another is measured."""

        asks: ClassVar[bool] = True
        model: str | None = option(None, "whom it asks")

        def draws(self):
            return ()

        def measure(self, view):
            view.ctx.count("questions asked", int(view.ctx.model is not None))
            return [Metric("curious", 0.0, 0.0, 0.0, 1)]

    yield Curious
    del _COMPONENTS["evaluator", "curious"]


def evaluating(model, **evaluators):
    return recipes.load(
        {
            "name": "evaluating",
            "model": model,
            "task": {"modular_sums": {"size": 4, "heldout": 4}},
            "stages": [{"evaluate": evaluators}],
        }
    )


def test_what_an_evaluator_needs_is_of_the_model_measured_not_of_the_one_it_asks(curious):
    needs.check(evaluating("nano-sums", curious={"model": FAR}))
    with pytest.raises(ModelError, match=f"'curious' needs log-probabilities of given text, and the model '{FAR}'"):
        needs.check(evaluating(FAR, curious={"model": "nano-sums"}))
    with pytest.raises(ModelError, match="'curious' needs text generation, and the model 'minilm-l6-v2'"):
        needs.check(evaluating("nano-sums", curious={"model": "minilm-l6-v2"}))


def test_a_model_that_gives_no_text_is_refused_where_an_evaluator_samples_from_it():
    with pytest.raises(ModelError, match="'accuracy' needs text generation, and the model 'minilm-l6-v2'"):
        needs.check(evaluating("minilm-l6-v2", accuracy={}))


def test_only_an_evaluator_that_asks_has_the_base_in_its_key(curious, tmp_path):
    made = pipeline.Pipeline(evaluating("nano-sums", accuracy={}), tmp_path, print)
    base = ModelRef("m", "endpoint", "identity of the base", ("text",))
    assert made._identity(build("evaluator", "perplexity"), base) == []
    assert made._identity(build("evaluator", "curious"), base) == ["identity of the base", {}]


def test_what_a_later_evaluator_of_a_stage_counts_is_kept(curious, tmp_path):
    recipe = evaluating("nano-sums", accuracy={"max_new_tokens": 4}, curious={})
    run = pipeline.run(recipe, runs_dir=tmp_path)
    assert run.manifest["stages"][-1]["counts"]["questions asked"] == 1
    assert [row["evaluator"] for row in run.metrics["rows"]] == ["accuracy", "curious"]


def test_a_sampler_that_asks_a_judge_is_refused_without_one():
    recipe = evaluating("nano-sums", accuracy={})
    stages = [{"sample": {"dart": {}}}, {"judge": {"answer": {"kind": "exact"}}}, {"judge": {"answer": {}}}]
    with pytest.raises(ConfigError, match="'dart' asks a judge while it samples, and the recipe has none"):
        needs.check(recipe.model_copy(update={"stages": stages[:1]}))
    asked = needs.sampling_judge(recipe.model_copy(update={"stages": stages}), 0, build("sampler", "dart"))
    assert asked.kind == "exact"
