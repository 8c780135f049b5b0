"""Log-probabilities of given tokens, and next-token logits, with memory bounded by a budget of logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tamis.generation.cache import fits_rows
from tamis.generation.engine import evaluating
from tamis.generation.forward import Forward, padded

_SLICE = 2**22


def score(module: Any, sequences: Sequence[Sequence[int]], *, logits_budget: int = 2**26) -> list[np.ndarray]:
    """Return for each sequence a float32 array of its length: [i] = log p(token i | tokens before i), [0] = 0.

    Natural logarithms under the model itself (temperature 1). Sequences are batched by length, padded on the right; at most
    `logits_budget` logits (default 2**26, 256 MB in float32) exist at a time, in the model's dtype, and the normaliser is
    taken in float32 over slices of them. A sequence that alone exceeds the budget is run in pieces through a cache
    (in one piece where the model keeps more than plain keys and values).
    """
    forward = Forward(module)
    order = sorted((i for i in range(len(sequences)) if len(sequences[i])), key=lambda i: -len(sequences[i]))
    scores: list[np.ndarray] = [np.zeros(len(s), dtype=np.float32) for s in sequences]
    with evaluating(module):
        while order:
            longest = len(sequences[order[0]])
            rows = max(1, logits_budget // (forward.vocabulary * longest))
            batch, order = order[:rows], order[rows:]
            piece = max(1, logits_budget // (forward.vocabulary * len(batch)))
            values = _score_batch(forward, padded([sequences[i] for i in batch], forward.device), piece).cpu().numpy()
            for index, row in zip(batch, values, strict=True):
                scores[index][1:] = row[: len(sequences[index]) - 1]
    return scores


def _score_batch(forward: Forward, ids: Tensor, piece: int) -> Tensor:
    """Return (B, L - 1) float32 log-probabilities of ids[:, 1:], `piece` positions at a time."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    length = inputs.shape[1]
    if not fits_rows(forward.config, length):
        piece = max(1, length)
    cache = DynamicCache() if piece < length else None
    pieces = [
        _logprobs_of(forward(inputs[:, at : at + piece], cache, at), targets[:, at : at + piece])
        for at in range(0, length, piece)
    ]
    return torch.cat(pieces, dim=1) if pieces else targets.float()


def _logprobs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B, L) float32 log-probabilities of `targets` (B, L) int64 under `logits` (B, L, V), sliced over positions."""
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, _SLICE // flat.shape[-1])
    parts = []
    for part, tokens in zip(flat.split(rows), wanted.split(rows), strict=True):
        wide = part if part.dtype == torch.float64 else part.float()
        parts.append((wide.gather(-1, tokens[:, None])[:, 0] - wide.logsumexp(-1)).float())
    return torch.cat(parts).view_as(targets)


def next_logits(module: Any, sequences: Sequence[Sequence[int]], *, batch_rows: int = 64) -> np.ndarray:
    """Return (len(sequences), V) float32 logits of the token after each (not empty) sequence."""
    forward = Forward(module)
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    logits = np.empty((len(sequences), forward.vocabulary), dtype=np.float32)
    with evaluating(module):
        for batch in forward.batches([len(sequences[i]) for i in order], batch_rows):
            numbers = [order[b] for b in batch]
            logits[numbers] = forward.last([sequences[n] for n in numbers]).float().cpu().numpy()
    return logits
