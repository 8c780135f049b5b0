import json
import math
import re

import numpy as np
import pytest

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.lab import nano
from tamis.models.hf import LocalModel
from tamis.records import Message, Prompt
from tamis.registry import build

PATTERN = "[a-c]{1,4}"
PROMPTS = [Prompt((Message("user", text),)) for text in ("hello", "12+3=", "?")]


@pytest.fixture(scope="module")
def model():
    return LocalModel.from_module(*nano.nano_module(nano.PRINTABLE, 1, 16), "nano", "nano-identity")


def sampled(model, prompts=PROMPTS, seed=0, **options):
    ctx = Context(seed, model)
    sampler = build("sampler", {"constrained": {"pattern": PATTERN, "n": 6, "max_new_tokens": 8, **options}})
    return list(sampler.sample(prompts, ctx)), ctx


def test_every_text_matches_and_weights_travel(model):
    found, ctx = sampled(model)
    assert {c.prompt_id for c in found} == {p.id for p in PROMPTS}
    for prompt in PROMPTS:
        own = [c for c in found if c.prompt_id == prompt.id]
        assert sum(math.exp(c.metadata["log_weight"]) for c in own) == pytest.approx(1)
        assert len({(c.metadata["log_probability"], c.metadata["ess"]) for c in own}) == 1
        assert sum(c.cost.prompt_tokens > 0 for c in own) == 1
    for c in found:
        assert re.fullmatch(PATTERN, c.text)
        assert c.token_ids[-1] in model.end_ids
        assert len(c.raw_logprobs) == len(c.token_ids) == c.cost.sampled_tokens
        assert c.logprobs == ()
    assert ctx.counts["particles that died"] == 18 - len(found)
    assert ctx.counts["constraint evaluations"] > 18
    assert not ctx.dropped


def test_raw_logprobs_are_those_of_whole_texts(model):
    found, _ = sampled(model, PROMPTS[:1], temperature=0.7)
    ids = model.chat.prompt_ids(PROMPTS[0].messages)
    for c in found:
        scored = model.logprobs([[*ids, *c.token_ids]])[0][len(ids) :]
        np.testing.assert_allclose(c.raw_logprobs, scored, atol=1e-4)


def test_schemas_give_json(model):
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 2}
    found, _ = sampled(model, pattern="", json_schema=schema, max_new_tokens=64)
    assert found
    for c in found:
        assert all(isinstance(i, int) and 0 <= i <= 9 for i in json.loads(c.text))


def test_locally_constrained_particles_weigh_the_same(model):
    found, _ = sampled(model, proper_weights=False)
    assert len({round(c.metadata["log_weight"], 9) for c in found}) == 1


def test_prompts_that_cannot_be_answered_are_listed(model):
    long = Prompt((Message("user", "x" * (nano.CONTEXT - 1)),))
    found, ctx = sampled(model, [long, PROMPTS[0]], max_new_tokens=3, pattern="[a-c]{3}")
    assert found == []
    reasons = {d["record"]: d["reason"] for d in ctx.dropped}
    assert reasons == {
        long.id: "the prompt leaves no room in the context",
        PROMPTS[0].id: "no particle satisfied the constraint",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": ""}, "either `pattern` or `json_schema`"),
        ({"json_schema": {"type": "integer"}}, "either `pattern` or `json_schema`"),
        ({"pattern": "a("}, "cannot be compiled"),
        ({"max_accepts": 1}, "max_accepts is 1"),
        ({"max_rejects": 1}, "max_rejects is 1"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sampled(options, said):
    with pytest.raises(ConfigError, match=said):
        build("sampler", {"constrained": {"pattern": PATTERN, **options}})
