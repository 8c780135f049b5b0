"""Content hashes and the randomness derived from them.

Every random number in tamis comes from a seed and the ids of the records it is for, never from order, worker or time.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def canonical(value: Any) -> str:
    """Return the canonical JSON of `value` (sorted keys, no spaces). Raises TypeError for what JSON cannot hold."""
    return _CANONICAL.encode(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value) if isinstance(value, tuple) else sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def digest(*values: Any) -> str:
    """Return the 128-bit content hash of `values` as 32 hexadecimal characters, the same on every machine."""
    return hashlib.blake2b(canonical(values).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derive_seed(*values: Any) -> int:
    """Return a 63-bit seed derived from `values` (a run's seed, a record's id, an index...)."""
    return int(digest(*values)[:16], 16) >> 1


def rng(*values: Any) -> np.random.Generator:
    """Return a numpy generator seeded by `derive_seed(*values)`."""
    return np.random.default_rng(derive_seed(*values))
