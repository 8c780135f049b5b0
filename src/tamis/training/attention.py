"""Attention of packed rows example by example: no padding, no mask, and no product between tokens of different examples.

A name of its own in `transformers`' tables of attention functions and masks, so that every architecture that takes its
attention from there can use it; what it does not cover goes to "sdpa".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_by_example"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention (1, L, H, d) within the examples of one row, for query (1, H, L, d), key and value (1, G, L, d).

    `cu_seq_lens_q` (n + 1,) int32 are the boundaries of its n examples; neighbours of one length go through as one batch.
    Without boundaries, or where the layer's mask is not that (a sliding window), this is "sdpa" with the given mask.
    """
    if cu_seq_lens_q is None or not _causal_within(cu_seq_lens_q.diff(), attention_mask):
        more |= {"dropout": dropout, "scaling": scaling}
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **more)
    grouped = query.shape[1] != key.shape[1]
    lengths, counts = (x.tolist() for x in torch.unique_consecutive(cu_seq_lens_q.diff(), return_counts=True))
    tokens = [length * count for length, count in zip(lengths, counts, strict=True)]
    outputs = []
    for length, *parts in zip(lengths, *(x.split(tokens, dim=2) for x in (query, key, value)), strict=True):
        q, k, v = (x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in parts)
        out = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _causal_within(lengths: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether `mask` (1, 1, L, L), made from position ids, lets every token see all before it in its example: by its count."""
    return mask is None or (mask.dtype == torch.bool and int(mask.sum()) == int((lengths * (lengths + 1)).sum()) // 2)


@contextmanager
def by_example(module: Any, device: torch.device) -> Iterator[bool]:
    """Let `module` attend example by example where boundaries are given; yield whether it can (it uses "sdpa" on a CPU).

    On other devices one launch per example costs more than a mask.
    """
    config = getattr(module, "config", None)
    if device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield False
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    module.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        module.set_attn_implementation("sdpa")
