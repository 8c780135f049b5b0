"""The C library's allocator while training on a CPU.

glibc hands freed memory back to the system and gets it anew, page by page, at every step: with activations of gigabytes that
takes as long as the arithmetic. While training, freed memory is kept for the next step.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's mallopt parameters (malloc.h)."""
NEVER, LARGEST = -1, 2**30
GROWN_MMAP, GROWN_TRIM = 2**25, 2**26
"""Where glibc's own thresholds end up in a process that frees large blocks. Once set, they no longer grow by themselves."""
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory in the process, and hand it back at the end. Does nothing without glibc, or where the user set it."""
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")) or any(k in os.environ for k in SET_BY_USER):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LARGEST)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, GROWN_TRIM)
        libc.mallopt(MMAP_THRESHOLD, GROWN_MMAP)
        libc.malloc_trim(0)
