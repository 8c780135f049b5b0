import math

import pytest

from tamis.errors import ConfigError
from tamis.training.config import TuneConfig


def test_every_field_is_described():
    assert all(field.description for field in TuneConfig.model_fields.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 1}, ["unknown option 'epoch'", "epochs", "stages[3]"]),
        ({"lr": -1}, ["lr:", "greater than 0", "-1"]),
        ({"lr": "nan"}, ["lr:"]),
        ({"schedule": "cos"}, ["schedule:", "'cosine'"]),
        ({"batch_size": 0, "keep": 0}, ["batch_size:", "keep:"]),
        ({"warmup": 1.0}, ["warmup:"]),
        ({"betas": [0.9, 1.5]}, ["betas.1:", "less than 1"]),
    ],
)
def test_recipe_errors_name_the_field(options, words):
    with pytest.raises(ConfigError) as caught:
        TuneConfig.build(options, "stages[3]")
    assert all(word in str(caught.value) for word in words)


def test_build_without_options_is_the_default():
    assert TuneConfig.build() == TuneConfig()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_rises_then_follows_the_schedule(schedule):
    config = TuneConfig(lr=1.0, warmup=0.1, schedule=schedule)
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    later = {
        "constant": [1.0] * 90,
        "linear": [1 - i / 90 for i in range(90)],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * i / 90) for i in range(90)],
    }
    assert rates[10:] == pytest.approx(later[schedule])
    assert min(rates) > 0


def test_one_step_trains_at_the_peak():
    assert TuneConfig(lr=3e-4).lr_at(0, 1) == 3e-4


def test_bookkeeping_does_not_change_the_mathematics():
    assert TuneConfig(keep=5, checkpoint_every=7).mathematics() == TuneConfig().mathematics()
    assert TuneConfig(lr=1e-3).mathematics() != TuneConfig().mathematics()
