import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.hashing import rng
from tamis.pool import Pool
from tamis.records import Completion, Message, Prompt, Turn, Verdict
from tamis.registry import build
from tamis.selectors.clusters import cluster_labels, nearest
from tamis.selectors.random import random_select
from tamis.selectors.token_length import token_length
from tamis.selectors.top_k import top_k
from tamis.selectors.within_clusters import within_clusters


def count_words(texts):
    return np.array([len(t.split()) for t in texts], dtype=np.int64)


def make_pool(n=20, scores=None, texts=None, tasks=1):
    prompts = [Prompt((Message("user", f"question {i}"),), task=f"task{i % tasks}") for i in range(n)]
    texts = texts or [" ".join(["word"] * (i % 7 + 1)) + f" {i}" for i in range(n)]
    done = [Completion(p.id, (Turn("assistant", t),)) for p, t in zip(prompts, texts, strict=True)]
    verdicts = [Verdict(c.prompt_id, (c.id,), "j", s, "x") for c, s in zip(done, scores or [], strict=False)]
    return Pool({p.id: p for p in prompts}, done, verdicts, count_tokens=count_words)


def ids(pool, selection):
    return [pool.completions[i].id for i in selection.indices]


# Random.


def test_random_is_uniform_over_subsets():
    counts = {}
    for seed in range(3000):
        chosen = tuple(random_select(4, 2, rng(seed)).tolist())
        assert len(set(chosen)) == 2
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == 12
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_balanced_random_passes_the_rest_on():
    groups = np.array(["a"] * 2 + ["b"] * 50 + ["c"] * 50)
    chosen = random_select(102, 30, rng(0), groups)
    assert np.unique(groups[chosen], return_counts=True)[1].tolist() == [2, 14, 14]
    assert len(set(chosen.tolist())) == 30
    first = [groups[random_select(102, 30, rng(s), groups)[0]] for s in range(60)]
    assert set(first) >= {"b", "c"}  # draw order mixes the groups


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k):
    for call in (
        lambda: random_select(5, k, rng(0)),
        lambda: token_length(np.ones(5, int), k, rng(0)),
        lambda: within_clusters(np.zeros(5, int), None, k, rng(0)),
        lambda: top_k(np.ones(5), k),
    ):
        with pytest.raises(ValueError, match="k must be between"):
            call()


def test_random_group_errors():
    with pytest.raises(ValueError, match="at least one item"):
        random_select(3, 1, rng(0), np.array([]))
    with pytest.raises(ValueError, match="2 group labels for 3"):
        random_select(3, 1, rng(0), np.array([1, 2]))


def test_random_selector():
    pool = make_pool(tasks=2)
    one = build("selector", {"random": {"k": 6, "balance": "task"}}).select(pool, Context(seed=1))
    assert len(one.indices) == 6
    assert sum(pool.prompt(i).task == "task0" for i in one.indices) == 3
    assert one.notes["tokens"] > 0
    assert ids(pool, one) != ids(
        pool, build("selector", {"random": {"k": 6, "balance": "task"}}).select(pool, Context(seed=2))
    )
    assert len(build("selector", {"random": {"fraction": 0.5}}).select(pool, Context()).indices) == 10
    with pytest.raises(ConfigError, match="no prompt has a metadata field 'tsk'"):
        build("selector", {"random": {"k": 6, "balance": "tsk"}}).select(pool, Context())
    for wrong in ({}, {"k": 2, "fraction": 0.5}, {"k": 0}, {"fraction": 1.5}):
        with pytest.raises(ConfigError):
            build("selector", {"random": wrong})


def test_candidates_are_accepted_and_not_empty():
    pool = make_pool(4, scores=[1.0, 0.0, None, 1.0], texts=["a", "b", "c", " "])
    ctx = Context()
    found = build("selector", {"random": {"k": 3}}).select(pool, ctx)
    assert found.indices.tolist() == [0]
    assert "only 1" in found.reason
    assert ctx.counts == {"not accepted": 2, "dropped: empty response": 1}


# Length.


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.data())
def test_longest_equals_sorting(lengths, data):
    k = data.draw(st.integers(1, len(lengths)))
    expected = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:k]
    assert token_length(np.array(lengths), k, rng(0)).tolist() == expected


def test_weighted_draws_in_proportion():
    lengths = np.array([1, 2, 5, 0])
    first, pairs = np.zeros(4), {}
    for seed in range(6000):
        a, b = token_length(lengths, 2, rng(seed), "weighted")
        first[a] += 1
        pairs[a, b] = pairs.get((a, b), 0) + 1
    assert first[3] == 0
    expected = {(i, j): lengths[i] / 8 * lengths[j] / (8 - lengths[i]) for i in range(3) for j in range(3) if i != j}
    observed = [pairs[p] for p in expected]
    assert stats.chisquare(observed, [6000 * e for e in expected.values()]).pvalue > 1e-4


def test_range_is_uniform_inside():
    lengths = np.arange(10)
    drawn = np.concatenate([token_length(lengths, 2, rng(s), "range", (3, 6)) for s in range(1000)])
    counts = np.bincount(drawn, minlength=10)
    assert counts[:3].sum() + counts[7:].sum() == 0
    assert stats.chisquare(counts[3:7]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("lengths", "mode", "bounds", "message"),
    [
        ([1, -1, 2], "longest", None, "length 1 is negative"),
        ([1, 1, 2], "shortest", None, "mode must be"),
        ([1, 1, 2], "range", None, "needs range"),
        ([1, 1, 2], "range", (3, 2), "needs range"),
        ([1, 1, 9], "range", (2, 9), "only 1 of 3"),
        ([0, 0, 2], "weighted", None, "only 1 of 3"),
        ([1.0, np.nan, 2.0], "longest", None, "length 1 is NaN"),
    ],
)
def test_length_errors(lengths, mode, bounds, message):
    with pytest.raises(ValueError, match=message):
        token_length(np.array(lengths), 2, rng(0), mode, bounds)


def test_length_selector():
    pool = make_pool()
    longest = build("selector", {"token_length": {"k": 3, "of": "response"}}).select(pool, Context())
    assert {len(pool.completions[i].text.split()) for i in longest.indices} == {8, 7}
    ranged = build("selector", {"token_length": {"k": 9, "of": "response", "mode": "range", "range": [2, 3]}})
    found = ranged.select(pool, Context())
    assert {len(pool.completions[i].text.split()) for i in found.indices} == {2, 3}
    assert "9 were asked for" in found.reason
    cut = build("selector", {"token_length": {"k": 2, "max_length": 1}}).select(pool, Context())
    assert ids(pool, cut) == sorted(c.id for c in pool.completions)[:2]  # all equal after the cut: ties to the lower id
    for wrong in ({"k": 1, "mode": "range"}, {"k": 1, "range": [1, 2]}):
        with pytest.raises(ConfigError, match="goes with mode"):
            build("selector", {"token_length": wrong})
    for wrong in ([3, 2], [-1, 2]):
        with pytest.raises(ConfigError, match=r"token_length'?: range: lowest and highest.*not \[") as refused:
            build("selector", {"token_length": {"k": 1, "mode": "range", "range": wrong}})
        assert "ArgsKwargs" not in str(refused.value)
    pool.count_tokens = None
    with pytest.raises(ConfigError, match="tokenizer"):
        build("selector", {"token_length": {"k": 3}}).select(pool, Context())


# Clusters.


def blobs(n, d=8, topics=6, seed=0):
    random = rng(seed)
    centres = random.normal(scale=10, size=(topics, d))
    truth = random.integers(topics, size=n)
    return (centres[truth] + random.normal(size=(n, d))).astype(np.float32), truth


def test_clusters_recover_separated_topics():
    points, truth = blobs(3000)
    labels = cluster_labels(points, 6, rng(1), fit_rows=1000, block=257)
    assert labels.dtype == np.int32
    pairs = set(zip(truth.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == len(set(truth.tolist())) == 6
    assert (labels == cluster_labels(points, 6, rng(1), fit_rows=1000, block=3000)).all()


def test_nearest_equals_brute_force(tmp_path):
    points, _ = blobs(500, d=5)
    centres = rng(3).normal(scale=8, size=(17, 5))
    brute = ((points[:, None].astype(float) - centres[None]) ** 2).sum(-1).argmin(1)
    assert (nearest(points, centres, block=64) == brute).all()
    file = np.memmap(tmp_path / "e", dtype=np.float32, mode="w+", shape=points.shape)
    file[:] = points
    assert (cluster_labels(file, 4, rng(0)) == cluster_labels(points, 4, rng(0))).all()


@pytest.mark.parametrize(
    ("rows", "clusters", "message"),
    [
        (np.ones(3), 1, "shape"),
        (np.ones((0, 3)), 1, "N > 0"),
        (np.ones((3, 2)), 4, "n_clusters"),
        (np.array([[1.0, 2], [np.inf, 0]]), 1, "embedding 1 is not finite"),
    ],
)
def test_cluster_errors(rows, clusters, message):
    with pytest.raises(ValueError, match=message):
        cluster_labels(rows, clusters, rng(0))


def test_within_clusters_by_hand():
    labels = np.array([7, 7, 7, 7, 9, 9, 3])  # quotas of 4: cluster 3 .57, 7 2.29, 9 1.14 -> 1, 2, 1
    score = np.array([1, 4, 4, 9, 2, 8, 0.5])
    assert within_clusters(labels, score, 4, rng(0)).tolist() == [3, 5, 1, 6]
    assert within_clusters(labels, score, 3, rng(0), minimum=1).tolist() == [3, 5, 6]
    with pytest.raises(ValueError, match="more than k"):
        within_clusters(labels, score, 2, rng(0), minimum=1)
    with pytest.raises(ValueError, match="score 0 is NaN"):
        within_clusters(labels, np.full(7, np.nan), 2, rng(0))
    with pytest.raises(ValueError, match="7 group labels for 6"):
        within_clusters(labels, score[:6], 2, rng(0))
    with pytest.raises(ValueError, match="at least one item"):
        within_clusters(np.array([]), None, 1, rng(0))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=25), st.data())
def test_within_clusters_equals_brute_force(labels, data):
    labels = np.array(labels)
    score = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(labels), max_size=len(labels))), dtype=float)
    k = data.draw(st.integers(1, len(labels)))
    values, sizes = np.unique(labels, return_counts=True)
    exact = [k * n / len(labels) for n in sizes]
    quotas = [int(e + 1e-9) for e in exact]
    for c in sorted(range(len(sizes)), key=lambda c: (-round(exact[c] - quotas[c], 9), c))[: k - sum(quotas)]:
        quotas[c] += 1
    best = lambda group: sorted(group, key=lambda i: (-score[i], i))  # noqa: E731
    chosen = [i for v, q in zip(values, quotas, strict=True) for i in best(np.flatnonzero(labels == v))[:q]]
    assert within_clusters(labels, score, k, rng(0)).tolist() == best(chosen)


def test_stratified_random_is_uniform_inside_a_cluster():
    labels = np.array([0] * 4 + [1] * 2)
    counts = np.zeros(6)
    for seed in range(2000):
        counts[within_clusters(labels, None, 3, rng(seed))] += 1
    assert counts[:4].sum() == 4000
    assert stats.chisquare(counts[:4]).pvalue > 1e-4
    assert stats.chisquare(counts[4:]).pvalue > 1e-4


def test_within_clusters_selector():
    pool = make_pool(30, scores=[0.5 + i / 100 for i in range(29)] + [None])
    with pytest.raises(ConfigError, match=r"(?s)embedder.*`embedder:`"):
        build("selector", {"within_clusters": {"k": 3}}).select(pool, Context())
    pool.embed = lambda texts: np.array([[len(t) > 45, 1.0] for t in texts], dtype=np.float32)
    found = build("selector", {"within_clusters": {"k": 5, "n_clusters": 2, "score": "verdict"}}).select(
        pool, Context()
    )
    assert len(found.indices) == 5
    scores = pool.take(found.indices.tolist()).scores()
    assert (np.diff(scores) <= 0).all()
    assert found.notes["clusters"] == 2
    for score in ("random", "length"):
        again = build("selector", {"within_clusters": {"fraction": 0.5, "score": score}}).select(pool, Context())
        assert len(set(again.indices.tolist())) == len(again.indices) == 15
    with pytest.raises(ConfigError, match="takes"):
        build("selector", {"within_clusters": {"k": 3, "n_clusters": 2, "minimum": 3}}).select(pool, Context())
