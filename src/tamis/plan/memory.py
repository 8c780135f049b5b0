"""How much memory this process holds while something runs."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

EVERY = 0.02
"""Seconds between two looks."""


class Peak:
    """The most memory the process has held since the last `take`, in bytes, watched from a thread of its own."""

    def __init__(self) -> None:
        import psutil  # type: ignore[import-untyped]

        self._process = psutil.Process()
        self._most = self._held = 0
        self._ended = threading.Event()

    def __enter__(self) -> "Peak":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self._most = max(self._most, self._process.memory_info().rss)

    def hold(self, more: int) -> None:
        """Add bytes that the run will hold from here on and the rehearsal does not."""
        self._held += max(0, more)

    def take(self) -> int:
        """Return the most since the last call."""
        most, self._most = max(self._most, self._process.memory_info().rss), 0
        return most + self._held


def device_bytes() -> int:
    """Return the most memory that torch has reserved on an accelerator of this process; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())


def held_bytes(records: Sequence[Any]) -> float:
    """Return the mean number of bytes that a record of a frozen slotted class holds, its tuples included."""
    return sum(map(_bytes, records)) / len(records) if records else 0.0


def _bytes(value: Any) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, tuple):
        return size + sum(_bytes(v) for v in value)
    return size + sum(_bytes(getattr(value, name)) for name in getattr(value, "__slots__", ()))
