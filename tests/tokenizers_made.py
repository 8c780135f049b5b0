"""Small real tokenizers, trained in the test, with the five template styles."""

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tamis.models.chat import ChatFormat

TEMPLATES = Path(__file__).parent / "templates"
STYLES = {
    "chatml": {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>", "end": "<|im_end|>", "more": []},
    "llama3": {
        "bos": "<|begin_of_text|>",
        "eos": "<|end_of_text|>",
        "pad": "<|end_of_text|>",
        "end": "<|eot_id|>",
        "more": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    "mistral": {"bos": "<s>", "eos": "</s>", "pad": "<unk>", "end": "</s>", "more": ["[INST]", "[/INST]"]},
    "gemma": {
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "end": "<end_of_turn>",
        "more": ["<start_of_turn>", "<end_of_turn>"],
    },
    "zephyr": {"bos": "<s>", "eos": "</s>", "pad": "</s>", "end": "</s>", "more": []},
}
CORPUS = [
    "What is 12 + 30? It is 42.\n\nNext question: how many apples are left?\n",
    "Answer the question. First add the numbers, then check the sum.",
    "user assistant model system question answer tea café naïve 日本 🙂",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
] * 4


def byte_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def metaspace_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=800, special_tokens=bytes_, show_progress=False))
    return made


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    )
    return made


KINDS = {"bpe": byte_bpe, "metaspace": metaspace_bpe, "wordpiece": wordpiece}


@cache
def tokenizer(style: str, kind: str = "bpe", adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer that, like those of real models, puts BOS at the start of a plain text."""
    tokens = STYLES[style]
    made = KINDS[kind]()
    special = [t for t in {tokens["bos"]: 0, tokens["eos"]: 0, tokens["pad"]: 0} if t != "<unk>"]
    made.add_special_tokens(special + tokens["more"])
    if adds_bos:
        bos = (tokens["bos"], made.token_to_id(tokens["bos"]))
        made.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    pad = tokens["pad"] if made.token_to_id(tokens["pad"]) is not None else tokens["eos"]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=tokens["bos"], eos_token=tokens["eos"], pad_token=pad
    )
    wrapped.chat_template = (TEMPLATES / f"{style}.jinja").read_text()
    return wrapped


@cache
def chat(style: str, kind: str = "bpe") -> ChatFormat:
    return ChatFormat(tokenizer(style, kind))
