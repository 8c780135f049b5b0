"""What benchmarks share: peers in environments of their own, workers that take turns, medians, one JSON line at the end.

Standard library only, so that a peer's environment can import it. Both sides of a comparison are workers (processes), so
that each has its own peak memory and neither warms the other's caches.
"""

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
MARK = "@json "


def environment(name: str, packages: Sequence[str], *steps: Sequence[str]) -> Path:
    """Return the Python of peer environment `name`, made at its first use.

    `packages` are installed by pip one after the other (pin them; torch first, so that no resolver picks another build);
    `steps` are further pip argument lists, e.g. ("install", "--no-deps", "x==1").
    """
    folder = PEERS / name
    python = folder / "bin" / "python"
    wanted = json.dumps([list(packages), [list(s) for s in steps]])
    ready = folder / "ready.json"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    print(f"making the environment of {name}: {', '.join(packages)}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    for arguments in [["install", p] for p in packages] + [list(s) for s in steps]:
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)
    ready.write_text(wanted)
    return python


class Worker:
    """A process of one side of a comparison; it answers one job at a time, and waits idle between them."""

    def __init__(self, python: Path | str, script: Path, *arguments: str, threads: int | None = None) -> None:
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environ = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if threads:
            environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [str(python), str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def ask(self, **job: Any) -> dict[str, Any]:
        """Send a job and return its answer, with `seconds` (wall, inside the worker) and `peak_bytes` so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"the worker ended with code {self.process.wait()}: {self.process.args}")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=30)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def serve(work: Callable[..., Mapping[str, Any]]) -> None:
    """Answer jobs from standard input with `work(**job)` until it ends: the worker's side of `Worker`."""
    for line in sys.stdin:
        started = time.perf_counter()
        answer = dict(work(**json.loads(line)))
        seconds = time.perf_counter() - started
        print(MARK + json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), **answer}), flush=True)


def peak_bytes() -> int:
    """Return the most memory (resident set) that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_turn(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Call the sides one after the other, `repeats` times; return each side's figures."""
    figures: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, found in zip(sides, figures, strict=True):
            found.append(side())
    return figures


def comparison(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    target: float,
    *,
    unit: str,
    against: str,
    at_most: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return medians, their ratio ours / peer, and whether it reaches `target` (from below where `at_most`)."""
    a, b = statistics.median(ours), statistics.median(peer)
    ratio = a / b
    holds = ratio <= target if at_most else ratio >= target
    figures = {"ours": a, "peer": b, "ratio": ratio, "target": target, "holds": holds, "at_most": at_most}
    spread = {"ours_all": list(ours), "peer_all": list(peer)}
    return {"name": name, "unit": unit, "against": against, **figures, **spread, **more}


def conclude(first: Mapping[str, Any], *others: Mapping[str, Any], **more: Any) -> None:
    """Print each comparison in words, and as the last line one JSON object: the first, the `others` under "also"."""
    for row in (first, *others):
        word = "at most" if row["at_most"] else "at least"
        verdict = "holds" if row["holds"] else "DOES NOT HOLD"
        print(
            f"{row['name']}: tamis {row['ours']:.4g} {row['unit']}, {row['against']} {row['peer']:.4g} {row['unit']}: "
            f"ratio {row['ratio']:.3f} (target {word} {row['target']:g}): {verdict}"
        )
    print(json.dumps({**first, "also": list(others), "machine": machine(), **more}), flush=True)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
