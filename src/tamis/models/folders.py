"""A model folder: is it whole, what kind of model is it, and which identity has its content.

Nothing is loaded here; checks read configs and the headers of safetensors files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tamis.errors import ModelError
from tamis.hashing import digest
from tamis.models.cache import remembered_digest

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_FILES = (*TOKENIZERS, "merges.txt", "added_tokens.json", "special_tokens_map.json")
COSMETIC = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_mapping",
        "base_model_name_or_path",
        "chat_template",
        "inference_mode",
        "is_local",
        "local_files_only",
        "name_or_path",
        "peft_version",
        "revision",
        "tokenizer_file",
        "transformers_version",
        "use_cache",
    }
)
"""Config fields that say where a model, tokenizer or adapter came from, not what it computes."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError that names the file when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"this file cannot be read: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelError("this file does not hold a JSON object", where=str(path))
    return value


def kind_of(folder: Path) -> Literal["local", "embedder"]:
    """Return "local" for a causal language model, "embedder" for an encoder. Raises ModelError for another kind."""
    config = read_json(folder / "config.json")
    names = [str(name) for name in config.get("architectures") or ()]
    if not names or any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names):
        return "local"
    if "BertModel" in names:
        return "embedder"
    raise ModelError(
        f"this is a {names[0]}, which tamis cannot use",
        where=str(folder),
        hint="Models are causal language models (...ForCausalLM); embedders are BERT encoders (BertModel).",
    )


def check_model(folder: Path) -> None:
    """Raise ModelError, with what to do, unless `folder` holds whole safetensors weights and a tokenizer."""
    _check_code(folder)
    for path in weight_files(folder):
        _check_safetensors(path)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            "the folder has no tokenizer",
            where=str(folder),
            hint="Copy tokenizer.json and tokenizer_config.json of the base model into it "
            "(AutoTokenizer.from_pretrained(base).save_pretrained(folder)).",
        )


def _check_code(folder: Path) -> None:
    """Raise ModelError for a model that would run code of its own: only architectures of `transformers` are loaded."""
    config = read_json(folder / "config.json")
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"the model needs Python code of its own (model type '{config.get('model_type')}'), which is never run",
            where=str(folder),
            hint="Use a model whose architecture is part of transformers.",
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, by name. Raises ModelError when there are none or one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(names)} weight files are missing, first {missing[0]}",
                where=str(folder),
                hint="Download or copy the model again.",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise _no_weights(folder, "model.safetensors")


def _no_weights(folder: Path, wanted: str) -> ModelError:
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        return ModelError(
            "the weights are pickle files (.bin, .pt), which are refused: a pickle can run any code when it is opened",
            where=str(folder),
            hint="If you trust their source, convert them once in a place of your choice: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), and use new_folder.",
        )
    gguf = next(folder.glob("*.gguf"), None)
    hint = f"Name the file itself: {gguf}" if gguf else f"A model folder needs {wanted}."
    return ModelError(f"the folder has no {wanted}", where=str(folder), hint=hint)


def _check_safetensors(path: Path) -> None:
    """Raise ModelError when a safetensors file is shorter than its header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = size == 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ModelError(
            "the weights are cut short or damaged", where=str(path), hint="Download or copy the model again."
        )


def model_identity(folder: Path) -> str:
    """Return the identity of a model folder: digest of weights, config, end tokens, tokenizer and chat template.

    The folder's path and name, and fields that only say where a file came from, are not part of it.
    """
    weights = [remembered_digest(path) for path in weight_files(folder)]
    return digest("model", weights, _essential(read_json(folder / "config.json")), _text_parts(folder))


def adapter_identity(base: str, adapter: Path) -> str:
    """Return the identity of an adapter on top of the base of that identity: digest of base and adapter files."""
    config = _essential(read_json(adapter / "adapter_config.json"))
    return digest("adapter", base, remembered_digest(adapter_weights(adapter)), config, _text_parts(adapter))


def adapter_weights(adapter: Path) -> Path:
    """Return the weight file of an adapter folder. Raises ModelError when it is missing, damaged or a pickle."""
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise _no_weights(adapter, path.name)
    _check_safetensors(path)
    return path


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in COSMETIC}


def _text_parts(folder: Path) -> list[Any]:
    """Return what decides how text becomes tokens and where a model stops: tokenizer, chat template, end tokens."""
    settings = _read_if_there(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    return [
        {name: remembered_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()},
        _essential(settings),
        template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template"),
        _read_if_there(folder / "generation_config.json").get("eos_token_id"),
    ]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
