"""SIGKILL at many moments of a run, the same command again, and the result beside that of an unbroken run.

`python tests/tools/kills.py [--kills 40] [--rounds 1] [--chain 4] [--seed 0]` prints a table. A kill comes either a random
part into a stage's time, or right before a random change of a file (open for writing, rename, remove, link, mkdir) that the
stage makes, so that every write, also those of checkpoints and of the model, has its share. A run is killed several times,
each time in another stage, and goes on in between.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.processes import Command, finished, made, stages

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
STAGE = re.compile(r"/(\d\d-[a-z_]+)-[0-9a-f]{12}(/|$)")
LONG = 0.5
"""Seconds from which on a stage is killed by time, too."""


@dataclass(frozen=True)
class Moment:
    """When to kill: before the `change`-th change of a file (from 1), or `wait` seconds into the stage."""

    stage: str
    change: int = 0
    wait: float = 0.0


@dataclass
class Kill:
    """What a kill left: the files that were finished, the steps and seconds that were lost."""

    moment: Moment
    kept: dict[Path, tuple[int, int]]
    steps: int
    seconds: float


@dataclass
class Reference:
    """An unbroken run: what it made, how often it changes files and how long it works in each stage."""

    made: dict[str, Any]
    changes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)


def watch_changes(runs: Path, say: Path | None, crash: Moment | None) -> None:
    """Count this process's changes of files by stage, write each into `say`, and die at `crash`."""
    stage, seen = "start", Counter[str]()
    out = os.open(say, os.O_WRONLY | os.O_CREAT) if say else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal stage
        if event not in CHANGES and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        if not any(p.startswith(f"{runs}/") or "/" not in p for p in paths):
            return
        named = STAGE.search(paths[0])
        stage = named[1] if named else stage
        seen[stage] += 1
        if out is not None:
            os.write(out, f"{stage}\n".encode())
        if crash and stage == crash.stage and seen[stage] == crash.change:
            os.killpg(0, signal.SIGKILL)
        if event == "os.rename" and paths[-1].endswith("/stage.json"):
            stage = f"after {stage}"

    sys.addaudithook(hook)


def unbroken(arguments: list[str], place: Path) -> Reference:
    """Make the run that all others are held against."""
    place.mkdir(parents=True)
    watching = partial(watch_changes, place / "runs", place / "changes", None)
    command = Command("run", *arguments, "--runs-dir", str(place / "runs"), "--quiet", cwd=place, before=watching)
    if command.wait():
        raise SystemExit(command.said())
    (run,) = (place / "runs").iterdir()
    reference = Reference(made(run), Counter((place / "changes").read_text().split("\n")[:-1]))
    for event in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        if event["event"] == "stage_done":
            reference.seconds[STAGE.search(f"/{event['stage']}")[1]] = event["seconds"]
    return reference


def moments(reference: Reference, kills: int, generator: random.Random) -> list[Moment]:
    """Return moments over all stages and what is between them; training has twice its share."""
    places = [p for p in reference.changes if p != "start"]
    places += [p for p in places if p.endswith("-tune")]
    chosen = []
    for number in range(kills):
        stage = places[number % len(places)]
        seconds = reference.seconds.get(stage, 0.0)
        if seconds >= LONG and number // len(places) % 2 == 0:
            chosen.append(Moment(stage, wait=generator.uniform(0, seconds)))
        else:
            chosen.append(Moment(stage, change=generator.randint(1, reference.changes[stage])))
    return chosen


def chains(chosen: list[Moment], length: int) -> list[list[Moment]]:
    """Return the moments in groups of at most `length`, each of stages that follow one another."""
    groups: list[list[Moment]] = []
    for moment in chosen:
        free = (g for g in groups if len(g) < length and moment.stage not in {m.stage for m in g})
        group = next(free, None)
        groups.append([moment]) if group is None else group.append(moment)
    return [sorted(g, key=lambda m: (m.stage.removeprefix("after "), m.stage.startswith("after "))) for g in groups]


def killed(arguments: list[str], place: Path, moment: Moment) -> Kill | None:
    """Start the command and kill it at a moment; None where it ended before."""
    runs = place / "runs"
    before = partial(watch_changes, runs, None, moment) if moment.change else None
    started = time.time()
    command = Command("run", *arguments, "--runs-dir", str(runs), "--quiet", cwd=place, before=before)
    if not moment.change:
        while command.alive and not list(runs.glob(f"*/{moment.stage}-*")):
            time.sleep(0.002)
        time.sleep(moment.wait)
        command.kill()
    code, now = command.wait(), time.time()
    if code == 0:
        return None
    if code != 128 + signal.SIGKILL:
        raise SystemExit(f"{moment}: exit code {code}\n{command.said()}")
    run = next(runs.iterdir(), runs)
    kept = finished(run)
    newest = max([started, *(p.stat().st_mtime for p in [*kept, *run.glob("*/checkpoints/step-*/state.json")])])
    return Kill(moment, kept, _steps_lost(run), now - newest)


def _steps_lost(run: Path) -> int:
    """Return how many steps of the training in work are after its last checkpoint."""
    last = [run, *stages(run)][-1]
    curve = last / "curve.jsonl"
    if not curve.exists() or (last / "model").exists():
        return 0
    saved = [int(p.name[5:]) for p in last.glob("checkpoints/step-*")]
    return len(curve.read_text().splitlines()) - max(saved, default=0)


def play(arguments: list[str], place: Path, chain: list[Moment], reference: Reference) -> Iterator[dict[str, Any]]:
    """Kill one run at each moment of a chain, let it end, and yield a row per kill."""
    place.mkdir(parents=True)
    kills = [found for moment in chain if (found := killed(arguments, place, moment))]
    command = Command("run", *arguments, "--runs-dir", str(place / "runs"), "--quiet", cwd=place)
    if command.wait():
        raise SystemExit(command.said())
    (run,) = (place / "runs").iterdir()
    result = made(run)
    differing = sorted(k for k in result.keys() | reference.made.keys() if result.get(k) != reference.made.get(k))
    now = finished(run)
    for kill in kills:
        touched = [str(p.relative_to(run)) for p, state in kill.kept.items() if now.get(p) != state]
        yield {
            "stage": kill.moment.stage,
            "by": "change" if kill.moment.change else "time",
            "differing": differing,
            "touched": touched,
            "steps": kill.steps,
            "seconds": kill.seconds,
        }


def measure(arguments: list[str], place: Path, kills: int, chain: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each kill."""
    reference = unbroken(arguments, place / "unbroken")
    for number, group in enumerate(chains(moments(reference, kills, random.Random(seed)), chain)):
        yield from play(arguments, place / f"{number}", group, reference)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows by stage as a Markdown table."""
    lines = [
        "| killed in | kills | result identical | finished files made again | steps made again (most) | seconds lost (most) |",
        "|---|---|---|---|---|---|",
    ]
    for stage in sorted({r["stage"] for r in rows}, key=lambda s: (s.removeprefix("after "), s)):
        mine = [r for r in rows if r["stage"] == stage]
        lines.append(_line(stage, mine))
    return "\n".join([*lines, _line("**all**", rows)])


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    same, touched = sum(not r["differing"] for r in rows), sum(len(r["touched"]) for r in rows)
    steps, seconds = max(r["steps"] for r in rows), max(r["seconds"] for r in rows)
    return f"| {name} | {len(rows)} | {same} | {touched} | {steps} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--chain", type=int, default=4, help="most kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    arguments = ["rft", "--lab", "--set", f"loop={given.rounds}"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(arguments, Path(folder).resolve(), given.kills, given.chain, given.seed):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
