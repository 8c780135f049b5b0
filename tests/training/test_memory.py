"""The allocator while training: freed memory is kept, and handed back."""

import json
import platform
import subprocess
import sys

import pytest

from tamis.training import memory
from tamis.training.memory import SET_BY_USER, kept

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
PAGES = 16_384
"""Of the 64 MB of the tensor below."""
SCRIPT = """
import json, resource, torch
from tamis.training.memory import kept

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

faults(2)
before = resident()
with kept():
    faults(5)
    inside = faults(10)
print(json.dumps({"inside": inside, "grown": resident() - before, "after": faults(2)}))
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in SET_BY_USER:
        monkeypatch.delenv(name, raising=False)


@glibc
def test_memory_is_kept_for_the_next_step_and_handed_back():
    """In a process of its own: in the tests' own heap, other tests' free blocks decide which pages are got.

    The first few tensors lay out the heap (two places may take turns); from then on nothing more is got."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    pages = json.loads(ran.stdout)
    assert pages["inside"] < 1_000
    assert pages["grown"] < PAGES / 2
    assert pages["after"] > 1_000


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
