import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numpy", "pyarrow", "pydantic", "scipy", "sklearn", "yaml", "rich"}


def tamis(*arguments, cwd=None):
    command = [sys.executable, "-m", "tamis.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ})


def imported(code):
    check = f"{code}\nimport sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_tamis_imports_nothing_heavy():
    assert not HEAVY & imported("import tamis")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tamis', '--help']\nfrom tamis.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    assert not HEAVY - {"rich"} & imported(code)


@pytest.mark.parametrize(
    "command", ["run", "plan", "doctor", "methods", "report", "show", "check", "init", "audit", "models"]
)
def test_every_command_has_help(command):
    done = tamis(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runn"], "run"),
        (["run", "rfft"], "Did you mean 'rft'"),
        (["run", "rft", "--modle", "x"], "--model"),
        (["run", "rft", "--set", "stages.sample.temperature.nn=1"], "Did you mean 'n'"),
        (["run", "rft", "--model", "smollm2-135n"], "smollm2-135m"),
        (["run", "rft", "--data", "none.jsonl"], "none.jsonl"),
        (["run", "rft", "--map", "prompt"], "field=column"),
        (["run", "rft", "--map", "prompt=a,prompt=b"], "twice"),
        (["run", "rft", "--data", ""], "path"),
        (["run", "rft", "--model", ""], "model"),
        (["run", "rft", "--lab", "--set", "name=../../x"], "names the run folder"),
        (["methods", "dartt"], "Did you mean 'dart'"),
        (["methods", "--room", "samplerz"], "Did you mean 'sampler'"),
        (["methods", "rft", "--room", "judge"], "one of the two"),
        (["show", "nothing"], "there is no run"),
        (["report", "nothing"], "there is no run"),
        (["check"], "Known"),
        (["check", "rftt"], "Did you mean 'rft'"),
        (["check", "--row", "777"], "row 777"),
        (["init", "none.jsonl"], "none.jsonl"),
        (["models", "get", "smollm2-135n"], "smollm2-135m"),
    ],
)
def test_a_mistake_ends_with_what_to_do_exit_code_2_and_no_traceback(arguments, says, tmp_path):
    done = tamis(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_current_folder_that_was_removed_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os; os.rmdir(os.getcwd()); from tamis.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "gone")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: the current folder was removed")


def test_methods_lists_every_recipe_and_component(tmp_path):
    listed = tamis("methods", cwd=tmp_path).stdout
    assert all(name in listed for name in ("rft", "dart", "upft", "random", "distinct_reasoning", "accepted_sft"))
    page = tamis("methods", "dart", cwd=tmp_path).stdout
    assert "| k |" in page
    assert "paper" in page


def test_models_list_names_the_default_model(tmp_path):
    assert "smollm2-135m" in tamis("models", "list", cwd=tmp_path).stdout
