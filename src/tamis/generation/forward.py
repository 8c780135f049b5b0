"""Calling a `transformers` causal language model for its next-token logits, whatever its architecture."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tamis.errors import ModelError
from tamis.generation.attention import Span, over
from tamis.generation.cache import RowCache

_LOGITS = 2**24
_PREFILL_TOKENS = 4096


class Forward:
    """A causal language model in evaluation mode, seen as functions from token ids to logits.

    PEFT modules are unwrapped (their adapters stay active). Raises ModelError for encoder-decoder models.
    """

    def __init__(self, module: Any) -> None:
        self.module = module.get_base_model() if hasattr(module, "get_base_model") else module
        self.config = self.module.config
        if getattr(self.config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(self.module).__name__} is an encoder-decoder model",
                hint="tamis samples from causal (decoder-only) language models.",
            )
        accepted = inspect.signature(self.module.forward).parameters
        self.accepts = frozenset(accepted)
        self.cache_name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        self.vocabulary = self.config.get_text_config(decoder=True).vocab_size

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where token ids go."""
        return self.module.get_input_embeddings().weight.device

    def __call__(self, ids: Tensor, cache: Cache | None = None, past: int = 0, keep: Tensor | None = None) -> Tensor:
        """Return logits (B, L, V), or (B, k, V) at positions `keep` (k,) of `ids` (B, L) int64.

        Rows have no left padding; padding on the right needs no mask, because attention is causal. `cache` is one of
        transformers' own, filled with `past` tokens.
        """
        extra: dict[str, Any] = {}
        if "position_ids" in self.accepts:
            extra["position_ids"] = torch.arange(past, past + ids.shape[1], device=ids.device).expand_as(ids)
        if keep is not None and "logits_to_keep" in self.accepts:
            extra["logits_to_keep"] = keep
        logits = self._call(ids, cache, extra)
        return logits if keep is None or logits.shape[1] == len(keep) else logits[:, keep]

    def last(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> Tensor:
        """Return (len(sequences), V) logits of the token after each sequence; `cache` keeps their keys and values."""
        ids = padded(sequences, self.device)
        lengths = torch.tensor([len(s) for s in sequences], device=ids.device)
        positions, which = torch.unique(lengths - 1, return_inverse=True)
        logits = self(ids, cache, keep=positions)
        return logits[torch.arange(len(ids), device=ids.device), which]

    def step(self, tokens: Tensor, positions: Tensor, spans: Sequence[Span], cache: RowCache) -> Tensor:
        """Return (n, V) logits after feeding one token (n,) to each of the first n rows of `cache`, at `positions` (n,)."""
        width = max(seen for _, seen in spans)
        cache.aim(positions, width)
        seen = torch.arange(width, device=tokens.device) <= positions[:, None]
        extra: dict[str, Any] = {"attention_mask": self._mask(seen)}
        if "position_ids" in self.accepts:
            extra["position_ids"] = positions[:, None]
        with self._attending(spans):
            return self._call(tokens[:, None], cache, extra)[:, -1]

    @property
    def attention(self) -> str:
        """The attention in force, where the model lets it be chosen and given a ready-made mask; else nothing."""
        return self.config._attn_implementation if getattr(self.module, "_supports_attention_backend", False) else ""

    def _attending(self, spans: Sequence[Span]) -> AbstractContextManager[None]:
        if self.attention != "sdpa" or len(spans) == 1:
            return nullcontext()
        return over(spans, self.config.get_text_config(decoder=True))

    def _mask(self, seen: Tensor) -> Tensor:
        """The mask of columns seen, ready made where the attention in force takes it so, else as 1s and 0s."""
        kind = self.attention
        if kind not in ("sdpa", "eager"):
            return seen.long()
        seen = seen[:, None, None, :]
        if kind == "sdpa":
            return seen
        dtype = self.module.get_input_embeddings().weight.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

    def _call(self, ids: Tensor, cache: Cache | None, extra: dict[str, Any]) -> Tensor:
        if cache is not None:
            extra[self.cache_name] = cache
        with torch.inference_mode():
            return self.module(input_ids=ids, use_cache=cache is not None, return_dict=True, **extra).logits

    def batches(self, lengths: Sequence[int], most: int) -> Iterator[list[int]]:
        """Cut indices, in the order given, into batches of at most `most` sequences that fit one call of `last`."""
        batch: list[int] = []
        for index in range(len(lengths)):
            grown = [*batch, index]
            sizes = [lengths[i] for i in grown]
            logits = len(grown) * len(set(sizes)) * self.vocabulary
            if batch and (len(batch) >= most or len(grown) * max(sizes) > _PREFILL_TOKENS or logits > _LOGITS):
                yield batch
                grown = [index]
            batch = grown
        if batch:
            yield batch


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return (B, L) int64 ids, short rows filled with 0 on the right (which causal attention never sees)."""
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence, dtype=torch.int64)
    return ids.to(device)
