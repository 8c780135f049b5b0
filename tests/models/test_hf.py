import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tokenizers_made import STYLES, tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tamis.errors import ConfigError, ModelError
from tamis.generation import StopStrings
from tamis.models.base import ModelRef, ScoringModel, TextModel, TokenModel, TrainableModel
from tamis.models.hf import LocalModel
from tamis.records import Completion, Law, Message, Prompt, from_table, to_table

CONTEXT = 96


def tiny_llama(style="chatml", seed=0):
    torch.manual_seed(seed)
    made = tokenizer(style)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return module


def prompt(text):
    return Prompt((Message("user", text),))


def prompts_of(n):
    return [prompt(" ".join(["number", *map(str, range(i % 7))]) + f" {i}") for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    module = tiny_llama()
    module.generation_config = GenerationConfig(eos_token_id=[module.config.eos_token_id, 7])
    module.save_pretrained(path)
    tokenizer("chatml").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return LocalModel(ModelRef("tiny", "local", "identity", ("text",), folder=folder), batch_rows=8)


def test_it_has_the_four_capabilities(model):
    for capability in (TextModel, ScoringModel, TokenModel, TrainableModel):
        assert isinstance(model, capability)


def test_nothing_is_loaded_before_it_is_used(tmp_path):
    assert LocalModel(ModelRef("x", "local", "id", (), folder=tmp_path)).name == "x"


def test_dtype_and_device_are_those_of_the_machine(folder):
    model = LocalModel(ModelRef("tiny", "local", "identity", (), folder=folder))
    assert model.device == ("cuda" if torch.cuda.is_available() else model.device)
    assert model.device != "cpu" or model.dtype == "float32"
    assert next(model.module().parameters()).dtype == getattr(torch, model.dtype)
    wide = LocalModel(ModelRef("tiny", "local", "identity", (), folder=folder), device="cpu", dtype="float64")
    assert wide.next_token_logits([[3]]).dtype == np.float32
    assert next(wide.module().parameters()).dtype == torch.float64


def test_end_ids_join_the_generation_config_and_the_chat_format(model):
    assert set(model.end_ids) == {7, model.tokenizer.eos_token_id, *model.chat.end_ids}


def test_completions_come_in_the_order_asked_for(model):
    prompts, candidates = prompts_of(6), [[0, 1], [5], [], [2, 0, 1], [0], [3]]
    law = Law(temperature=1.0, max_new_tokens=9)
    out = list(model.generate(prompts, law, candidates=candidates, seed=4, sampler="mine"))
    asked = [(p.id, c) for p, wanted in zip(prompts, candidates, strict=True) for c in wanted]
    assert [(c.prompt_id, c.index) for c in out] == asked
    for c in out:
        assert (c.model, c.sampler, c.law, c.seed) == ("identity", "mine", law, 4)
        assert len(c.token_ids) == len(c.logprobs) == len(c.raw_logprobs) == c.cost.sampled_tokens
        assert c.logprobs == tuple(np.float32(c.logprobs).tolist())
        assert c.finish_reason == ("stop" if c.token_ids[-1] in model.end_ids else "length")
        kept = c.token_ids[:-1] if c.finish_reason == "stop" else c.token_ids
        assert c.text == model.tokenizer.decode(kept, skip_special_tokens=True)
    assert from_table(to_table(out, Completion), Completion) == out
    counted = {c.prompt_id: c.cost.prompt_tokens for c in out if c.cost.prompt_tokens}
    assert counted == {
        p.id: len(model.chat.prompt_ids(p.messages)) for p, w in zip(prompts, candidates, strict=True) if w
    }
    assert sum(c.cost.prompt_tokens for c in out) == sum(counted.values())


def test_a_candidate_depends_on_seed_prompt_and_index_alone(folder):
    wide = LocalModel(ModelRef("t", "local", "i", (), folder=folder), device="cpu", dtype="float64", batch_rows=3)
    prompts, law = prompts_of(5), Law(max_new_tokens=8)
    every = {(c.prompt_id, c.index): c for c in wide.generate(prompts, law, candidates=[range(4)] * 5, seed=1)}
    again = list(wide.generate(prompts[::-1], law, candidates=[[2]] * 5, seed=1))
    assert all(c.token_ids == every[c.prompt_id, 2].token_ids and c.id == every[c.prompt_id, 2].id for c in again)
    other = list(wide.generate(prompts, law, candidates=[[2]] * 5, seed=2))
    assert any(c.token_ids != every[c.prompt_id, 2].token_ids for c in other)


@pytest.mark.parametrize("style", STYLES)
def test_greedy_equals_transformers_without_a_double_bos(style):
    module, made = tiny_llama(style).double().eval(), tokenizer(style)
    model = LocalModel.from_module(module, made, "m", "i", batch_rows=3)
    prompts = prompts_of(7)
    out = list(model.generate(prompts, Law(temperature=0, max_new_tokens=12), candidates=[[0]] * 7, seed=0))
    for p, c in zip(prompts, out, strict=True):
        ids = torch.tensor([model.chat.prompt_ids(p.messages)])
        assert (made.bos_token_id, made.bos_token_id) not in itertools.pairwise(ids[0].tolist())
        expected = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(model.end_ids),
        )
        assert c.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_a_prompt_that_fills_the_context_is_a_recorded_failure(model):
    long, short = prompt("word " * CONTEXT), prompt("short")
    out = list(model.generate([long, short], Law(max_new_tokens=4), candidates=[[0, 1], [0]], seed=0))
    assert [c.finish_reason == "error" for c in out] == [True, True, False]
    assert out[0].text == ""
    assert out[0].token_ids == ()
    assert out[0].cost.prompt_tokens == 0
    assert out[2].cost.prompt_tokens > 0


def test_the_context_limits_new_tokens(model):
    near = prompt("1 2 3 4 " * 10)
    length = len(model.chat.prompt_ids(near.messages))
    assert 60 < length < CONTEXT
    out = list(model.generate([near], Law(max_new_tokens=500), candidates=[range(20)], seed=0))
    assert max(len(c.token_ids) for c in out) == CONTEXT - length
    assert all(c.finish_reason == "length" for c in out if len(c.token_ids) == CONTEXT - length)


def test_text_ends_before_a_stop_string(model):
    prompts, law = prompts_of(8), Law(temperature=0.7, max_new_tokens=24)
    free = list(model.generate(prompts, law, candidates=[[0]] * 8, seed=3))
    for c in free:
        middle = len(c.text) // 2
        stop = c.text[middle : middle + 3]
        if not stop or "�" in stop:
            continue
        stopped = Law(temperature=0.7, max_new_tokens=24, stop=("never written", stop))
        chosen = [p for p in prompts if p.id == c.prompt_id]
        (got,) = model.generate(chosen, stopped, candidates=[[0]], seed=3)
        assert got.text == c.text[: c.text.index(stop)]
        assert got.finish_reason == "stop"
        assert got.token_ids == c.token_ids[: len(got.token_ids)]
        texts = [model.tokenizer.decode(got.token_ids[:n]) for n in range(len(got.token_ids) + 1)]
        assert [stop in t for t in texts] == [False] * len(got.token_ids) + [True]


@settings(max_examples=80)
@given(st.text(min_size=1, max_size=40), st.integers(0, 39), st.integers(1, 4), st.integers(1, 5))
def test_stop_strings_find_the_first_token_that_completes_one(text, at, size, fresh):
    made = tokenizer("chatml")
    tokens = made(text, add_special_tokens=False)["input_ids"]
    stop = text[at % len(text) :][:size]
    find = StopStrings(made, [stop, "¤never¤"])
    first = next(
        (n for n in range(1, len(tokens) + 1) if stop in made.decode(tokens[:n], skip_special_tokens=True)), None
    )
    looks = (find(tokens[:n], fresh) for n in [*range(fresh, len(tokens), fresh), len(tokens)])
    assert next((n for n in looks if n is not None), None) == first
    assert find.cut("abc" + stop + "d" + stop) == ("abc" + stop)[: ("abc" + stop).index(stop)]


def test_logprobs_and_next_token_logits_are_the_models(model):
    sequences = [[3, 4, 5, 6], [9], [8, 3], []]
    scores = model.logprobs(sequences)
    module = model.module().eval()
    with torch.no_grad():
        logps = module(torch.tensor([sequences[0]])).logits[0].log_softmax(-1)
    np.testing.assert_allclose(scores[0][1:], [logps[i, t] for i, t in enumerate(sequences[0][1:])], atol=1e-5)
    assert [len(s) for s in scores] == [4, 1, 2, 0]
    logits = model.next_token_logits(sequences[:3])
    np.testing.assert_allclose(logits[0] - np.log(np.exp(logits[0]).sum()), logps[-1], atol=1e-5)
    with pytest.raises(ConfigError, match="sequence 1"):
        model.next_token_logits([[1], []])


def test_module_is_a_fresh_copy_in_training_mode(model):
    before = model.next_token_logits([[3, 4]])
    first, second = model.module(), model.module()
    assert first.training
    with torch.no_grad():
        first.model.norm.weight.zero_()
    assert second.model.norm.weight.abs().sum() > 0
    np.testing.assert_array_equal(model.next_token_logits([[3, 4]]), before)


def test_a_module_in_memory_is_shared_but_its_training_copy_is_not():
    module = tiny_llama()
    model = LocalModel.from_module(module, tokenizer("chatml"), "m", "i")
    before = model.next_token_logits([[3, 4]])
    assert model.module() is not module
    with torch.no_grad():
        module.lm_head.weight.mul_(2)
    np.testing.assert_allclose(model.next_token_logits([[3, 4]]), 2 * before, rtol=1e-5)


def lora(module):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(module, config)


def test_an_adapter_is_merged_and_its_end_tokens_are_kept(folder, tmp_path):
    tuned = lora(LlamaForCausalLM.from_pretrained(folder))
    tuned.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=[11]).save_pretrained(tmp_path)
    model = LocalModel(ModelRef("t", "local", "i", (), folder=folder, adapter=tmp_path), device="cpu")
    with torch.no_grad():
        expected = tuned.eval()(torch.tensor([[3, 4, 5]])).logits[0, -1]
    np.testing.assert_allclose(model.next_token_logits([[3, 4, 5]])[0], expected, atol=1e-4)
    assert {11, model.tokenizer.eos_token_id} <= set(model.end_ids)
    assert not isinstance(model.module(), PeftModel)
    assert not any("lora" in name for name, _ in model.module().named_parameters())


def test_a_peft_module_in_memory_samples_with_its_adapter_on():
    tuned = lora(tiny_llama()).double()
    model = LocalModel.from_module(tuned, tokenizer("chatml"), "m", "i")
    law = Law(temperature=0, max_new_tokens=10)
    on = [c.token_ids for c in model.generate(prompts_of(5), law, candidates=[[0]] * 5, seed=0)]
    with tuned.disable_adapter():
        off = [c.token_ids for c in model.generate(prompts_of(5), law, candidates=[[0]] * 5, seed=0)]
    merged = LocalModel.from_module(tuned.merge_and_unload(), tokenizer("chatml"), "m", "i")
    assert [c.token_ids for c in merged.generate(prompts_of(5), law, candidates=[[0]] * 5, seed=0)] == on
    assert on != off


def test_mistakes_are_explained(folder, tmp_path):
    with pytest.raises(ModelError, match="no local folder"):
        LocalModel(ModelRef("far", "endpoint", "i", (), url="http://x"))
    with pytest.raises(ModelError, match="float8"):
        LocalModel(ModelRef("x", "local", "i", (), folder=folder), dtype="float8")
    with pytest.raises(ConfigError, match="batch_rows"):
        LocalModel(ModelRef("x", "local", "i", (), folder=folder), batch_rows=0)
    with pytest.raises(ModelError, match="cannot be loaded"):
        LocalModel(ModelRef("x", "local", "i", (), folder=tmp_path)).module()
    with pytest.raises(ModelError, match="adapter"):
        LocalModel(ModelRef("x", "local", "i", (), folder=folder, adapter=tmp_path)).module()
    model = LocalModel(ModelRef("x", "local", "i", (), folder=folder))
    with pytest.raises(ConfigError, match="temperature"):
        list(model.generate([prompt("a")], Law(temperature=-1), candidates=[[0]], seed=0))
    with pytest.raises(ConfigError, match="1 prompts"):
        list(model.generate([prompt("a")], Law(), candidates=[], seed=0))


def test_pickled_weights_are_refused(folder, tmp_path):
    for file in ("config.json", "generation_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    torch.save(tiny_llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        LocalModel(ModelRef("x", "local", "i", (), folder=tmp_path)).module()


def test_damaged_weights_are_explained(folder, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes()[: -1000 if file.endswith("safetensors") else None])
    with pytest.raises(ModelError, match="cannot be loaded"):
        LocalModel(ModelRef("x", "local", "i", (), folder=tmp_path)).module()


# --- the packaged default model


@pytest.fixture(scope="module")
def smollm():
    from tamis.models.resolve import resolve

    return LocalModel(resolve("smollm2-135m"), device="cpu", dtype="float32", batch_rows=32)


def questions(n):
    words = itertools.cycle(("why does the sum of two odd numbers", "come out even", "when we add them?"))
    return [prompt(f"What is {i} + {7 * i}? " + " ".join(itertools.islice(words, i % 11))) for i in range(n)]


def generated(model, module, prompts, new_tokens):
    """What transformers.generate makes of a left-padded batch, each row up to its first end token."""
    made, ends = model.tokenizer, set(model.end_ids)
    batch = made.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    out = module.generate(
        **batch, do_sample=False, max_new_tokens=new_tokens, eos_token_id=list(ends), pad_token_id=made.pad_token_id
    )
    for row in out[:, batch["input_ids"].shape[1] :].tolist():
        last = next((i for i, token in enumerate(row) if token in ends), new_tokens - 1)
        yield tuple(row[: last + 1])


def check_greedy(model, prompts, new_tokens, batch=25):
    """Every token is that of transformers.generate, but where float32 leaves its two best logits tied."""
    module = model.module().eval()
    law = Law(temperature=0, max_new_tokens=new_tokens)
    ours = [c.token_ids for c in model.generate(prompts, law, candidates=[[0]] * len(prompts), seed=0)]
    ids = [model.chat.prompt_ids(p.messages) for p in prompts]
    starts = range(0, len(ids), batch)
    theirs = [row for at in starts for row in generated(model, module, ids[at : at + batch], new_tokens)]
    different = [i for i in range(len(ids)) if ours[i] != theirs[i]]
    for i in different:
        same = next(n for n, (a, b) in enumerate(zip(ours[i], theirs[i], strict=False)) if a != b)
        (logits,) = model.next_token_logits([[*ids[i], *ours[i][:same]]])
        assert abs(logits[ours[i][same]] - logits[theirs[i][same]]) < 1e-3
    return len(different)


@pytest.mark.default_model
def test_default_model_greedy_equals_transformers(smollm):
    assert check_greedy(smollm, questions(24), 5) <= 1


@pytest.mark.default_model
@pytest.mark.slow
def test_default_model_greedy_equals_transformers_on_200_prompts(smollm):
    assert check_greedy(smollm, questions(200), 16) <= 4


@pytest.mark.default_model
def test_default_model_logprobs_equal_a_teacher_forced_pass(smollm):
    prompts = questions(6)
    law = Law(temperature=0.8, top_p=0.95, max_new_tokens=12)
    out = list(smollm.generate(prompts, law, candidates=[range(2)] * 6, seed=0))
    heads = [smollm.chat.prompt_ids(p.messages) for p in prompts for _ in range(2)]
    scores = smollm.logprobs([[*head, *c.token_ids] for head, c in zip(heads, out, strict=True)])
    for head, c, values in zip(heads, out, scores, strict=True):
        np.testing.assert_allclose(c.raw_logprobs, values[len(head) :], atol=1e-4)
