"""llama.cpp as an engine: the loop over rows against a stand-in for its C interface."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.generation import Request, draw
from tamis.models import ModelRef, llamacpp
from tamis.models.llamacpp import LlamaCppModel
from tamis.records import Law

VOCABULARY, CONTEXT, SEQUENCES = 24, 96, 9


def logits_after(tokens: list[int]) -> np.ndarray:
    """What the stand-in for a model says: any function of the whole sequence will do."""
    return np.random.default_rng([7, *tokens]).normal(size=VOCABULARY, scale=2).astype(np.float32)


class FakeApi(ModuleType):
    """The functions of `llama_cpp.llama_cpp` that are used, over lists of tokens; strict about positions and sequences."""

    def __init__(self) -> None:
        super().__init__("llama_cpp.llama_cpp")
        self.freed: list[str] = []
        self.widths: list[int] = []
        self.fails = 0

    def llama_log_callback(self, function):
        return function

    def llama_log_set(self, callback, data):
        callback(4, b"out of luck\n", None)

    def llama_backend_init(self):
        pass

    def llama_print_system_info(self):
        return b"CPU : AVX2 = 1 | AMX_INT8 = 1 |"

    def llama_model_default_params(self):
        return SimpleNamespace(n_gpu_layers=-1, use_extra_bufts=True)

    def llama_model_load_from_file(self, path, params):
        assert isinstance(path, bytes)
        self.params = params
        return None if b"broken" in path else 1

    def llama_model_get_vocab(self, model):
        return 2

    def llama_vocab_n_tokens(self, vocab):
        return VOCABULARY

    def llama_model_n_ctx_train(self, model):
        return CONTEXT

    def llama_model_free(self, model):
        self.freed.append("model")

    def llama_max_parallel_sequences(self):
        return SEQUENCES

    def llama_context_default_params(self):
        return SimpleNamespace()

    def llama_init_from_model(self, model, params):
        assert params.n_ctx % params.n_seq_max == 0
        assert not params.kv_unified
        self.columns = params.n_ctx // params.n_seq_max
        self.held: list[list[int]] = [[] for _ in range(params.n_seq_max)]
        return 3

    def llama_get_memory(self, context):
        return 4

    def llama_batch_init(self, size, embedding, sequences):
        lists = {name: [None] * size for name in ("token", "pos", "logits", "n_seq_id")}
        return SimpleNamespace(**lists, seq_id=[[None] for _ in range(size)], n_tokens=0)

    def llama_decode(self, context, batch):
        rows = []
        for i in range(batch.n_tokens):
            held = self.held[batch.seq_id[i][0]]
            assert batch.pos[i] == len(held) < self.columns
            held.append(batch.token[i])
            if batch.logits[i]:
                rows.append(logits_after(held))
        self.widths.append(batch.n_tokens)
        self.found = np.array(rows)
        return self.fails

    def llama_get_logits(self, context):
        return self.found

    def llama_memory_seq_rm(self, memory, sequence, start, end):
        self.held[sequence] = []

    def llama_memory_seq_cp(self, memory, source, target, start, end):
        assert (start, end) == (-1, -1)
        self.held[target] = list(self.held[source])

    def llama_batch_free(self, batch):
        self.freed.append("batch")

    def llama_free(self, context):
        self.freed.append("context")


@pytest.fixture(scope="module")
def api():
    made, package = FakeApi(), ModuleType("llama_cpp")
    package.llama_cpp = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "llama_cpp", package)
        patch.setitem(sys.modules, "llama_cpp.llama_cpp", made)
        patch.setattr(llamacpp, "_callbacks", [])
        yield made


def reference(**changes) -> ModelRef:
    return replace(ModelRef("m", "local", "identity", ("text",), folder=Path("m"), gguf=Path("m.gguf")), **changes)


def model_over(api, rows: int = 4, ends=()) -> LlamaCppModel:
    model = LlamaCppModel(reference(), batch_rows=rows)
    model.end_ids = tuple(ends)
    return model


def expected(request: Request, seed: int, law: Law, ends) -> tuple[list[int], list[float], list[float], str]:
    """One candidate by itself, one token at a time."""
    uniforms = np.random.default_rng(seed).random(request.limit)
    tokens, ours, raws = [], [], []
    for u in uniforms:
        logits = torch.from_numpy(logits_after([*request.tokens, *tokens]))[None]
        drawn = draw(logits, law, torch.tensor([u], dtype=torch.float64))
        tokens.append(int(drawn.tokens))
        ours.append(float(drawn.logprobs))
        raws.append(float(drawn.raw_logprobs))
        if tokens[-1] in ends:
            return tokens, ours, raws, "stop"
    return tokens, ours, raws, "length"


REQUESTS = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
        st.lists(st.integers(0, 2**62), max_size=5),
        st.integers(1, 9),
    ),
    max_size=5,
)
LAWS = st.sampled_from([Law(), Law(temperature=0), Law(temperature=0.7, top_p=0.9), Law(top_k=3)])


@given(REQUESTS, LAWS, st.integers(1, SEQUENCES - 1), st.sets(st.integers(0, VOCABULARY - 1), max_size=8))
def test_every_candidate_is_what_it_is_alone(api, requests, law, rows, ends):
    drawn = list(model_over(api, rows, ends).draw(requests, law, None))
    places = [(s.request, s.candidate) for s in drawn]
    assert sorted(places) == [(n, c) for n, r in enumerate(requests) for c in range(len(r.seeds))]
    for s in drawn:
        request = requests[s.request]
        tokens, ours, raws, finish = expected(request, request.seeds[s.candidate], law, ends)
        assert (list(s.token_ids), s.finish) == (tokens, finish)
        np.testing.assert_allclose(s.logprobs, ours, atol=1e-6)
        np.testing.assert_allclose(s.raw_logprobs, raws, atol=1e-6)


def test_rows_step_together_and_a_prompt_is_run_once(api):
    api.widths.clear()
    list(model_over(api, 4).draw([Request([1, 2, 3], range(4), 5)], Law(), None))
    assert api.widths == [3, 4, 4, 4, 4]


def test_a_stop_string_ends_a_row_where_the_text_first_holds_it(api):
    law, request = Law(), Request([5], list(range(6)), 8)

    def stop(tokens, fresh):
        assert fresh == 1
        return len(tokens) if tokens[-1] % 5 == 0 else None

    for s in model_over(api, 3).draw([request], law, stop):
        whole = expected(request, request.seeds[s.candidate], law, ())[0]
        met = next((i for i, token in enumerate(whole, 1) if token % 5 == 0), None)
        assert list(s.token_ids) == whole[:met]
        assert s.finish == ("stop" if met else "length")


def test_scores_and_next_logits_are_those_of_the_model(api):
    model = model_over(api)
    sequences = [[1, 2, 3, 4], [], [9], list(range(24)) * 2]
    for tokens, score in zip(sequences, model.logprobs(sequences), strict=True):
        assert score.dtype == np.float32
        assert len(score) == len(tokens)
        for i in range(1, len(tokens)):
            logits = torch.from_numpy(logits_after(tokens[:i]))
            assert score[i] == pytest.approx(float(logits.log_softmax(-1)[tokens[i]]), abs=1e-5)
    np.testing.assert_array_equal(model.next_token_logits([[3, 4]])[0], logits_after([3, 4]))
    assert model.next_token_logits([]).shape == (0, VOCABULARY)
    with pytest.raises(ConfigError, match="no tokens"):
        model.next_token_logits([[]])


def test_weights_are_freed_and_amx_is_left_out(api):
    model = model_over(api)
    assert model.context_length == CONTEXT
    assert not api.params.use_extra_bufts
    api.freed.clear()
    model.release()
    assert api.freed == ["model"]
    model.release()
    assert api.freed == ["model"]


def test_context_is_given_back_when_the_caller_stops_listening(api):
    api.freed.clear()
    model = model_over(api)
    drawn = model.draw([Request([1], range(3), 5)], Law(), None)
    next(drawn)
    drawn.close()
    assert api.freed == ["batch", "context"]


def test_what_cannot_be_done_says_so(api):
    with pytest.raises(ModelError, match="a model folder"):
        LlamaCppModel(reference(gguf=None))
    with pytest.raises(ConfigError, match="as they are in the file, not as float32"):
        LlamaCppModel(reference(), dtype="float32")
    with pytest.raises(ConfigError, match="no device 'cuda:1'"):
        LlamaCppModel(reference(), device="cuda:1")
    with pytest.raises(ConfigError, match="1 or more"):
        LlamaCppModel(reference(), batch_rows=0)
    with pytest.raises(ModelError, match="at most 8 rows"):
        list(model_over(api, 9).draw([Request([1], range(9), 5)], Law(), None))
    with pytest.raises(ModelError, match="cannot read this file: out of luck"):
        LlamaCppModel(reference(gguf=Path("broken.gguf"))).context_length  # noqa: B018
    api.fails = 1
    with pytest.raises(ModelError, match="failed with code 1"):
        list(model_over(api).draw([Request([1], [1], 5)], Law(), None))
    api.fails = 0


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tamis\[llamacpp\]'"):
        LlamaCppModel(reference()).context_length  # noqa: B018
