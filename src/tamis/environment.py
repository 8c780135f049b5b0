"""What runs are done with: time, versions, and the machine as far as this process may use it."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tamis.errors import ConfigError

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of control groups v2 and v1: the files of limit and use, and the field of memory.stat that counts idle file cache."""


def now() -> str:
    """Return the time as ISO text, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def version(package: str) -> str:
    """Return the version of an installed package; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def versions() -> dict[str, str]:
    """Return the versions of what decides results. Raises ConfigError where one of them is missing."""
    found = {"python": platform.python_version()}
    for name in ("tamis", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"):
        found[name] = version(name)
        if not found[name]:
            raise ConfigError(f"the package '{name}' is missing", hint=f"pip install {name}")
    return found


def others(made: Mapping[str, Sequence[str]]) -> str:
    """Return in words with which versions something was made that are not installed now; empty where there is none."""
    now = versions()
    return ", ".join(
        f"{name} {version}" for name, found in made.items() for version in found if version != now.get(name)
    )


@cache
def machine() -> dict[str, Any]:
    """Return what the run was done on: platform, cores, memory, accelerator. No host or user name."""
    import torch

    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


class Memory(NamedTuple):
    """Memory in bytes: the machine's, the most of it that this process may use, and what is free for it now."""

    total: int
    limit: int
    free: int


def memory() -> Memory:
    """Return the memory of the machine within the limits of this process's control groups.

    Idle file cache that a group holds counts as free: the system drops it before an allocation fails. Needs psutil.
    """
    import psutil  # type: ignore[import-untyped]

    whole = psutil.virtual_memory()
    limit, free = whole.total, whole.available
    for group in control_groups("memory"):
        for most, used, idle in MEMORY_FILES:
            with suppress(OSError, ValueError):
                allowed = int((group / most).read_text())
                limit = min(limit, allowed)
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                held = int((group / used).read_text()) - int(stat.get(idle, 0))
                free = min(free, allowed - held)
    return Memory(whole.total, limit, max(0, min(free, limit)))


def control_groups(controller: str) -> Iterator[Path]:
    """Yield where the control groups (v1 and v2) of this process are, and those around them, which limit it too.

    A container may see its own group as the root: then its path leads nowhere, and the root has the limits.
    """
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                root = CGROUP / (controller if controllers else "")
                inner = root / path.strip("/")
                yield from (group for group in (inner, *inner.parents) if group.is_relative_to(root))
