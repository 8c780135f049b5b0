"""What this process may use of its machine, by a faked /proc and folders of control groups."""

import sys

import psutil
import pytest
import torch

from tamis import doctor, environment
from tamis.environment import Memory, memory
from tamis.generation.memory import free_bytes
from tamis.progress import byte_size

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
TOTAL, AVAILABLE = 64 * 10**6 * 1024, 40 * 10**6 * 1024
FIELDS = ("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive")
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
UNLIMITED = 9_223_372_036_854_771_712
"""What version 1 says where there is no limit."""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that writes /proc/self/cgroup and, by folder, (files, limit, used, idle cache) of groups."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    rest = "".join(f"{name}: 1000 kB\n" for name in FIELDS)
    (proc / "meminfo").write_text(f"MemTotal: {TOTAL // 1024} kB\nMemAvailable: {AVAILABLE // 1024} kB\n{rest}")
    for owner, name, value in ((psutil, "PROCFS_PATH", str(proc)), (environment, "PROC", proc)):
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(environment, "CGROUP", cgroup)

    def write(membership, groups):
        (proc / "self" / "cgroup").write_text(membership)
        for folder, ((most, current, field), limit, used, idle) in groups.items():
            (cgroup / folder).mkdir(parents=True, exist_ok=True)
            (cgroup / folder / most).write_text(f"{limit}\n")
            (cgroup / folder / current).write_text(f"{used}\n")
            (cgroup / folder / "memory.stat").write_text(f"anon 5\n{field} {idle}\nactive_file 7\n")

    return write


GB = 10**9
CASES = {
    "v2": ("0::/jobs/a\n", {"jobs/a": (V2, 8 * GB, 3 * GB, GB)}, 8 * GB, 6 * GB),
    "v2, the group around it is narrower": (
        "0::/jobs/a\n",
        {"jobs/a": (V2, 8 * GB, GB, 0), "jobs": (V2, 4 * GB, 3 * GB, 0)},
        4 * GB,
        GB,
    ),
    "v2, no limit": ("0::/a\n", {"a": (V2, "max", 3 * GB, 0)}, TOTAL, AVAILABLE),
    "v2, a container that sees its own group as the root": (
        "0::/docker/1f\n",
        {".": (V2, 2 * GB, GB, 0)},
        2 * GB,
        GB,
    ),
    "v2, a path out of what it sees": ("0::/../b\n", {"b": (V2, GB, 0, 0), ".": (V2, 2 * GB, GB, 0)}, 2 * GB, GB),
    "v1": (
        "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
        {"memory/x": (V1, 8 * GB, 3 * GB, 2 * GB), "memory": (V1, UNLIMITED, 50 * GB, 0), "x": (V2, GB, GB, 0)},
        8 * GB,
        7 * GB,
    ),
    "v1, no limit": ("4:memory:/\n", {"memory": (V1, UNLIMITED, 60 * GB, 0)}, TOTAL, AVAILABLE),
    "more than allowed is held": ("0::/a\n", {"a": (V2, GB, 2 * GB, 0)}, GB, 0),
    "wider than the machine": ("0::/a\n", {"a": (V2, 10 * TOTAL, 0, 0)}, TOTAL, AVAILABLE),
    "another's group": ("0::/a\n", {"b": (V2, GB, GB, 0)}, TOTAL, AVAILABLE),
    "no control groups": ("", {}, TOTAL, AVAILABLE),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_that_of_the_machine_within_its_control_groups(fake, case):
    membership, groups, limit, free = CASES[case]
    fake(membership, groups)
    assert memory() == Memory(TOTAL, limit, free)


def test_a_limit_holds_where_use_is_not_said(fake, tmp_path):
    fake("0::/a\n", {"a": (V2, 2 * GB, GB, 0)})
    (tmp_path / "cgroup" / "a" / "memory.current").unlink()
    assert memory() == Memory(TOTAL, 2 * GB, 2 * GB)


def test_without_proc_the_machine_s_memory_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PROC", tmp_path)
    found = memory()
    assert found.total == found.limit >= found.free > 0


def test_rows_and_doctor_go_by_it(fake):
    fake("0::/a\n", {"a": (V2, 4 * GB, 3 * GB, 0)})
    assert free_bytes(torch.device("cpu")) == GB
    (found,) = doctor._memory()
    assert found.said == "1.0 GB free of 65.5 GB, of which this process may use 4.0 GB"


def test_bytes_are_written_in_one_way():
    counts = (0, 1499, 999_999, 10**6, 540_600_000, 10**9, 65_536_000_000)
    assert [byte_size(count) for count in counts] == ["0 kB", "1 kB", "1000 kB", "1 MB", "541 MB", "1.0 GB", "65.5 GB"]


def test_versions_are_empty_for_what_is_not_installed():
    assert environment.version("tamis") == environment.versions()["tamis"]
    assert environment.version("no-package-of-this-name") == ""
