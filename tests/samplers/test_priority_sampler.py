import math
import re

import numpy as np
import pytest

from tamis.context import Context
from tamis.errors import ConfigError, ModelError
from tamis.lab import nano
from tamis.lab.scripted import ScriptedModel
from tamis.models.hf import LocalModel
from tamis.records import Law, Message, Prompt
from tamis.registry import build
from tamis.samplers.priority import end_of, laws_of

PROMPTS = [Prompt((Message("user", text),)) for text in ("hello", "12+3=")]
PATTERN = "[a-c]{1,3}(:-?)?"


@pytest.fixture(scope="module")
def model():
    module, tokenizer = nano.nano_module(nano.PRINTABLE, 1, 16)
    module.get_output_embeddings().weight.data.mul_(20)
    return LocalModel.from_module(module, tokenizer, "nano", "nano-identity")


def sampled(model, prompts=PROMPTS, **options):
    ctx = Context(0, model)
    sampler = build("sampler", {"priority": {"n": 8, "max_new_tokens": 6, **options}})
    return list(sampler.sample(prompts, ctx)), ctx


def test_the_first_is_greedy_and_all_differ(model):
    found, ctx = sampled(model)
    greedy = list(model.generate(PROMPTS, Law(0.0, max_new_tokens=6), candidates=[[0]] * 2, seed=0))
    for prompt, first in zip(PROMPTS, greedy, strict=True):
        own = [c for c in found if c.prompt_id == prompt.id]
        assert [c.index for c in own] == list(range(8))
        assert (own[0].text, own[0].token_ids) == (first.text, first.token_ids)
        assert len({c.token_ids for c in own}) == 8
        assert np.diff([c.metadata["priority"] for c in own]).max() <= 1e-9
        assert sum(c.cost.prompt_tokens > 0 for c in own) == 1
        coverage = np.cumsum([math.exp(c.metadata["logprob"]) for c in own])
        np.testing.assert_allclose([c.metadata["coverage"] for c in own], coverage)
    sampled_tokens = sum(c.cost.sampled_tokens for c in found)
    assert (
        ctx.counts["nodes of token trees run through the model"]
        <= sampled_tokens
        < sum(len(c.token_ids) for c in found)
    )
    assert not ctx.dropped


def test_logprobs_are_those_of_whole_texts(model):
    found, _ = sampled(model, PROMPTS[:1])
    ids = model.chat.prompt_ids(PROMPTS[0].messages)
    for c in found:
        scored = model.logprobs([[*ids, *c.token_ids]])[0][len(ids) :]
        np.testing.assert_allclose(c.raw_logprobs, scored, atol=1e-4)
        assert c.logprobs == ()
        assert (c.finish_reason == "stop") == (c.token_ids[-1] in model.end_ids)


def test_all_ends_are_one(model):
    ids, end = model.chat.prompt_ids(PROMPTS[0].messages), end_of(model)
    other = LocalModel.from_module(model._module, model.tokenizer, "nano", "nano-identity")
    other.end_ids = (end, 7)
    plain, merged = (laws_of(m, ids, end)([()])[0] for m in (model, other))
    assert merged[end] == pytest.approx(plain[end] + plain[7])
    assert merged[7] == 0
    assert merged.sum() == pytest.approx(1)


def test_texts_match_the_pattern(model):
    found, ctx = sampled(model, pattern=PATTERN)
    assert len({c.text for c in found if c.prompt_id == PROMPTS[0].id}) == 8
    assert all(re.fullmatch(PATTERN, c.text) for c in found)
    assert all(c.metadata["coverage"] < 1 for c in found)
    assert not ctx.dropped


def test_tries_cut_before_they_match_are_listed(model):
    found, ctx = sampled(model, PROMPTS[:1], pattern="a{2}|b{9}", max_new_tokens=4)
    assert {c.text for c in found} == {"aa"}
    reasons = {d["reason"]: d for d in ctx.dropped}
    assert reasons["tries that did not match the pattern within max_new_tokens"]["tries"] == 1
    assert reasons["fewer completions than tries"]["completions"] == 1


def test_order_and_stop(model):
    found, _ = sampled(model, PROMPTS[:1], sort="logprob", n=20)
    assert np.diff([c.metadata["logprob"] for c in found]).max() <= 0
    assert sorted(c.index for c in found) == list(range(20))
    whole, _ = sampled(model, PROMPTS[:1], stop_mass=1e-9)
    assert len(whole) < 8


def test_decoding_together_gives_the_same_kind_of_tries(model):
    found, _ = sampled(model, frontier=4)
    assert len({(c.prompt_id, c.token_ids) for c in found}) == 16


def test_a_prompt_that_fills_the_context_is_listed(model):
    found, ctx = sampled(model, [Prompt((Message("user", "x" * nano.CONTEXT),))])
    assert found == []
    assert ctx.dropped[0]["reason"] == "the prompt leaves no room in the context"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "greater than or equal to 1|1 or more"),
        ({"pattern": "a("}, "cannot be compiled"),
        ({"pattern": "a&&b["}, "cannot be compiled"),
        ({"stop_mass": 0.0}, "stop_mass"),
        ({"priority": "sum"}, "priority"),
    ],
)
def test_bad_settings(options, said):
    with pytest.raises(ConfigError, match=said):
        build("sampler", {"priority": options})


def test_a_pattern_without_tokens(model):
    with pytest.raises(ConfigError, match="no token of the model begins"):
        sampled(model, pattern="é+")


def test_a_model_without_next_token_logits(model):
    class TextOnly(ScriptedModel):
        chat, tokenizer, end_ids, context_length = model.chat, model.tokenizer, model.end_ids, None

    with pytest.raises(ModelError, match="does not give next-token logits"):
        sampled(TextOnly(0.5))
