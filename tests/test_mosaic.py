"""Data mosaics: rules, packing, texts and their inverse, against brute force and a reader of the words alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tamis import hashing
from tamis.checks.c106_mosaic import asked_for, obeys, rows
from tamis.errors import ConfigError, DataError
from tamis.mosaic import MASKS, ORDERS, Packing, Row, Rule, Wordings, draw_size, parse_output, write_mosaic
from tamis.mosaic.packing import row_ids
from tamis.mosaic.wordings import MARK_BRACKETS, MARK_WORDS, MARKED, ORDER, PLAIN, SEPARATORS, SEQUENCE_TAGS, TAGS

filled = st.text("ab1. \n[](){}<>#:", min_size=1, max_size=12).filter(str.strip)
instructions = st.lists(st.text("aBc d", min_size=1, max_size=9).filter(str.strip), min_size=2, max_size=11)
seeds = st.integers(0, 10**6)


def characters(texts):
    return np.array([len(text) for text in texts])


def packed(data, **options):
    skipped = []
    made = list(Packing(**options).mosaics(data, characters, lambda row, part: skipped.append((row, part))))
    return made, skipped


@given(instructions, seeds)
def test_orders_are_permutations_sorted_by_what_they_say(texts, seed):
    n = len(texts)
    for name, order in ORDERS.items():
        assert sorted(order(texts, hashing.rng(seed))) == list(range(n)), name
    found = {name: order(texts, hashing.rng(seed)) for name, order in ORDERS.items()}
    assert found["reverse"] == list(range(n - 1, -1, -1))
    assert [i + 1 for i in found["odd_first"]] == [*range(1, n + 1, 2), *range(2, n + 1, 2)]
    assert [i + 1 for i in found["even_first"]] == [*range(2, n + 1, 2), *range(1, n + 1, 2)]
    keys = {"alphabetical": str.lower, "words": lambda t: len(t.split()), "characters": len}
    for name, key, sign in (
        ("alphabetical", "alphabetical", 1),
        ("reverse_alphabetical", "alphabetical", -1),
        *(
            (f"{most}_{what}", what, sign)
            for what in ("words", "characters")
            for most, sign in (("fewest", 1), ("most", -1))
        ),
    ):
        ranks = np.array(
            stats.rankdata([sorted(set(map(keys[key], texts))).index(keys[key](t)) for t in texts], "dense")
        )
        assert found[name] == sorted(range(n), key=lambda i, r=ranks, s=sign: (s * r[i], i)), name


@given(instructions, seeds)
def test_masks_ignore_what_they_say_and_leave_something(texts, seed):
    n = len(texts)
    found = {name: mask(texts, hashing.rng(seed)) for name, mask in MASKS.items()}
    assert [i + 1 for i in found["odd"]] == list(range(2, n + 1, 2))
    assert [i + 1 for i in found["even"]] == list(range(1, n + 1, 2))
    for name, kept in found.items():
        assert kept
        assert kept == sorted(set(kept)), name
        if name in ("fixed", "longest", "shortest"):
            assert 1 <= n - len(kept) <= max(n // 2, 1)
    sizes = [len(t.split()) for t in texts]
    gone = {name: [sizes[i] for i in range(n) if i not in found[name]] for name in ("longest", "shortest")}
    assert min(gone["longest"]) >= max(sizes[i] for i in found["longest"])
    assert max(gone["shortest"]) <= min(sizes[i] for i in found["shortest"])


@pytest.mark.parametrize(
    ("sizes", "tail"),
    [
        ("exponential", stats.expon()),
        ("pareto", stats.pareto(1, loc=-1)),
        ("lognormal", stats.lognorm(1)),
        ("logistic", stats.logistic(scale=2)),
    ],
)
def test_sizes_follow_their_law(sizes, tail):
    rng = np.random.default_rng(0)
    counts = Counter(draw_size(sizes, 10, rng) for _ in range(20_000))
    share = np.array([tail.cdf(10 - k + 1) - tail.cdf(10 - k) for k in range(1, 11)])
    share /= share.sum()
    found = np.array([counts[k] for k in range(1, 11)])
    assert found.sum() == 20_000
    usual = share * 20_000 >= 5
    off = np.abs(found - 20_000 * share)[usual] / np.sqrt(20_000 * share * (1 - share))[usual]
    assert off.max() < 4
    assert draw_size("fix", 10, rng) == 10
    assert draw_size("max", 10, rng) is None
    assert {draw_size(sizes, 1, rng) for _ in range(20)} == {1}


@settings(max_examples=200)
@given(st.lists(st.tuples(filled, filled), min_size=1, max_size=8), seeds)
def test_spans_give_back_every_response_whatever_it_holds(pairs, seed):
    asked, answers = (list(texts) for texts in zip(*pairs, strict=True))
    made = write_mosaic(asked, answers, hashing.rng(seed))
    assert [made.output[a:b] for a, b in made.spans] == [answers[i] for i in made.shown]
    assert sorted((*made.shown, *made.ignored)) == list(range(len(pairs)))
    assert made.shown
    assert (made.rule.strategy == "mask") == bool(made.ignored)
    assert all(text in made.prompt for text in asked)
    if len(pairs) == 1:
        assert made.rule.strategy == "format"
    if made.rule.marks:
        assert not any(mark in answer for mark in made.rule.marks for answer in answers)
        assert all(mark in made.prompt for mark in made.rule.marks)


@settings(max_examples=100)
@given(st.integers(1, 10), seeds, st.sampled_from(["both", "format", "order", "mask"]))
def test_a_reader_of_the_words_alone_arrives_at_the_output(n, seed, version):
    data = rows(hashing.rng(seed, "rows"), n)
    made = write_mosaic(*zip(*data, strict=True), hashing.rng(seed), version)
    assert obeys(made, dict(data))
    allowed = {"both": ("format", "order", "mask")}.get(version, ("format", version))
    assert made.rule.strategy in allowed


def test_the_reader_sees_a_rule_that_is_broken():
    data = rows(hashing.rng(1, "rows"), 5)
    broken = 0
    for seed in range(60):
        made = write_mosaic(*zip(*data, strict=True), hashing.rng(seed), "order")
        if made.rule.method == "reverse":
            broken += 1
            assert asked_for(made.prompt, [row.instruction for row in data]) == [4, 3, 2, 1, 0]
            wrong = write_mosaic(*zip(*data, strict=True), hashing.rng(seed), "format")
            assert not obeys(type(made)(made.prompt, wrong.output, *[()] * 2, made.rule, ()), dict(data))
    assert broken


@given(
    st.lists(st.text("abc .", min_size=1, max_size=9).filter(lambda t: t == t.strip()), min_size=1, max_size=6), seeds
)
def test_a_models_text_is_read_by_its_tags(answers, seed):
    made = write_mosaic([f"question {i}" for i in range(len(answers))], answers, hashing.rng(seed))
    numbers = [i + 1 for i in made.shown]
    if made.rule.tag is None:
        with pytest.raises(ConfigError, match="no number tags"):
            parse_output(made.output, made.rule, numbers)
    else:
        assert parse_output(made.output, made.rule, numbers) == [answers[i] for i in made.shown]


def test_what_a_model_left_out_is_none():
    rule = Rule(tag=("(", "). "), marks=("<a>", "<b>"))
    assert parse_output("(1). <a> one <b>\n\n(3). three", rule, [1, 2, 3]) == ["one", None, "three"]
    assert parse_output("(3). late\n(1). one", rule, [1, 3]) == ["one", None]
    assert parse_output("see (1). inside", rule, [1]) == [None]
    assert parse_output("", rule, [1, 2]) == [None, None]
    plain = Rule(tag=("", " "))
    assert parse_output("10 apples\n1 pear", plain, [1]) == ["pear"]
    assert Rule.read({"strategy": "format", "method": "", "tag": ["(", "). "], "marks": ["<a>", "<b>"]}) == rule


def test_a_mark_that_stands_in_a_response_is_not_taken():
    marks = [
        f"{a}{cased}{b}"
        for a, b in MARK_BRACKETS
        for pair in MARK_WORDS
        for word in pair
        for cased in (word, word.lower())
    ]
    full = " ".join(marks)
    assert all(write_mosaic(["x"], [full], hashing.rng(s)).rule.marks is None for s in range(40))
    taken = [write_mosaic(["x"], ["[Start] [end]"], hashing.rng(s)).rule.marks for s in range(200)]
    assert all(found is None or not {"[Start]", "[end]"} & set(found) for found in taken)
    assert 0.35 < sum(found is not None for found in taken) / 200 < 0.65


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(filled, filled), min_size=1, max_size=25),
    seeds,
    st.sampled_from(["uniform", "fix", "max", "pareto"]),
)
def test_every_pass_takes_each_row_once_and_keeps_the_limits(pairs, seed, sizes):
    data = [Row(*pair) for pair in pairs]
    made, skipped = packed(data, sizes=sizes, max_rows=4, max_tokens=400, passes=3, seed=seed)
    assert not skipped
    for part in range(3):
        assert sorted(i for m in made if m.part == part for i in m.rows) == list(range(len(data)))
    assert all(len(m.prompt) + len(m.output) < 400 for m in made)
    if sizes != "max":
        assert max(len(m.rows) for m in made) <= 4
    again, _ = packed(data[::-1], sizes=sizes, max_rows=4, max_tokens=400, passes=3, seed=seed)
    assert [(m.prompt, m.output) for m in again] == [(m.prompt, m.output) for m in made]


def test_passes_have_orders_of_their_own_and_max_takes_what_fits():
    data = rows(hashing.rng(3, "rows"), 60)
    made, _ = packed(data, sizes="max", max_tokens=600, passes=2, seed=3)
    first, second = ([i for m in made if m.part == part for i in m.rows] for part in (0, 1))
    assert first != second
    assert max(len(m.rows) for m in made) > 4
    other, _ = packed(data, sizes="max", max_tokens=600, passes=2, seed=4)
    assert [m.rows for m in other] != [m.rows for m in made]


def test_rows_that_do_not_fit_are_told_of():
    data = [Row("short", "x"), Row("long", "y" * 500), Row("short", "z")]
    made, skipped = packed(data, max_tokens=300, passes=2)
    assert skipped == [(1, None)]
    assert Counter(i for m in made for i in m.rows) == {0: 2, 2: 2}
    tight, skipped = packed([Row("a" * 20, "b" * 20)] * 40, max_tokens=50, passes=2)
    told = Counter(part for _, part in skipped)
    assert set(told) == {0, 1}
    assert all(told[part] + sum(m.part == part for m in tight) == 40 for part in (0, 1))
    with pytest.raises(ConfigError, match="too small, the shortest row has 7 tokens"):
        packed(data, max_tokens=6)
    assert packed([]) == ([], [])


def test_ids_are_of_content_and_occurrence():
    a, b = Row("a", "1"), Row("b", "2")
    ids = row_ids([a, b, a])
    assert len(set(ids)) == 3
    assert sorted(row_ids([a, a, b])) == sorted(ids)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_rows": 0}, "max_rows must be 1 or more, not 0"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"passes": 0}, "passes must be 1 or more"),
        ({"version": "ordre"}, "Did you mean 'order'"),
        ({"sizes": "unifrom"}, "Did you mean 'uniform'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Packing(**options)


def test_rows_that_cannot_be_are_refused():
    rng = hashing.rng(0)
    with pytest.raises(DataError, match="row 2 of the mosaic: the response is empty"):
        write_mosaic(["a", "b"], ["x", " "], rng)
    with pytest.raises(DataError, match="row 1 of the mosaic: the instruction is empty"):
        write_mosaic(["\n"], ["x"], rng)
    with pytest.raises(DataError, match="at least one row"):
        write_mosaic([], [], rng)
    with pytest.raises(ConfigError, match="no version 'all'"):
        write_mosaic(["a"], ["x"], rng, "all")


def test_the_wordings_are_as_many_as_the_sheet_has_and_all_different():
    assert (len(TAGS), len(MARK_WORDS), len(MARK_BRACKETS)) == (10, 17, 25)
    assert (len(MARKED), len(PLAIN), len(SEQUENCE_TAGS), len(SEPARATORS)) == (30, 7, 8, 7)
    for some in (TAGS, MARK_WORDS, MARK_BRACKETS, MARKED, PLAIN, SEQUENCE_TAGS, SEPARATORS):
        assert len(set(some)) == len(some)


def test_other_wordings_can_be_given_and_are_checked():
    own = Wordings(marked=("{end} nach, {begin} vor jede Antwort.",), plain=("Antworte.",))
    found = [write_mosaic(["a"], ["x"], hashing.rng(s), wordings=own).prompt for s in range(20)]
    assert any("Antwort" in prompt for prompt in found)
    with pytest.raises(ConfigError, match=r"must name \{begin\} and \{end\}"):
        Wordings(marked=("{begin} only",))
    with pytest.raises(ConfigError, match=r"order 'reverse': the phrasing .* must name nothing in braces"):
        Wordings(order={**ORDER, "reverse": ("{sequence}",)})
    with pytest.raises(ConfigError, match="mask 'fixed': there is no phrasing"):
        Wordings(mask={})
