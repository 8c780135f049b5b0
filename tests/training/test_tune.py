import json
import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tamis.adapters.full import Full
from tamis.adapters.lora import LoRA
from tamis.errors import ModelError, TrainingError
from tamis.files import remove
from tamis.models.base import ModelRef
from tamis.models.chat import ChatFormat
from tamis.models.resolve import load, resolve
from tamis.objectives.sft import SFT
from tamis.records import Example, Law, Message, Prompt, Target
from tamis.training import TuneConfig, tune

CONFIG = TuneConfig(epochs=40, lr=1e-2, batch_size=8, checkpoint_every=20, schedule="constant")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTIONS = [(f"{a}+{b}=", str(a + b)) for a in range(4) for b in range(3)]


def save_base(folder, *, eos="<pad>", dtype=torch.float32):
    """A tiny Llama whose configured end token is not the one that ends a turn: a base that never stops by itself."""
    words = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", *"0123456789+="]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>", "<user>", "<assistant>", "<system>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "bos_token_id": None}
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.2, **shape, **ends)
    )
    module.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path):
    ref = resolve(str(save_base(tmp_path / "base")))
    return ModelRef("base", "local", ref.identity, ref.capabilities, folder=tmp_path / "base")


def examples_of(ref):
    chat = ChatFormat(AutoTokenizer.from_pretrained(ref.folder))
    return [
        Example("sft", f"p{i}", chat.render(Target((Message("user", q), Message("assistant", a)))))
        for i, (q, a) in enumerate(QUESTIONS)
    ]


def answers(ref, n=12):
    prompts = [Prompt((Message("user", q),)) for q, _ in QUESTIONS[:n]]
    drawn = load(ref).generate(prompts, Law(temperature=0, max_new_tokens=8), candidates=[[0]] * n, seed=0)
    return [(c.text, c.finish_reason) for c in drawn]


RIGHT = [(answer, "stop") for _, answer in QUESTIONS]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("adapter", [LoRA(r=8), Full()], ids=["lora", "full"])
def test_a_tuned_model_has_learned_stops_and_loads_everywhere(base, tmp_path, adapter):
    events, folder = [], tmp_path / "tune"
    assert answers(base) != RIGHT
    result = tune(base, examples_of(base), SFT(), adapter, CONFIG, seed=1, folder=folder, on_event=events.append)

    assert answers(result.model) == RIGHT
    assert "stopped by itself: '0'" in result.smoke
    assert result.fit.steps == 80
    assert result.model.identity != base.identity
    assert result.model.identity == resolve(str(folder / "model")).identity
    assert not list(folder.glob(".model*"))
    assert not (folder / "checkpoints").exists()
    assert len((folder / "curve.jsonl").read_text().splitlines()) == 80
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    ends = json.loads((folder / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 1]
    assert plain_answers(folder / "model") == [answer for _, answer in QUESTIONS]


def plain_answers(folder):
    """What somebody without tamis gets: transformers loads the folder, its adapter through PEFT."""
    module, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for question, _ in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = module.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=[0, 1])
        found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def test_plain_peft_loads_the_adapter(base, tmp_path):
    from peft import AutoPeftModelForCausalLM

    result = tune(base, examples_of(base), SFT(), LoRA(r=8), CONFIG, seed=1, folder=tmp_path / "tune")
    with torch.no_grad():
        ids = torch.tensor([[2, 5, 15, 6, 16, 1, 3]])
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "tune" / "model").eval()(ids).logits
        ours = load(result.model).module().eval()(ids).logits
    assert torch.allclose(plain, ours, atol=1e-4)


def test_a_finished_tuning_is_returned_without_training(base, tmp_path):
    given, folder = examples_of(base), tmp_path / "tune"
    bad = Example("sft", "bad", Target((), token_ids=(1, 2), weights=(0.0, 0.0)))
    first = tune(base, [*given, bad], SFT(), LoRA(), CONFIG, seed=1, folder=folder)
    events = []
    again = tune(base, [*given, bad], SFT(), LoRA(), CONFIG, seed=1, folder=folder, on_event=events.append)
    assert events == []
    assert again == first
    assert [r.reason for r in again.fit.refused] == ["no trained token"]
    with pytest.raises(TrainingError, match="another training"):
        tune(base, given, SFT(), LoRA(), CONFIG, seed=2, folder=folder)


class Cut(Exception):
    """Cut off here."""


@pytest.mark.parametrize("moment", ["step", "saving"])
def test_a_cut_tuning_goes_on_and_ends_the_same(base, tmp_path, moment, monkeypatch):
    given = examples_of(base)
    whole = tune(base, given, SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "whole")

    def listen(event):
        if moment == "step" and event.get("step") == 50:
            raise Cut

    def die(*_):
        raise Cut

    if moment == "saving":
        monkeypatch.setattr(sys.modules["tamis.training.tune"], "smoke_test", die)
    with pytest.raises(Cut):
        tune(base, given, SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "cut", on_event=listen)
    monkeypatch.undo()
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    assert not (tmp_path / "cut" / "model").exists()
    remove(tmp_path / "cut" / ".model.tmp")
    (tmp_path / "cut" / ".model.tmp").write_text("in the way")
    events = []
    again = tune(base, given, SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "cut", on_event=events.append)
    assert next(e["step"] for e in events if e["event"] == "resumed") == (40 if moment == "step" else 80)
    assert again.model.identity == whole.model.identity
    one, other = (f / "model" / "adapter_model.safetensors" for f in (tmp_path / "whole", tmp_path / "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_tuning_a_tuned_model_merges_its_adapter(base, tmp_path):
    given, folder = examples_of(base), tmp_path / "one"
    first = tune(base, given[:6], SFT(), LoRA(), CONFIG, seed=1, folder=folder).model
    second = tune(first, given, SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "two").model
    assert first.adapter == folder / "model"
    assert second.adapter is None
    shutil.rmtree(folder)
    assert answers(second) == RIGHT


def test_a_whole_model_is_saved_in_the_dtype_of_its_base(tmp_path):
    ref = resolve(str(save_base(tmp_path / "half", dtype=torch.bfloat16)))
    result = tune(ref, examples_of(ref), SFT(), Full(), CONFIG, seed=1, folder=tmp_path / "tune")
    config = json.loads((tmp_path / "tune" / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert answers(result.model) == RIGHT


def test_the_card_says_how_it_was_made(base, tmp_path):
    bad = Example("sft", "bad", Target((), token_ids=(1, 2), weights=(0.0, 0.0)))
    result = tune(base, [*examples_of(base), bad], SFT(), LoRA(r=3), CONFIG, seed=1, folder=tmp_path / "tune")
    card = (tmp_path / "tune" / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    for words in (
        "`base`",
        base.identity,
        "`sft`",
        "`lora`",
        '"r": 3',
        '"lr": 0.01',
        "13 examples",
        "12 of them trained on",
        "1 (no trained token)",
        "80 optimizer steps",
        f"{result.fit.trained_tokens} trained tokens",
        "stopped by itself",
    ):
        assert words in card, words
    assert str(tmp_path) not in card


def test_what_cannot_be_trained_says_so(base, tmp_path):
    endpoint = ModelRef("far", "endpoint", "x", ("text",), url="http://localhost/v1#m")
    with pytest.raises(ModelError, match="'far' cannot be trained"):
        tune(endpoint, [], SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "tune")
    with pytest.raises(TrainingError, match="none of the 0 examples"):
        tune(base, [], SFT(), LoRA(), CONFIG, seed=1, folder=tmp_path / "tune")
