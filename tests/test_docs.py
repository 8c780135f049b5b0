"""Every code block of the user's pages runs, in order, in a folder of its own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    "getting-started.md",
    "concepts.md",
    "data.md",
    "models.md",
    "judges.md",
    "plan.md",
    "resume.md",
    "contributing.md",
]
BLOCK = re.compile(r"^```(\w+)( no-run)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, tmp_path):
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert blocks
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    script = bin_dir / "tamis"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tamis.cli "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    for language, skipped, code in blocks:
        if skipped or language not in ("sh", "python"):
            continue
        command = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{page}:\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [*PAGES, "architecture.md", "endpoints.md", "robustness.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), f"{page} links to {target}"
