"""SIGKILL at many moments of the demo recipe's lab twin, over all stages; `tests/tools/kills.py` prints the same as a table."""

import pytest

from tools.kills import measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("rounds", "kills"), [(1, 40), (2, 20)])
def test_killed_and_started_again_a_run_gives_the_unbroken_result(tmp_path, rounds, kills):
    rows = list(measure(["rft", "--lab", "--set", f"loop={rounds}"], tmp_path.resolve(), kills, chain=4, seed=rounds))
    assert len(rows) >= 0.9 * kills
    assert [row for row in rows if row["differing"]] == []
    assert [row for row in rows if row["touched"]] == []
    assert max(row["steps"] for row in rows) < 50
    assert {row["stage"].partition("-")[2] for row in rows} >= {"task", "sample", "judge", "select", "compose", "tune"}
