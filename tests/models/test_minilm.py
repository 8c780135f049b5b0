"""The embedder: its vectors equal a plain pass over one text at a time, and mean what they should."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ModelError
from tamis.models import ModelRef, load, resolve
from tamis.models.base import Embedder
from tamis.models.minilm import MiniLM

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "over", "hills", "while", "rain", "fell"]


def make_bert(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def plain(model: MiniLM, text: str) -> np.ndarray:
    """One text, no padding, mean and norm written out."""
    import torch

    tokenizer, module, _ = model._loaded
    ids = tokenizer(text, truncation=True, max_length=model.max_tokens)["input_ids"]
    with torch.no_grad():
        hidden = module(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    mean = hidden.mean(0)
    return mean / np.sqrt((mean**2).sum())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MiniLM:
    folder = make_bert(tmp_path_factory.mktemp("bert"))
    model = load(resolve(str(folder)), max_tokens=20, batch_rows=4)
    assert isinstance(model, MiniLM)
    assert isinstance(model, Embedder)
    return model


@settings(max_examples=25)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join), max_size=11))
def test_batched_equals_one_by_one(tiny: MiniLM, texts: list[str]) -> None:
    found = tiny.embed(texts)
    assert found.shape == (len(texts), 32)
    assert found.dtype == np.float32
    for vector, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(vector, plain(tiny, text), atol=2e-6)


def test_vectors_have_length_one_and_repeat_exactly(tiny: MiniLM) -> None:
    texts = [" ".join(WORDS[:n]) for n in (9, 0, 3, 12, 3)]
    found = tiny.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(found, tiny.embed(texts))
    np.testing.assert_allclose(found[2], found[4], atol=2e-6)


def test_long_texts_are_cut_at_max_tokens(tiny: MiniLM) -> None:
    long = " ".join(WORDS * 3)
    cut = " ".join((WORDS * 3)[:18])
    np.testing.assert_allclose(tiny.embed([long])[0], tiny.embed([cut])[0], atol=2e-6)


def test_a_reference_without_a_folder() -> None:
    with pytest.raises(ModelError, match="no folder"):
        MiniLM(ModelRef("x", "embedder", "i", ("embedder",)))


@pytest.mark.default_model
def test_paraphrases_are_nearer_than_unrelated_texts() -> None:
    pairs = [
        ("A man is eating food.", "Someone is having a meal."),
        ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
        ("How do I install Python on Linux?", "What is the way to set up Python under Linux?"),
        ("The child is playing with a ball in the garden.", "A kid kicks a ball around in the yard."),
        ("She solved the equation by factoring.", "By factoring, she found the roots of the equation."),
    ]
    model = load("minilm-l6-v2")
    texts = [text for pair in pairs for text in pair]
    found = model.embed(texts)
    assert found.shape == (10, 384)
    likeness = found @ found.T
    for i in range(10):
        others = [likeness[i, j] for j in range(10) if j not in (i, i ^ 1)]
        assert likeness[i, i ^ 1] > max(others) + 0.1
    for vector, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(vector, plain(model, text), atol=2e-6)
    long = model.embed(["word " * 1000, "word " * 254])
    np.testing.assert_allclose(long[0], long[1], atol=2e-6)
