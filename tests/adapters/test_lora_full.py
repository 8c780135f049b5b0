import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tamis import registry
from tamis.adapters.full import Full
from tamis.adapters.lora import LoRA
from tamis.errors import ConfigError

IDS = torch.arange(1, 9)[None]


def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, num_key_value_heads=2, **shape)).eval()


def gpt2():
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends)).eval()


def moving(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_lora_starts_at_the_base_and_freezes_it(make):
    with torch.no_grad():
        before = make()(IDS).logits
        module = LoRA(r=4).attach(make(), seed=3).eval()
        assert torch.equal(module(IDS).logits, before)
    assert moving(module)
    assert all("lora_" in name for name in moving(module))


def test_lora_updates_every_linear_layer_but_the_output():
    names = {name.split(".lora_")[0] for name in moving(LoRA().attach(llama(), 0))}
    assert len(names) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_lora_is_drawn_from_its_seed_alone():
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    one, again, other = (LoRA(r=4).attach(llama_quiet(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(2), expected), "the global random state is left alone"
    assert all(torch.equal(value, moving(again)[name]) for name, value in moving(one).items())
    assert any(not torch.equal(value, moving(other)[name]) for name, value in moving(one).items())


def llama_quiet():
    with torch.random.fork_rng():
        return llama()


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_lora_is_the_formula(rslora, scale):
    module = LoRA(r=4, alpha=8, use_rslora=rslora, targets=("q_proj",)).attach(llama(), 0).eval()
    layer = module.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(5, 32)
    assert torch.allclose(layer(x), x @ layer.base_layer.weight.T + scale * x @ a.T @ b.T, atol=1e-5)


def test_lora_on_layers_that_do_not_exist():
    with pytest.raises(ConfigError, match="nope"):
        LoRA(targets=("nope",)).attach(llama(), 0)


@pytest.mark.parametrize("options", [{"r": 0}, {"r": 100_000_000}, {"alpha": -1}, {"dropout": 1.0}, {"rank": 8}])
def test_lora_options_are_checked(options):
    with pytest.raises(ConfigError, match=r"adapter 'lora'"):
        registry.build("adapter", {"lora": options})


def test_full_moves_everything():
    module = Full().attach(llama().requires_grad_(False), 0)
    assert len(moving(module)) == len(list(module.parameters()))


@pytest.mark.parametrize("targets", ["q_[", "nothing", ()])
def test_lora_refuses_targets_that_fit_no_layer(targets):
    with pytest.raises(ConfigError, match="targets: "):
        LoRA(targets=targets).attach(llama(), seed=0)
