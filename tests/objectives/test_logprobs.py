import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tamis.adapters.lora import LoRA
from tamis.objectives.core import CHUNK_ELEMENTS, batch_logprobs, hidden_logprobs, split_model, token_logprobs
from tamis.objectives.sft import SFT
from tamis.records import Example, Target
from tamis.training.batches import Row, collate

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def naive(logits, ids):
    """One position at a time, by the definition."""
    found = torch.zeros(ids.shape)
    for b in range(ids.shape[0]):
        for i in range(1, ids.shape[1]):
            found[b, i] = torch.log_softmax(logits[b, i - 1].double(), dim=0)[ids[b, i]]
    return found


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, num_key_value_heads=2, initializer_range=0.2, **SHAPE, **options)
    )


def batch_of(lengths, *, packed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(0, 50, (length,), generator=generator).int().numpy()
        weights = (torch.rand(length, generator=generator) * (torch.rand(length, generator=generator) < 0.6)).numpy()
        weights[0], weights[-1] = 0, 1
        rows.append(Row(Example("sft", "p", Target(())), ids, weights))
    return collate(rows, packed=packed)


@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 4),
    length=st.integers(1, 9),
    v=st.integers(2, 30),
    scale=st.floats(0.1, 50),
    seed=st.integers(0, 999),
)
def test_token_logprobs_is_the_definition(b, length, v, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, length, v, generator=generator) * scale
    ids = torch.randint(0, v, (b, length), generator=generator)
    found = token_logprobs(logits, ids)
    assert found.shape == ids.shape
    assert found.dtype == torch.float32
    assert (found[:, 0] == 0).all()
    assert torch.allclose(found, naive(logits, ids), atol=1e-5, rtol=1e-5)


def test_token_logprobs_of_half_precision_logits_is_float32():
    logits, ids = torch.randn(2, 5, 11).bfloat16(), torch.randint(0, 11, (2, 5))
    found = token_logprobs(logits, ids)
    assert found.dtype == torch.float32
    assert torch.allclose(found, naive(logits.float(), ids), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_chunked_equals_naive_with_gradients(chunk, share, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 8, 5, generator=generator)
    weight = torch.randn(13, 5, generator=generator)
    ids = torch.randint(0, 13, (3, 8), generator=generator)
    wanted = torch.rand(3, 8, generator=generator) <= share
    wanted[:, 0] = False
    up = torch.randn(3, 8, generator=generator)

    def gradients(logprobs):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = logprobs(h, w)
        (value * up).sum().backward()
        return value.detach(), h.grad, w.grad

    chunked = gradients(
        lambda h, w: hidden_logprobs(h, lambda s: s @ w.T, ids, wanted, vocabulary=13, chunk_elements=chunk)
    )
    plain = gradients(lambda h, w: token_logprobs(h @ w.T, ids) * wanted)
    for ours, theirs in zip(chunked, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_chunks_of_a_head_that_trains_are_made_again():
    sizes = []

    def head(states):
        sizes.append(states.shape[0])
        return states @ torch.ones(4, 100)

    hidden = torch.randn(2, 50, 4, requires_grad=True)
    wanted = torch.ones(2, 50, dtype=torch.bool)
    found = hidden_logprobs(
        hidden, head, torch.zeros(2, 50, dtype=torch.int64), wanted, vocabulary=100, chunk_elements=1000
    )
    assert max(sizes) == 10
    assert sum(sizes) == 98
    found.sum().backward()
    assert sum(sizes) == 2 * 98, "logits are made again in the backward pass, not kept"


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 400), share=st.floats(0, 1), bias=st.booleans(), seed=st.integers(0, 999))
def test_a_frozen_head_makes_its_logits_once_and_gives_the_same_gradient(chunk, share, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(5, 13, bias=bias).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(generator=generator)
    hidden = torch.randn(3, 8, 5, generator=generator).mul(3)
    ids = torch.randint(0, 13, (3, 8), generator=generator)
    wanted = torch.rand(3, 8, generator=generator) <= share
    wanted[:, 0] = False
    up = torch.randn(3, 8, generator=generator)
    made = []
    head.register_forward_hook(lambda module, given, out: made.append(out.shape[0]))

    def gradient(logprobs):
        h = hidden.clone().requires_grad_()
        value = logprobs(h)
        (value.exp() * up).sum().backward()
        return value.detach(), h.grad

    found = gradient(lambda h: hidden_logprobs(h, head, ids, wanted, vocabulary=13, chunk_elements=chunk))
    assert sum(made) == wanted.sum()
    assert max(made, default=0) <= max(1, chunk // 13)
    expected = gradient(lambda h: token_logprobs(head(h), ids).where(wanted, torch.zeros(())))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


class Largest(TorchDispatchMode):
    """The largest floating-point tensor that any operator makes, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("lora", [True, False])
def test_no_tensor_has_the_size_of_all_logits(lora):
    """In both passes, with a frozen and a trained head, no operator makes more than a chunk of the vocabulary's logits."""
    vocabulary, length = 40_000, 500
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **shape)).train()
    model = LoRA(r=2).attach(model, 0) if lora else model
    ids = np.arange(length, dtype=np.int32)
    weights = np.ones(length, dtype=np.float32)
    weights[0] = 0
    batch = collate([Row(Example("sft", "p", Target(())), ids, weights)], packed=False)
    split_model(model)
    with Largest() as largest:
        loss, _ = SFT().loss(model, batch)
        loss.backward()
    assert length * vocabulary > CHUNK_ELEMENTS
    assert CHUNK_ELEMENTS - vocabulary < largest.elements <= CHUNK_ELEMENTS


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_batch_logprobs_equals_the_model_s_own_logits(packed, lora):
    model = llama()
    if lora:
        model = LoRA(r=2).attach(model, 0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    assert split_model(model) is not None
    batch = batch_of((9, 5, 12), packed=packed)
    logits = model(**batch.inputs()).logits
    expected = naive(logits.detach(), batch.input_ids) * (batch.weights != 0)
    assert torch.allclose(batch_logprobs(model, batch), expected, atol=1e-5)


def test_models_that_change_their_logits_go_through_their_own_forward():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5, **SHAPE
    )
    model = Gemma2ForCausalLM(config)
    assert split_model(model) is None
    batch = batch_of((9, 5))
    expected = naive(model(**batch.inputs()).logits.detach(), batch.input_ids) * (batch.weights != 0)
    assert torch.allclose(batch_logprobs(model, batch), expected, atol=1e-5)


def test_splitting_leaves_the_mode_of_the_model():
    model = llama().train()
    split_model(model)
    assert model.training


@pytest.mark.parametrize("packed", [False, True])
def test_sft_is_the_weighted_cross_entropy(packed):
    model, batch = llama(), batch_of((9, 5, 12), packed=packed)
    loss, metrics = SFT().loss(model, batch)
    expected = 0.0
    for line, start, stop in batch.spans:
        ids, weights = batch.input_ids[line, start:stop][None], batch.weights[line, start:stop]
        logits = model(input_ids=ids).logits[0, :-1]
        expected += (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") * weights[1:]).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert SFT().weight(batch) == pytest.approx(batch.weights.sum().item())
    assert metrics == {}


def test_a_zero_weight_never_lets_an_infinity_through():
    model = llama(tie_word_embeddings=False)
    forward = model.forward

    def masked(**given):
        out = forward(**given)
        out.logits[..., 7] = -torch.inf
        return out

    model.forward = masked
    batch = batch_of((6,))
    batch.input_ids[0, 1], batch.weights[0, 1] = 7, 0
    batch.input_ids[0, 2:] = 3
    assert split_model(model) is None
    loss, _ = SFT().loss(model, batch)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
