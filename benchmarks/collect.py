"""Run benchmarks and write docs/benchmarks.md: `python benchmarks/collect.py [NAME ...]`; without names, all of them.

Each script's last line is kept as docs/benchmarks/NAME.json, and the page is made of those files.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "benchmarks"
SHARED = {"harness", "collect"}
HEADER = """# Benchmarks

Every row comes from one run of one script in [`benchmarks/`](../benchmarks): tamis and the peer take turns in processes of
their own, the peer in an environment that the script makes; medians and their ratio are shown. `make bench` measures all of
them again; `python benchmarks/collect.py NAME` one of them. Figures that miss their target are shown as such.
"""


def names() -> list[str]:
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in SHARED)


def measure(name: str) -> None:
    run = subprocess.run([sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True)
    print(run.stdout, end="", flush=True)
    if run.returncode:
        sys.exit(f"benchmark {name} failed with code {run.returncode}")
    result = json.loads(run.stdout.splitlines()[-1])
    result |= {"command": f"python benchmarks/{name}.py", "date": datetime.date.today().isoformat()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def page() -> str:
    results = [json.loads(p.read_text()) for p in sorted(OUT.glob("*.json"))]
    table = ["| what | tamis | peer | ratio | target | |", "|---|---|---|---|---|---|"]
    table += [_line(row) for result in results for row in (result, *result.get("also", []))]
    return "\n".join([HEADER, *table, "", *(_section(r) for r in results)])


def _line(row: dict[str, Any]) -> str:
    word = "≤" if row["at_most"] else "≥"
    cells = [
        row["name"],
        f"{row['ours']:,.4g} {row['unit']}",
        f"{row['peer']:,.4g} ({row['against']})",
        f"{row['ratio']:.3g}",
        f"{word} {row['target']:g}",
        "holds" if row["holds"] else "**does not hold**",
    ]
    return "| " + " | ".join(cells) + " |"


def _section(result: dict[str, Any]) -> str:
    at = result["machine"]
    lines = [f"## {result['name']}", ""]
    lines += [f"`{result['command']}`, {result['date']}, {at['cores']} cores ({at['cpu']}), Python {at['python']}.", ""]
    lines += [f"- {text}" for text in result.get("notes", [])]
    return "\n".join([*lines, ""])


def main() -> None:
    for name in sys.argv[1:] or names():
        measure(name)
    (OUT.parent / "benchmarks.md").write_text(page())


if __name__ == "__main__":
    main()
