"""What holds for every registered objective and adapter, on a tiny random model."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tamis import registry
from tamis.records import Example, Message, Target
from tamis.training.batches import admit, collate

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)


def module():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def batch(lengths=(5, 8, 3), prompt=2, seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        ids = tuple(int(i) for i in rng.integers(0, 40, length))
        weights = tuple(float(i >= prompt) for i in range(length))
        target = Target((Message("user", "q"), Message("assistant", "a")), token_ids=ids, weights=weights)
        examples.append(Example("sft", f"p{length}", target))
    rows, refused = admit(examples, max_length=64, vocabulary=40)
    assert not refused
    return rows


@pytest.fixture(params=registry.components("objective"), ids=lambda c: c.name)
def objective(request):
    return request.param.build(getattr(request.param.cls, "contract", {}))


@pytest.fixture(params=registry.components("adapter"), ids=lambda c: c.name)
def adapter(request):
    return request.param.build(getattr(request.param.cls, "contract", {}))


def test_a_loss_is_finite_deterministic_and_has_a_gradient(objective):
    model, rows = module(), collate(batch(), packed=False)
    loss, _ = objective.loss(model, rows)
    again, _ = objective.loss(model, rows)
    assert torch.isfinite(loss)
    assert torch.equal(loss, again)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_sums_over_micro_batches_are_the_sum_over_the_batch(objective):
    model, rows = module(), batch()
    whole = collate(rows, packed=False)
    parts = [collate([row], packed=False) for row in rows]
    assert objective.weight(whole) == pytest.approx(sum(objective.weight(p) for p in parts))
    total = sum(objective.loss(model, p)[0] for p in parts)
    assert torch.allclose(objective.loss(model, whole)[0], total, rtol=1e-5)


def test_an_untrained_token_never_enters_as_a_target(objective):
    def loss_with(last):
        ids, weights = (3, 5, 7, 9, last), (0.0, 0.0, 1.0, 1.0, 0.0)
        target = Target((Message("user", "q"), Message("assistant", "a")), token_ids=ids, weights=weights)
        rows, _ = admit([Example("sft", "p", target)], max_length=64, vocabulary=40)
        return objective.loss(module(), collate(rows, packed=False))[0]

    assert torch.equal(loss_with(1), loss_with(30))


def test_attaching_is_seeded_and_leaves_the_outputs_as_they_were(adapter):
    ids = torch.arange(6)[None]
    before = module()(input_ids=ids).logits
    made = [adapter.attach(module(), seed).eval() for seed in (1, 1, 2)]
    for model in made:
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-6)
        assert any(p.requires_grad for p in model.parameters())
    weights = [torch.cat([p.flatten() for p in m.parameters() if p.requires_grad]) for m in made]
    assert torch.equal(weights[0], weights[1])
    assert getattr(adapter, "whole", False) or not torch.equal(weights[0], weights[2])
