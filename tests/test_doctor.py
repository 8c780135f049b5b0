"""What `tamis doctor` says of this machine, and of machines where something is missing."""

import json
import os
import subprocess
import sys

import pytest

from tamis import doctor, environment
from tamis.models import catalog
from tamis.report.health import print_findings


def run(*arguments, **environ):
    command = [sys.executable, "-m", "tamis.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ})


def of(findings, what):
    return next(f for f in findings if f.what == what)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "cache"))
    return tmp_path / "runs"


def test_this_machine_can_run_the_default_recipe_and_every_fix_is_said(here):
    findings = doctor.examine(here)
    assert not [f for f in findings if f.state == "missing"]
    assert all(f.fix for f in findings if f.state != "ok")
    assert {"machine", "device", "package", "engine", "method", "model", "disk", "endpoint"} <= {
        f.area for f in findings
    }
    assert not here.exists()


def test_a_model_that_is_not_cached_comes_with_the_command_that_fetches_it(here):
    found = of(doctor.examine(here), "smollm2-135m")
    assert (found.state, found.fix) == ("note", "tamis models get smollm2-135m")
    assert "within_clusters" in of(doctor.examine(here), "embedder").said


def test_a_cache_that_cannot_be_read_is_a_finding(here, monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", "/cache/models")

    monkeypatch.setattr(catalog, "list_models", refuse)
    found = of(doctor.examine(here), "cache")
    assert (found.state, found.said) == ("missing", "/cache/models: Permission denied")
    assert "TAMIS_HOME" in found.fix


def test_the_key_is_never_shown(here, tmp_path):
    done = run("--runs-dir", str(here), "--json", TAMIS_API_KEY="sk-secret-1234")
    assert "sk-secret" not in done.stdout + done.stderr
    assert "a key is set in TAMIS_API_KEY" in done.stdout
    assert done.returncode == 0
    assert json.loads(done.stdout)["healthy"]


def test_nothing_heavy_is_imported_and_no_network_asked():
    code = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from tamis.doctor import examine\nexamine()\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_missing_or_old_package_is_told_with_its_fix_and_exit_code_1(here, monkeypatch, capsys):
    versions = {"peft": "", "numpy": "1.0"}
    real = environment.version
    monkeypatch.setattr(environment, "version", lambda name: versions.get(name, real(name)))
    findings = doctor.examine(here)
    assert of(findings, "peft").fix.startswith("pip install 'peft")
    assert "tamis needs numpy" in of(findings, "numpy").said
    assert {f.what for f in findings if f.state == "missing"} == {"peft", "numpy"}
    print_findings(findings)
    said = capsys.readouterr().out
    assert "MISSING" in said
    assert "cannot run yet" in said


def test_it_can_say_what_is_missing_without_it():
    code = (
        "import importlib.metadata as m, sys\n"
        "absent, real = ('numpy', 'pyarrow', 'psutil', 'httpx'), m.version\n"
        "sys.modules |= dict.fromkeys(absent)\n"
        "def version(name):\n"
        "    if name in absent: raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from tamis.doctor import examine\n"
        "print(*sorted(f.what for f in examine(online=True) if f.state == 'missing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["httpx", "numpy", "psutil", "pyarrow"], done.stderr


def test_folders_that_cannot_be_written_and_full_disks_are_told(here, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = doctor._place("runs folder", blocked / "runs", "elsewhere")
    assert (found.state, found.fix) == ("missing", "elsewhere")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: doctor.shutil._ntuple_diskusage(10**9, 10**9, 5))
    assert doctor._place("cache", tmp_path, "elsewhere").state == "missing"


def test_limits_of_a_container_count_not_what_the_machine_has(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(environment, "PROC", tmp_path)
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    assert doctor.cores_allowed() == 0.5
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    found = list(doctor._machine())
    assert of(found, "threads").fix == "export OMP_NUM_THREADS=1"
    assert "may use 1.0 GB" in of(found, "memory").said
    monkeypatch.setenv("OMP_NUM_THREADS", "²")
    assert all(finding.what != "threads" for finding in doctor._machine())


def test_a_tool_that_prints_no_text_is_no_gpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '\\377\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._nvidia() == []


def test_a_gpu_beside_a_build_of_torch_for_the_cpu_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_nvidia", lambda: ["H100, 81559 MiB (80000 MiB free)"])
    monkeypatch.setattr(environment, "version", lambda _: "2.13.0+cpu")
    (found,) = doctor._devices()
    assert found.state == "note"
    assert found.fix
