import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest

from tamis import files, store
from tamis.errors import StoreError
from tamis.hashing import file_digest
from tamis.records import Cost, Message, Prompt


def prompts(n, start=0):
    return [Prompt(messages=(Message("user", f"{i}"),)) for i in range(start, start + n)]


@pytest.fixture
def stage(tmp_path):
    folder = store.StageFolder(tmp_path / "run" / "01-task-abc", "abc" * 10)
    folder.path.mkdir(parents=True)
    return folder


def write(stage, index, records):
    stage.write_unit("u", index, store.Unit({"prompts": records}, Cost(prompt_tokens=len(records))), 1.5)


def test_units_come_back_in_order_and_sum_into_the_stage(stage):
    write(stage, 1, prompts(2, 3))
    write(stage, 0, prompts(3))
    assert [p.text for p in stage.read(Prompt)] == ["0", "1", "2", "3", "4"]
    assert not stage.done
    info = stage.finish({"kind": "task"})
    assert stage.done
    assert stage.whole()
    assert info["cost"]["prompt_tokens"] == 5
    assert info["seconds"] == 3.0


def test_another_key_is_not_this_stage(stage):
    stage.finish({})
    assert not store.StageFolder(stage.path, "other").done


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_shard_is_set_aside_and_its_unit_is_undone(stage, damage):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    shard = stage.path / "prompts" / "u-00001.parquet"
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data[:-7] if damage == "cut" else data[:50] + bytes([data[50] ^ 1]) + data[51:])
    assert not stage.whole()
    assert stage.mend() == [stage.unit_path("u", 1), shard]
    assert not stage.done
    assert stage.unit_done("u", 0)
    assert not stage.unit_done("u", 1)
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    assert stage.whole()


def test_a_changed_extra_file_makes_the_stage_not_whole(stage):
    (stage.path / "selection.json").write_text("[]")
    stage.finish({}, [stage.path / "selection.json"])
    assert stage.whole()
    (stage.path / "selection.json").write_text("[1]")
    assert not stage.whole()


def test_a_finished_stage_of_another_run_is_linked(tmp_path, stage):
    write(stage, 0, prompts(3))
    stage.finish({})
    target = store.StageFolder(tmp_path / "other" / f"04-task-{stage.key[:12]}", stage.key)
    target.path.parent.mkdir()
    os.rename(stage.path, stage.path.with_name(f"01-task-{stage.key[:12]}"))
    assert store.adopt([tmp_path / "run"], target)
    assert target.whole()
    assert len(target.read(Prompt)) == 3


def test_finished_units_of_an_unfinished_stage_are_linked(tmp_path, stage):
    write(stage, 0, prompts(3))
    os.rename(stage.path, stage.path.with_name(f"01-task-{stage.key[:12]}"))
    target = store.StageFolder(tmp_path / "other" / f"01-task-{stage.key[:12]}", stage.key)
    target.path.parent.mkdir()
    assert not store.adopt([tmp_path / "run"], target)
    assert target.unit_done("u", 0)
    assert not target.done


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"v": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        files.write_json(path, {"v": 2})
    assert json.loads(path.read_text()) == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(StoreError, match=r"m\.json"):
        files.read_json(tmp_path / "m.json")


HOLD = """
import sys, time
from pathlib import Path
from tamis.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_kill_releases(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"pid {holder.pid}"), files.lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with files.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_log_is_one_json_object_a_line_and_progress_is_not_logged(tmp_path):
    heard = []
    log = store.EventLog(tmp_path / "log.jsonl", heard.append)
    log("note", text="a\nb")
    log("progress", done=1)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a\nb"]
    assert [e["event"] for e in heard] == ["note", "progress"]


def test_reading_does_not_depend_on_the_clock(stage):
    write(stage, 0, prompts(1))
    stage.finish({})
    past = time.time() - 10**8
    for path in stage.path.rglob("*"):
        os.utime(path, (past, past))
    assert stage.whole()


@pytest.mark.parametrize("name", ["stage.json", "units/u-00001.json"])
@pytest.mark.parametrize("text", ['{"files": {"a": "', "{}", "[]", ""])
def test_a_damaged_ledger_undoes_what_it_is_the_ledger_of_and_no_more(stage, name, text):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    (stage.path / name).write_text(text)
    assert stage.mend()
    assert not stage.done
    assert stage.unit_done("u", 0)
    assert stage.unit_done("u", 1) == (name == "stage.json")


@pytest.mark.parametrize("gone", ["units/u-00001.json", "both"])
def test_a_unit_that_vanished_is_missed(stage, gone):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    stage.unit_path("u", 1).unlink()
    if gone == "both":
        (stage.path / "prompts" / "u-00001.parquet").unlink()
    assert not stage.whole()


def test_a_shard_that_came_to_the_disk_otherwise_than_it_was_written_is_missed(stage, monkeypatch):
    monkeypatch.setattr(store, "write_atomic", lambda path, data: files.write_atomic(path, data[:-7]))
    write(stage, 0, prompts(3))
    stage.finish({})
    assert stage.mend() == [stage.unit_path("u", 0), stage.path / "prompts" / "u-00000.parquet"]


def test_an_edited_unit_is_not_believed(stage):
    write(stage, 0, prompts(3))
    stage.finish({})
    path = stage.unit_path("u", 0)
    path.write_text(path.read_text().replace('"prompt_tokens": 3', '"prompt_tokens": 4'))
    assert stage.mend() == [path]


def two_runs(tmp_path, stage):
    """Return `stage` renamed as stages of runs are, and a place for it in another run."""
    place = stage.path.with_name(f"01-task-{stage.key[:12]}")
    os.rename(stage.path, place)
    target = store.StageFolder(tmp_path / "other" / place.name, stage.key)
    target.path.parent.mkdir()
    return store.StageFolder(place, stage.key), target


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("finished", [True, False])
def test_no_file_is_hashed_twice_to_see_that_a_stage_is_whole_or_to_adopt_it(tmp_path, stage, monkeypatch, finished):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    if finished:
        stage.finish({})
    source, target = two_runs(tmp_path, stage)
    hashed = []
    monkeypatch.setattr(store, "file_digest", lambda path: hashed.append(path.name) or file_digest(path))
    assert source.mend() == []
    assert sorted(hashed) == sorted(set(hashed))
    before, hashed[:] = sorted(hashed), []
    assert before
    assert store.adopt([tmp_path / "run"], target) == finished
    assert sorted(hashed) == before


def test_damage_in_another_run_is_neither_adopted_nor_touched(tmp_path, stage):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    source, target = two_runs(tmp_path, stage)
    (source.path / "prompts" / "u-00001.parquet").write_bytes(b"damaged")
    before = contents(source.path)
    assert not store.adopt([tmp_path / "run"], target)
    assert not target.done
    assert [target.unit_done("u", i) for i in (0, 1)] == [True, False]
    write(target, 1, prompts(3, 3))
    target.finish({})
    assert target.whole()
    assert contents(source.path) == before


def test_a_finished_stage_of_another_run_replaces_an_unfinished_one(tmp_path, stage):
    write(stage, 0, prompts(3))
    write(stage, 1, prompts(3, 3))
    stage.finish({})
    _, target = two_runs(tmp_path, stage)
    target.path.mkdir()
    write(target, 0, prompts(3))
    assert store.adopt([tmp_path / "run", tmp_path / "other"], target)
    assert len(target.read(Prompt)) == 6
    assert target.whole()


def test_a_run_that_changes_while_it_is_read_is_passed_over(tmp_path, stage, monkeypatch):
    write(stage, 0, prompts(3))
    _, target = two_runs(tmp_path, stage)

    def vanish(source, copy):
        os.unlink(source)
        raise FileNotFoundError(source)

    monkeypatch.setattr(store, "_link", vanish)
    assert not store.adopt([tmp_path / "run"], target)
    assert list(target.path.parent.iterdir()) == []


def test_a_torn_last_line_of_the_log_is_cut_off(tmp_path):
    log = store.EventLog(tmp_path / "log.jsonl", lambda _: None)
    log("note", text="a" * 5000)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": "2026", "ev')
    log("note", text="b")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a" * 5000, "b"]


def test_what_a_kill_left_half_written_is_swept(tmp_path):
    (tmp_path / "01-task" / ".tmp-a").mkdir(parents=True)
    (tmp_path / "01-task" / ".tmp-a" / ".tmp-b").write_text("")
    (tmp_path / "01-task" / "kept.json").write_text("{}")
    store.sweep(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["01-task", "kept.json"]


def test_what_the_system_refuses_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"(?s)Not a directory.*in its place"), files.explained(tmp_path):
        (tmp_path / "file" / "folder").mkdir()


def test_only_what_a_finished_unit_names_is_read(stage):
    write(stage, 0, prompts(3))
    shard = stage.path / "prompts" / "u-00000.parquet"
    for name in ("u-00001.parquet", "u-00000 (copy).parquet"):
        (shard.parent / name).write_bytes(shard.read_bytes())
    assert len(stage.read(Prompt)) == 3


def test_a_unit_that_is_missing_before_another_is_an_error_and_no_shorter_result(stage):
    for index in range(3):
        write(stage, index, prompts(2, 2 * index))
    stage.unit_path("u", 1).unlink()
    with pytest.raises(StoreError, match=r"u-00001\.json: is missing"):
        stage.read(Prompt)


def test_more_units_than_five_digits_stay_in_order(stage):
    (stage.path / "units").mkdir()
    for index in (99_999, 100_000, 7):
        stage.unit_path("u", index).write_text("{}")
    assert [index for _, index, _ in stage._unit_paths("u")] == [7, 99_999, 100_000]


def test_an_edit_of_an_unfinished_stage_is_seen(stage):
    write(stage, 0, prompts(3))
    path = stage.unit_path("u", 0)
    path.write_text(path.read_text().replace('"prompt_tokens": 3', '"prompt_tokens": 4'))
    assert not stage.unit_done("u", 0)
    assert stage.mend() == [path]


def test_a_stage_tells_all_versions_its_units_were_made_with(stage, monkeypatch):
    found = store.environment.versions()
    for index, torch in enumerate(("2.0", "2.1")):
        monkeypatch.setattr(store.environment, "versions", lambda torch=torch: found | {"torch": torch})
        write(stage, index, prompts(1, index))
    assert stage.finish({})["versions"]["torch"] == ["2.0", "2.1"]
    monkeypatch.undo()
    other = store.environment.others(stage.versions())
    assert other == "torch 2.0, torch 2.1"


def test_a_held_folder_that_is_removed_is_noticed(tmp_path):
    with files.lock(tmp_path / "run") as still_there:
        still_there()
        (tmp_path / "run" / ".lock").unlink()
        (tmp_path / "run").rmdir()
        (tmp_path / "run").mkdir()
        with pytest.raises(StoreError, match="removed while the run worked"):
            still_there()


def test_what_a_library_in_another_language_says_of_the_system_is_explained(tmp_path):
    with pytest.raises(StoreError, match=r"(?s)No space left on device.*Free space"), files.explained(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="a bug"), files.explained(tmp_path):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("old", [False, True])
def test_the_ledger_of_one_unit_under_the_name_of_another_counts_once(stage, old):
    write(stage, 0, prompts(3))
    first, second = stage.unit_path("u", 0), stage.unit_path("u", 1)
    ledger = store.unsealed(first)
    assert ledger.pop("unit") == "u-00000"
    if old:
        first.write_text(json.dumps(store.sealed(ledger)))
    shutil.copy(first, second)
    assert stage.unit_done("u", 0)
    assert not stage.unit_done("u", 1)
    with pytest.raises(StoreError, match="another unit"):
        stage.read(Prompt)
    assert stage.mend() == [second]
    assert stage.read(Prompt) == prompts(3)


def test_a_unit_without_shards_is_not_taken_for_another(stage):
    stage.write_unit("u", 0, store.Unit({}, counts=Counter(seen=1)), 0.0)
    shutil.copy(stage.unit_path("u", 0), stage.unit_path("u", 1))
    assert stage.mend() == [stage.unit_path("u", 1)]
