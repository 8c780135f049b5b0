"""A local `transformers` causal language model behind the capabilities text, scoring, tokens and trainable."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import ConfigError, ModelError
from tamis.models.base import LabelLogprobs, ModelRef
from tamis.models.sampled import SampledModel
from tamis.records import Law, Message, Prompt, Target

if TYPE_CHECKING:
    from tamis.generation import OnEvent, Request, Sampled, Session, StopStrings

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SCORED_ROWS = 64


class LocalModel(SampledModel):
    """A model in a local folder (safetensors, no remote code), loaded at its first use.

    `device` defaults to cuda, then mps, then cpu; `dtype` to bfloat16 on a cuda device that computes in it, else float32.
    Both are exposed as they are in force. `batch_rows` rows are sampled together; None takes what fits half of the free
    memory. A `ref.adapter` (PEFT) is merged into the base. `on_event` (None: memory events are logged) is told what
    `tamis.generation.sample` tells: each candidate that ends, and when memory makes it halve its rows.
    Raises ModelError where the folder, the adapter or the dtype cannot be used, ConfigError for `batch_rows` below 1.
    """

    on_event: "OnEvent | None" = None

    def __init__(
        self, ref: ModelRef, *, device: str | None = None, dtype: str | None = None, batch_rows: int | None = None
    ) -> None:
        super().__init__(ref, batch_rows)
        if dtype is not None and dtype not in _DTYPES:
            raise ModelError(f"dtype '{dtype}' is not known", hint=f"Known: {', '.join(_DTYPES)}.")
        self._device, self._dtype = device, dtype
        self._given: Any = None

    @classmethod
    def from_module(
        cls, module: Any, tokenizer: Any, name: str, identity: str, *, batch_rows: int | None = None
    ) -> "LocalModel":
        """Return a model over a `transformers` module in memory; its device and dtype are the module's own.

        The module is shared, not copied, so sampling sees its weights as they are at each call.
        """
        ref = ModelRef(name, "local", identity, ("text", "scoring", "tokens", "trainable"), folder=Path())
        weight = module.get_input_embeddings().weight
        model = cls(
            ref, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch."), batch_rows=batch_rows
        )
        model._given = module
        model.tokenizer = tokenizer
        return model

    @cached_property
    def device(self) -> str:
        """Device the model is on: as asked, or the best one of this machine."""
        import torch

        if self._device:
            try:
                torch.empty(0, device=self._device)
            except (RuntimeError, AssertionError) as error:
                raise ModelError(
                    f"the device '{self._device}' cannot be used here: {str(error).splitlines()[0]}",
                    hint="Leave it out, and the best device of this machine is taken.",
                ) from None
            return self._device
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    @cached_property
    def dtype(self) -> str:
        """Dtype of the weights: as asked, or what suits the device."""
        import torch

        if self._dtype:
            return self._dtype
        return "bfloat16" if self.device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"

    @property
    def key(self) -> dict[str, Any]:
        """What decides results besides the model: engine, device (without its number), dtype and rows."""
        device = self.device.split(":")[0]
        return {"engine": "transformers", "device": device, "dtype": self.dtype, "batch_rows": self.batch_rows}

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config and those that end a turn of the chat format."""
        configured = getattr(getattr(self._module, "generation_config", None), "eos_token_id", None)
        listed = configured if isinstance(configured, list | tuple) else [configured]
        return tuple(sorted({int(i) for i in listed if i is not None} | set(self.chat.end_ids)))

    @cached_property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have; None where the architecture sets no limit."""
        return getattr(self._module.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def draw(self, requests: "Sequence[Request]", law: Law, stop: "StopStrings | None") -> "Iterator[Sampled]":
        """Yield a `Sampled` per seed of every request, in the order they end (see `tamis.generation.sample`)."""
        from tamis.generation import sample

        return sample(
            self._module,
            requests,
            law,
            end_ids=self.end_ids,
            stop=stop,
            batch_rows=self.batch_rows,
            on_event=self.on_event,
        )

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each sequence a float32 array of its length: [i] = log p(token i | tokens before i), [0] = 0."""
        from tamis.generation import score

        return score(self._module, sequences)

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return (len(sequences), vocabulary) float32 logits of the token after each sequence.

        Raises ConfigError for an empty sequence.
        """
        from tamis.generation import next_logits

        for number, sequence in enumerate(sequences):
            if not len(sequence):
                raise ConfigError(f"sequence {number} has no tokens", hint="Begin it with the BOS token.")
        return next_logits(self._module, sequences, batch_rows=self.batch_rows or _SCORED_ROWS)

    def session(self, prompt_ids: Sequence[int]) -> "Session":
        """Return a `Session` over the prompt's tokens: sequences grown token by token, their keys and values kept.

        Raises ConfigError for a prompt without tokens or longer than the context.
        """
        from tamis.generation import Session

        return Session(self._module, prompt_ids, self.context_length)

    def label_logprobs(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> LabelLogprobs:
        """Return log p(the answer is the label and ends there) for each prompt and label, (n, labels) float32."""
        targets = [
            self.chat.render(Target((*prompt.messages, Message("assistant", label))))
            for prompt in prompts
            for label in labels
        ]
        scores = self.logprobs([t.token_ids for t in targets])
        sums = [float(np.dot(s, t.weights)) for s, t in zip(scores, targets, strict=True)]
        logprobs = np.array(sums, dtype=np.float32).reshape(len(prompts), len(labels))
        return LabelLogprobs(logprobs, np.ones(logprobs.shape, dtype=bool))

    def module(self) -> Any:
        """Return a fresh copy of the model (adapter merged), in `dtype` on `device`, in training mode."""
        return (copy.deepcopy(self._given) if self._given is not None else self._load()).train()

    @cached_property
    def _module(self) -> Any:
        return self._given if self._given is not None else self._load().eval()

    def _load(self) -> Any:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, GenerationConfig

        from tamis.models.gguf import quiet_transformers

        try:
            with quiet_transformers():
                module = AutoModelForCausalLM.from_pretrained(
                    self.ref.folder,
                    dtype=getattr(torch, self.dtype),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"model '{self.name}' cannot be loaded: {error}", where=str(self.ref.folder)) from error
        if self.ref.adapter is not None:
            module = self._merge(module, self.ref.adapter)
        folder = self.folder_with("generation_config.json")
        if (folder / "generation_config.json").exists():
            module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return module.to(self.device)

    def _merge(self, module: Any, adapter: Path) -> Any:
        from peft import PeftModel

        try:
            tuned = PeftModel.from_pretrained(module, str(adapter), local_files_only=True)
            return tuned.merge_and_unload()
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise ModelError(f"adapter of '{self.name}' cannot be merged: {error}", where=str(adapter)) from error
