"""Nano models: character-level Llama models of 0.1M to 1M parameters, made in about a minute on a CPU.

They are real `transformers` folders (safetensors, tokenizer, chat template, generation config), so every part of tamis
treats them like any other model. A chat renders as the user's text, then the assistant's text, then `<eos>`.

Models meant to be improved on are pre-trained to a target accuracy, never for a fixed number of steps: the step at which
such a model learns its task is sharp, and a fixed number lands before or after it.

`python -m tamis.lab.nano NAME` makes a named model again and stores it in `lab/weights/`.
"""

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis import hashing
from tamis.errors import ConfigError, ModelError, TrainingError, nearest
from tamis.lab.worlds import ModularSums, World
from tamis.models.cache import cache_root, make_once, model_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerFast]

Draw = Callable[[np.random.Generator, int], tuple[list[str], list[str]]]

VERSION = "1"
"""Part of every cached model's key; raise it when `nano_module` or `pretrain` change what they make."""

WEIGHTS = Path(__file__).parent / "weights"
CONTEXT = 512
SPECIAL = ("<pad>", "<eos>", "<unk>")
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
PRINTABLE = "\n" + "".join(c for c in string.printable if c.isprintable())


@dataclass(frozen=True)
class LabModel:
    """A named lab model: the world it is trained on, its size, the greedy accuracy it is trained to, and the rate."""

    world: World
    layers: int
    width: int
    target: float
    lr: float


NAMED: Mapping[str, LabModel] = {
    "nano-sums": LabModel(ModularSums(), layers=2, width=64, target=0.5, lr=1e-3),
    "nano-sums-1m": LabModel(ModularSums(), layers=4, width=128, target=0.5, lr=5e-4),
}


def names() -> list[str]:
    """Return the names of the lab models, for `resolve` and the command line."""
    return sorted(NAMED)


def folder(name: str) -> Path:
    """Return the `transformers` folder of a lab model: shipped with the package, or made once and cached (about a minute).

    Raises ModelError for an unknown name.
    """
    if name not in NAMED:
        raise ModelError(f"unknown lab model '{name}'", hint=nearest(name, NAMED))
    shipped = WEIGHTS / name
    return shipped if shipped.is_dir() else _cached(model_folder(name), NAMED[name], lambda: train_named(name))


def base(key: Sequence[Any], make: "Callable[[], Pair]") -> "Pair":
    """Return the model and tokenizer of `make()`, made once per `key` and kept in the cache as safetensors.

    `key` says all that `make` depends on (name of the world and its sizes, seed, target...), as `hashing.digest` takes it.
    Every call loads a fresh copy.
    """
    return load(_cached(cache_root() / "lab" / hashing.digest(VERSION, key), key, make))


def _cached(place: Path, key: Any, make: "Callable[[], Pair]") -> Path:
    return make_once(place, {"key": hashing.digest(VERSION, key)}, lambda folder: save(*make(), folder))


def nano_module(vocab: str, layers: int = 2, width: int = 64, seed: int = 0) -> "Pair":
    """Return an untrained Llama model and its character tokenizer.

    `vocab` lists the characters; `width` is a multiple of 16 (heads have width 16), the MLP is four times as wide,
    embeddings are tied. 2 layers of width 64 are 0.13M parameters, 4 of 128 are 1.05M. Weights depend on `seed` alone.
    Float32 on the CPU. Raises ConfigError for repeated characters or a width that does not fit.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if width % 16 or width < 16 or layers < 1:
        raise ConfigError(
            f"a nano model needs at least one layer and a width that 16 divides, not {layers} and {width}"
        )
    tokenizer = nano_tokenizer(vocab)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config)
    module.generation_config = GenerationConfig(**ends)
    return module.eval(), tokenizer


def nano_tokenizer(vocab: str) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of one token per character of `vocab`, with <pad>, <eos>, <unk> and a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if len(set(vocab)) != len(vocab) or not vocab:
        raise ConfigError(f"a nano vocabulary lists each character once: {vocab!r}")
    ids = {token: i for i, token in enumerate((*SPECIAL, *vocab))}
    characters = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save(module: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", path: Path) -> None:
    """Write a model folder: config, safetensors, generation config, tokenizer, chat template."""
    from safetensors.torch import save_file

    for part in (module.config, module.generation_config, tokenizer):
        part.save_pretrained(path)
    untied = {name: tensor for name, tensor in module.state_dict().items() if name != "lm_head.weight"}
    save_file(untied, path / "model.safetensors", metadata={"format": "pt"})
    (path / "model.safetensors").chmod(0o644)


def load(path: Path) -> "Pair":
    """Return the model (float32, CPU, evaluation mode) and tokenizer of a folder written by `save`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    return module.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: nano matrices are too small to share, and results do not depend on the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def pretrain(
    module: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    draw_batch: Draw,
    accuracy: "Callable[[PreTrainedModel], float]",
    target: float,
    *,
    seed: int,
    lr: float = 1e-3,
    batch: int = 32,
    check_every: int = 10,
    max_steps: int = 3000,
) -> int:
    """Train `module` in place until `accuracy(module)` first reaches `target`; return the number of steps taken.

    `draw_batch(rng, n)` gives n prompts and answers; the loss is the mean over all answer tokens and <eos>. AdamW (no weight
    decay), 50 steps of linear warm-up, gradients clipped at norm 1. Step i draws from (seed, i) alone. Runs on one thread.
    Raises TrainingError when `max_steps` do not suffice.
    """
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    reached = 0.0
    for step in range(1, max_steps + 1):
        module.train()
        ids, labels = _batch(tokenizer, *draw_batch(hashing.rng(seed, "pretrain", step), batch))
        loss = module(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 50)
        optimizer.step()
        if step % check_every == 0:
            module.eval()
            reached = accuracy(module)
            if reached >= target:
                return step
    raise TrainingError(
        f"pre-training reached an accuracy of {reached:.3f}, not {target}, in {max_steps} steps",
        hint="Allow more steps, or change the learning rate or the size.",
    )


@_one_thread()
def greedy_texts(
    module: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str], max_new: int
) -> list[str]:
    """Return the greedy continuation of each prompt as text, cut at <eos>, at most `max_new` characters long."""
    import torch

    ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    texts = [""] * len(ids)
    for length in sorted({len(row) for row in ids}):
        places = [i for i, row in enumerate(ids) if len(row) == length]
        made = greedy_batch(module, torch.tensor([ids[i] for i in places]), max_new, tokenizer.eos_token_id)
        for i, row in zip(places, made.tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            texts[i] = tokenizer.decode(row[:end])
    return texts


def greedy_batch(module: "PreTrainedModel", prompts: "torch.Tensor", max_new: int, eos: int) -> "torch.Tensor":
    """Return greedy continuations, int64 (N, at most max_new), of prompts of equal length, int64 (N, L).

    A row goes on after its `eos`; the loop ends when every row has met it.
    """
    import torch

    steps: list[torch.Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    ids, cache = prompts, None
    with torch.inference_mode():
        while len(steps) < max_new and not bool(ended.all()):
            out = module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            steps.append(ids)
            ended |= ids[:, 0] == eos
    return torch.cat(steps, dim=1)


def dev_accuracy(
    world: World, tokenizer: "PreTrainedTokenizerFast", *, seed: int, n: int = 200
) -> "Callable[[PreTrainedModel], float]":
    """Return a function of a model: its greedy all-steps-right rate on `n` fixed dev problems of the world."""
    problems, solutions = world.batch(hashing.rng(seed, "dev"), n)
    longest = max(map(len, solutions)) + 1

    def accuracy(module: "PreTrainedModel") -> float:
        texts = greedy_texts(module, tokenizer, problems, longest)
        return float(np.mean([world.all_steps_right(p, t) for p, t in zip(problems, texts, strict=True)]))

    return accuracy


def trained(
    world: World, target: float, *, seed: int, layers: int = 2, width: int = 64, vocab: str = "", **options: Any
) -> "Pair":
    """Return a model trained on `world` until its greedy all-steps-right rate on 200 dev problems first reaches `target`.

    The world's `batch` gives the training texts. `vocab` defaults to the world's alphabet; `options` go to `pretrain`.
    """
    module, tokenizer = nano_module(vocab or world.alphabet, layers, width, seed)
    pretrain(module, tokenizer, world.batch, dev_accuracy(world, tokenizer, seed=seed), target, seed=seed, **options)
    return module, tokenizer


def train_named(name: str) -> "Pair":
    """Make the lab model `name` from nothing. Its vocabulary is printable ASCII and the line break."""
    spec = NAMED[name]
    return trained(
        spec.world,
        spec.target,
        seed=0,
        layers=spec.layers,
        width=spec.width,
        vocab=PRINTABLE,
        lr=spec.lr,
        check_every=2,
    )


def _batch(
    tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str], answers: Sequence[str]
) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    heads, tails = (tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    rows = [(head, [*tail, tokenizer.eos_token_id]) for head, tail in zip(heads, tails, strict=True)]
    longest = max(len(head) + len(tail) for head, tail in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for i, (head, tail) in enumerate(rows):
        end = len(head) + len(tail)
        ids[i, :end] = torch.tensor([*head, *tail])
        labels[i, len(head) : end] = ids[i, len(head) : end]
    return ids, labels


def main(arguments: Sequence[str]) -> None:
    """Make the lab model named on the command line and store it in `lab/weights/`, where `folder` finds it."""
    if len(arguments) != 1 or arguments[0] not in NAMED:
        raise SystemExit(f"usage: python -m tamis.lab.nano NAME, with NAME one of {', '.join(names())}")
    module, tokenizer = train_named(arguments[0])
    save(module, tokenizer, WEIGHTS / arguments[0])
    accuracy = dev_accuracy(NAMED[arguments[0]].world, tokenizer, seed=1, n=1000)(module)
    print(f"{arguments[0]}: greedy all-steps-right rate {accuracy:.3f} on 1000 fresh problems")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
