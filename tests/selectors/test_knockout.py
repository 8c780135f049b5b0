"""The knockout: who meets whom, what ties do, how often the judge is asked, and the closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.context import Context
from tamis.errors import ConfigError, ModelError
from tamis.lab.judges import TwoLabelJudge
from tamis.pool import Pool
from tamis.records import Completion, Message, Prompt, Turn, Verdict
from tamis.registry import build
from tamis.selectors.knockout import Bracket, knockout

TRUTH = {"right": (True, False), "both": (True, True), "none": (False, False), "unread": None}


def alone(n):
    return [None] * n


def play(teams, judge, seed=0, tie="random"):
    asked = []

    def recorded(matches):
        asked.append(matches)
        return [judge(m.first, m.second) for m in matches]

    (bracket,) = knockout([teams], recorded, [np.random.default_rng(seed)], tie)
    return bracket, asked


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_a_true_judge_finds_the_only_right_one_among_any_number(n, seed):
    right = seed % n
    bracket, _ = play(alone(n), lambda a, b: (a == right, b == right), seed)
    assert bracket.winner() == right
    assert bracket.calls == n - 1
    assert len(bracket.rounds) == int(np.ceil(np.log2(n)))


@given(
    st.lists(st.sampled_from([None, "x", "y", "z"]), min_size=1, max_size=20),
    st.sampled_from(["random", "first", "drop_both"]),
    st.integers(0, 10_000),
)
def test_a_team_never_meets_itself_and_somebody_is_left(teams, tie, seed):
    rng = np.random.default_rng(seed)
    outcomes = [None, (True, True), (False, False), (True, False), (False, True)]

    def judge(a, b):
        assert a != b
        assert teams[a] is None or teams[a] != teams[b]
        return outcomes[rng.integers(5)]

    bracket, _ = play(teams, judge, seed, tie)
    assert bracket.survivors
    assert bracket.winner() in bracket.survivors
    assert bracket.calls <= len(teams) - 1
    left = [teams[i] for i in bracket.survivors]
    assert len(left) == 1 or (len(set(left)) == 1 and left[0] is not None)


def test_one_candidate_and_one_team_need_no_judge():
    for teams in (alone(1), ["7"] * 5):
        bracket, asked = play(teams, lambda a, b: pytest.fail("asked"))
        assert (bracket.calls, asked) == (0, [])


@pytest.mark.parametrize("outcome", [None, (True, True), (False, False)])
def test_ties_are_settled_by_chance_whatever_the_slot(outcome):
    wins = np.zeros(2)
    shown_first = np.zeros(2)
    for seed in range(2000):
        bracket, asked = play(alone(2), lambda a, b: outcome, seed)
        wins[bracket.winner()] += 1
        shown_first[asked[0][0].first] += 1
        assert (bracket.ties, bracket.malformed) == (1, int(outcome is None))
    assert abs(wins[0] - 1000) < 4 * np.sqrt(500)
    assert abs(shown_first[0] - 1000) < 4 * np.sqrt(500)


def test_ties_by_slot_and_by_dropping_both():
    bracket, asked = play(alone(2), lambda a, b: (True, True), 3, "first")
    assert bracket.winner() == asked[0][0].first
    for seed in range(50):
        bracket, _ = play(alone(4), lambda a, b: (False, False), seed, "drop_both")
        assert len(bracket.survivors) == 1
        assert bracket.calls == 2
    kept, _ = play(alone(3), lambda a, b: (False, False), 0, "drop_both")
    assert kept.byes == 1
    assert kept.calls == 1


def test_all_rounds_of_all_prompts_are_asked_together():
    calls = []

    def judge(matches):
        calls.append({m.bracket for m in matches})
        return [(True, False)] * len(matches)

    rngs = [np.random.default_rng(i) for i in range(3)]
    brackets = knockout([alone(8), alone(3), alone(1)], judge, rngs)
    assert calls == [{0, 1}, {0, 1}, {0}]
    assert [b.calls for b in brackets] == [7, 2, 0]


def test_what_is_no_verdict_and_no_candidate_is_refused():
    for wrong in ("A", (True,), (1, 0), (None, True)):
        with pytest.raises(ValueError, match="two truth values or None"):
            play(alone(2), lambda a, b, wrong=wrong: wrong)
    with pytest.raises(ValueError, match="at least one candidate"):
        Bracket([], np.random.default_rng(0))


def test_the_closed_form_of_one_right_in_sixteen():
    rng = np.random.default_rng(5)

    def judge(matches):
        slips = rng.random((len(matches), 2)) < 0.2
        return [
            (bool((m.first == 3) != a), bool((m.second == 3) != b)) for m, (a, b) in zip(matches, slips, strict=True)
        ]

    n = 4000
    brackets = knockout([alone(16)] * n, judge, [np.random.default_rng([9, i]) for i in range(n)])
    share = np.mean([b.winner() == 3 for b in brackets])
    assert abs(share - 0.8**4) < 4 * np.sqrt(0.41 * 0.59 / n)


def made(answers, number=0):
    prompt = Prompt((Message("user", f"question {number}?"),), ("7",))
    return prompt, [
        Completion(prompt.id, (Turn("assistant", f"try {i}\nThe answer is {a}."),), index=i)
        for i, a in enumerate(answers)
    ]


def pool_of(*groups):
    return Pool({p.id: p for p, _ in groups}, [c for _, group in groups for c in group])


def selected(pool, judge, seed=0, **options):
    ctx = Context(seed=seed)
    ctx.compare = lambda pairs: judge.compare(pairs, Context(seed=seed))
    found = build("selector", {"knockout": options}).select(pool, ctx)
    return [pool.completions[i].text for i in found.indices], ctx, found


RIGHT = TwoLabelJudge(lambda prompt, completion: completion.text.endswith(" 7."))


def test_one_winner_of_each_prompt_and_what_was_counted():
    pool = pool_of(made([1, 7, 2, "7.0", 3]), made([4, 4, 4], 1))
    texts, ctx, found = selected(pool, RIGHT)
    assert texts[0].endswith((" 7.", " 7.0."))
    assert texts[1].endswith(" 4.")
    assert ctx.counts["prompts settled without a match"] == 1
    assert 0 < ctx.counts["matches judged"] <= 4
    assert found.notes["rounds"] >= 2


def test_the_order_of_sampling_changes_nothing():
    prompt, done = made(list(range(9)))
    judge = TwoLabelJudge(lambda p, c: False, false_positives=0.5)
    runs = {selected(pool_of((prompt, order)), judge)[0][0] for order in (done, done[::-1], done[4:] + done[:4])}
    assert len(runs) == 1
    winners = {selected(pool_of((prompt, done)), judge, seed=s)[0][0] for s in range(60)}
    assert len(winners) == 9


def test_faults_are_counted_and_never_win():
    pool = pool_of(made([1, 7]))
    _, ctx, _ = selected(pool, TwoLabelJudge(lambda p, c: True, unparseable=1.0))
    assert ctx.counts["matches without a readable verdict"] == ctx.counts["matches tied"] == 1


def test_answers_are_teams_only_where_asked():
    same = pool_of(made([7, 7, 7]))
    _, ctx, _ = selected(same, RIGHT, kind=None)
    assert ctx.counts["matches judged"] == 2
    with pytest.raises(ConfigError, match="regex"):
        build("selector", {"knockout": {"kind": "regex"}})


def test_letters_of_a_choice_are_teams():
    prompt = Prompt((Message("user", "Which?\nA. red\nB. blue"),))
    texts = ("The answer is A. red", "The answer is (A)", "The answer is A")
    pool = pool_of((prompt, [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts)]))
    _, ctx, _ = selected(pool, RIGHT, kind="choice")
    assert ctx.counts["matches judged"] == 0


def test_a_missing_a_failing_and_a_confused_judge_are_named():
    pool = pool_of(made([1, 7]))
    with pytest.raises(ConfigError, match="needs a judge"):
        build("selector", "knockout").select(pool, Context())

    class Failing:
        def compare(self, pairs, ctx):
            raise RuntimeError("no connection")

    with pytest.raises(ModelError, match="no connection") as error:
        selected(pool, Failing())
    assert all(c.id in error.value.where for c in pool.completions)

    class Confused:
        def __init__(self, *ids):
            self.ids = ids

        def compare(self, pairs, ctx):
            return [Verdict(p.prompt.id, ids, "confused", label="A") for p in pairs for ids in self.ids]

    for confused in (Confused(), Confused(("x", "y"))):
        with pytest.raises(ModelError, match="did not answer about the pairs"):
            selected(pool, confused)
