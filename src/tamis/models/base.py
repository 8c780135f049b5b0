"""Model protocols by capability. A component names those it needs; a recipe fails before it starts when one is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from tamis.records import Completion, Law, Prompt

CAPABILITIES = ("text", "scoring", "tokens", "trainable", "embedder")


@runtime_checkable
class TextModel(Protocol):
    """Capability "text": draws completions."""

    name: str
    identity: str
    """Digest of weights, tokenizer and chat template (of URL, model name and server report for an endpoint)."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
    ) -> Iterator[Completion]:
        """Yield one completion per prompt and candidate index, in that order.

        Candidate j of prompt i draws with randomness derived from (seed, prompt id, j) alone. `candidates[i]` lists the
        indices wanted for `prompts[i]`.
        """
        ...


@runtime_checkable
class ScoringModel(Protocol):
    """Capability "scoring": log-probabilities of given tokens."""

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each sequence a float32 array of its length: [i] = log p(token i | tokens before i), [0] = 0."""
        ...


@runtime_checkable
class TokenModel(Protocol):
    """Capability "tokens": a tokenizer and next-token logits."""

    tokenizer: Any

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return (len(sequences), vocabulary) float32 logits of the token after each sequence."""
        ...


@runtime_checkable
class TrainableModel(Protocol):
    """Capability "trainable": a torch module with a tokenizer."""

    tokenizer: Any

    def module(self) -> Any:
        """Return a fresh copy of the `transformers` causal language model, in its training dtype, on its device."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Capability "embedder": texts to vectors."""

    identity: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), d) float32 unit vectors."""
        ...


@dataclass(frozen=True)
class ModelRef:
    """A resolved model that is not loaded yet.

    `folder` holds a `transformers` model (config, safetensors, tokenizer); `adapter` a PEFT adapter tuned on top of it;
    `url` an endpoint. `identity` is what enters cache keys: never a path or a display name.
    """

    name: str
    kind: Literal["local", "endpoint", "embedder"]
    identity: str
    capabilities: tuple[str, ...]
    folder: Path | None = None
    adapter: Path | None = None
    url: str = ""
