import numpy as np
import pytest

from tamis.checks import c106_mosaic as check
from tamis.checks.harness import Table
from tamis.checks.sums import local
from tamis.lab import nano


@pytest.fixture(scope="module")
def outcomes():
    w = check.World(5, size=60, drawn=600)
    trained = {"score": np.ones(4), "several under a rule": np.zeros(4), "steps": 2.0}
    arms = dict.fromkeys(check.ARMS, trained)
    return {**arms, "packing": check.packing(w), "draws": check.draws(w)}


def test_rows_follow_the_sheet():
    data = check.rows(np.random.default_rng(0), 500)
    sizes = [len(row.instruction) + len(row.response) for row in data]
    assert 20 <= min(sizes) < max(sizes) <= 60
    assert all(check.INSTRUCTION.fullmatch(row.instruction) for row in data)
    assert len({row.instruction for row in data}) == 500


def test_the_exact_parts_hold_on_a_small_world(outcomes):
    assert outcomes["packing"]["rule obeyed"].all()
    assert outcomes["packing"]["inverse"].all()
    assert outcomes["packing"]["read back"].all()
    assert outcomes["packing"]["each row once a pass"] == 1
    assert all(
        outcomes["draws"][name] <= 4 for name in ("sizes", "strategies", "orders", "masks", "no numbers", "marks")
    )


def test_gates_fail_where_something_is_off(outcomes):
    def held(**changed):
        cells = {5: {**outcomes, "packing": {**outcomes["packing"], "examples a pass": check.ROWS / 5.5, **changed}}}
        return [f.holds for f in check.verdict(Table(cells, row=106)) if f.kind == "gate"]

    assert all(held())
    assert held(**{"examples a pass": 1.07 * check.ROWS / 5.5}).count(False) == 1
    assert held(**{"rule obeyed": np.array([1.0, 0.0])}).count(False) == 1


def test_skills_are_right_where_their_solutions_are():
    skills = check.Skills(3, size=20, heldout=10)
    problems, solutions = skills.batch(np.random.default_rng(0), 50)
    assert all(map(skills.all_steps_right, problems, solutions))
    assert not skills.all_steps_right("reverse abc", "abc")
    asked, right = skills.several()
    assert all(map(len, asked))
    assert len(skills.pool()) == 20
    module, tokenizer = nano.nano_module(skills.alphabet, layers=1, width=16)
    found = skills.measured(local(module, tokenizer, "nothing"))
    assert found["score"].shape == found["several under a rule"].shape == (10,)
    assert max(map(len, right)) < 160


def test_arms_tune_on_mosaics_and_on_the_rows_themselves():
    w = check.World(3, size=20)
    w.skills = check.Skills(3, size=12, heldout=4)
    module, tokenizer = nano.nano_module(w.skills.alphabet, layers=1, width=16)
    w.skills.__dict__["base"] = local(module, tokenizer, "untrained")
    found = {name: check.ARMS[name](w) for name in ("base", "ordinary", "mosaic", "mosaic, format alone")}
    assert found["ordinary"]["steps"] == 4
    assert 1 <= found["mosaic"]["steps"] < 4
    assert all(f["score"].shape == (4,) for f in found.values())
