"""The engines that run local models, which of them are here, and which one runs a given model."""

from dataclasses import dataclass
from typing import Any, Literal

from tamis import environment
from tamis.errors import MissingExtra, ModelError, TamisError, nearest
from tamis.models.base import ModelRef

ENGINES = ("transformers", "vllm", "llamacpp")
EngineName = Literal["auto", "transformers", "vllm", "llamacpp"]
PACKAGES = {"transformers": "transformers", "vllm": "vllm", "llamacpp": "llama-cpp-python"}
WORTH_STARTING = 100_000_000
"""Bytes of weights from which `auto` takes vLLM: a lab model has sampled all it has to before vLLM has started."""


@dataclass(frozen=True)
class EngineState:
    """An engine on this machine: its package's version ("" where not installed), and, where it cannot be used, why and
    what to do."""

    name: str
    version: str
    available: bool
    reason: str = ""
    fix: str = ""


def engines() -> list[EngineState]:
    """Return every engine with whether it can be used here, and why not. Loads no engine."""
    return [_state(name) for name in ENGINES]


def _state(name: str) -> EngineState:
    version = environment.version(PACKAGES[name])
    try:
        check(name)
    except TamisError as error:
        return EngineState(name, version, False, error.message, error.hint or "")
    return EngineState(name, version, True)


def check(name: str) -> None:
    """Raise MissingExtra or ModelError where engine `name` cannot be used on this machine."""
    if name not in ("auto", *ENGINES):
        raise ModelError(f"there is no engine '{name}'", hint=nearest(name, ("auto", *ENGINES)))
    if name == "vllm":
        from tamis.models.vllm import check_vllm

        check_vllm()
    elif name == "llamacpp" and not environment.version(PACKAGES[name]):
        raise MissingExtra(PACKAGES[name], name, "engine llamacpp")


def choose(name: str, ref: ModelRef) -> str:
    """Return the engine that runs `ref` when `name` is asked for.

    `auto` is vllm where it is installed, there is a CUDA device and the weights are 100 MB or more, else transformers.
    Under `llamacpp`, a model without a .gguf file (a tuned one) is run by transformers. Raises as `check` does.
    """
    if name == "auto":
        return "vllm" if _state("vllm").available and _weight_bytes(ref) >= WORTH_STARTING else "transformers"
    check(name)
    return "transformers" if name == "llamacpp" and ref.gguf is None else name


def open_model(ref: ModelRef, name: str, **options: Any) -> Any:
    """Return the model of a local reference under the engine `name` (one of ENGINES), not loaded yet.

    `options`: device, dtype and batch_rows; None (batch_rows) is the engine's own default.
    """
    if name == "vllm":
        from tamis.models.vllm import VLLMModel

        return VLLMModel(ref, **options)
    if name == "llamacpp":
        from tamis.models.llamacpp import LlamaCppModel

        return LlamaCppModel(ref, **options)
    from tamis.models.hf import LocalModel

    return LocalModel(ref, **options)


def _weight_bytes(ref: ModelRef) -> int:
    return sum(path.stat().st_size for path in ref.folder.glob("*.safetensors")) if ref.folder else 0
