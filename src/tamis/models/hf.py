"""A local `transformers` causal language model behind the capabilities text, scoring, tokens and trainable."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import ConfigError, ModelError
from tamis.hashing import derive_seed
from tamis.models.base import LabelLogprobs, ModelRef
from tamis.records import Completion, Cost, Law, Message, Prompt, Target, Turn

if TYPE_CHECKING:
    from tamis.generation import OnEvent, Request, Sampled, StopStrings
    from tamis.models.chat import ChatFormat

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SCORED_ROWS = 64


class LocalModel:
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
        if ref.folder is None:
            raise ModelError(f"model '{ref.name}' has no local folder", hint="Only local models can be loaded here.")
        if dtype is not None and dtype not in _DTYPES:
            raise ModelError(f"dtype '{dtype}' is not known", hint=f"Known: {', '.join(_DTYPES)}.")
        if batch_rows is not None and batch_rows < 1:
            raise ConfigError(f"batch_rows is {batch_rows}; it must be 1 or more", hint="Leave it out: memory decides.")
        self.ref, self.name, self.identity, self.batch_rows = ref, ref.name, ref.identity, batch_rows
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

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer: the adapter's where it brings one, else the base's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self._folder_with("tokenizer_config.json"), local_files_only=True, trust_remote_code=False
        )

    @cached_property
    def chat(self) -> "ChatFormat":
        """The chat format of the tokenizer."""
        from tamis.models.chat import ChatFormat

        return ChatFormat(self.tokenizer)

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

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
    ) -> Iterator[Completion]:
        """Yield one completion per prompt and candidate index, in that order (see `TextModel.generate`).

        A prompt without tokens, or one that fills the model's context, yields completions with finish reason "error" and
        empty text. `max_new_tokens` is limited by the context. The prompt's tokens are counted on its first completion.
        Raises ConfigError for a law out of range or where `prompts` and `candidates` differ in length.
        """
        from tamis.generation import Request, check_law, sample

        check_law(law)
        if len(prompts) != len(candidates):
            raise ConfigError(f"{len(prompts)} prompts came with {len(candidates)} lists of candidate indices")
        tokens = [tuple(self.chat.prompt_ids(prompt.messages)) for prompt in prompts]
        room = [self._room(ids, law) for ids in tokens]
        requests = [
            Request(ids, [derive_seed(seed, prompt.id, c) for c in wanted] if limit > 0 else (), limit)
            for ids, limit, prompt, wanted in zip(tokens, room, prompts, candidates, strict=True)
        ]
        stop = self._stop(law)
        drawn = sample(
            self._module,
            requests,
            law,
            end_ids=self.end_ids,
            stop=stop,
            batch_rows=self.batch_rows,
            on_event=self.on_event,
        )
        write = _Writer(self, prompts, candidates, requests, law, seed, sampler, stop)
        yield from write.in_order(drawn)

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
        folder = self._folder_with("generation_config.json")
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

    def _folder_with(self, file: str) -> Path:
        """The adapter's folder where it holds `file`, else the base's."""
        assert self.ref.folder is not None
        adapter = self.ref.adapter
        return adapter if adapter is not None and (adapter / file).exists() else self.ref.folder

    def _room(self, ids: Sequence[int], law: Law) -> int:
        """How many tokens may follow `ids`; 0 where none can."""
        if not ids:
            return 0
        return min(law.max_new_tokens, (self.context_length or law.max_new_tokens + len(ids)) - len(ids))

    def _stop(self, law: Law) -> "StopStrings | None":
        from tamis.generation import StopStrings

        return StopStrings(self.tokenizer, law.stop) if law.stop else None


@dataclass(frozen=True)
class _Writer:
    """Turns what the engine draws into completions, in the order asked for."""

    model: LocalModel
    prompts: Sequence[Prompt]
    candidates: Sequence[Sequence[int]]
    requests: "Sequence[Request]"
    law: Law
    seed: int
    sampler: str
    stop: "StopStrings | None"

    def in_order(self, drawn: "Iterator[Sampled]") -> Iterator[Completion]:
        """Yield each completion as soon as it and all before it are there."""
        early: dict[tuple[int, int], Sampled] = {}
        for number, request in enumerate(self.requests):
            for position in range(len(self.candidates[number])):
                place = (number, position)
                while request.seeds and place not in early:
                    sampled = next(drawn)
                    early[sampled.request, sampled.candidate] = sampled
                yield self._completion(place, early.pop(place, None))

    def _completion(self, place: tuple[int, int], sampled: "Sampled | None") -> Completion:
        number, position = place
        tokens = sampled.token_ids if sampled else ()
        prompt_tokens = len(self.requests[number].tokens) if sampled and position == 0 else 0
        return Completion(
            prompt_id=self.prompts[number].id,
            turns=(Turn("assistant", self._text(tokens)),),
            index=self.candidates[number][position],
            token_ids=tokens,
            logprobs=sampled.logprobs if sampled else (),
            raw_logprobs=sampled.raw_logprobs if sampled else (),
            finish_reason=sampled.finish if sampled else "error",
            model=self.model.identity,
            sampler=self.sampler,
            law=self.law,
            seed=self.seed,
            cost=Cost(prompt_tokens=prompt_tokens, sampled_tokens=len(tokens)),
        )

    def _text(self, tokens: Sequence[int]) -> str:
        from tamis.generation.stops import decode

        if tokens and tokens[-1] in self.model.end_ids:
            tokens = tokens[:-1]
        text = decode(self.model.tokenizer, tokens)
        return self.stop.cut(text) if self.stop else text
