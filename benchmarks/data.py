"""Data in: chat records from a file to the shards of a task stage, against `datasets`.

tamis: the whole stage as a run does it (digest of the file, one reading, checks, exact duplicates, exact held-out count,
content ids, synced Parquet shards). Peers, each in a fresh process: `datasets` streaming with checks of the same kind in a
user's map function and Parquet shards written (one reading, so the held-out count is only near what was asked); streaming,
iterated and nothing else; and `load_dataset` into a new cache, iterated. Memory: the stage's peak at `--large` records
against `--small`.
"""

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import harness

PEER = harness.HERE / "peers" / "data_datasets.py"
WORDS = 3000


def records(count: int) -> Iterator[dict[str, Any]]:
    """Yield conversations of about 500 bytes with ids, always the same, all different."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    for number in range(count):
        question, answer = (" ".join(draw.choices(words, k=draw.randint(*size))) for size in ((15, 45), (10, 40)))
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"{number}: {question}?"},
            {"role": "assistant", "content": answer},
        ]
        yield {"id": f"chat-{number:08d}", "messages": messages}


def write(folder: Path, count: int) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = {kind: folder / f"chat-{count}.{kind}" for kind in ("jsonl", "parquet")}
    made, writer = records(count), None
    with places["jsonl"].open("w") as lines:
        while rows := list(islice(made, 10_000)):
            lines.writelines(json.dumps(row) + "\n" for row in rows)
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(places["parquet"], table.schema)
            writer.write_table(table)
    if writer:
        writer.close()
    return places


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ours(path: str, hold: bool = False) -> dict[str, Any]:
    """Run the task stage on a file; with `hold`, read all its prompts back, as the rest of a run does."""
    from tamis import registry, stages
    from tamis.context import Context
    from tamis.records import Prompt
    from tamis.store import StageFolder

    registry.load_all()
    loaded = harness.peak_bytes()
    with tempfile.TemporaryDirectory() as place:
        folder = StageFolder(Path(place) / "01-task", "key")
        folder.path.mkdir()
        started = time.perf_counter()
        task = registry.build("task", {"data": {"path": path}})
        task.fingerprint()
        stages.load_prompts(folder, task, Context(), lambda *_, **__: None)
        seconds = time.perf_counter() - started
        found = {"seconds": seconds, "loaded": loaded, "peak_bytes": harness.peak_bytes()}
        if hold:
            before = resident()
            started = time.perf_counter()
            held = folder.read(Prompt)
            found |= {"read_seconds": time.perf_counter() - started, "held": (resident() - before) / len(held)}
    return found


def once(python: str, script: Path, *arguments: str, **job: Any) -> dict[str, Any]:
    with harness.Worker(python, script, *arguments) as worker:
        return worker.ask(**job)


def speed(kind: str, path: Path, count: int, peer: str, repeats: int) -> list[dict[str, Any]]:
    def rate(found: dict[str, Any]) -> float:
        return count / found["seconds"]

    kinds = {
        "checks": "datasets streaming + checks",
        "stream": "datasets streaming alone",
        "table": "datasets map-style",
    }
    sides = [lambda: rate(once(sys.executable, Path(__file__), "--serve", path=str(path)))]
    sides += [lambda mode=mode: rate(once(peer, PEER, path=str(path), kind=kind, mode=mode)) for mode in kinds]
    mine, *theirs = harness.in_turn(repeats, *sides)
    return [
        harness.comparison(f"data in, {kind}", mine, found, 1.0, unit="records/s", against=against)
        for found, against in zip(theirs, kinds.values(), strict=True)
    ]


def memory(small: dict[str, Path], large: dict[str, Path]) -> list[dict[str, Any]]:
    rows = []
    for kind in small:
        few, many = (once(sys.executable, Path(__file__), "--serve", path=str(p[kind])) for p in (small, large))
        own = {name: round((f["peak_bytes"] - f["loaded"]) / 1e6, 1) for name, f in (("few", few), ("many", many))}
        rows.append(
            harness.comparison(
                f"peak memory of data in, {kind}",
                [many["peak_bytes"] / 1e6],
                [few["peak_bytes"] / 1e6],
                1.2,
                unit="MB",
                against="a tenth of the records",
                at_most=True,
                above_loaded_mb=own,
                seconds=many["seconds"],
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="0 leaves the memory out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return harness.serve(ours)
    peer = str(harness.environment("datasets", ["datasets==5.2.0"]))
    with tempfile.TemporaryDirectory() as place:
        small = write(Path(place), args.small)
        rows = [row for kind, path in small.items() for row in speed(kind, path, args.small, peer, args.repeats)]
        held = once(sys.executable, Path(__file__), "--serve", path=str(small["jsonl"]), hold=True)
        notes = [
            f"All prompts of a stage read back, as the later stages hold them: {held['held']:,.0f} bytes a prompt, "
            f"{args.small / held['read_seconds']:,.0f} prompts/s."
        ]
        if args.large:
            rows += memory(small, write(Path(place), args.large))
            notes += [
                f"{row['name']}: above what importing tamis takes, {row['above_loaded_mb']['few']} MB at {args.small:,} "
                f"records and {row['above_loaded_mb']['many']} MB at {args.large:,} ({row['seconds']:.0f} s)."
                for row in rows
                if "above_loaded_mb" in row
            ]
    harness.conclude(*rows, notes=notes)


if __name__ == "__main__":
    main()
