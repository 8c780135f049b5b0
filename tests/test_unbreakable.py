"""Faults around a run: the message, the exit code, what was finished stays good, and afterwards the result is that of an
unbroken run. Every command is a process of its own."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tamis.runs import Run
from tools import faults
from tools.processes import Command, finished, made

RECIPE = {
    "name": "tiny",
    "model": "nano-sums",
    "task": {"modular_sums": {"size": 24, "heldout": 8}},
    "stages": [
        {"sample": {"temperature": {"n": 2, "temperature": 0.9, "max_new_tokens": 24}}},
        {"judge": {"answer": {"kind": "regex", "pattern": r"#(\d+)"}}},
        {"select": {"distinct_reasoning": {"per_prompt": 1}}},
        {"compose": {"accepted_sft": {}}},
        {"tune": {"objective": "sft", "adapter": {"lora": {"r": 2}}, "epochs": 1, "checkpoint_every": 1}},
        {"evaluate": {"accuracy": {"max_new_tokens": 24}}},
    ],
}
slow = pytest.mark.slow


def some(values, *fast):
    """Return parameters of which all but `fast` ones are slow."""
    return [value if value in fast else pytest.param(value, marks=slow) for value in values]


@dataclass
class Place:
    """A folder with the recipe, and in `runs` its run."""

    path: Path
    runs_dir: str = "runs"

    @property
    def runs(self) -> Path:
        return self.path / self.runs_dir

    @property
    def run(self) -> Path:
        return next(p for p in self.runs.iterdir() if p.name.startswith("tiny-"))

    def start(self, before=faults.small_units, *options) -> Command:
        return Command("run", "recipe.yaml", "--runs-dir", self.runs_dir, *options, cwd=self.path, before=before)

    def go(self, before=faults.small_units, *options) -> tuple[int, str]:
        command = self.start(before, *options)
        code = command.wait()
        said = command.said()
        assert "Traceback" not in said, said
        return code, said


def new(path: Path) -> Place:
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(json.dumps(RECIPE))
    return Place(path.resolve())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Place:
    place = new(tmp_path_factory.mktemp("unbroken"))
    code, said = place.go(partial(faults.count_changes, place.runs, place.path / "changes"))
    assert code == 0, said
    return place


@pytest.fixture
def place(tmp_path) -> Place:
    return new(tmp_path / "place")


@pytest.fixture
def done(unbroken, place) -> Place:
    """A place of its own with the finished run."""
    shutil.copytree(unbroken.runs, place.runs)
    return place


def at(unbroken: Place, part: float) -> int:
    """Return the number of the change of a file that lies at this part of the run."""
    return max(1, round(part * int((unbroken.path / "changes").read_text())))


def same(place: Place, unbroken: Place) -> bool:
    mine, theirs = made(place.run), made(unbroken.run)
    assert {k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)} == set()
    return True


def ends_as_unbroken(place: Place, unbroken: Place) -> bool:
    """Whether the same command now ends well, leaves finished files alone and gives the unbroken result."""
    before = finished(place.run) if place.runs.is_dir() and any(place.runs.glob("tiny-*")) else {}
    code, said = place.go()
    assert code == 0, said
    now = finished(place.run)
    assert [str(p) for p, state in before.items() if now.get(p) != state] == []
    return same(place, unbroken)


PARTS = [n / 20 for n in range(20)]


@pytest.mark.parametrize("part", some(PARTS, 0.35))
def test_a_disk_that_becomes_full(unbroken, place, part):
    code, said = place.go(partial(faults.full_from, place.runs, at(unbroken, part)))
    assert code == 2
    assert "No space left on device" in said
    assert "Free space" in said
    assert ends_as_unbroken(place, unbroken)


@pytest.mark.parametrize("size", some([1500, 3000, 6000, 12000, 25000, 50000], 6000))
def test_a_limit_on_the_size_of_files(unbroken, place, size):
    code, said = place.go(partial(faults.limit_files, size))
    assert code == 2
    assert "File too large" in said
    assert "Free space" in said
    assert ends_as_unbroken(place, unbroken)


@pytest.fixture
def disk(place) -> Iterator[Path]:
    """A small file system of its own at the runs folder."""
    at = place.runs
    at.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(at)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system here")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@pytest.mark.parametrize("part", some([n / 20 for n in range(1, 19, 2)], 0.55))
def test_a_disk_that_is_really_full(unbroken, place, disk, part):
    used = sum(-(-p.stat().st_size // 4096) * 4 for p in unbroken.run.rglob("*") if p.is_file())
    remount(disk, f"size={round(part * used)}k")
    code, said = place.go()
    assert code == 2
    assert "No space left on device" in said
    remount(disk, "size=8m")
    assert ends_as_unbroken(place, unbroken)


def test_a_folder_that_is_read_only(unbroken, place, disk):
    remount(disk, "ro")
    code, said = place.go()
    assert code == 2
    assert "Read-only file system" in said
    assert "choose another --runs-dir" in said
    remount(disk, "rw")
    assert ends_as_unbroken(place, unbroken)


@slow
def test_temporary_files_have_no_place(unbroken, place, disk):
    remount(disk, "size=4k")
    (disk / "filled").write_bytes(b"0" * 4000)
    place.runs_dir = "elsewhere"
    assert place.go(partial(faults.no_temporary, disk))[0] == 0
    assert same(place, unbroken)


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
@pytest.mark.parametrize("part", some(PARTS[1::3], 0.35))
def test_a_signal(unbroken, place, number, part):
    code, said = place.go(partial(faults.signal_at, place.runs, at(unbroken, part), number))
    assert code == 128 + number
    assert "go on with" in said
    assert ends_as_unbroken(place, unbroken)


@pytest.mark.parametrize("part", some(PARTS[2::3], 0.55))
def test_the_run_is_removed_while_it_works(unbroken, place, part):
    code, said = place.go(partial(faults.remove_at, place.runs, at(unbroken, part)))
    assert code == 2
    assert "removed while the run worked" in said
    assert ends_as_unbroken(place, unbroken)


def shard(place: Place, kind: str) -> Path:
    return next(place.run.glob(f"{kind}*/*/*-00000.parquet"))


def unit(place: Place, kind: str) -> Path:
    return next(place.run.glob(f"{kind}*/units/*-00000.json"))


def ledger(place: Place, kind: str) -> Path:
    return next(place.run.glob(f"{kind}*/stage.json"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


def without_stage(path: Path) -> Path:
    """Return the path after its stage's end was forgotten, as after a kill before it."""
    (path.parents[1] / "stage.json").unlink()
    return path


DAMAGES = {
    "a cut prompt shard": lambda p: cut(shard(p, "01-task")),
    "a cut completion shard": lambda p: cut(shard(p, "02-sample")),
    "a cut verdict shard": lambda p: cut(shard(p, "03-judge")),
    "a cut example shard": lambda p: cut(shard(p, "05-compose")),
    "a cut held-out shard": lambda p: cut(shard(p, "08-evaluate_after")),
    "a cut model": lambda p: cut(next(p.run.glob("06-tune*/model/adapter_model.safetensors"))),
    "a shard that is a folder": lambda p: folder(shard(p, "02-sample")),
    "a shard of an unfinished stage": lambda p: cut(without_stage(shard(p, "02-sample"))),
    "a unit of other counts": lambda p: edit(unit(p, "03-judge"), counts={"correct": 99}),
    "a unit of other counts in an unfinished stage": lambda p: edit(without_stage(unit(p, "03-judge")), counts={}),
    "a unit of wrong types": lambda p: edit(unit(p, "02-sample"), files=[], cost=3),
    "a unit that is a folder": lambda p: folder(unit(p, "05-compose")),
    "a stage of other counts": lambda p: edit(ledger(p, "04-select"), counts={"selected": 1}),
    "a stage of another format": lambda p: edit(ledger(p, "02-sample"), format=99),
    "a stage of wrong types": lambda p: edit(ledger(p, "06-tune"), files=3, counts=[], key=None),
    "a stage ledger that is a folder": lambda p: folder(ledger(p, "03-judge")),
    "another selection": lambda p: edit(next(p.run.glob("04-select*/selection.json")), completion_ids=[]),
    "other figures": lambda p: next(p.run.glob("08-evaluate*/metrics.json")).write_text("[]"),
}


@pytest.mark.parametrize(
    "damage", some(DAMAGES, "a cut completion shard", "a unit of wrong types", "a stage of other counts")
)
def test_damage_is_told_set_aside_and_made_again(unbroken, done, damage):
    DAMAGES[damage](done)
    code, said = done.go()
    assert code == 0, said
    assert "missing or damaged, made again" in said
    assert list(done.run.rglob("*.damaged")) or damage == "a cut model"
    assert same(done, unbroken)


CHANGES = {
    "another manifest": lambda p: edit(p.run / "manifest.json", status=3, stages={"a": 1}, created=[1]),
    "a manifest of a list": lambda p: (p.run / "manifest.json").write_text("[1]"),
    "no manifest": lambda p: (p.run / "manifest.json").unlink(),
    "another recipe": lambda p: (p.run / "recipe.yaml").write_text("seed: [1"),
    "other figures": lambda p: (p.run / "metrics.json").write_text("{}"),
    "a torn log": lambda p: (p.run / "log.jsonl").write_bytes(b'\xff{"a'),
    "a shard of nobody": lambda p: shutil.copy(shard(p, "02"), shard(p, "02").with_name("sample-00009.parquet")),
    "a copy of a shard": lambda p: shutil.copy(shard(p, "02"), shard(p, "02").with_name("sample-00000 (copy).parquet")),
    "a copy of a unit": lambda p: shutil.copy(unit(p, "02"), unit(p, "02").with_name("sample-00000 (copy).json")),
    "files from the future": lambda p: [os.utime(f, (4e9, 4e9)) for f in p.runs.rglob("*")],
    "a user's notes": lambda p: (p.run / "02-notes").mkdir(),
    "a stage moved to another place": lambda p: move(p.run, "02-sample"),
}


def move(run: Path, kind: str) -> None:
    stage = next(run.glob(f"{kind}*"))
    elsewhere = run.parents[1] / "elsewhere"
    shutil.move(stage, elsewhere)
    stage.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "change", some(CHANGES, "another manifest", "a copy of a shard", "a stage moved to another place")
)
def test_what_decides_nothing_is_put_right_or_passed_over(unbroken, done, change):
    CHANGES[change](done)
    code, said = done.go()
    assert code == 0, said
    kept = made(done.run)
    assert {k: v for k, v in kept.items() if k in made(unbroken.run)} == made(unbroken.run)
    assert Run(done.run).manifest["status"] == "done"
    assert len(Run(done.run).completions()) == 48
    assert (change != "a user's notes") or (done.run / "02-notes").is_dir()


BLOCKS = {
    "units is a file": (lambda p: next(p.run.glob("02-sample*")) / "units", "File exists|Not a directory"),
    "a stage is a file": (lambda p: next(p.run.glob("03-judge*")), "File exists|Not a directory"),
    "the manifest is a folder": (lambda p: p.run / "manifest.json", "Is a directory"),
    "the log is a folder": (lambda p: p.run / "log.jsonl", "Is a directory"),
    "the figures are a folder": (lambda p: p.run / "metrics.json", "Is a directory"),
    "the report is a folder": (lambda p: p.run / "report.html", "Is a directory"),
    "the lock is a folder": (lambda p: p.run / ".lock", "Is a directory"),
    "the run is a file": (lambda p: p.run, "File exists|Not a directory"),
    "the runs folder is a file": (lambda p: p.runs, "File exists|Not a directory"),
}


@pytest.mark.parametrize("block", some(BLOCKS, "a stage is a file", "the log is a folder", "the runs folder is a file"))
def test_what_is_in_the_way_is_named_and_left_alone(unbroken, done, block):
    where, words = BLOCKS[block]
    path = where(done)
    is_folder = "folder" in block and block != "the runs folder is a file"
    aside = done.path / "aside"
    shutil.move(path, aside)
    path.mkdir() if is_folder else path.write_text("mine")
    if is_folder:
        (path / "mine").write_text("mine")
    code, said = done.go()
    assert code == 2, said
    assert any(word in said for word in words.split("|")), said
    assert str(path.relative_to(done.path)) in said
    assert (path / "mine" if is_folder else path).read_text() == "mine"
    shutil.rmtree(path) if is_folder else path.unlink()
    shutil.move(aside, path)
    assert ends_as_unbroken(done, unbroken)


@slow
def test_a_clock_that_goes_backwards(unbroken, place):
    assert place.go(faults.backward_clock)[0] == 0
    assert same(place, unbroken)


def test_two_processes_on_one_run(unbroken, place):
    first = place.start()
    while first.alive and not list(place.runs.glob("*/02-sample*")):
        pass
    code, said = place.go()
    assert (first.wait(), code) == (0, 2)
    assert f"another process (pid {first.process.pid}) is working on this run" in said
    assert same(place, unbroken)


@slow
def test_two_runs_that_take_from_each_other_at_once(unbroken, place):
    (place.path / "other.yaml").write_text(json.dumps({**RECIPE, "name": "other"}))
    one = place.start()
    two = Command("run", "other.yaml", "--runs-dir", "runs", cwd=place.path, before=faults.small_units)
    assert (one.wait(), two.wait()) == (0, 0), one.said() + two.said()
    assert same(place, unbroken)
    other = made(next(place.runs.glob("other-*")))
    assert other | {"recipe.yaml": ""} == made(unbroken.run) | {"recipe.yaml": ""}


@slow
def test_a_file_system_without_hard_links(unbroken, done):
    (done.path / "other.yaml").write_text(json.dumps({**RECIPE, "name": "other"}))
    two = Command("run", "other.yaml", "--runs-dir", "runs", cwd=done.path, before=faults.no_links)
    assert two.wait() == 0, two.said()
    assert two.said().count("reused") == 8
    assert not any(p.stat().st_nlink > 1 for p in done.runs.rglob("*.parquet"))


@slow
@pytest.mark.parametrize("name", ["läufe mit [leer]zeichen ✓", "a\nb"])
def test_unusual_names(unbroken, place, name):
    place.runs_dir = name
    assert ends_as_unbroken(place, unbroken)


def test_a_name_that_is_not_utf8_is_refused_before_anything_runs(place):
    place.runs_dir = os.fsdecode(b"l\xe4ufe")
    code, said = place.go()
    assert code == 2
    assert "the name is not UTF-8 text" in said
    assert not place.runs.exists()


@pytest.mark.parametrize(
    "before", some([faults.broken_pipe, faults.closed_output, faults.full_output], faults.full_output)
)
@pytest.mark.parametrize("option", some(["--json", "--quiet"], "--quiet"))
def test_output_that_nobody_takes(unbroken, place, before, option):
    code, said = place.go(before, option)
    assert code in (0, 1, 2, 128 + signal.SIGPIPE)
    assert (code == 0) == (before is faults.closed_output), said
    assert ends_as_unbroken(place, unbroken)


@slow
def test_other_versions_are_told(unbroken, place):
    code, _ = place.go(partial(faults.other_versions, place.runs, at(unbroken, 0.3)))
    assert code == 128 + signal.SIGKILL
    code, said = place.go()
    assert code == 0, said
    assert "made with torch 0.0.1" in said
    assert "torch 0.0.1" in (place.run / "report.html").read_text()
    assert [s["kind"] for s in Run(place.run).manifest["stages"] if s["other_versions"]][:1] == ["task"]


WRONG = ["[1]", '{"stages": [3], "status": "done", "rows": 3}', "{", "3", "\0"]


@pytest.mark.parametrize("name", some(["manifest.json", "recipe.yaml", "metrics.json"], "manifest.json"))
@pytest.mark.parametrize("text", some(WRONG, WRONG[1]))
@pytest.mark.parametrize("command", [("report", "last"), ("show", "last", "completions")])
def test_a_look_at_a_damaged_run_is_no_traceback(done, name, text, command):
    (done.run / name).write_text(text)
    looked = Command(*command, "--runs-dir", "runs", cwd=done.path)
    code, said = looked.wait(), looked.said()
    assert "Traceback" not in said, said
    assert code in (0, 2)
    assert code == 0 or name in said
