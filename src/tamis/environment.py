"""What a run was done with: time, versions, machine."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tamis.errors import ConfigError


def now() -> str:
    """Return the time as ISO text, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@cache
def versions() -> dict[str, str]:
    """Return the versions of what decides results."""
    found = {"python": platform.python_version()}
    for name in ("tamis", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"the package '{name}' is missing", hint=f"pip install {name}") from None
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

    memory = Path("/proc/meminfo")
    total = int(memory.read_text().split()[1]) / 2**20 if memory.exists() else None
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gib": round(total, 1) if total else None,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }
