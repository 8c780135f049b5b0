"""A preallocated key/value cache of independent rows, in the form `transformers` models write to.

Row r of every layer holds the keys and values of one sequence from column 0 on, so a column is a position. Each forward
pass writes one column per row (each row its own) and attends over the columns up to the longest row. In memory a column
is all heads side by side, so that a write is one contiguous piece per row (five times faster than head by head on a CPU).
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_GROW = 64


class RowCache(Cache):
    """Keys and values (rows, columns, heads, head_dim) per layer; grows by columns as needed, up to `columns`.

    Before a forward pass over the first n rows, `aim` tells at which columns (n,) they write and how many columns are seen.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.layers: list[Any]
        self.rows, self.most = rows, columns
        self.slots = torch.empty(0, dtype=torch.int64)
        self.width = 0

    def aim(self, columns: Tensor, width: int) -> None:
        """Set the columns (n,) int64 that the next pass over the first n rows writes, and the number of columns it sees."""
        self.width = width
        for layer in self.layers:
            layer.reserve(width)
        self.slots = torch.arange(len(columns), device=columns.device) * self.layers[0].keys.shape[1] + columns

    def admit(self, prefilled: Cache, source: int, length: int, rows: slice) -> None:
        """Copy the first `length` columns of row `source` of `prefilled` into each of `rows`."""
        if not self.layers:
            self.layers = [RowLayer(self, layer.keys, layer.values) for layer in prefilled.layers]
        self.width = max(self.width, length)
        for layer, filled in zip(self.layers, prefilled.layers, strict=True):
            layer.reserve(length)
            layer.keys[rows, :length] = filled.keys[source, :, :length].transpose(0, 1)
            layer.values[rows, :length] = filled.values[source, :, :length].transpose(0, 1)

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` rows, doubling."""
        if rows > self.rows:
            extra = max(rows, 2 * self.rows) - self.rows
            self.rows += extra
            for layer in self.layers:
                layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, 0, 0, 0, 0, 0, extra))
                layer.values = torch.nn.functional.pad(layer.values, (0, 0, 0, 0, 0, 0, 0, extra))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows `sources` over rows `targets`."""
        if sources:
            for layer in self.layers:
                layer.keys[targets, : self.width] = layer.keys[sources, : self.width]
                layer.values[targets, : self.width] = layer.values[sources, : self.width]


class RowLayer(CacheLayerMixin):
    """One layer of a `RowCache`; shapes, dtype and device are those of the `keys` and `values` it is made after."""

    is_sliding = False

    def __init__(self, cache: RowCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.cache = cache
        self.lazy_initialization(keys, values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make buffers of no columns that `reserve` lets grow."""
        self.keys = _empty_rows(key_states, self.cache.rows)
        self.values = _empty_rows(value_states, self.cache.rows)
        self.is_initialized = True

    def reserve(self, columns: int) -> None:
        """Make room for at least `columns`, doubling so that growth costs a constant per column."""
        have = self.keys.shape[1]
        if columns > have:
            extra = min(max(columns, 2 * have, _GROW), self.cache.most) - have
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, 0, 0, extra))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, 0, 0, extra))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (n, heads, 1, head_dim) states at each row's column; return (n, heads, width, head_dim) views."""
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, held: Tensor, states: Tensor) -> Tensor:
        rows = len(states)
        held.flatten(0, 1).index_copy_(0, self.cache.slots, states[:, :, 0])
        return held[:rows, : self.cache.width].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns in sight, and the offset of the first."""
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        """Columns in sight before the pass that `aim` announced."""
        return self.cache.width - 1

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def fits_rows(config: Any, length: int) -> bool:
    """Whether sequences of `length` tokens of a model with this config can live in a `RowCache`.

    True where every layer keeps plain keys and values, or a sliding window that `length` does not leave.
    """
    if getattr(config.get_text_config(decoder=True), "num_kv_shared_layers", 0):
        return False
    layers = DynamicCache(config=config).layers
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and length <= layer.sliding_window)
        for layer in layers
    )


def _empty_rows(like: Tensor, rows: int) -> Tensor:
    return like.new_zeros((rows, 0, like.shape[1], like.shape[3]))
