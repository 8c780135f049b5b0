import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from tamis.errors import ConfigError, ModelError
from tamis.generation import Request, check_law, draw, next_logits, sample, score
from tamis.generation.cache import fits_rows
from tamis.generation.sampling import inverse_cdf
from tamis.hashing import derive_seed
from tamis.records import Law

VOCABULARY = 41
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

CONFIGS = {
    "llama": LlamaConfig(**SMALL, **HEADS, **IDS),
    "qwen2": Qwen2Config(**SMALL, **HEADS, **IDS, use_sliding_window=False),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **IDS),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **IDS),
    "deepseek": DeepseekV3Config(
        **SMALL, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, **IDS,
        kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=8, first_k_dense_replace=2,
    ),
    "mistral": MistralConfig(**SMALL, **HEADS, **IDS, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SMALL, **HEADS, **IDS, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "lfm2": Lfm2Config(**SMALL, **HEADS, **IDS, layer_types=["conv", "full_attention"]),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, **IDS),
    "falcon_h1": FalconH1Config(
        **SMALL, **HEADS, **IDS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16
    ),
}  # fmt: skip
IN_ROWS = ("llama", "qwen2", "gpt2", "bloom", "deepseek")
BY_BATCH = ("mistral", "gemma3", "lfm2", "mamba", "falcon_h1")


def tiny(kind: str = "llama", seed: int = 0, spread: float = 3.0, dtype: torch.dtype = torch.float64, **over):
    """A random model whose weights are large enough for tokens to differ."""
    torch.manual_seed(seed)
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), **over})
    module = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and "A_log" not in name:
                parameter.mul_(spread)
    return module


def uneven(n: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, rng.integers(1, longest + 1)).tolist() for _ in range(n)]


def requests_for(prompts, candidates: int = 1, limit: int = 12, seed: int = 0) -> list[Request]:
    return [Request(p, [derive_seed(seed, i, c) for c in range(candidates)], limit) for i, p in enumerate(prompts)]


def drawn(module, requests, law, **options):
    options.setdefault("end_ids", (2,))
    return {(s.request, s.candidate): s for s in sample(module, requests, law, **options)}


def greedy_reference(module, prompt, limit, ends=(2,)):
    ids = torch.tensor([prompt])
    out = module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, eos_token_id=list(ends), pad_token_id=2
    )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


def law_of(logits: np.ndarray, law: Law) -> np.ndarray:
    """The enumerated law: temperature, top-k, top-p, min-p, each renormalised after the one before."""
    p = np.exp((logits - logits.max()) / law.temperature)
    p /= p.sum()
    if law.top_k:
        p[p < np.sort(p)[::-1][: law.top_k][-1]] = 0
        p /= p.sum()
    if law.top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept = int(np.searchsorted(np.cumsum(p[order]), law.top_p)) + 1
        p[p < p[order[min(kept, len(p)) - 1]]] = 0
        p /= p.sum()
    p[p < law.min_p * p.max()] = 0
    return p / p.sum()


LAWS = [
    Law(),
    Law(temperature=0.6),
    Law(temperature=1.3, top_k=5),
    Law(top_p=0.7),
    Law(min_p=0.2),
    Law(temperature=0.8, top_k=9, top_p=0.8, min_p=0.1),
]


# --- sampling one token


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("size", [7, 256, 1000])
def test_draw_follows_the_enumerated_law_exactly(law, size):
    """A grid of uniforms reads off the law: each token is drawn on an interval as long as its probability."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 2, size)
    grid = 4000
    uniforms = torch.from_numpy((np.arange(grid) + 0.5) / grid)
    out = draw(torch.from_numpy(logits).expand(grid, -1), law, uniforms)
    expected = law_of(logits.copy(), law)
    share = np.bincount(out.tokens.numpy(), minlength=size) / grid
    assert np.abs(share - expected).max() <= 1.5 / grid
    assert set(np.flatnonzero(share)) <= set(np.flatnonzero(expected))
    np.testing.assert_allclose(out.logprobs.numpy(), np.log(expected[out.tokens.numpy()]), atol=1e-5)
    raw = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(out.raw_logprobs.numpy(), raw[out.tokens.numpy()], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_equals_searchsorted(size, seed, uniform):
    rng = np.random.default_rng(seed)
    weights = rng.random(size) * (rng.random(size) < 0.4)
    weights[rng.integers(size)] = 1.0
    tokens, total = inverse_cdf(torch.from_numpy(weights)[None], torch.tensor([uniform], dtype=torch.float64))
    assert float(total) == pytest.approx(weights.sum())
    assert weights[int(tokens)] > 0
    running = np.cumsum(weights)
    at = int(tokens)
    assert running[at] - weights[at] - 1e-9 <= uniform * running[-1] <= running[at] + 1e-9


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1, 0)])
def test_inverse_cdf_at_the_ends_of_the_interval(uniform):
    weights = torch.zeros(1, 600, dtype=torch.float32)
    weights[0, [3, 300, 411]] = torch.tensor([1e-30, 1.0, 1e-30])
    token, _ = inverse_cdf(weights, torch.tensor([uniform], dtype=torch.float64))
    assert int(token) in (3, 300, 411)


def test_tied_tokens_stay_in():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]], dtype=torch.float64).expand(2000, -1)
    uniforms = torch.linspace(0, 0.9999, 2000, dtype=torch.float64)
    assert set(draw(logits, Law(top_k=2), uniforms).tokens.tolist()) == {0, 1, 2}


def test_greedy_has_law_logprob_zero_and_raw_logprob_of_the_model():
    logits = torch.randn(5, 30, dtype=torch.float64)
    out = draw(logits, Law(temperature=0), torch.zeros(5))
    assert out.logprobs.tolist() == [0.0] * 5
    np.testing.assert_allclose(out.raw_logprobs, logits.log_softmax(-1).amax(-1), atol=1e-6)


def test_float32_draw_on_a_large_vocabulary_is_near_the_float64_law():
    logits = np.random.default_rng(0).normal(0, 3, 50_257)
    uniforms = torch.from_numpy(np.random.default_rng(1).random(64))
    wide = draw(torch.from_numpy(logits).expand(64, -1), Law(temperature=0.9, top_p=0.95), uniforms)
    narrow = draw(torch.from_numpy(logits).float().expand(64, -1), Law(temperature=0.9, top_p=0.95), uniforms)
    assert (wide.tokens == narrow.tokens).float().mean() > 0.96
    np.testing.assert_allclose(wide.logprobs, narrow.logprobs, atol=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("max_new_tokens", 0),
        ("stop", ("",)),
    ],
)
def test_law_out_of_range_is_named(field, value):
    with pytest.raises(ConfigError, match=field):
        check_law(Law(**{field: value}))


# --- the engine


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_equals_transformers_generate(kind):
    """Uneven prompts, more rows than the batch holds: every row is refilled several times."""
    module = tiny(kind)
    prompts = uneven(14, seed=3)
    out = drawn(module, requests_for(prompts), Law(temperature=0), batch_rows=4)
    assert len(out) == 14
    for i, prompt in enumerate(prompts):
        assert out[i, 0].token_ids == greedy_reference(module, prompt, 12)
    assert len({o.token_ids for o in out.values()}) > 5


@pytest.mark.parametrize("kind", CONFIGS)
def test_which_models_live_in_rows(kind):
    assert fits_rows(CONFIGS[kind], 42) == (kind in IN_ROWS)


def test_a_sliding_window_that_is_never_left_lives_in_rows():
    assert fits_rows(CONFIGS["mistral"], 8)
    module = tiny("mistral", sliding_window=64)
    prompts = uneven(6, seed=5)
    out = drawn(module, requests_for(prompts), Law(temperature=0), batch_rows=3)
    assert [out[i, 0].token_ids for i in range(6)] == [greedy_reference(module, p, 12) for p in prompts]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(attention):
    module = tiny("llama")
    module.set_attn_implementation(attention)
    prompts = uneven(8, seed=4)
    out = drawn(module, requests_for(prompts), Law(temperature=0), batch_rows=3)
    assert [out[i, 0].token_ids for i in range(8)] == [greedy_reference(module, p, 12) for p in prompts]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_results_do_not_depend_on_batch_rows_or_order(kind):
    module = tiny(kind, spread=1.5)
    requests = requests_for(uneven(9, seed=6), candidates=3)
    law = Law(temperature=1.1, top_p=0.95)
    runs = [drawn(module, requests, law, batch_rows=rows) for rows in (1, 2, 5, 64)]
    backwards = drawn(module, requests[::-1], law, batch_rows=5)
    runs.append({(8 - i, c): s for (i, c), s in backwards.items()})
    for key in runs[0]:
        assert len({r[key].token_ids for r in runs}) == 1
        for run in runs[1:]:
            np.testing.assert_allclose(run[key].logprobs, runs[0][key].logprobs, atol=1e-6)
    assert len({s.token_ids for s in runs[0].values()}) > 20


def test_a_candidate_does_not_depend_on_the_others_asked_for():
    module = tiny(spread=1.5)
    (request,) = requests_for(uneven(1), candidates=5)
    everything = drawn(module, [request], Law())
    alone = drawn(module, [Request(request.tokens, request.seeds[3:4], request.limit)], Law())
    assert alone[0, 0].token_ids == everything[0, 3].token_ids


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "lfm2"])
def test_logprobs_equal_a_teacher_forced_pass(kind):
    module = tiny(kind, dtype=torch.float32, spread=1.5)
    prompts = uneven(7, seed=7)
    law = Law(temperature=0.8, top_k=12, top_p=0.9, min_p=0.02)
    for (i, _), s in drawn(module, requests_for(prompts, 3), law, batch_rows=4).items():
        ids = torch.tensor([[*prompts[i], *s.token_ids]])
        with torch.no_grad():
            logits = module(ids).logits[0, len(prompts[i]) - 1 : -1].double()
        raw = logits.log_softmax(-1)[torch.arange(len(s.token_ids)), list(s.token_ids)]
        np.testing.assert_allclose(s.raw_logprobs, raw, atol=1e-4)
        ours = [math.log(law_of(row.numpy().copy(), law)[t]) for row, t in zip(logits, s.token_ids, strict=True)]
        np.testing.assert_allclose(s.logprobs, ours, atol=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_sampled_pairs_follow_the_enumerated_law(law):
    """Chi-square of 4,000 two-token samples against the enumerated distribution over pairs."""
    module = tiny(spread=1.5, vocab_size=8, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    prompt, n = [3, 5, 1], 4000
    out = drawn(module, requests_for([prompt], n, limit=2, seed=11), law, end_ids=(), batch_rows=512)
    with torch.no_grad():
        first = law_of(module(torch.tensor([prompt])).logits[0, -1].numpy(), law)
        after = module(torch.tensor([[*prompt, t] for t in range(8)])).logits[:, -1].numpy()
    expected = np.array([first[t] * law_of(after[t], law) for t in range(8)]).ravel() * n
    seen = np.bincount([s.token_ids[0] * 8 + s.token_ids[1] for s in out.values()], minlength=64)
    assert seen[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 8)
    observed, wanted = seen[expected >= 8], expected[expected >= 8]
    if rare.any():
        observed, wanted = np.append(observed, seen[rare].sum()), np.append(wanted, expected[rare].sum())
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_rows_end_at_any_end_token_even_when_it_is_the_pad_token():
    module = tiny()
    prompts = uneven(10, seed=8)
    ends = (2, 7, 19, 30)
    out = drawn(module, requests_for(prompts, limit=40), Law(temperature=0), end_ids=ends, batch_rows=3)
    stopped = 0
    for i, prompt in enumerate(prompts):
        s = out[i, 0]
        assert s.token_ids == greedy_reference(module, prompt, 40, ends)
        assert s.finish == ("stop" if s.token_ids[-1] in ends else "length")
        assert not set(s.token_ids[:-1]) & set(ends)
        stopped += s.finish == "stop"
    assert stopped > 2


def test_limits_are_kept_row_by_row():
    module = tiny()
    requests = [Request(p, [1, 2], limit) for p, limit in zip(uneven(6, seed=9), (1, 2, 3, 7, 1, 5), strict=True)]
    out = drawn(module, requests, Law(), end_ids=(), batch_rows=4)
    assert all(len(s.token_ids) == requests[i].limit and s.finish == "length" for (i, _), s in out.items())
    assert len(out) == 12


def test_looking_rarely_changes_nothing(monkeypatch):
    """On a GPU the engine looks at the end flags every few steps only; rows run on past their end until then."""
    module, requests, law = tiny(), requests_for(uneven(12, seed=10), 2, limit=30), Law(temperature=1.2)

    def stop(tokens, fresh):
        return next((n for n in range(max(1, len(tokens) - fresh + 1), len(tokens) + 1) if tokens[n - 1] == 5), None)

    often = drawn(module, requests, law, end_ids=(2, 9), stop=stop, batch_rows=5)
    monkeypatch.setattr("tamis.generation.engine.look_every", lambda device: 7)
    rarely = drawn(module, requests, law, end_ids=(2, 9), stop=stop, batch_rows=5)
    assert {k: (s.token_ids, s.finish) for k, s in often.items()} == {
        k: (s.token_ids, s.finish) for k, s in rarely.items()
    }
    assert {s.token_ids[-1] for s in often.values() if s.finish == "stop"} == {2, 5, 9}


def test_training_mode_is_put_back_and_dropout_is_off():
    module = tiny("gpt2", resid_pdrop=0.5).train()
    requests = requests_for(uneven(3))
    first, second = (drawn(module, requests, Law(temperature=0)) for _ in range(2))
    assert module.training
    assert {k: s.token_ids for k, s in first.items()} == {k: s.token_ids for k, s in second.items()}


def test_damaged_weights_and_encoder_decoders_are_refused():
    module = tiny()
    module.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        drawn(module, requests_for(uneven(2)), Law())
    seq2seq = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="encoder-decoder"):
        drawn(seq2seq, requests_for([[1, 2]]), Law())


def test_nothing_asked_nothing_run():
    assert list(sample(tiny(), [], Law(), end_ids=())) == []
    assert list(sample(tiny(), [Request([], [], 0)], Law(), end_ids=())) == []


# --- scoring


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("budget", [1, 2000, 2**26])
def test_score_equals_one_sequence_at_a_time(kind, budget):
    module = tiny(kind, dtype=torch.float32)
    sequences = [*uneven(6, seed=12), [4], []]
    for ids, got in zip(sequences, score(module, sequences, logits_budget=budget), strict=True):
        assert got.dtype == np.float32
        assert got.shape == (len(ids),)
        if len(ids) > 1:
            with torch.no_grad():
                logps = module(torch.tensor([ids])).logits[0].log_softmax(-1)
            np.testing.assert_allclose(got[1:], logps[torch.arange(len(ids) - 1), ids[1:]], atol=1e-4)
        assert not len(ids) or got[0] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "lfm2"])
def test_next_logits_equal_one_sequence_at_a_time(kind):
    module = tiny(kind, dtype=torch.float32)
    sequences = uneven(9, seed=13)
    got = next_logits(module, sequences, batch_rows=4)
    assert got.shape == (9, VOCABULARY)
    with torch.no_grad():
        for ids, row in zip(sequences, got, strict=True):
            np.testing.assert_allclose(row, module(torch.tensor([ids])).logits[0, -1], atol=1e-4)
