"""Sequences that share a prompt, grown token by token: what samplers that decide on every token themselves stand on.

The prompt is run once. Keys and values live in the engine's `RowCache`, so that continuing a sequence costs one token;
several continuations of one sequence copy its row.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tamis.errors import ConfigError, ModelError
from tamis.generation.cache import RowCache, fits_rows
from tamis.generation.engine import evaluating
from tamis.generation.forward import Forward


class Session:
    """The live sequences of a prompt under a `transformers` causal language model, all of one length.

    `logits` (n, V) float32 on the model's device: next-token logits of each live sequence; n is 1 after opening, the bare
    prompt. `passes` counts what was run: 1 for the prompt, then 1 a token and sequence. `most` limits a sequence's tokens,
    the prompt's included (None: no limit is known). A model that keeps more than plain keys and values (state spaces, a
    sliding window that the sequences have left) is run over whole sequences again at every step, to the same logits.
    Raises ConfigError for a prompt without tokens or longer than `most`.
    """

    def __init__(self, module: Any, prompt_ids: Sequence[int], most: int | None = None) -> None:
        prompt = tuple(map(int, prompt_ids))
        if not prompt:
            raise ConfigError("a session's prompt has no tokens", hint="Begin it with the BOS token.")
        self.forward, self.most = Forward(module), most
        self.sequences = [prompt]
        """Token ids of each live sequence, the prompt's included."""
        self.passes = 1
        self._module = module
        self._check_room(len(prompt))
        self._always = fits_rows(self.forward.config, sys.maxsize)
        self._cache: RowCache | None = None
        with evaluating(module):
            if self._always or fits_rows(self.forward.config, len(prompt) + 1):
                prefilled = DynamicCache()
                logits = self.forward.last([prompt], prefilled)
                self._cache = RowCache(1, most or sys.maxsize)
                self._cache.admit(prefilled, 0, len(prompt), slice(0, 1))
            else:
                logits = self.forward.last([prompt])
        self.logits = logits.float()

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Replace the live sequences by len(parents) new ones and return their `logits`.

        Sequence i continues live sequence `parents[i]` (repeats allowed, others are let go) by `tokens[i]`.
        Raises ConfigError where the lists differ in length, for a parent or a token that does not exist, and where the
        sequences have filled the model's context.
        """
        grown = self._grown(parents, tokens)
        if not grown:
            self.sequences, self.logits = [], self.logits[:0]
            return self.logits
        length = len(grown[0])
        self._check_room(length)
        with evaluating(self._module):
            if self._cache and not (self._always or fits_rows(self.forward.config, length)):
                self._cache = None
            logits = self._step(self._cache, parents, tokens, length) if self._cache else self._again(grown)
        self.sequences, self.logits = grown, logits.float()
        self.passes += len(grown)
        return self.logits

    def _grown(self, parents: Sequence[int], tokens: Sequence[int]) -> list[tuple[int, ...]]:
        if len(parents) != len(tokens):
            raise ConfigError(f"{len(parents)} parents came with {len(tokens)} tokens")
        for parent, token in zip(parents, tokens, strict=True):
            if not 0 <= parent < len(self.sequences):
                raise ConfigError(f"there is no live sequence {parent}; there are {len(self.sequences)}")
            if not 0 <= token < self.forward.vocabulary:
                raise ConfigError(f"there is no token {token}; the vocabulary has {self.forward.vocabulary}")
        return [(*self.sequences[p], int(t)) for p, t in zip(parents, tokens, strict=True)]

    def _check_room(self, length: int) -> None:
        if self.most is not None and length > self.most:
            raise ConfigError(
                f"a sequence of {length} tokens exceeds the model's context of {self.most}",
                hint="Lower max_new_tokens or use shorter prompts.",
            )

    def _step(self, cache: RowCache, parents: Sequence[int], tokens: Sequence[int], length: int) -> Tensor:
        count = len(parents)
        cache.grow(count)
        moved = [row for row, parent in enumerate(parents) if row != parent]
        cache.move([int(parents[row]) for row in moved], moved)
        device = self.forward.device
        positions = torch.full((count,), length - 1, device=device)
        fed = torch.tensor(list(map(int, tokens)), device=device)
        return self.forward.step(fed, positions, [(slice(0, count), length)], cache)

    def _again(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        batches = self.forward.batches([len(s) for s in sequences], len(sequences))
        return torch.cat([self.forward.last([sequences[i] for i in batch]) for batch in batches])


def open_session(model: Any, prompt_ids: Sequence[int]) -> Session:
    """Return `model.session(prompt_ids)`. Raises ModelError for a model that has no sessions."""
    if not hasattr(model, "session"):
        raise ModelError(
            f"model '{model.name}' does not give next-token logits of sequences that are grown token by token",
            hint="Use a local model under engine transformers.",
        )
    return model.session(prompt_ids)
