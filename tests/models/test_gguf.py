"""GGUF files become folders that compute the same: every tensor, the tokens, the ends."""

from pathlib import Path

import numpy as np
import pytest

from tamis.errors import ModelError
from tamis.models import resolve
from tamis.models.catalog import list_models

gguf = pytest.importorskip("gguf")
HEADS, KV_HEADS, WIDTH, INNER, LAYERS, HEAD = 4, 2, 64, 128, 2, 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
FULL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
}


def byte_letters() -> list[str]:
    """The 256 letters of byte-level BPE, written down here from its definition."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def write_gguf(path: Path, seed: int = 0) -> Path:
    """Write a random two-layer Llama with a SmolLM-like vocabulary: bytes, a few merges, Q4_1 and Q8_0 blocks."""
    letters = byte_letters()
    space, line = letters[32], letters[10]
    merges = [f"{line} {line}", f"{space} {space}", f"{space} a"]
    tokens = [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in merges)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(seed)
    for name, shape in shapes(len(tokens)).items():
        values = rng.normal(size=shape).astype(np.float32)
        kinds = gguf.GGMLQuantizationType
        kind = kinds.F32 if "norm" in name else kinds.Q8_0 if "embd" in name else kinds.Q4_1
        writer.add_tensor(name + ".weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd": (vocabulary, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (KV_HEADS * HEAD, WIDTH),
            "attn_v": (KV_HEADS * HEAD, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_down": (WIDTH, INNER),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
        }
        found |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return found


def unpacked(path: Path, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """Return the file's tensors under their `transformers` names, unpacked by the reference code of the format.

    ggml keeps the rows of rotary heads as pairs side by side; `transformers` wants the two halves one after the other.
    """
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        *block, name, _ = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):
            count = heads if name == "attn_q" else kv_heads
            pairs = values.reshape(count, -1, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        found[f"{prefix}{FULL_NAMES[name]}.weight"] = values
    return found


def assert_same_tensors(folder: Path, expected: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(expected)
    for name, values in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], values, err_msg=name)


def test_a_file_becomes_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    source = write_gguf(tmp_path / "tiny.gguf")
    ref = resolve(str(source))
    assert (ref.name, ref.kind) == ("tiny", "local")
    assert ref.folder is not None
    assert_same_tensors(ref.folder, unpacked(source, HEADS, KV_HEADS))

    tokenizer = AutoTokenizer.from_pretrained(ref.folder)
    letters = tokenizer.get_vocab()
    ids = {c: letters[byte_letters()[ord(c)]] for c in "a1\n "}
    assert tokenizer("a\n\n1").input_ids == [ids["a"], letters["ĊĊ"], ids["1"]]
    assert tokenizer("1  11").input_ids == [ids["1"], letters["ĠĠ"], ids["1"], ids["1"]]
    assert tokenizer("a a").input_ids == [ids["a"], letters["Ġa"]]
    assert tokenizer("<|im_start|>a<|im_end|>").input_ids == [1, ids["a"], 2]
    text = "  Ünïcode, 1 . 2 !\n\n\n42\t"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == TEMPLATE

    module = AutoModelForCausalLM.from_pretrained(ref.folder)
    assert module.generation_config.eos_token_id == 2

    copy = tmp_path / "elsewhere" / "other.gguf"
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    assert resolve(str(copy)).identity == ref.identity
    assert [row.path for row in list_models() if row.kind == "gguf"] == [ref.folder]
    assert resolve(str(write_gguf(tmp_path / "second.gguf", seed=1))).identity != ref.identity


def test_a_broken_file_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(str(tmp_path / "bad.gguf"))
    assert not [path for path in (tmp_path / "home" / "models").iterdir() if path.is_dir()]


@pytest.mark.default_model
def test_the_default_tokenizer_splits_as_the_model_was_trained() -> None:
    from transformers import AutoTokenizer

    folder = resolve("smollm2-135m").folder
    assert folder is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = {
        "123 45": [33, 34, 35, 216, 36, 37],
        "a\n\n1": [81, 1116, 33],
        "x  1": [104, 256, 33],
        "  a\n\nb": [216, 253, 198, 198, 82],
        "it's 1,000.50\tx": [269, 506, 216, 33, 28, 32, 32, 32, 30, 37, 32, 197, 104],
        "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    }
    for text, ids in known.items():
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.default_model
def test_the_default_model_answers_and_stops() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("smollm2-135m").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = module.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
@pytest.mark.network
def test_every_tensor_of_the_default_model_is_that_of_its_file(tmp_path: Path) -> None:
    from tamis.models.catalog import CATALOG, _collect

    (source,) = _collect(CATALOG["smollm2-135m"], tmp_path, lambda _: None).values()
    folder = resolve("smollm2-135m").folder
    assert folder is not None
    assert_same_tensors(folder, unpacked(source, heads=9, kv_heads=3))
