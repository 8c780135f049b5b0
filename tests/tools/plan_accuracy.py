"""How far plans are off: plan and run ten lab runs, each in a process of its own, and print a table in Markdown.

python tests/tools/plan_accuracy.py [FIRST LAST]
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

RUNS = (
    ("rft",),
    ("rft", "--seed", "7", "--set", "task.modular_sums.size=256", "--set", "stages.sample.temperature.n=16"),
    ("rft", "--seed", "3", "--set", "stages.tune.epochs=6", "--set", "stages.sample.temperature.temperature=1.2"),
    ("rft", "--set", "loop=2"),
    ("dart",),
    ("dart", "--seed", "5", "--set", "task.modular_sums.size=256", "--set", "stages.sample.dart.k=6"),
    ("upft",),
    ("random",),
    ("random", "--seed", "2", "--set", "task.modular_sums.size=512", "--set", "stages.select.random.k=300"),
    ("rft-gold", "--seed", "4", "--set", "task.modular_sums.size=128"),
)
HEADER = """| run | tokens planned | taken | off | seconds planned | taken | off |
|---|---|---|---|---|---|---|"""


def tamis(*arguments: str) -> str:
    """Return what a command prints."""
    command = [sys.executable, "-m", "tamis.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def row(recipe: tuple[str, ...], found: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [
        f"`{' '.join(recipe)} --lab`",
        f"{found['planned_tokens']:,.0f}",
        f"{found['tokens']:,}",
        f"{100 * found['tokens_off']:.0f} %",
        f"{found['planned_seconds']:.1f}",
        f"{found['seconds']:.1f}",
        f"{100 * found['seconds_off']:.0f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Plan and run, one after the other, and count what is within the target."""
    first, last = map(int, sys.argv[1:] or (1, len(RUNS)))
    print(HEADER, flush=True)
    found = []
    for recipe in RUNS[first - 1 : last]:
        with tempfile.TemporaryDirectory() as runs_dir:
            arguments = (*recipe, "--lab", "--runs-dir", runs_dir, "--json")
            tamis("plan", *arguments)
            events = [json.loads(line) for line in tamis("run", *arguments).splitlines()]
        found.append(next(event for event in events if event["event"] == "plan"))
        print(row(recipe, found[-1]), flush=True)
    within = sum(f["tokens_off"] <= 0.2 and f["seconds_off"] <= 0.3 for f in found)
    print(f"\n{within} of {len(found)} within 20 % of the tokens and 30 % of the time.")


if __name__ == "__main__":
    main()
