import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ConfigError, ModelError, TrainingError
from tamis.lab import nano
from tamis.lab.worlds import ModularSums, SumLevels
from tamis.models.chat import ChatFormat
from tamis.records import Message, Target

EASY = ModularSums(2, 2)


@pytest.fixture(scope="module")
def printable():
    return nano.nano_tokenizer(nano.PRINTABLE)


@pytest.fixture(autouse=True)
def _one_thread():
    with nano._one_thread():
        yield


def equal_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@given(text=st.text(nano.PRINTABLE, max_size=40).filter(lambda t: "<" not in t))
@settings(max_examples=100)
def test_one_token_per_character_and_back(printable, text):
    ids = printable(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert printable.decode(ids) == text
    assert printable("é", add_special_tokens=False)["input_ids"] == [printable.unk_token_id]


def test_chat_renders_as_prompt_answer_end():
    tokenizer = nano.nano_tokenizer(ModularSums().alphabet)
    chat = ChatFormat(tokenizer)
    target = chat.render(Target((Message("user", "1+2="), Message("assistant", "#3"))))
    assert chat.trained_text(target) == [("1+2=", False), ("#3<eos>", True)]
    assert list(target.token_ids[:4]) == chat.prompt_ids([Message("user", "1+2=")])
    assert chat.end_ids == (tokenizer.eos_token_id,)
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3


def test_sizes_seeds_and_errors():
    module, tokenizer = nano.nano_module("abc")
    large, _ = nano.nano_module("abc", layers=4, width=128)
    assert 0.1e6 < sum(p.numel() for p in module.parameters()) < 0.2e6
    assert 0.9e6 < sum(p.numel() for p in large.parameters()) < 1.2e6
    state = torch.random.get_rng_state()
    assert equal_weights(nano.nano_module("abc")[0], module)
    assert not equal_weights(nano.nano_module("abc", seed=1)[0], module)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.get_input_embeddings().num_embeddings == len(tokenizer) == 6
    for wrong in [{"vocab": "aa"}, {"vocab": ""}, {"vocab": "a", "width": 40}, {"vocab": "a", "layers": 0}]:
        with pytest.raises(ConfigError, match="nano"):
            nano.nano_module(**wrong)


def test_folder_is_an_ordinary_model_folder(tmp_path):
    module, tokenizer = nano.nano_module(nano.PRINTABLE, seed=3)
    nano.save(module, tokenizer, tmp_path / "m")
    loaded, loaded_tokenizer = nano.load(tmp_path / "m")
    ids = torch.arange(30)[None]
    assert torch.equal(loaded(ids).logits, module(ids).logits)
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert loaded_tokenizer("1 +\n2")["input_ids"] == tokenizer("1 +\n2")["input_ids"]
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert {p.suffix for p in (tmp_path / "m").iterdir()} == {".json", ".safetensors", ".jinja"}


def test_greedy_equals_generate():
    module, tokenizer = nano.nano_module(SumLevels().alphabet, seed=2)
    prompts, _ = SumLevels().batch(np.random.default_rng(0), 8)
    for prompt, text in zip(prompts, nano.greedy_texts(module, tokenizer, prompts, 9), strict=True):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        made = module.generate(**ids, do_sample=False, max_new_tokens=9)[0, ids["input_ids"].shape[1] :].tolist()
        cut = made.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in made else len(made)
        assert text == tokenizer.decode(made[:cut])


def test_only_answers_and_their_end_are_trained():
    tokenizer = nano.nano_tokenizer(EASY.alphabet)
    ids, labels = nano._batch(tokenizer, ["0+1=", "1+1+1="], ["0+1=1,#1", "#1"])
    assert [tokenizer.decode(row[row != -100]) for row in labels] == ["0+1=1,#1<eos>", "#1<eos>"]
    assert [tokenizer.decode(row[row != tokenizer.pad_token_id]) for row in ids] == [
        "0+1=0+1=1,#1<eos>",
        "1+1+1=#1<eos>",
    ]
    assert (ids[labels != -100] == labels[labels != -100]).all()


def test_pretraining_stops_at_the_target_and_is_seeded():
    def run():
        module, tokenizer = nano.nano_module(EASY.alphabet, width=32)
        accuracy = nano.dev_accuracy(EASY, tokenizer, seed=5, n=20)
        seen = []

        def watched(model):
            seen.append(accuracy(model))
            return seen[-1]

        steps = nano.pretrain(module, tokenizer, EASY.batch, watched, 0.8, seed=5, lr=5e-3, check_every=5)
        return module, steps, seen

    module, steps, seen = run()
    assert steps == 5 * len(seen)
    assert seen[-1] >= 0.8
    assert all(value < 0.8 for value in seen[:-1])
    assert not module.training
    again, steps_again, _ = run()
    assert steps_again == steps
    assert equal_weights(again, module)


def test_a_target_out_of_reach_is_an_error():
    with pytest.raises(TrainingError, match=r"not 1\.0, in 4 steps"):
        nano.trained(EASY, 1.0, seed=0, width=16, max_steps=4, check_every=2)


def test_base_is_made_once_per_key_and_loaded_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return nano.nano_module("abc", width=16, seed=len(calls))

    first, _ = nano.base(("world", EASY, 0), make)
    with torch.no_grad():
        first.get_input_embeddings().weight.zero_()
    second, tokenizer = nano.base(("world", EASY, 0), make)
    assert equal_weights(second, nano.nano_module("abc", width=16, seed=1)[0])
    assert len(tokenizer) == 6
    nano.base(("world", ModularSums(3, 2), 0), make)
    assert len(calls) == 2
    assert len(list((tmp_path / "lab").glob("[!.]*/model.safetensors"))) == 2


def test_named_models_that_are_not_shipped_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path))
    monkeypatch.setattr(nano, "NAMED", {"nano-easy": nano.LabModel(EASY, layers=1, width=16, target=0.1, lr=1e-2)})
    path = nano.folder("nano-easy")
    assert path.is_relative_to(tmp_path)
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    assert (nano.folder("nano-easy") / "model.safetensors").stat().st_mtime_ns == stamp


def test_unknown_names_suggest_the_nearest():
    assert "nano-sums" in nano.names()
    with pytest.raises(ModelError, match="Did you mean 'nano-sums'"):
        nano.folder("nano-sum")


def test_shipped_model_is_half_right_on_its_world():
    path = nano.folder("nano-sums")
    assert sum(f.stat().st_size for f in path.iterdir()) < 1e6
    assert json.loads((path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    module, tokenizer = nano.load(path)
    accuracy = nano.dev_accuracy(ModularSums(), tokenizer, seed=77, n=300)(module)
    assert 0.4 < accuracy < 0.65
