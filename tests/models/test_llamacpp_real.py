"""llama.cpp itself, on the default model's quantised weights; skipped where llama-cpp-python is not installed."""

from collections import Counter

import numpy as np
import pytest
import torch

from tamis.models import load, resolve
from tamis.records import Law, Message, Prompt

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (tamis[llamacpp])")
pytestmark = [pytest.mark.slow, pytest.mark.default_model]


@pytest.fixture(scope="module")
def real():
    made = load(resolve("smollm2-135m", gguf=True), engine="llamacpp", batch_rows=8)
    yield made
    made.release()


def test_greedy_tokens_are_those_of_its_own_interface(real):
    """Its interface reads our tokens one by one; where its best token is another, the two are nearly as probable."""
    from llama_cpp import Llama

    prompts = [Prompt((Message("user", f"What is {i} + {3 * i}?"),)) for i in (4, 15)]
    ours = list(real.generate(prompts, Law(temperature=0, max_new_tokens=24), candidates=[[0], [0]], seed=0))
    peer = Llama(str(real.ref.gguf), n_ctx=256, n_batch=1, logits_all=True, verbose=False)
    equal = []
    for prompt, completion in zip(prompts, ours, strict=True):
        ids, drawn = real.chat.prompt_ids(prompt.messages), list(completion.token_ids)
        peer.reset()
        peer.eval([*ids, *drawn[:-1]])
        logits = np.array(peer.scores[len(ids) - 1 : len(ids) + len(drawn) - 1])
        behind = logits.max(-1) - logits[np.arange(len(drawn)), drawn]
        assert behind.max() < 0.3
        equal += (behind == 0).tolist()
    assert np.mean(equal) > 0.9


def test_the_law_is_that_of_its_own_logits(real):
    """Chi-square of first tokens, and the log-probability of each under logits taken by themselves."""
    from scipy.stats import chisquare

    prompt, law = Prompt((Message("user", "Name a colour."),)), Law(temperature=1.3, top_k=6, max_new_tokens=1)
    drawn = list(real.generate([prompt], law, candidates=[range(600)], seed=3))
    (logits,) = real.next_token_logits([real.chat.prompt_ids(prompt.messages)])
    raw = torch.from_numpy(logits).log_softmax(-1)
    kept = raw.topk(6).indices.tolist()
    p = (raw[kept] / 1.3).softmax(-1).numpy()
    counts = Counter(c.token_ids[0] for c in drawn)
    assert set(counts) <= set(kept)
    assert chisquare([counts[t] for t in kept], 600 * p.astype(np.float64) / p.sum(dtype=np.float64)).pvalue > 1e-3
    for c in drawn[:20]:
        assert c.logprobs[0] == pytest.approx(float(np.log(p[kept.index(c.token_ids[0])])), abs=1e-4)
        assert c.raw_logprobs[0] == pytest.approx(float(raw[c.token_ids[0]]), abs=1e-4)


def test_results_depend_on_seed_prompt_and_candidate_and_scores_agree(real):
    prompts = [Prompt((Message("user", f"What is {i} + {3 * i}?"),)) for i in (4, 15)]
    law = Law(max_new_tokens=12)
    both = list(real.generate(prompts, law, candidates=[[0, 1, 5], [2]], seed=1))
    (alone,) = real.generate(prompts[:1], law, candidates=[[5]], seed=1)
    assert alone.token_ids == both[2].token_ids
    for c, prompt in zip(both, [prompts[0]] * 3 + [prompts[1]], strict=True):
        ids = [*real.chat.prompt_ids(prompt.messages), *c.token_ids]
        (score,) = real.logprobs([ids])
        np.testing.assert_allclose(score[-len(c.token_ids) :], c.raw_logprobs, atol=0.05)
