"""A package outside tamis adds a sampler and a judge in one file each, through the entry point group `tamis.methods`."""

import json
import os
import subprocess
import sys

import pytest

MODULE = '''
from collections.abc import Iterator
from tamis.records import Completion, Law, Turn, Verdict
from tamis.registry import judge, option, sampler


@sampler("echo")
class Echo:
    """Answer with the last word of the prompt, n times."""

    n: int = option(2, "Answers per prompt.", ge=1)

    def sample(self, prompts, ctx) -> Iterator[Completion]:
        for prompt in prompts:
            for index in range(self.n):
                turn = Turn("assistant", prompt.references[0] if index else "wrong")
                yield Completion(prompt_id=prompt.id, turns=(turn,), index=index, sampler="echo", law=Law())


@judge("is_long")
class IsLong:
    """Accept answers other than the word wrong."""

    def judge(self, prompts, completions, ctx) -> Iterator[Verdict]:
        for c in completions:
            yield Verdict(prompt_id=c.prompt_id, completion_ids=(c.id,), judge="is_long", score=float(c.text != "wrong"))
'''
RECIPE = """
name: foreign
model: nano-sums
task: {modular_sums: {size: 16, heldout: 8}}
stages:
  - sample: {echo: {n: 3}}
  - judge: {is_long: {}}
  - compose: {accepted_sft: {}}
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "foreign_methods.py").write_text(MODULE)
    info = tmp_path / "foreign_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tamis.methods]\nforeign = foreign_methods\n")
    return tmp_path


def tamis(site, *arguments):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tamis.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=site, env={**os.environ, "PYTHONPATH": path})


def test_methods_of_another_package_run_by_name(site):
    (site / "recipe.yaml").write_text(RECIPE)
    done = tamis(site, "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    stages = [e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "stage_done"]
    counts = {s["kind"]: s["counts"] for s in stages}
    assert counts["sample"]["completions"] == 48
    assert counts["compose"]["examples"] == 16
    page = tamis(site, "methods", "echo").stdout
    assert "Answers per prompt." in page


def test_a_broken_package_is_named(site):
    (site / "foreign_methods.py").write_text("import nothing_like_this\n")
    failed = tamis(site, "methods")
    assert failed.returncode == 2
    assert "entry point 'foreign'" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "text", ["raise SystemExit(3)", "1 / 0", "from tamis.registry import judge\n@judge('x')\nclass X: ..."]
)
def test_no_package_can_end_tamis_while_it_loads(site, text):
    (site / "foreign_methods.py").write_text(text + "\n")
    failed = tamis(site, "methods")
    assert failed.returncode == 2
    assert "entry point 'foreign'" in failed.stderr
    assert "Traceback" not in failed.stderr
