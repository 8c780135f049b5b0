"""Runs of a small recipe on the nano model: reuse, invalidation, refusals, and SIGKILL at any moment."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from small import load, small
from tamis import earlier, files, pipeline, registry, stages
from tamis.errors import ModelError, StoreError, TamisError
from tamis.models import keeper
from tamis.models.base import ModelRef
from tamis.models.resolve import resolve
from tamis.records import Completion, Example
from tamis.runs import Run, find

RECIPE = small(checkpoint_every=1)
make = partial(load, RECIPE)


def go(runs_dir, *overrides, fresh=False, **changes):
    events = []
    run = pipeline.run(make(*overrides, **changes), runs_dir=Path(runs_dir), fresh=fresh, listener=events.append)
    return run, {s["kind"]: s["reused"] for s in events if s["event"] == "stage_done"}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A runs folder with one finished run; tests must not change it."""
    place = tmp_path_factory.mktemp("runs")
    return place, go(place)[0]


@pytest.fixture
def runs_dir(first, tmp_path):
    return Path(shutil.copytree(first[0], tmp_path / "runs"))


def test_a_run_leaves_everything_it_promises(first):
    run = first[1]
    assert run.manifest["status"] == "done"
    assert [s["kind"] for s in run.manifest["stages"]] == [
        *("task", "sample", "judge", "select", "compose", "tune", "evaluate_before", "evaluate_after"),
    ]
    assert len(run.completions()) == 96 == len(run.verdicts())
    assert 0 < len(run.examples) <= 48
    (row,) = [r for r in run.metrics["rows"] if r["name"] == "accuracy"]
    assert row["before"]["n"] == row["after"]["n"] == row["difference"]["n"] == 16
    assert (run.path / "report.html").stat().st_size > 5000
    assert (run.model / "adapter_model.safetensors").exists()
    assert all(json.loads(line)["event"] for line in (run.path / "log.jsonl").read_text().splitlines())
    assert find("small", run.path.parent).path == run.path


def test_training_and_heldout_prompts_are_disjoint(first):
    run = first[1]
    sides = {s: {p.text for p in run.prompts() if p.split == s} for s in ("train", "heldout")}
    assert not sides["train"] & sides["heldout"]
    trained = {e.prompt_id for e in run.examples}
    assert trained <= {p.id for p in run.prompts() if p.split == "train"}


def test_every_example_leads_back_to_a_completion_and_its_verdict(first):
    run = first[1]
    known = {c.id for c in run.completions()} | {v.id for v in run.verdicts()}
    assert all(set(e.sources) <= known and len(e.sources) == 2 for e in run.examples)


def test_the_ledger_counts_what_was_spent(first):
    run = first[1]
    stages = {s["kind"]: s for s in run.manifest["stages"]}
    assert stages["sample"]["cost"]["sampled_tokens"] == sum(len(c.token_ids) for c in run.completions())
    trained = sum(sum(w > 0 for w in e.target.weights) for e in run.examples)
    assert stages["tune"]["cost"]["trained_tokens"] == 2 * trained


def test_the_second_run_does_nothing_again(runs_dir):
    files = {p: p.stat().st_mtime_ns for p in runs_dir.rglob("*.parquet")}
    _, reused = go(runs_dir)
    assert all(reused.values())
    assert {p: p.stat().st_mtime_ns for p in runs_dir.rglob("*.parquet")} == files


def test_a_changed_late_stage_reuses_the_early_ones_of_another_run(runs_dir):
    _, reused = go(runs_dir, "stages.tune.lr=0.002")
    assert reused == {
        **dict.fromkeys(("task", "sample", "judge", "select", "compose", "evaluate_before"), True),
        "tune": False,
        "evaluate_after": False,
    }


@pytest.mark.parametrize("override", ["seed=1", "stages.sample.temperature.temperature=0.8"])
def test_a_changed_seed_or_law_samples_again(runs_dir, override):
    assert not go(runs_dir, override)[1]["sample"]


def test_a_changed_component_version_never_meets_an_old_entry(runs_dir, monkeypatch):
    found = registry.get("judge", "answer")
    newer = type(found)(**{**found.__dict__, "version": "next"})
    monkeypatch.setattr(found.cls, "component", newer)
    _, reused = go(runs_dir)
    assert reused["sample"]
    assert not reused["judge"]
    assert not reused["select"]


@pytest.fixture
def nano_copy(tmp_path):
    return Path(shutil.copytree(resolve("nano-sums").folder, tmp_path / "elsewhere" / "nano"))


def test_the_same_model_in_another_folder_is_the_same(runs_dir, nano_copy):
    assert go(runs_dir, model=str(nano_copy))[1]["sample"]


@pytest.mark.parametrize("part", ["weights", "template", "tokenizer"])
def test_a_changed_model_is_another_model(runs_dir, nano_copy, part):
    if part == "weights":
        path = nano_copy / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif part == "template":
        change_template(nano_copy)
    else:
        path = nano_copy / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    assert not go(runs_dir, model=str(nano_copy))[1]["sample"]


def change_template(folder):
    path = folder / "chat_template.jinja"
    if path.exists():
        path.write_text(path.read_text() + "{# changed #}")
        return
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": config["chat_template"] + "{# changed #}"}))


def test_fresh_starts_anew_and_leaves_other_runs_as_they_are(runs_dir):
    first_run = find("small", runs_dir).path
    go(runs_dir, name="twin")
    before = {p: p.read_bytes() for p in first_run.rglob("*") if p.is_file()}
    assert not any(go(runs_dir, name="twin", fresh=True)[1].values())
    assert {p: p.read_bytes() for p in first_run.rglob("*") if p.is_file()} == before


def whole(place):
    """The bytes of every file below a folder."""
    return {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != ".lock"}


def fail(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", ["task", "recipe"])
def test_a_fresh_run_that_makes_nothing_leaves_the_old_one_as_it_was(runs_dir, monkeypatch, at):
    run = find("small", runs_dir).path
    before = whole(run)
    if at == "task":
        monkeypatch.setattr(stages, "load_prompts", fail)
    else:
        monkeypatch.setattr(files, "write_atomic", fail)
    with pytest.raises(StoreError, match="No space left"):
        go(runs_dir, fresh=True)
    after = whole(run)
    log = Path("log.jsonl")
    assert after.pop(log).startswith(before.pop(log))
    assert after == before


def test_a_fresh_run_that_fails_midway_goes_on_as_fresh_and_keeps_the_old_one_until_it_is_done(runs_dir, monkeypatch):
    run = find("small", runs_dir).path
    before = whole(run)
    for _ in range(2):
        with monkeypatch.context() as broken:
            broken.setattr(stages, "judge", fail)
            with pytest.raises(StoreError, match="No space left"):
                go(runs_dir, fresh=True)
        assert whole(run / ".earlier") == before
    _, reused = go(runs_dir)
    assert [kind for kind, taken in reused.items() if taken] == ["task", "sample"]
    assert not (run / ".earlier").exists()


def test_a_fresh_run_killed_while_it_sets_aside_loses_nothing(runs_dir):
    run = find("small", runs_dir).path
    moved = earlier.Earlier(run)
    for path in sorted(run.glob("0*"))[:5]:
        moved.set_aside(path)
    assert all(go(runs_dir)[1].values())
    assert not moved.path.exists()


def test_a_finished_model_is_kept_until_what_replaces_it_is_done(runs_dir, monkeypatch):
    done = find("small", runs_dir)
    place, model = done.model, whole(done.model)
    found = registry.get("judge", "answer")
    events = []
    with monkeypatch.context() as changed:
        changed.setattr(found.cls, "component", type(found)(**{**found.__dict__, "version": "next"}))
        changed.setattr(stages, "tune", fail)
        with pytest.raises(StoreError, match="No space left"):
            pipeline.run(make(), runs_dir=runs_dir, listener=events.append)
    kept = done.path / ".earlier" / place.parent.name / "model"
    assert whole(kept) == model
    assert any(str(kept.parent) in e["text"] for e in events if e["event"] == "note")
    run, reused = go(runs_dir)
    assert all(reused.values())
    assert whole(run.model) == model
    assert not (done.path / ".earlier").exists()


@pytest.mark.parametrize("override", ["checkpoint_every=7", "keep=1", "start=last"])
def test_options_that_change_no_weight_train_nothing_again(runs_dir, override):
    assert all(go(runs_dir, f"stages.tune.{override}")[1].values())


def test_another_embedder_selects_again(runs_dir, monkeypatch):
    def vectors(self, texts):
        return np.array([[len(t) % 3, 1.0] for t in texts], dtype=np.float32)

    monkeypatch.setattr(keeper.Models, "embed", vectors)
    resolved = keeper.Models.resolve
    reused = []
    for identity in ("one", "two", "one"):
        ref = ModelRef("toy", "embedder", identity, ("embedder",))
        monkeypatch.setattr(
            keeper.Models, "resolve", lambda s, n, ref=ref: ref if n == "minilm-l6-v2" else resolved(s, n)
        )
        steps = [*RECIPE["stages"][:2], {"select": {"within_clusters": {"k": 9}}}, *RECIPE["stages"][3:4]]
        reused.append(go(runs_dir, name=f"by-{len(reused)}", stages=steps)[1]["select"])
    assert reused == [False, False, True]


def test_a_selector_that_embeds_is_refused_without_an_embedder(tmp_path):
    steps = [*RECIPE["stages"][:2], {"select": {"within_clusters": {"k": 9}}}]
    with pytest.raises(ModelError, match="needs text embeddings, and the model 'nano-sums'"):
        go(tmp_path, stages=steps, embedder="nano-sums")


def test_the_same_completions_enter_the_pool_once_and_it_is_said(runs_dir, first):
    events = []
    steps = [RECIPE["stages"][0], *RECIPE["stages"]]
    run = pipeline.run(make(stages=steps), runs_dir=runs_dir, listener=events.append)
    assert any(e["event"] == "note" and "96 of 96 completions are in the pool already" in e["text"] for e in events)
    assert [e.to_row() for e in run.examples] == [e.to_row() for e in first[1].examples]


def test_a_second_evaluation_adds_its_figures(tmp_path):
    steps = [{"evaluate": {name: {"max_new_tokens": 8}}} for name in ("accuracy", "maj_at_k")]
    run, _ = go(tmp_path, stages=steps)
    assert {row["evaluator"] for row in run.metrics["rows"]} == {"accuracy", "maj_at_k"}


def test_a_judge_that_fails_in_the_middle_goes_on_from_there_when_it_is_mended(runs_dir, first, monkeypatch):
    monkeypatch.setattr(stages, "ROWS_PER_UNIT", 16)
    cls = registry.get("judge", "answer").cls
    judged, working = [], cls.judge

    def broken(self, prompts, completions, ctx):
        if len(judged) == 2:
            raise ZeroDivisionError("a bug")
        judged.append(len(completions))
        return working(self, prompts, completions, ctx)

    steps = [{"sample": {"temperature": {"n": 4, "temperature": 0.9, "max_new_tokens": 40}}}, RECIPE["stages"][1]]
    shutil.rmtree(next(runs_dir.glob("*/03-judge-*")))
    monkeypatch.setattr(cls, "judge", broken)
    with pytest.raises(ZeroDivisionError):
        go(runs_dir, name="judged", stages=steps)
    assert find("judged", runs_dir).manifest["error"] == "ZeroDivisionError: a bug"
    monkeypatch.setattr(cls, "judge", lambda *a: (judged.append(len(a[2])), working(*a))[1])
    run, _ = go(runs_dir, name="judged", stages=steps)
    assert sum(judged) == 96
    assert [v.to_row() for v in run.verdicts()] == [v.to_row() for v in first[1].verdicts()]


@pytest.mark.parametrize("name", ["model/adapter_model.safetensors", "model/tamis.json", "curve.jsonl"])
@pytest.mark.parametrize("ledger", ["kept", "gone"])
def test_a_damaged_model_is_trained_again_and_is_the_same(runs_dir, first, name, ledger):
    stage = next(runs_dir.glob("*/06-tune-*"))
    (stage / name).write_bytes((stage / name).read_bytes()[:-20])
    if ledger == "gone":
        (stage / "stage.json").unlink()
    run, reused = go(runs_dir)
    assert [kind for kind, whole in reused.items() if not whole] == ["tune"]
    assert fingerprint(run) == fingerprint(first[1])
    assert ("made again" in (run.path / "log.jsonl").read_text()) == (ledger == "kept")


def test_an_adapter_names_its_modules_in_order_so_that_its_identity_is_the_same_in_every_process(first):
    modules = json.loads((first[1].model / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)


def test_a_damaged_shard_is_recomputed_and_the_result_is_the_same(runs_dir, first):
    shard = next(runs_dir.glob("*/02-sample-*/completions/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    run, reused = go(runs_dir)
    assert not reused["sample"]
    assert fingerprint(run) == fingerprint(first[1])


@pytest.mark.parametrize("stage", ["01-task", "02-sample", "03-judge", "05-compose", "07-evaluate", "08-evaluate"])
def test_killed_between_the_last_unit_and_the_end_of_the_stage(runs_dir, first, stage):
    next(runs_dir.glob(f"*/{stage}*/stage.json")).unlink()
    run, _ = go(runs_dir)
    assert fingerprint(run) == fingerprint(first[1])


def test_two_rounds_sample_from_the_model_of_the_round_before(tmp_path):
    run, _ = go(tmp_path, "stages.tune.start=last", loop=2)
    rounds = [s.read(Completion) for s in run.stages("sample")]
    assert len(rounds) == 2
    assert rounds[0][0].model != rounds[1][0].model
    assert len(run.stages("tune")) == 2


def test_what_a_model_cannot_do_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ModelError, match="tune needs weights that can be trained"):
        go(tmp_path, model="http://localhost:9/v1#m")
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused(runs_dir):
    from tamis.files import lock

    run = find("small", runs_dir)
    code = f"""
from pathlib import Path
from tamis.files import lock
with lock(Path({str(run.path)!r})):
    print(1, flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        holder.stdout.readline()
        with pytest.raises(StoreError, match=f"pid {holder.pid}"):
            go(runs_dir)
    finally:
        holder.communicate("\n")
    with lock(run.path):
        pass


def fingerprint(run):
    """Everything a run made that must not depend on interruptions."""
    weights = load_file(run.model / "adapter_model.safetensors")
    return {
        "examples": [e.to_row() for e in run.examples],
        "completions": [c.to_row() for c in run.completions()],
        "verdicts": [v.to_row() for v in run.verdicts()],
        "selected": run.selected(),
        "weights": {name: w.tobytes() for name, w in weights.items()},
        "adapter": (run.model / "adapter_config.json").read_bytes(),
        "heldout": [r.to_row() for side in ("before", "after") for rows in run.heldout(side) for r in rows],
        "metrics": run.metrics,
    }


def test_sigkill_at_any_moment_then_the_same_command_gives_the_unbroken_result(first, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    command = [sys.executable, "-m", "tamis.cli", "run", "recipe.yaml", "--runs-dir", "runs", "--quiet"]
    generator = random.Random(7)
    goals = ("02-sample", "03-judge", "06-tune", "06-tune", "08-evaluate")
    kills = sum(kill_when(command, tmp_path, goal, generator.uniform(0.0, 0.25)) for goal in goals)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kills >= 4
    assert fingerprint(Run(next((tmp_path / "runs").glob("small-*")))) == fingerprint(first[1])


def kill_when(command, cwd, stage, delay):
    """Start the command, wait until a stage's folder is there and `delay` more seconds, kill the process group."""
    process = subprocess.Popen(
        command, cwd=cwd, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(cwd.glob(f"runs/*/{stage}*")):
        time.sleep(0.005)
    time.sleep(delay)
    alive = process.poll() is None
    with_group = os.getpgid(process.pid) if alive else None
    if with_group is not None:
        os.killpg(with_group, signal.SIGKILL)
    process.wait()
    return alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(tmp_path, number):
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    command = [sys.executable, "-m", "tamis.cli", "run", "recipe.yaml", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/*/01-task*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert Run(next(tmp_path.glob("runs/*"))).manifest["error"] == "stopped"
    assert "go on with" in said
    assert "recipe.yaml" in said
    assert "Traceback" not in said


def test_examples_hold_float32_exactly(first):
    for example in first[1].stages("compose")[0].read(Example):
        assert all(np.float32(w) == w for w in example.target.weights)


def test_a_recipe_that_evaluates_stops_before_it_samples_when_nothing_is_held_out(tmp_path):
    with pytest.raises(TamisError, match="no held-out prompt to evaluate on"):
        go(tmp_path, task={"modular_sums": {"size": 8, "heldout": 0}})
    assert not list(tmp_path.glob("*/*sample*"))


def test_a_device_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TamisError, match="the device 'tpu' cannot be used here"):
        go(tmp_path, "engine.device=tpu")
