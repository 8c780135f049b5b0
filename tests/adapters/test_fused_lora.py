"""The short way of LoRA's layers against PEFT's own layers and the formula."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear
from transformers import LlamaConfig, LlamaForCausalLM

from tamis.adapters.lora import LoRA
from tamis.training.fused_lora import FusedLinear, _Update

IDS = torch.arange(1, 13).view(2, 6)


def tuned(*, fused=True, **options):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=24, num_key_value_heads=2, attention_bias=True, **shape)
    module = LoRA(**{"r": 4, **options}).attach(LlamaForCausalLM(config), 0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    if not fused:
        for layer in layers(module):
            layer.__class__ = Linear
    return module


def layers(module):
    return [m for m in module.modules() if isinstance(m, FusedLinear)]


def gradients(module, *, half=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = module(IDS).logits
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    return logits, {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wants_input", [False, True])
def test_gradients_are_those_of_the_formula(bias, wants_input):
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 5), (4, 5), (2, 5), (4, 2)))
    offset = torch.randn(4, dtype=torch.float64) if bias else None
    x.requires_grad_(wants_input)
    a.requires_grad_()
    b.requires_grad_()

    def update(x, a, b):
        return _Update.apply(x, weight, offset, a, b, 0.7)

    expected = x @ weight.T + 0.7 * x @ a.T @ b.T + (0 if offset is None else offset)
    assert torch.allclose(update(x, a, b), expected)
    assert torch.autograd.gradcheck(update, (x, a, b))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"targets": ("q_proj", "down_proj")}])
def test_a_model_trains_as_with_peft_s_layers(options):
    ours, theirs = tuned(**options), tuned(fused=False, **options)
    assert layers(ours)
    assert not layers(theirs)
    (one, grads), (other, expected) = gradients(ours.train()), gradients(theirs.train())
    assert torch.allclose(one, other, atol=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.allclose(grads[name], grad, atol=1e-4, rtol=1e-4), name


def test_under_autocast_no_further_from_float32_than_peft_s_layers():
    _, true = gradients(tuned(fused=False).train())
    (one, grads), (_, expected) = (gradients(m.train(), half=True) for m in (tuned(), tuned(fused=False)))
    assert one.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    ours, theirs = (sum((found[name] - true[name]).square().sum() for name in true) for found in (grads, expected))
    assert ours <= 1.5 * theirs


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"dropout": 0.5, "r": 2}])
def test_dropout_goes_peft_s_way_and_equals_it(options):
    found = []
    for fused in (True, False):
        module = tuned(fused=fused, **options).train()
        torch.manual_seed(7)
        found.append(gradients(module)[0])
    assert torch.equal(*found)


def test_the_base_is_there_when_the_adapter_is_off_or_merged():
    module, theirs = tuned().eval(), tuned(fused=False).eval()
    with torch.no_grad():
        with module.disable_adapter(), theirs.disable_adapter():
            assert torch.equal(module(IDS).logits, theirs(IDS).logits)
        on = module(IDS).logits
        module.merge_adapter()
        assert torch.allclose(module(IDS).logits, on, atol=1e-5)
        module.unmerge_adapter()
        assert torch.allclose(module(IDS).logits, on, atol=1e-5)
        assert torch.allclose(copy.deepcopy(module).merge_and_unload()(IDS).logits, on, atol=1e-5)


def test_a_base_that_trains_too_gets_its_gradient():
    module = tuned(targets=("q_proj",)).train()
    weight = layers(module)[0].base_layer.weight.requires_grad_()
    gradients(module)
    assert weight.grad.abs().sum() > 0


def test_names_and_saved_files_are_peft_s(tmp_path):
    for name, fused in (("ours", True), ("theirs", False)):
        module = tuned(fused=fused)
        module.peft_config["default"].target_modules = sorted(module.peft_config["default"].target_modules)
        module.save_pretrained(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
