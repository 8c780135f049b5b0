"""Next-token logits along a tree of continuations of one prompt, whose shared beginnings are run once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tamis.generation.cache import RowCache, fits_rows
from tamis.generation.engine import evaluating
from tamis.generation.session import Session

Prefix = tuple[int, ...]


@dataclass
class _Kept:
    """Keys and values, per layer (columns, heads, head_dim), of a continuation from token `start` on; `parent` has the rest."""

    tokens: Prefix
    start: int
    parent: "_Kept | None"
    keys: list[Tensor]
    values: list[Tensor]


@dataclass
class _Row:
    """A row of the cache: the continuation it holds, of which `parent` holds the first `start` tokens as well."""

    tokens: Prefix = ()
    start: int = 0
    parent: _Kept | None = None


class PrefixTree:
    """Gives the logits after any continuations of a session's prompt; the session must be fresh, and is used up.

    Row i of a call is cheap (one token is run) where it continues row i of the call before by one token. Else the keys and
    values of its beginning come back from what earlier rows left, each of their tokens kept once, up to `budget` bytes; what
    is missing beyond that is run again (`refilled` counts these rows), to the same logits. `passes` counts the rows run,
    the prompt's included. A model that keeps more than plain keys and values is run over whole sequences.
    """

    def __init__(self, session: Session, budget: int = 2**30) -> None:
        self.prompt, self.forward, self.budget = session.sequences[0], session.forward, budget
        self.passes, self.refilled = session.passes, 0
        self._module, self._root = session._module, session.logits
        self._cache: RowCache | None = session._cache
        self._always = session._always
        self._rows = [_Row()]
        self._kept: list[_Kept] = []
        self._prompt_kept = self._copy((), -len(self.prompt), 0, None) if self._cache else None

    def logits(self, prefixes: Sequence[Prefix]) -> Tensor:
        """Return (len(prefixes), V) float32 logits of the token after the prompt and each prefix (its generated tokens)."""
        if list(prefixes) == [()]:
            return self._root
        self.passes += len(prefixes)
        longest = len(self.prompt) + max(map(len, prefixes))
        with evaluating(self._module):
            if self._cache and not (self._always or fits_rows(self.forward.config, longest)):
                self._cache, self._kept, self._prompt_kept = None, [], None
            if self._cache is None or not all(prefixes):
                return self._whole([(*self.prompt, *prefix) for prefix in prefixes]).float()
            self._aim(self._cache, prefixes)
            return self._step(self._cache, prefixes).float()

    def _whole(self, sequences: Sequence[Prefix]) -> Tensor:
        batches = self.forward.batches([len(s) for s in sequences], len(sequences))
        return torch.cat([self.forward.last([sequences[i] for i in batch]) for batch in batches])

    def _step(self, cache: RowCache, prefixes: Sequence[Prefix]) -> Tensor:
        device, ends = self.forward.device, [len(self.prompt) + len(prefix) for prefix in prefixes]
        fed = torch.tensor([prefix[-1] for prefix in prefixes], device=device)
        spans = [(slice(0, len(prefixes)), max(ends))]
        logits = self.forward.step(fed, torch.tensor(ends, device=device) - 1, spans, cache)
        for row, prefix in zip(self._rows, prefixes, strict=False):
            row.tokens = prefix
        return logits

    def _aim(self, cache: RowCache, prefixes: Sequence[Prefix]) -> None:
        """Make row i hold all but the last token of prefix i."""
        strays = [i for i, prefix in enumerate(prefixes) if i >= len(self._rows) or self._rows[i].tokens != prefix[:-1]]
        if not strays:
            return
        for number in range(len(self._rows)):
            self._keep(number)
        while len(self._rows) < len(prefixes):
            self._rows.append(_Row())
        cache.grow(len(self._rows))
        for i in strays:
            self._restore(cache, i, prefixes[i][:-1])

    def _keep(self, number: int) -> None:
        """Copy what row `number` alone holds, where the budget has room for it."""
        row = self._rows[number]
        if len(row.tokens) > row.start and (kept := self._copy(row.tokens, row.start, number, row.parent)):
            self._kept.append(kept)
            row.parent, row.start = kept, len(row.tokens)

    def _copy(self, tokens: Prefix, start: int, number: int, parent: _Kept | None) -> _Kept | None:
        assert self._cache is not None
        layers = self._cache.layers
        columns = slice(len(self.prompt) + start, len(self.prompt) + len(tokens))
        size = sum(2 * layer.keys[number, columns].nbytes for layer in layers)
        if size > self.budget:
            return None
        self.budget -= size
        keys, values = ([getattr(x, name)[number, columns].clone() for x in layers] for name in ("keys", "values"))
        return _Kept(tokens, start, parent, keys, values)

    def _restore(self, cache: RowCache, number: int, tokens: Prefix) -> None:
        """Fill row `number` with the keys and values of the prompt and `tokens`."""
        row = self._rows[number] = _Row(tokens)
        best = max(self._kept, key=lambda kept: _shared(kept.tokens, tokens), default=None)
        shared = _shared(best.tokens, tokens) if best else 0
        while best and best.start >= shared:
            best = best.parent
        row.parent, row.start = best, shared
        if shared < len(tokens) or self._prompt_kept is None:
            self._refill(cache, number, tokens)
            return
        piece, end = best, shared
        while piece:
            self._paste(cache, number, piece, end)
            end, piece = piece.start, piece.parent
        self._paste(cache, number, self._prompt_kept, 0)

    def _paste(self, cache: RowCache, number: int, piece: _Kept, end: int) -> None:
        """Copy the tokens of `piece` before token `end` into row `number`."""
        first, count = len(self.prompt) + piece.start, end - piece.start
        for layer, keys, values in zip(cache.layers, piece.keys, piece.values, strict=True):
            layer.reserve(first + count)
            layer.keys[number, first : first + count] = keys[:count]
            layer.values[number, first : first + count] = values[:count]

    def _refill(self, cache: RowCache, number: int, tokens: Prefix) -> None:
        self.refilled += 1
        sequence, prefilled = (*self.prompt, *tokens), DynamicCache()
        self.forward.last([sequence], prefilled)
        cache.admit(prefilled, 0, len(sequence), slice(number, number + 1))


def _shared(one: Prefix, other: Prefix) -> int:
    """Return how many first tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
