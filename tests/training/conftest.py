"""Tiny models and random examples for the training tests."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tamis.records import Example, Target

VOCABULARY = 24


def _llama(seed=0, **options):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=128, **shape, **options)
    return LlamaForCausalLM(config)


def _qwen2(seed=0):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **shape))


def _gpt2(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **ends, **drops))


def _examples(n, *, low=4, high=30, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        length = int(rng.integers(low, high))
        prompt = int(rng.integers(1, length))
        ids = tuple(int(t) for t in rng.integers(0, VOCABULARY, length))
        weights = (0.0,) * prompt + (1.0,) * (length - prompt)
        target = Target((), token_ids=ids, weights=weights)
        made.append(Example("sft", f"p{i}", target, weight=float(rng.choice([0.5, 1.0, 2.0]))))
    return made


@pytest.fixture
def llama():
    return _llama


@pytest.fixture
def gpt2():
    return _gpt2


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def architecture(request):
    return {"llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2}[request.param]


@pytest.fixture
def examples():
    return _examples
