"""Model protocols by capability. A component names those it needs; a recipe fails before it starts when one is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tamis.records import Completion, Law, Prompt

if TYPE_CHECKING:
    from tamis.generation import Session

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
class StructuredModel(TextModel, Protocol):
    """A text model whose replies can be held to a JSON schema."""

    @property
    def structured(self) -> bool:
        """Whether a schema has any effect (false once an endpoint has refused every form of it)."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[Completion]:
        """Yield as `TextModel.generate` does. With `schema` the text follows it as far as the model can be held to it."""
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
class SessionModel(Protocol):
    """A token model whose sequences can be grown token by token, their keys and values kept."""

    def session(self, prompt_ids: Sequence[int]) -> "Session":
        """Return a session of one live sequence, the prompt."""
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


class LabelLogprobs(NamedTuple):
    """Log-probabilities of labels as what comes next.

    `logprobs`: (n, labels) float32, -inf where not seen; rows do not sum to one, the rest went to other tokens. `seen`:
    (n, labels) bool, whether the model or its server reported anything that begins this label.
    """

    logprobs: np.ndarray
    seen: np.ndarray


@runtime_checkable
class LabelModel(Protocol):
    """A text model that gives the probabilities of labels without sampling."""

    def label_logprobs(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> LabelLogprobs:
        """Return log p(label is the answer) for each prompt and label."""
        ...


@dataclass(frozen=True)
class ModelRef:
    """A resolved model that is not loaded yet.

    `folder` holds a `transformers` model (config, safetensors, tokenizer); `adapter` a PEFT adapter tuned on top of it;
    `gguf` the file the folder was converted from, where it is wanted as it is (engine llamacpp); `url` an endpoint.
    `identity` is what enters cache keys: never a path or a display name.
    """

    name: str
    kind: Literal["local", "endpoint", "embedder"]
    identity: str
    capabilities: tuple[str, ...]
    folder: Path | None = None
    adapter: Path | None = None
    url: str = ""
    gguf: Path | None = None
