"""What every engine over a local model does alike: prompts to token ids before it, sampled tokens to completions after it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import ConfigError, ModelError
from tamis.hashing import derive_seed
from tamis.models.base import ModelRef
from tamis.models.folders import read_json
from tamis.records import Completion, Cost, Law, Prompt, Turn

if TYPE_CHECKING:
    from tamis.generation import Request, Sampled, StopStrings
    from tamis.models.chat import ChatFormat


class SampledModel(ABC):
    """Capability "text" over the tokenizer of a local folder; a subclass draws tokens for requests of token ids.

    Tokenizer and end tokens are the adapter's where it brings them, else the base's. Raises ModelError for a reference
    without a folder, ConfigError for `batch_rows` below 1.
    """

    def __init__(self, ref: ModelRef, batch_rows: int | None = None) -> None:
        if ref.folder is None:
            raise ModelError(f"model '{ref.name}' has no local folder", hint="Only local models can be loaded here.")
        if batch_rows is not None and batch_rows < 1:
            raise ConfigError(f"batch_rows is {batch_rows}; it must be 1 or more", hint="Or leave it out.")
        self.ref, self.name, self.identity, self.batch_rows = ref, ref.name, ref.identity, batch_rows

    @property
    @abstractmethod
    def key(self) -> dict[str, Any]:
        """How this machine runs the model, as far as it decides results: engine, device, rows, and what the engine adds."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Most tokens a sequence may have; None where there is no limit."""

    @abstractmethod
    def draw(self, requests: "Sequence[Request]", law: Law, stop: "StopStrings | None") -> "Iterator[Sampled]":
        """Yield a `Sampled` per seed of every request, in any order; none for a request without seeds."""

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer: the adapter's where it brings one, else the base's."""
        from transformers import AutoTokenizer

        folder = self.folder_with("tokenizer_config.json")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def chat(self) -> "ChatFormat":
        """The chat format of the tokenizer."""
        from tamis.models.chat import ChatFormat

        return ChatFormat(self.tokenizer)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config and those that end a turn of the chat format."""
        path = self.folder_with("generation_config.json") / "generation_config.json"
        configured = read_json(path).get("eos_token_id") if path.is_file() else None
        listed = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(i) for i in listed if i is not None} | set(self.chat.end_ids)))

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
        from tamis.generation import Request, StopStrings, check_law

        check_law(law)
        if len(prompts) != len(candidates):
            raise ConfigError(f"{len(prompts)} prompts came with {len(candidates)} lists of candidate indices")
        requests = []
        for prompt, wanted in zip(prompts, candidates, strict=True):
            ids = tuple(self.chat.prompt_ids(prompt.messages))
            room = min(law.max_new_tokens, (self.context_length or law.max_new_tokens + len(ids)) - len(ids))
            fits = bool(ids) and room > 0
            requests.append(Request(ids, [derive_seed(seed, prompt.id, c) for c in wanted] if fits else (), room))
        stop = StopStrings(self.tokenizer, law.stop) if law.stop else None
        drawn = self.draw(requests, law, stop)
        early: dict[tuple[int, int], Sampled] = {}
        for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            for position, index in enumerate(candidates[number]):
                while request.seeds and (number, position) not in early:
                    sampled = next(drawn)
                    early[sampled.request, sampled.candidate] = sampled
                found = early.pop((number, position), None)
                asked = len(request.tokens) if found and position == 0 else 0
                yield self._completion(prompt, index, found, asked, law, seed, sampler, stop)

    def _completion(
        self,
        prompt: Prompt,
        index: int,
        sampled: "Sampled | None",
        asked: int,
        law: Law,
        seed: int,
        sampler: str,
        stop: "StopStrings | None",
    ) -> Completion:
        tokens = sampled.token_ids if sampled else ()
        return Completion(
            prompt_id=prompt.id,
            turns=(Turn("assistant", self._text(tokens, stop)),),
            index=index,
            token_ids=tokens,
            logprobs=sampled.logprobs if sampled else (),
            raw_logprobs=sampled.raw_logprobs if sampled else (),
            finish_reason=sampled.finish if sampled else "error",
            model=self.identity,
            sampler=sampler,
            law=law,
            seed=seed,
            cost=Cost(prompt_tokens=asked, sampled_tokens=len(tokens)),
        )

    def _text(self, tokens: Sequence[int], stop: "StopStrings | None") -> str:
        from tamis.generation.stops import decode

        if tokens and tokens[-1] in self.end_ids:
            tokens = tokens[:-1]
        text = decode(self.tokenizer, tokens)
        return stop.cut(text) if stop else text

    def folder_with(self, file: str) -> Path:
        """Return the adapter's folder where it holds `file`, else the base's."""
        assert self.ref.folder is not None
        adapter = self.ref.adapter
        return adapter if adapter is not None and (adapter / file).exists() else self.ref.folder
