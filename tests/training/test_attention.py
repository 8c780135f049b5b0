"""Attention example by example against every example alone, and what it leaves behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tamis.records import Example, Target
from tamis.training.attention import NAME, by_example
from tamis.training.batches import Row, collate, keeps_packed_apart

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=24, num_key_value_heads=2, initializer_range=0.2, **SHAPE, **options)
    return LlamaForCausalLM(config)


def mistral(window):
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=24, num_key_value_heads=2, initializer_range=0.2, sliding_window=window, **SHAPE)
    return MistralForCausalLM(config)


def rows(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    made = []
    for length in lengths:
        ids = torch.randint(0, 24, (length,), generator=generator).int().numpy()
        made.append(Row(Example("sft", "p", Target(())), ids, torch.ones(length).numpy()))
    return made


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_every_example_attends_to_itself_alone(lengths):
    module = llama().train()
    batch = collate(rows(lengths), packed=True, boundaries=True)
    with by_example(module, CPU) as able:
        assert able
        together = module(**batch.inputs()).logits[0]
        together.logsumexp(-1).sum().backward()
    found = gradients(module)
    module.zero_grad()
    for row, (_, start, stop) in zip(rows(lengths), batch.spans, strict=True):
        alone = module(**collate([row], packed=False).inputs()).logits[0]
        assert torch.allclose(together[start:stop], alone, atol=1e-5)
        alone.logsumexp(-1).sum().backward()
    for name, grad in gradients(module).items():
        assert torch.allclose(found[name], grad, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("make", [llama, lambda: mistral(9)])
def test_no_layer_goes_the_way_of_masks(monkeypatch, make):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def fail(*given, **more):
        raise AssertionError("fell back")

    module, batch = make(), collate(rows((5, 5, 3)), packed=True, boundaries=True)
    with by_example(module, CPU):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", fail)
        module(**batch.inputs())


@pytest.mark.parametrize("lengths", [(9, 7), (9,), (4, 2, 4), (3, 3)])
def test_sliding_windows_keep_their_mask(lengths):
    module, batch = mistral(3), collate(rows(lengths), packed=True, boundaries=True)
    with torch.no_grad(), by_example(module, CPU) as able:
        assert able
        together = module(**batch.inputs()).logits[0]
        for row, (_, start, stop) in zip(rows(lengths), batch.spans, strict=True):
            alone = module(**collate([row], packed=False).inputs()).logits[0]
            assert torch.allclose(together[start:stop], alone, atol=1e-5)


def test_without_boundaries_nothing_changes():
    module, padded = llama(), collate(rows((9, 4)), packed=False)
    with torch.no_grad():
        before = module(**padded.inputs()).logits
        with by_example(module, CPU):
            assert torch.equal(module(**padded.inputs()).logits, before)


def test_the_model_is_left_as_it_was():
    module, inside = llama(), []

    def fail():
        inside.append(module.config._attn_implementation)
        raise KeyError

    with pytest.raises(KeyError), by_example(module, CPU):
        fail()
    assert inside == [NAME]
    assert module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_attention_and_other_devices_are_left_alone(device):
    module = llama(attn_implementation="eager" if device == "cpu" else "sdpa")
    own = module.config._attn_implementation
    with by_example(module, torch.device(device)) as able:
        assert not able
        assert module.config._attn_implementation == own


def test_models_that_do_not_take_boundaries_are_found():
    module = llama()
    forward = module.forward

    def narrow(input_ids, position_ids=None, attention_mask=None, use_cache=None):
        return forward(input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=use_cache)

    module.forward = narrow
    assert keeps_packed_apart(module)
    assert not keeps_packed_apart(module, boundaries=True)
