"""A thousand inputs that are almost right: each is taken, or refused in words; no record is dropped unseen.

The cases are the same in every run. TAMIS_FUZZ=20 searches twenty times as many, drawn anew each time.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strategies as odd
from tamis import cli, runs
from tamis import recipe as recipes
from tamis.context import Context
from tamis.errors import TamisError
from tamis.models import resolve
from tamis.models.resolve import capabilities
from tamis.records import Prompt, from_table, to_table
from tamis.registry import build
from tamis.report.html import render_report
from tamis.report.tables import print_dropped, print_pool
from tamis.tasks.data import inspect
from tamis.tasks.readers import locate, read

MORE = int(os.environ.get("TAMIS_FUZZ", "0"))
slow = pytest.mark.slow


@pytest.fixture
def explore(record_property: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a check on `n` cases of a strategy; how many, and how they ended, is told in the summary."""

    def go(n: int, cases: st.SearchStrategy, check: Callable[[Any], str]) -> None:
        ends: Counter[str] = Counter()

        @settings(
            max_examples=n * (MORE or 1),
            derandomize=not MORE,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def search(case: Any) -> None:
            ends[check(case)] += 1

        search()
        record_property("fuzzed", [request.node.name.removeprefix("test_"), dict(ends)])

    return go


def mistake(call: Callable[[], object]) -> TamisError | None:
    try:
        call()
    except TamisError as error:
        return error
    return None


def told(call: Callable[[], object]) -> str:
    """Return "taken" or "refused"; a refusal says what is wrong, and where or what to do, in a text of bearable length."""
    error = mistake(call)
    if error is None:
        return "taken"
    assert error.message.strip()
    assert error.where or error.hint
    assert len(str(error)) < 6000
    assert all(c.isprintable() or c == "\n" for c in str(error))
    return "refused"


def packaged() -> list[str]:
    from importlib.resources import files

    return [files("tamis.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8") for name in recipes.names()]


def as_lines(rows: list[Any]) -> bytes:
    return "".join(odd.as_json(row) + "\n" for row in rows).encode()


def test_recipes_as_mappings(explore: Any) -> None:
    originals = [{"name": "mine", **yaml.safe_load(text)} for text in packaged()]
    explore(200, odd.mutated(originals), lambda raw: told(lambda: recipes.load(raw)))


def test_recipes_as_text(explore: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"

    def check(text: bytes) -> str:
        path.write_bytes(text)
        return told(lambda: recipes.load(path, lab=len(text) % 2 == 0))

    explore(200, odd.yaml_texts(packaged()), check)


def test_recipes_that_extend_each_other(explore: Any, tmp_path: Path) -> None:
    names = ["a.yaml", "b.yaml", "c.yaml", "rft", "nowhere", "./", "../a.yaml"]

    def check(chain: list[str]) -> str:
        for name, parent in zip(names, chain, strict=False):
            (tmp_path / name).write_text(f"extends: {parent}\nset: {{seed: 1}}\n")
        return told(lambda: recipes.load(tmp_path / "a.yaml"))

    explore(40, st.lists(st.sampled_from(names), min_size=3, max_size=3), check)


PATHS = st.one_of(
    st.sampled_from(
        [
            *("seed", "model", "name", "loop", "task", "stages", "engine", "lab.seed", "stages.sample"),
            *("stages.tune.lr", "stages.sample.temperature.n", "stages.sample[1].n"),
            *("stages.sample[9999999999999].n", "engine.device", "task.data.map", "task.data.path"),
            *("stages.evaluate.judge", "stages.0", "about", "", ".", "a..b", "row"),
        ]
    ),
    st.lists(odd.texts, min_size=1, max_size=4).map(".".join),
)


def test_set_values(explore: Any) -> None:
    values = st.one_of(odd.texts, odd.junk.map(odd.as_json), st.sampled_from(odd.SNIPPETS))
    odd_ones = st.tuples(PATHS, st.sampled_from(["=", "=", "", ":"]), values).map("".join)
    good = st.sampled_from(["seed=3", "about=x", "loop=2", "stages.tune.lr=0.1", "row=null", "engine={device: cpu}"])
    cases = st.lists(good | odd_ones, min_size=1, max_size=3)
    names = recipes.names()
    explore(200, cases, lambda sets: told(lambda: recipes.load(names[len(sets) % len(names)], overrides=sets)))


def test_map_values(explore: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(odd.ROWS))
    roles = st.one_of(st.sampled_from(["prompt", "answer", "messages", "chosen", "rejected", "id", "promt"]), odd.texts)
    fields = st.one_of(st.sampled_from(["question", "answer", "meta.a", "id", "nowhere"]), odd.texts)
    pairs = st.lists(st.tuples(roles, st.sampled_from(["=", "=", ""]), fields).map("".join), max_size=3)

    def check(mapping: list[str]) -> str:
        return told(lambda: inspect(str(path), cli._pairs(mapping)))

    explore(60, pairs, check)


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.jsonl": as_lines,
    "a.json": lambda rows: odd.as_json(rows).encode(),
    "b.json": lambda rows: json.dumps({"data": rows}, default=str, skipkeys=True, indent=1).encode(),
    "c.json": as_lines,
    "a.csv": odd.as_csv,
    "a.tsv": lambda rows: odd.as_csv(rows, "\t"),
    "a.parquet": odd.as_parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "wrong.csv": as_lines,
    "wrong.parquet": odd.as_csv,
    "wrong.json": odd.as_parquet,
    "wrong.jsonl": lambda rows: gzip.compress(odd.as_csv(rows)),
}


def accounted(path: Path, options: dict[str, Any], expected: int | None = None) -> str:
    """Read a file as the task does: every row is a prompt, or counted with its reason; what is kept can be stored."""
    ctx = Context()
    found: list[Prompt] = []

    def go() -> None:
        inspect(str(path), **options)
        found.extend(build("task", {"data": {"path": str(path), **options}}).prompts(ctx))

    counted: list[int] = []
    if mistake(lambda: counted.append(sum(1 for source in locate(str(path)) for _ in read(source)))) is None:
        assert expected in (None, counted[0])
    end = told(go)
    if end == "taken":
        assert counted == [len(found) + len(ctx.dropped) + ctx.counts["left out by size"]]
        assert all(d["record"] and d["reason"] for d in ctx.dropped)
        assert from_table(to_table(found, Prompt), Prompt) == found
        json.dumps(ctx.dropped, ensure_ascii=False).encode()
    return end


OPTIONS = st.sampled_from(
    [
        {},
        {"dedupe": "none"},
        {"dedupe": "exact", "heldout": 1},
        {"size": 2},
        {"heldout": 0},
        {"keep": ["id", "meta", "x"]},
        {"split_column": "id"},
        {"template": "{question} {x}"},
        {"max_prompt_chars": 9},
        {"system": "Be brief."},
    ]
)
FILES = st.sampled_from(sorted(WRITERS))


def test_data_files_of_odd_rows(explore: Any, tmp_path: Path) -> None:
    def check(case: tuple[str, list[Any], dict[str, Any]]) -> str:
        name, rows, options = case
        (tmp_path / name).write_bytes(WRITERS[name](rows))
        tables = sum(isinstance(r, dict) for r in rows)
        whole = name in ("a.jsonl", "a.json", "b.json", "a.jsonl.gz")
        return accounted(tmp_path / name, options, len(rows) if whole else tables if name == "a.parquet" else None)

    explore(200, st.tuples(FILES, odd.rows, OPTIONS), check)


def test_damaged_data_files(explore: Any, tmp_path: Path) -> None:
    good = st.lists(st.sampled_from(odd.ROWS), max_size=20).map(lambda found: odd.GOOD + found)
    whole = st.tuples(FILES, good).map(lambda case: (case[0], WRITERS[case[0]](case[1])))
    cases = whole.flatmap(lambda case: st.tuples(st.just(case[0]), odd.damaged(case[1]), OPTIONS))

    def check(case: tuple[str, bytes, dict[str, Any]]) -> str:
        name, data, options = case
        (tmp_path / name).write_bytes(data)
        lines = sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        return accounted(tmp_path / name, options, lines if name == "a.jsonl" else None)

    explore(150, cases, check)


def test_data_folders(explore: Any, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(20)]
    sides = {"train": datasets.Dataset.from_list(rows[:15]), "test": datasets.Dataset.from_list(rows[15:])}
    datasets.DatasetDict(sides).save_to_disk(saved)
    (saved / "odd.jsonl").mkdir()
    explore(60, faults(saved, swapped), lambda fault: accounted(spoilt(saved, tmp_path / "copy.jsonl", fault), {}))


Fault = tuple[Path, bytes | None]
"""A file of a folder and its bytes instead; None where it is gone."""


def faults(folder: Path, *others: Callable[[Path, Path], st.SearchStrategy[bytes]]) -> st.SearchStrategy[Fault]:
    """One file of the folder gone, damaged, or with the bytes that `others` give for it."""

    def of(name: Path) -> st.SearchStrategy[Fault]:
        instead = [st.none(), odd.damaged((folder / name).read_bytes()), *(other(folder, name) for other in others)]
        return st.tuples(st.just(name), st.one_of(instead))

    return st.sampled_from(sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())).flatmap(of)


def spoilt(folder: Path, place: Path, fault: Fault) -> Path:
    """Copy the folder with this fault to `place`."""
    name, data = fault
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    (place / name).unlink()
    if data is not None:
        (place / name).write_bytes(data)
    return place


def swapped(folder: Path, name: Path) -> st.SearchStrategy[bytes]:
    """The bytes of another file of the folder, or for a JSON file the same with a value changed."""
    others = st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())).map(Path.read_bytes)
    if name.suffix != ".json":
        return others
    changed = odd.mutated([json.loads((folder / name).read_text())]).map(lambda v: odd.as_json(v).encode())
    return others | changed | changed


def model_folder(path: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    path.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "eos_token_id": 2}
    names = {"model-1.safetensors": {"a": np.zeros((4, 4))}, "model-2.safetensors": {"b": np.zeros(4)}}
    for name, weights in names.items():
        save_file(weights, path / name)
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name, value in (
        ("config.json", config),
        ("generation_config.json", {"eos_token_id": 2}),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}}),
        ("tokenizer_config.json", {"eos_token": "a", "chat_template": "{{ messages }}"}),
        ("model.safetensors.index.json", index),
    ):
        (path / name).write_text(json.dumps(value))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    adapter = path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": ".."}))
    save_file({"lora_A": np.zeros((4, 4))}, adapter / "adapter_model.safetensors")
    return path


def test_model_folders(explore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = model_folder(tmp_path / "model")

    def check(fault: Fault) -> str:
        place = spoilt(whole, tmp_path / "copy", fault)
        specs = (str(place), str(place / "adapter"))
        ends = [told(partial(ask, spec)) for ask in (capabilities, resolve) for spec in specs]
        return "refused" if "refused" in ends else "taken"

    explore(150, faults(whole, swapped), check)


ARGUMENTS = st.one_of(
    st.tuples(st.just("methods"), odd.texts),
    st.tuples(st.just("methods"), st.just("--room"), odd.texts),
    st.tuples(st.just("show"), odd.texts, odd.texts),
    st.tuples(st.just("show"), st.just("last"), st.just("examples"), st.just("-n"), odd.texts),
    st.tuples(st.just("report"), odd.texts, st.just("--runs-dir"), odd.texts),
    st.tuples(st.just("run"), odd.texts, st.sampled_from(["--seed", "--set", "--map", "--data", "--model"]), odd.texts),
    st.tuples(st.just("run"), st.just("rft"), st.sampled_from(["--seed", "--set", "--map"]), st.just("=[")),
    st.tuples(st.just("init"), odd.texts),
    st.tuples(st.just("check"), odd.texts),
    st.tuples(odd.texts),
    st.tuples(st.just("models"), st.just("rm"), odd.texts),
)


def sayable(arguments: tuple[str, ...]) -> bool:
    """Whether a shell can hand these over: no NUL, and bytes that are not UTF-8 only as Python reads them."""
    try:
        return "\0" not in "".join(arguments) and os.fsencode("".join(arguments)) is not None
    except UnicodeEncodeError:
        return False


def test_command_lines(explore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def check(arguments: tuple[str, ...]) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert ended.value.code in (0, None, 2), (out, err)
        assert ended.value.code != 2 or err.strip()
        return "refused" if ended.value.code else "taken"

    explore(80, ARGUMENTS.filter(sayable), check)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run folder with records of every kind."""
    from report.fixture import parts, write_run

    made = parts()
    kept = {p.id for p in (*made.prompts[:6], *made.prompts[-6:])}
    made.prompts = [p for p in made.prompts if p.id in kept]
    made.completions = [c for c in made.completions if c.prompt_id in kept]
    made.verdicts = [v for v in made.verdicts if v.prompt_id in kept]
    made.examples = [e for e in made.examples if e.prompt_id in kept]
    made.selected = [i for e in made.examples for i in e.sources]
    for side, (completions, verdicts) in made.heldout.items():
        held = [c for c in completions if c.prompt_id in kept]
        made.heldout[side] = (held, [v for v in verdicts if v.prompt_id in kept])
    return write_run(tmp_path_factory.mktemp("run") / "rft-0123", made).path


def test_run_folders(explore: Any, whole_run: Path, tmp_path: Path, capsys: Any) -> None:
    def check(fault: Fault) -> str:
        place = spoilt(whole_run, tmp_path / "copy", fault)
        looks = (render_report, lambda run: print_pool(run, 2), lambda run: print_dropped(run, 2))
        ends = [told(lambda look=look: look(runs.find(str(place), tmp_path))) for look in looks]
        capsys.readouterr()
        return "refused" if "refused" in ends else "taken"

    explore(60, faults(whole_run), check)


@slow
def test_command_lines_in_processes_of_their_own(explore: Any, tmp_path: Path) -> None:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def check(arguments: tuple[str, ...]) -> str:
        command = [sys.executable, "-m", "tamis.cli", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=120)
        assert b"Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode in (0, 2)
        return "refused" if ended.returncode else "taken"

    explore(40, ARGUMENTS.filter(sayable), check)
