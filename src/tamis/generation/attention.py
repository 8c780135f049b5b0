"""Attention of one new token per row, a span of rows at a time, so that short rows do not read as far as the longest.

Decoding is bound by reading keys and values. `RowCache` keeps rows of like lengths side by side; here each such span is
attended to over its own width, by the same kernel that `transformers` would have called over the widest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Span = tuple[slice, int]
"""Rows that are attended together, and the number of columns that the longest of them sees."""

NAME = "tamis_spans"
_spans: ContextVar[Sequence[Span]] = ContextVar("spans")


@contextmanager
def over(spans: Sequence[Span], config: Any) -> Iterator[None]:
    """Let a model with this (text) config attend span by span, and then again as before."""
    before = config._attn_implementation
    token = _spans.set(spans)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _spans.reset(token)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: query (n, heads, 1, d), keys and values (n, kv_heads, columns, d)."""
    bias = options.pop("position_bias", None)
    parts = []
    for rows, width in _spans.get():
        if bias is not None:
            options["position_bias"] = (bias if len(bias) == 1 else bias[rows])[..., :width]
        seen = attention_mask[rows, ..., :width]
        parts.append(
            sdpa_attention_forward(module, query[rows], key[rows, :, :width], value[rows, :, :width], seen, **options)[
                0
            ]
        )
    return torch.cat(parts), None


AttentionInterface.register(NAME, attend)
