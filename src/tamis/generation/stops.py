"""Stop strings: where in a row's tokens its text first holds one of them."""

from collections.abc import Sequence
from typing import Any

_SLACK = 8


class StopStrings:
    """A `Stop` for the sampling engine, over a `transformers` tokenizer and non-empty `stops`."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.span = max(len(stop.encode()) for stop in self.stops) + _SLACK

    def __call__(self, tokens: Sequence[int], fresh: int) -> int | None:
        """Return the fewest leading tokens whose text holds a stop string; None where it holds none.

        Only the last `fresh` tokens can have completed one, so only the end of the text is decoded to look for it.
        """
        if not self._met(tokens[-(self.span + fresh) :]):
            return None
        shortest = max(0, len(tokens) - fresh)
        return next((n for n in range(shortest + 1, len(tokens) + 1) if self._met(tokens[:n])), None)

    def cut(self, text: str) -> str:
        """Return `text` up to its first stop string."""
        return text[: min((at for at in map(text.find, self.stops) if at >= 0), default=len(text))]

    def _met(self, tokens: Sequence[int]) -> bool:
        text = decode(self.tokenizer, tokens)
        return any(stop in text for stop in self.stops)


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of `tokens` without special tokens, spaces as they are."""
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
