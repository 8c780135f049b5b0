"""Which checks there are, and what is said of a check file that is half written."""

import pytest

import tamis.checks
from tamis.checks import harness
from tamis.errors import ConfigError, StoreError


def test_a_half_written_check_file_is_named_and_the_others_can_be_used(tmp_path, monkeypatch):
    (tmp_path / "c998_half.py").write_text("NAME = 'half'\n")
    (tmp_path / "c999_no_python.py").write_text("def world(:\n")
    monkeypatch.setattr(tamis.checks, "__path__", [*tamis.checks.__path__, str(tmp_path)])
    checks, broken = harness.known()
    assert [check.row for check in checks] == sorted(check.row for check in checks)
    assert [text.split(" cannot be used: ")[0] for text in broken] == [
        "The check file c998_half.py",
        "The check file c999_no_python.py",
    ]
    assert [check.name for check in harness.choose(["rft"], [26], False)] == ["rft", "auto-rubric"]
    for names, rows, every in ((["half"], [], False), ([], [998], False), ([], [], True)):
        with pytest.raises(ConfigError, match="ROW") as refused:
            harness.choose(names, rows, every)
        assert "c998_half.py" in str(refused.value)


def test_what_is_not_there_is_refused():
    checks, broken = harness.known()
    assert broken == []
    assert harness.choose([], [], True) == checks
    for names, rows, said in (
        (["rtf"], [], "no check 'rtf'"),
        ([], [9999], "row 9999"),
        ([], [], "name what to check"),
    ):
        with pytest.raises(ConfigError, match=said):
            harness.choose(names, rows, False)


def test_where_results_go_is_tried_before_a_check_runs(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    (check,) = harness.choose(["rft"], [], False)
    with pytest.raises(StoreError, match="taken"):
        harness.run_and_print(check, taken)
