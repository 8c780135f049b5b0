"""What `tamis doctor` prints."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from tamis.doctor import Finding

WORDS = {"ok": "", "note": "note", "missing": "MISSING"}


def print_findings(findings: Sequence[Finding], *, as_json: bool = False) -> None:
    """Print the findings as a table or as JSON, then the fixes."""
    healthy = not any(f.state == "missing" for f in findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(f) for f in findings]}, indent=1))
        return
    areas = [f.area if i == 0 or findings[i - 1].area != f.area else "" for i, f in enumerate(findings)]
    _print_rows((area, f.what, WORDS[f.state], f.said) for area, f in zip(areas, findings, strict=True))
    if any(f.fix for f in findings):
        print("\nwhat to do")
        _print_rows((f.area, f.what, f.fix) for f in findings if f.fix)
    print("\nThe default recipe can run." if healthy else "\nThe default recipe cannot run yet.")


def _print_rows(rows: Iterable[Sequence[str]]) -> None:
    """Print columns side by side; without any package, since packages may be what is missing."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
