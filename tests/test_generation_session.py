"""Sessions: sequences grown token by token have the logits of whole sequences run at once, on every architecture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ConfigError, ModelError
from tamis.generation import Session, next_logits, open_session
from test_generation import BY_BATCH, IN_ROWS, VOCABULARY, tiny, uneven

PROMPT = [3, 9, 14, 5]


def grown(session, module, rng, sizes):
    """Extend by random parents and tokens, step by step, and compare with running whole sequences."""
    wanted = [tuple(PROMPT)]
    for size in sizes:
        parents = rng.integers(0, len(wanted), size).tolist()
        tokens = rng.integers(3, VOCABULARY, size).tolist()
        wanted = [(*wanted[p], t) for p, t in zip(parents, tokens, strict=True)]
        logits = session.extend(parents, tokens)
        assert logits.dtype == torch.float32
        assert session.sequences == wanted
        np.testing.assert_allclose(logits.numpy(), next_logits(module, wanted), atol=1e-4)
    return session


@pytest.mark.parametrize("kind", [*IN_ROWS, *BY_BATCH])
def test_grown_sequences_have_the_logits_of_whole_ones(kind):
    module = tiny(kind, spread=1.5)
    session = Session(module, PROMPT)
    np.testing.assert_allclose(session.logits.numpy(), next_logits(module, [PROMPT]), atol=1e-4)
    sizes = [3, 5, 2, 7, 1, 4, 4, 6]
    grown(session, module, np.random.default_rng(0), sizes)
    assert session.passes == 1 + sum(sizes)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_any_branching_and_resampling(sizes, seed):
    module = tiny("llama", spread=1.5)
    grown(Session(module, PROMPT), module, np.random.default_rng(seed), sizes)


def test_a_sliding_window_that_is_left_on_the_way():
    module = tiny("mistral", spread=1.5)
    session = Session(module, PROMPT)
    assert session._cache is not None
    grown(session, module, np.random.default_rng(1), [3] * 3)
    assert session._cache is not None
    grown(Session(module, PROMPT), module, np.random.default_rng(1), [3] * 9)


def test_the_module_keeps_its_mode_and_sessions_are_apart():
    module = tiny("llama").train()
    prompts = uneven(2, seed=4)
    one, other = (Session(module, p) for p in prompts)
    for step in range(3):
        for session in (one, other):
            session.extend([0] * (step + 1), range(3, step + 4))
    assert module.training
    module.eval()
    for session in (one, other):
        np.testing.assert_allclose(session.logits.numpy(), next_logits(module, session.sequences), atol=1e-4)


def test_letting_all_go_leaves_nothing_to_extend():
    session = Session(tiny(), PROMPT)
    assert session.extend([], []).shape == (0, VOCABULARY)
    with pytest.raises(ConfigError, match="no live sequence 0"):
        session.extend([0], [3])


@pytest.mark.parametrize(
    ("parents", "tokens", "said"),
    [
        ([0, 0], [3], "2 parents"),
        ([1], [3], "no live sequence 1"),
        ([-1], [3], "sequence -1"),
        ([0], [41], "no token 41"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_changes_nothing(parents, tokens, said):
    session = Session(tiny(), PROMPT)
    before = session.logits
    with pytest.raises(ConfigError, match=said):
        session.extend(parents, tokens)
    assert session.sequences == [tuple(PROMPT)]
    assert session.logits is before


def test_room_is_that_of_the_context():
    with pytest.raises(ConfigError, match="no tokens"):
        Session(tiny(), [])
    with pytest.raises(ConfigError, match="4 tokens exceeds the model's context of 3"):
        Session(tiny(), PROMPT, most=3)
    session = Session(tiny(), PROMPT, most=5)
    session.extend([0], [7])
    with pytest.raises(ConfigError, match="6 tokens exceeds"):
        session.extend([0], [7])


def test_models_without_sessions_are_named():
    class Plain:
        name = "plain"

    with pytest.raises(ModelError, match="'plain' does not give"):
        open_session(Plain(), PROMPT)
