"""Tokens, texts and predicates under constraints, against enumeration and Python's own `re` and `json`."""

import itertools
import json
import math
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tamis.checks.c069_awrs import END, A, D, Symbols, completable, complete, truth
from tamis.constrained import AWRS, json_constraint, regex_constraint, smc, text_constraint, token_bytes
from tamis.constrained.awrs import Remaining, softmax
from tamis.constrained.texts import Grammar, _word_marked, json_grammar, regex_grammar
from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.generation import Session, next_logits
from tamis.lab.nano import PRINTABLE, nano_tokenizer
from test_generation import VOCABULARY, tiny
from tokenizers_made import CORPUS, tokenizer

laws = st.lists(st.floats(0.01, 1), min_size=5, max_size=5).map(lambda w: np.array(w) / sum(w))
sets = st.lists(st.booleans(), min_size=5, max_size=5)


def awrs(allowed, **options):
    """A sampler of tokens 0..V-1, the last of them the end."""
    end = len(allowed) - 1
    return AWRS(lambda tokens: bool(allowed[tokens[-1]]), lambda tokens: bool(allowed[end]), (end,), **options)


class InOrder(Remaining):
    """Draws in a given order."""

    def __init__(self, masses, order):
        super().__init__(masses)
        self.order = order

    def draw(self, rng):
        return next(t for t in self.order if t not in self._taken and self._masses[t] > 0)


def expected_weights(sampler, p, monkeypatch, proposal=None):
    """E[w 1(x = t)] of a sampler without own randomness, by running it on every order of draws."""
    drawn_from = p if proposal is None else proposal
    tokens = [t for t in range(len(p)) if t not in sampler.prune]
    expected = np.zeros(len(p))
    for order in itertools.permutations(tokens):
        chance, left = 1.0, drawn_from[list(tokens)].sum()
        for t in order:
            chance *= drawn_from[t] / left
            left -= drawn_from[t]
        monkeypatch.setattr("tamis.constrained.awrs.Remaining", lambda masses, order=order: InOrder(masses, order))
        drawn = sampler.draw(p, (), None, proposal)
        expected[drawn.token] += chance * math.exp(drawn.log_weight)
    return expected


# --- one token


@given(p=laws, allowed=sets)
@settings(max_examples=25, deadline=None)
def test_recursive_weights_are_exact_over_all_orders(p, allowed):
    with pytest.MonkeyPatch.context() as patch:
        found = expected_weights(awrs(allowed, method="recursive"), p, patch)
    np.testing.assert_allclose(found, p * np.array(allowed), atol=1e-12)


@given(p=laws, q=laws, allowed=sets)
@settings(max_examples=15, deadline=None)
def test_pruning_and_proposals_keep_weights_exact(p, q, allowed):
    allowed[1] = False
    sampler = awrs(allowed, method="recursive", prune=(1,))
    with pytest.MonkeyPatch.context() as patch:
        plain = expected_weights(sampler, p, patch)
        proposed = expected_weights(sampler, p, patch, q)
    np.testing.assert_allclose(plain, p * np.array(allowed), atol=1e-12)
    np.testing.assert_allclose(proposed, p * np.array(allowed), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "biased"),
    [
        ({"method": "geometric"}, False),
        ({"max_accepts": 4}, False),
        ({"method": "geometric", "max_rejects": 3}, False),
        ({"max_rejects": 2}, True),
        ({"proper_weights": False}, True),
    ],
)
def test_weights_by_simulation(options, biased):
    rng = np.random.default_rng(1)
    p, allowed = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), [False, True, False, True, True]
    sampler, n = awrs(allowed, **options), 20_000
    weights = np.zeros((n, 5))
    for i in range(n):
        drawn = sampler.draw(p, (), rng)
        weights[i, drawn.token] = math.exp(drawn.log_weight)
    error = weights.std(axis=0) / n**0.5 + 1e-12
    far = np.abs(weights.mean(axis=0) - p * allowed) / error
    assert (far > 6).any() if biased else (far < 4.5).all()


def test_more_accepts_vary_less():
    rng = np.random.default_rng(2)
    p, allowed = np.full(40, 1 / 40), [i % 3 == 0 for i in range(40)]
    spread = [
        np.std([math.exp(awrs(allowed, max_accepts=m).draw(p, (), rng).log_weight) for _ in range(500)]) for m in (2, 8)
    ]
    assert spread[1] < 0.7 * spread[0]


def test_auto_takes_the_geometric_estimator_where_one_token_is_likely():
    calls = Counter()

    def ask(tokens):
        calls[tokens[-1]] += 1
        return True

    for peak, tests in ((0.9, 1), (0.3, 2)):
        calls.clear()
        p = np.array([peak, *[(1 - peak) / 4] * 4])
        drawn = [AWRS(ask, ask, (4,)).draw(p, (9,), np.random.default_rng(s)).n_calls for s in range(20)]
        assert min(drawn) == tests, "the geometric estimator may meet one token twice and asks once"


def test_order_has_the_law_of_draws_without_replacement():
    p, rng, n = np.array([0.6, 0.25, 0.1, 0.05]), np.random.default_rng(3), 8000
    seen = Counter()
    for _ in range(n):
        left = Remaining(p)
        seen[tuple(left.take(rng)[0] for _ in range(4))] += 1
        assert left.mass == 0
    expected = {
        o: math.prod(p[t] / p[list(o[i:])].sum() for i, t in enumerate(o)) for o in itertools.permutations(range(4))
    }
    assert chisquare([seen[o] for o in expected], [n * q for q in expected.values()]).pvalue > 1e-4


def test_what_is_left_is_never_a_small_difference():
    p = 10.0 ** -np.arange(300.0)
    left, rng = Remaining(p), np.random.default_rng(4)
    taken = []
    while left.mass > 0:
        taken.append(left.take(rng)[0])
        rest = math.fsum(p[t] for t in range(300) if t not in set(taken))
        assert left.mass == pytest.approx(rest, rel=1e-12)
    assert sorted(taken) == list(range(300))


def test_rare_allowed_tokens_are_found_and_weighted():
    p = np.array([1 - 1e-9, 1e-9, 0.0])
    sampler = awrs([False, True, False])
    drawn = sampler.draw(p, (), np.random.default_rng(0))
    assert drawn.token == 1
    assert drawn.log_weight <= math.log(1e-8)
    assert (
        awrs([False, True, False], method="recursive", mass_cutoff=1e-5).draw(p, (), np.random.default_rng(0))[1]
        == -math.inf
    )


def test_nothing_allowed_has_weight_zero():
    for method in ("recursive", "geometric"):
        drawn = awrs([False] * 4, method=method).draw(np.full(4, 0.25), (), np.random.default_rng(0))
        assert drawn.log_weight == -math.inf
        assert drawn.n_calls == 4
    assert awrs([True] * 4, prune=(0, 1, 2, 3)).draw(np.full(4, 0.25), (), None) == (0, -math.inf, 0)


def test_logits_and_probabilities_are_the_same_draw():
    logits = np.array([1.0, 0.5, -2.0, 0.1], dtype=np.float32)
    sampler = awrs([True, False, True, True])
    one = sampler.sample(logits, (), np.random.default_rng(5))
    assert one == sampler.draw(softmax(logits), (), np.random.default_rng(5))


def test_end_is_weighted_by_its_probability_and_the_constraint():
    p = np.array([0.5, 0.3, 0.2])
    sampler = AWRS(lambda tokens: True, lambda tokens: tokens == [7], (1, 2))
    drawn = [sampler.end(p, (7,), np.random.default_rng(s)) for s in range(50)]
    assert {d.token for d in drawn} == {1, 2}
    assert all(d.log_weight == pytest.approx(math.log(0.5)) for d in drawn)
    assert sampler.end(p, (8,), np.random.default_rng(0)).log_weight == -math.inf


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_accepts": 1}, "max_accepts is 1"),
        ({"max_rejects": 1}, "max_rejects is 1"),
        ({"max_accepts": 3, "method": "recursive"}, "knows 2 only"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"mass_cutoff": 1.0}, "mass_cutoff"),
    ],
)
def test_settings_without_proper_weights_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        awrs([True, True], **options)
    with pytest.raises(ConfigError, match="ends it"):
        AWRS(lambda tokens: True, lambda tokens: True, ())


def test_what_is_no_answer_no_number_or_never_proposed_is_refused():
    rng, p = np.random.default_rng(0), np.array([0.5, 0.5])
    with pytest.raises(ConfigError, match="answered 1, which is neither"):
        AWRS(lambda tokens: 1, lambda tokens: True, (1,)).draw(np.array([1.0, 0.0]), (), rng)
    for bad in ([0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]):
        with pytest.raises(ModelError, match="not finite"):
            awrs([True, True]).sample(np.array(bad), (), rng)
    with pytest.raises(ConfigError, match="never draws token 1"):
        awrs([True, True]).draw(p, (), rng, np.array([1.0, 0.0]))


# --- texts


def run(sampler=None, seed=0, **options):
    options = {"max_tokens": 7, "rng": np.random.default_rng(seed), "n_particles": 20} | options
    return smc(Symbols(), (), sampler or AWRS(completable, complete, (END,)), **options)


def test_the_dead_end_is_the_sheets():
    assert len(truth()) == 487
    assert sum(truth().values()) == pytest.approx(0.30951, abs=5e-6)


def test_smc_is_unbiased_and_locally_constrained_decoding_is_not():
    found = np.exp([run(seed=s).log_ml for s in range(150)])
    assert abs(found.mean() - 0.30951) < 4.5 * found.std() / 150**0.5
    local = run(AWRS(completable, complete, (END,), proper_weights=False), n_particles=200)
    assert local.log_ml == 0
    assert np.mean([c[0] == A for c in local.contexts]) == pytest.approx(0.55 / 0.95, abs=0.15)
    weighted = run(n_particles=200)
    assert np.exp(weighted.log_weights) @ [c[0] == A for c in weighted.contexts] < 0.1


def test_texts_are_complete_weights_are_normalised_and_logprobs_are_the_models():
    found = run()
    assert found.status == "ok"
    assert np.exp(found.log_weights).sum() == pytest.approx(1)
    assert found.ess == pytest.approx(1 / (np.exp(found.log_weights) ** 2).sum())
    for tokens, logprobs, weight in zip(found.contexts, found.logprobs, found.log_weights, strict=True):
        if weight > -math.inf:
            assert complete(tokens[:-1])
            assert tokens[-1] == END
            assert sum(logprobs) == pytest.approx(math.log(truth()[tokens[:-1]]), abs=1e-5)


def test_resampling_only_below_the_threshold_and_to_the_mean():
    never = run(ess_threshold=0)
    assert len(np.unique(np.round(never.log_weights, 9))) > 3
    always = run(ess_threshold=1)
    np.testing.assert_allclose(always.log_weights, -math.log(20))
    assert len(set(always.contexts)) < 20, "some particle was drawn twice"


def test_particles_with_the_same_tokens_share_a_row():
    found = run(AWRS(lambda tokens: set(tokens) <= {D}, lambda tokens: True, (END,)))
    assert found.passes == 1 + 6
    assert found.n_calls > 20 * 6


def test_the_end_is_forced_at_its_weight():
    early = run(AWRS(lambda tokens: True, lambda tokens: True, (END,)), max_tokens=4)
    assert early.status == "dead", "no symbol but the end may come fourth, and it has no probability there"
    assert (early.log_ml, early.ess) == (-math.inf, 0)
    assert (early.log_weights == -math.inf).all()


def test_a_constraint_that_dies_out_is_a_result_and_one_that_refuses_all_an_error():
    found = run(AWRS(lambda tokens: len(tokens) < 3, lambda tokens: False, (END,)))
    assert (found.status, found.log_ml) == ("dead", -math.inf)
    with pytest.raises(ConfigError, match="refuses even the empty text"):
        run(AWRS(lambda tokens: False, lambda tokens: True, (END,)))
    for wrong in ({"n_particles": 0}, {"max_tokens": 0}, {"temperature": 0.0}, {"temperature": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            run(**wrong)
    with pytest.raises(ModelError, match="does not give next-token logits"):
        smc(type("Plain", (), {"name": "plain"})(), (), AWRS(completable, complete, (END,)), max_tokens=2, rng=None)


def test_a_critic_multiplies_in():
    def likes_c(tokens, ended):
        return math.log(0.1 + 0.9 * tokens.count(2) / 6)

    found = np.exp([run(seed=s, critic=likes_c, n_particles=50).log_ml for s in range(80)])
    expected = sum(q * math.exp(likes_c(t, True)) for t, q in truth().items())
    assert abs(found.mean() - expected) < 4.5 * found.std() / 80**0.5
    assert run(critic=lambda tokens, ended: -math.inf).status == "dead"
    with pytest.raises(ConfigError, match="scored a text nan"):
        run(critic=lambda tokens, ended: math.nan)


class Tiny:
    name = "tiny"

    def __init__(self, module):
        self.module = module

    def session(self, prompt_ids):
        return Session(self.module, prompt_ids)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_real_model_gives_the_enumerated_probability_of_the_constraint(kind):
    module, prompt, end, temperature = tiny(kind, spread=1.0), [5, 6, 7], 2, 1.3
    allowed = [t for t in range(VOCABULARY) if t % 5 == 0]
    sampler = AWRS(lambda tokens: set(tokens) <= set(allowed), lambda tokens: len(tokens) > 0, (end,))

    def law(prefixes):
        logits = next_logits(module, [[*prompt, *p] for p in prefixes]) / temperature
        return [softmax(row) for row in logits]

    first = law([()])[0]
    second = law([(t,) for t in allowed])
    third = law([(t, u) for t in allowed for u in allowed])
    expected = sum(
        first[t] * (p[end] + sum(p[u] * third[len(allowed) * i + j][end] for j, u in enumerate(allowed)))
        for i, (t, p) in enumerate(zip(allowed, second, strict=True))
    )
    runs = [
        smc(Tiny(module), prompt, sampler, max_tokens=3, rng=np.random.default_rng(s), temperature=temperature)
        for s in range(120)
    ]
    found = np.exp([r.log_ml for r in runs])
    assert abs(found.mean() - expected) < 4.5 * found.std() / 120**0.5
    plain = next_logits(module, [prompt])[0]
    tokens = runs[0].contexts[0]
    assert runs[0].logprobs[0][0] == pytest.approx(math.log(softmax(plain)[tokens[0]]), abs=1e-4)


# --- predicates on text

SIGNS = ["a", "b", "é"]
PATTERNS = ["a(b|é)*", "(ab|bé)+a?", "a{2,3}b", "b?(é|ab)b", "[^a]b"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_agree_with_re_on_every_short_text(pattern):
    grammar = regex_grammar(pattern)
    longest = 7
    whole = ["".join(t) for n in range(longest + 1) for t in itertools.product(SIGNS, repeat=n)]
    matching = [t.encode() for t in whole if re.fullmatch(pattern, t)]
    beginnings = {t[:n] for t in matching for n in range(len(t) + 1)}
    texts = [t.encode() for t in whole if len(t) <= 4]
    np.random.default_rng(0).shuffle(texts)
    for text in texts:
        assert grammar.is_complete(text) == bool(re.fullmatch(pattern, text.decode()))
        assert grammar.can_extend(text) == (text in beginnings)
    assert grammar.can_extend("é".encode()[:1]) == any(t.startswith("é".encode()) for t in matching)


def test_kept_states_change_no_answer():
    grammar, rng = regex_grammar("(ab|c)*d"), np.random.default_rng(1)
    text = "".join(rng.choice(["ab", "c"], 300)) + "d"
    for _ in range(300):
        cut = int(rng.integers(0, len(text) + 1))
        wrong = text[:cut] + "x"
        assert grammar.can_extend(text[:cut].encode())
        assert not grammar.can_extend(wrong.encode())
        assert grammar.is_complete(text[:cut].encode()) == (cut == len(text))
    assert 1 < len(grammar._kept) < 300


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@given(name=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=5), age=st.integers(-5, 200))
@settings(max_examples=60, deadline=None)
def test_schemas_accept_what_they_say(name, age):
    grammar = json_grammar(SCHEMA)
    text = json.dumps({"name": name, "age": age}, ensure_ascii=False).encode()
    fits = len(name) <= 3 and 0 <= age <= 120
    assert grammar.is_complete(text) == fits
    assert all(grammar.can_extend(text[:n]) for n in range(len(text))) == fits
    assert not grammar.is_complete(json.dumps({"age": 3}).encode())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: regex_constraint(t, "a("), "pattern cannot be compiled"),
        (lambda t: regex_constraint(t, "a(?=b)"), "look-around"),
        (lambda t: regex_constraint(t, r"[^\s\S]"), "no text satisfies the pattern"),
        (lambda t: json_constraint(t, {"type": "int"}), "Invalid type"),
        (lambda t: json_constraint(t, {"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
    ],
)
def test_constraints_that_make_no_sense_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make(nano_tokenizer(PRINTABLE))


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"llguidance.*\n.*tamis\[constrained\]"):
        regex_grammar("a")


@pytest.mark.parametrize(("style", "kind"), [("chatml", "bpe"), ("gemma", "bpe"), ("mistral", "metaspace")])
@pytest.mark.parametrize("text", [*CORPUS[:4], "  two spaces 🙂🙂"])
def test_bytes_of_tokens_join_to_the_text(style, kind, text):
    made = tokenizer(style, kind)
    table = token_bytes(made)
    ids = made(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(table[i] for i in ids)
    assert joined == text.encode() or (kind == "metaspace" and joined == b" " + text.encode())
    assert not set(made.all_special_ids) & set(table)


def test_byte_fall_back_tokens_are_one_byte():
    assert [_word_marked(token) for token in ("<0x0A>", "<0xE9>", "▁▁a", "<0x>")] == [b"\n", b"\xe9", b"  a", b"<0x>"]


def test_unknown_tokenizers_are_refused():
    with pytest.raises(ModelError, match="decoder WordPiece"):
        token_bytes(tokenizer("gemma", "wordpiece"))


def test_tokens_are_judged_by_their_text_and_answers_are_kept():
    made = tokenizer("chatml")
    asked = []

    def digits(text):
        asked.append(text)
        return text.isdigit() or not text

    constraint, finished = text_constraint(made, digits, lambda text: len(text) == 2)
    ids = made("12", add_special_tokens=False)["input_ids"]
    assert constraint(ids)
    assert constraint(ids)
    assert asked == [b"12"]
    assert finished(ids)
    assert not finished([])
    assert not constraint(made("1x", add_special_tokens=False)["input_ids"])
    assert not constraint([*ids, made.eos_token_id])
    assert not constraint([10**6])
    broken, _ = text_constraint(made, lambda text: 0.5, digits)
    with pytest.raises(ConfigError, match=r"answered 0\.5"):
        broken(ids)


def test_a_grammar_too_complex_says_so():
    grammar = regex_grammar("a+")

    class Failing:
        def validate_tokens(self, tokens):
            return 0

        def is_error(self):
            return True

        def get_error(self):
            return "too many states"

    grammar._opened = Failing()
    with pytest.raises(ConfigError, match="too complex: too many states"):
        grammar.can_extend(b"a")
    assert isinstance(grammar, Grammar)
