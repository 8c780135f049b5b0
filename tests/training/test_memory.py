"""The allocator while training: freed memory is kept, and handed back."""

import platform
import resource

import pytest
import torch

from tamis.training import memory
from tamis.training.memory import SET_BY_USER, kept

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
ELEMENTS = 2**24
"""64 MB in float32, or 16,384 pages."""


def faults(repeats):
    """Pages got from the system while a tensor is made and freed again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.ones(ELEMENTS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in SET_BY_USER:
        monkeypatch.delenv(name, raising=False)


@glibc
def test_memory_is_kept_for_the_next_step_and_handed_back():
    outside = resident()
    with kept():
        faults(1)
        assert faults(10) < 1_000
    assert resident() < outside + 4 * ELEMENTS / 2
    assert faults(2) > 1_000


@glibc
@pytest.mark.parametrize("name", SET_BY_USER)
def test_what_the_user_set_stays(name, monkeypatch):
    class Library:
        def mallopt(self, *given):
            raise AssertionError("the allocator was set")

        malloc_trim = mallopt

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library())
    monkeypatch.setenv(name, "1")
    with kept():
        pass
    monkeypatch.delenv(name)
    with pytest.raises(AssertionError), kept():
        pass
