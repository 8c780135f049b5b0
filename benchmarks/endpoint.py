"""An endpoint client's own cost: wall time against the ideal, and against the openai package, with 200 requests in flight.

The server (a process of its own, `peers/endpoint_server.py`) answers each request after a fixed delay, so that the ideal is
requests / in flight * delay. tamis is measured through `Endpoint.generate`, records and all; the peer through
`AsyncOpenAI` with one task per request behind a semaphore, as its users write it.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness

PEERS = Path(__file__).parent / "peers"
TARGET = 1.1


@contextlib.contextmanager
def server(delay: float) -> Iterator[str]:
    """Run the server and give its base URL."""
    process = subprocess.Popen(
        [sys.executable, PEERS / "endpoint_server.py", str(delay)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def measured(worker: harness.Worker, base: str, requests: int, flying: int) -> dict[str, Any]:
    """Return a worker's figures of one job, checked against the server's count of answers."""
    before = stats(base)["answered"]
    figures = worker.ask(base=base, requests=requests, flying=flying)
    answered = stats(base)["answered"] - before
    assert figures["answers"] == answered == requests, (figures, answered)
    return figures


def stats(base: str) -> dict[str, int]:
    with urllib.request.urlopen(base.removesuffix("/v1") + "/stats") as response:
        return json.load(response)


def row(delay: float, ours: harness.Worker, peer: harness.Worker, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the comparisons at one delay: with the ideal, and with the peer."""
    ideal = args.requests / args.in_flight * delay
    cpu: dict[str, list[float]] = {"tamis": [], "openai": []}

    def side(name: str, worker: harness.Worker) -> Callable[[], float]:
        def once() -> float:
            figures = measured(worker, base, args.requests, args.in_flight)
            cpu[name].append(figures["cpu_seconds"] / args.requests * 1e3)
            return figures["seconds"]

        return once

    with server(delay) as base:
        mine, theirs = harness.in_turn(args.repeats, side("tamis", ours), side("openai", peer))
        most = stats(base)["most"]
    name = f"endpoint, {args.in_flight} in flight, {delay * 1e3:g} ms"
    spent = {f"{k}_cpu_ms_per_request": statistics.median(v) for k, v in cpu.items()}
    print(f"{name}: CPU ms a request: {spent}; most in flight at the server: {most}", flush=True)
    return [
        harness.comparison(
            f"{name}, against the ideal", mine, [ideal], TARGET, unit="s", against="ideal", at_most=True, **spent
        ),
        harness.comparison(
            f"{name}, against AsyncOpenAI", mine, theirs, 1.0, unit="s", against="openai", at_most=True, **spent
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--delays", type=float, nargs="+", default=[0.5, 0.2], help="seconds a request takes")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    python = harness.environment("openai", ["openai==3.54.0"])
    with (
        harness.Worker(sys.executable, PEERS / "endpoint_tamis.py") as ours,
        harness.Worker(python, PEERS / "endpoint_openai.py") as peer,
    ):
        rows = [found for delay in args.delays for found in row(delay, ours, peer, args)]
    harness.conclude(*rows, requests=args.requests, peer_version="openai 3.54.0")


if __name__ == "__main__":
    main()
