"""The task "reasoning_gym" and the data sets behind it."""

import ast
import inspect
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

from tamis import gym
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.registry import build
from tamis.tasks import splits

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def load(ctx=None, **options):
    return list(build("task", {"reasoning_gym": {"name": "chain_sum", **options}}).prompts(ctx or Context()))


def test_sizes_are_exact_and_all_questions_differ():
    ctx = Context(seed=3)
    prompts = load(ctx, size=60, heldout=30, options=SMALL)
    assert Counter(p.split for p in prompts) == {"train": 60, "heldout": 30}
    assert len({splits.normalise(p.text) for p in prompts}) == 90
    assert ctx.counts["repeated questions skipped"] > 0
    held = {splits.key(p.text) for p in prompts if p.split == "heldout"}
    assert held == set(sorted(splits.key(p.text) for p in prompts)[:30])


def test_answers_are_right():
    for prompt in load(size=50, heldout=0):
        left, *rest = prompt.metadata["expression"].replace("- ", "-").replace("+ ", "").split()
        assert int(prompt.references[0]) == int(left) + sum(map(int, rest))


def test_nearby_seeds_share_nothing_but_chance():
    """The trap: reasoning-gym draws item i with seed + i, so its own streams for seeds 0 and 1 are the same, shifted."""
    own = [[create_dataset("chain_sum", seed=s, size=50)[i]["question"] for i in range(50)] for s in (0, 1)]
    assert own[0][1:] == own[1][:-1]
    ours = [{p.text for p in load(Context(seed=s), size=40, heldout=10)} for s in (0, 1)]
    assert len(ours[0] & ours[1]) <= 2


def test_a_seed_gives_the_same_prompts_and_a_larger_size_adds_to_them():
    assert load(size=10, heldout=5) == load(size=10, heldout=5)
    assert load(Context(seed=7), size=10, heldout=5) == load(seed=7, size=10, heldout=5)
    assert {p.id for p in load(size=10, heldout=5)} < {p.id for p in load(size=30, heldout=5)}


def test_more_prompts_than_a_block_and_spaces_that_run_out():
    assert len(load(size=gym.BLOCK + 50, heldout=1)) == gym.BLOCK + 51
    with pytest.raises(DataError, match=r"only 200 different questions in \d+ draws, 300 are asked"):
        load(size=250, heldout=50, options=SMALL)


def test_items_can_be_drawn_again_from_the_metadata():
    for prompt in load(size=5, heldout=2, options=SMALL):
        item = gym.entry(prompt.metadata)
        assert (item["question"], item["answer"]) == (prompt.text, prompt.references[0])


def test_template_and_system():
    prompt = load(size=1, heldout=0, template="{question}\nAnswer:", system="Be brief.")[0]
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.text.endswith("=\nAnswer:")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "chain_sums"}, "Did you mean 'chain_sum'"),
        ({"options": {"min_term": 2}}, "Did you mean 'min_terms'"),
        ({"options": {"min_terms": 50}}, "options are refused: max_terms must be >= min_terms"),
        ({"options": {"seed": 3}}, "which the task sets"),
        ({"template": "Question"}, "lacks {question}"),
        ({"name": "composite"}, "mixes other data sets"),
        ({"name": "codeio"}, "from run to run"),
        ({"size": 0}, "size"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(ConfigError, match=told):
        load(**options)


def test_scorers_that_evaluate_text_are_all_known():
    """Every scorer whose module calls eval, exec or SymPy's parser is listed, or uses it on its own data only."""
    on_own_data = {"bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
    found = set()
    for name, (cls, _) in DATASETS.items():
        if cls.score_answer is ProceduralDataset.score_answer:
            continue
        tree = ast.parse(inspect.getsource(inspect.getmodule(cls.score_answer)))
        called = {getattr(c.func, "id", getattr(c.func, "attr", "")) for c in ast.walk(tree) if isinstance(c, ast.Call)}
        if called & {"eval", "exec", "parse_expr", "sympify", "S"}:
            found.add(name)
    assert found - on_own_data == gym.EVALUATING_SCORERS


@pytest.mark.parametrize(
    "name", ["knights_knaves", "word_sorting", "mini_sudoku", "rectangle_count", "gsm_symbolic", "acre"]
)
def test_many_kinds_of_data_sets(name):
    prompts = load(name=name, size=2, heldout=1)
    assert len(prompts) == 3
    if gym.has_scorer(name):
        assert all(gym.is_right([p.references[0]], p.metadata) for p in prompts)


def test_unusable_scorers_are_refused():
    origin = load(name="countdown", size=1, heldout=0)[0].metadata
    assert origin["scorer"] == "gold"
    with pytest.raises(ConfigError, match="run the answer as code"):
        gym.is_right(["1+1"], origin)
    with pytest.raises(ConfigError, match="compares with the gold text"):
        gym.is_right(["1"], {"dataset": "gcd"})


CODE = """
import json
from tamis.context import Context
from tamis.registry import build
for name in ("list_functions", "ransom_note"):
    task = build("task", {"reasoning_gym": {"name": name, "size": 3, "heldout": 2}})
    print(json.dumps([p.id for p in task.prompts(Context())]))
"""


def test_other_processes_draw_the_same_or_say_what_they_need():
    """list_functions uses the global generator, ransom_note the order of sets."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    functions, notes = map(json.loads, done.stdout.splitlines())
    assert functions == [p.id for p in load(name="list_functions", size=3, heldout=2)]
    assert len(notes) == 5
    if sys.flags.hash_randomization:
        with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
            load(name="ransom_note")
