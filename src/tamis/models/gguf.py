"""A GGUF file becomes an ordinary `transformers` folder, once.

`transformers` reads the file and unpacks its blocks; what it gets wrong is put right here, explicitly:

* A loaded GGUF model counts as quantised and refuses to be saved, though its weights are plain float32: the marks go.
* The text split of the `smollm` vocabulary (single digits first, then GPT-2's rule) is not known to it; the plain rule
  that it falls back to gives "\\n\\n1" and "  1" other tokens than the model was trained on.

Weights are kept in float32, in which the format's own reference code unpacks them. A Q4_1 weight is `d * q + m` with
half-precision d and m and a 4-bit q: of the default model's 272 tensors only the 61 norms would survive float16 or bfloat16.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from tamis.errors import ModelError

OnEvent = Callable[[dict[str, Any]], None]


def convert(source: Path, folder: Path, on_event: OnEvent | None = None) -> None:
    """Write the causal language model in `source` (a .gguf file) to `folder` as float32 safetensors.

    Writes config, weights, tokenizer, chat template and generation config (with its end token). Takes about 20 s and
    three times the written size of memory for 135M parameters. Raises ModelError for a file or an architecture that
    cannot be read.
    """
    with quiet_transformers():
        try:
            tokenizer = read_tokenizer(source, on_event)
            module = read_module(source)
        except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
            raise ModelError(
                f"this GGUF file cannot be read: {error}",
                where=str(source),
                hint="Use a model in the safetensors format, or a GGUF file of an architecture transformers supports.",
            ) from error
        _complete_generation_config(module, tokenizer)
        tokenizer.model_max_length = module.config.max_position_embeddings
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)


def read_module(source: Path) -> Any:
    """Return the model of a GGUF file as a plain float32 `transformers` module that can be saved."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": source.name, "dtype": torch.float32, "trust_remote_code": False}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    module = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **options)
    packed = [name for name, value in module.state_dict().items() if value.dtype != torch.float32]
    if packed:
        raise ValueError(f"tensor '{packed[0]}' was not unpacked to float32")
    module.hf_quantizer = None
    for leftover in ("quantization_config", "_model_name_or_path"):
        module.config.__dict__.pop(leftover, None)
    return module


def read_tokenizer(source: Path, on_event: OnEvent | None = None) -> Any:
    """Return the tokenizer of a GGUF file, with the text split that its vocabulary was made with."""
    import transformers
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, trust_remote_code=False
    )
    rule = _split_rule(source)
    if rule == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif rule not in ("", "default", "gpt-2") and _is_plain_byte_level(tokenizer) and on_event:
        text = f"The text split '{rule}' of {source.name} is not known; GPT-2's is used, so tokens may differ a little."
        on_event({"event": "warning", "text": text})
    return tokenizer


def _split_rule(source: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


def _is_plain_byte_level(tokenizer: Any) -> bool:
    return type(tokenizer.backend_tokenizer.pre_tokenizer).__name__ == "ByteLevel"


def _complete_generation_config(module: Any, tokenizer: Any) -> None:
    config = module.generation_config
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, field) is None:
            setattr(config, field, getattr(tokenizer, field))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch progress bars and notices of `transformers` off while inside; tamis shows its own."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
