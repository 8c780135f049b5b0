"""Which prompts are the same, and which are held out: by content hash, never by position.

A prompt's key is a 16-byte hash of its normalised text. Held out are the prompts with the smallest keys, so equal prompts
never land on both sides, the count is exact, and rows added to a file move few others.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b

from tamis.errors import ConfigError
from tamis.numerals import unify

_LIGHT = re.compile(r'[.,;:?"](?!\d)')


def normalise(text: str) -> str:
    """Return the text as prompts are compared: NFKC, casefolded, spaces collapsed, `.,;:?"` dropped unless before a digit.

    Signs that carry meaning in a formula (`+ - * / ! ' ( )`) stay.
    """
    return " ".join(_LIGHT.sub(" ", unify(text)).split()).casefold()


def key(text: str) -> bytes:
    """Return the 16-byte key of the normalised text."""
    return exact_key(normalise(text))


def exact_key(text: str) -> bytes:
    """Return the 16-byte key of the text as it is."""
    return blake2b(text.encode(), digest_size=16).digest()


def heldout_count(n: int, heldout: float | int) -> int:
    """Return how many of `n` prompts are held out: `round(share * n)` for a float, the count (at most n) for an int."""
    return min(n, heldout) if isinstance(heldout, int) else round(heldout * n)


def heldout_keys(rows: Mapping[bytes, int], count: int) -> set[bytes]:
    """Return the smallest keys that together have at most `count` rows (`rows[key]` rows each)."""
    chosen, left = set(), count
    for k in sorted(rows):
        if left <= 0:
            break
        if rows[k] <= left:
            chosen.add(k)
            left -= rows[k]
    return chosen


def check_heldout(heldout: float | int, where: str) -> None:
    """Raise ConfigError unless `heldout` is a share in [0, 1) or a count of at least 0."""
    if heldout < 0 or (isinstance(heldout, float) and heldout >= 1):
        raise ConfigError(
            f"heldout is {heldout!r}", where=where, hint="Give a share from 0 to below 1, or a whole number of prompts."
        )
