"""Objectives that read more than a target: pairs that stay together, values per token and per example."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import TrainingError
from tamis.objectives.core import batch_logprobs
from tamis.records import Example, Target
from tamis.training.batches import Row, admit, collate, split, target_row
from tamis.training.config import TuneConfig
from tamis.training.loop import fit

BETA = 0.5


def target(rng, low=3, high=20):
    length = int(rng.integers(low, high))
    prompt = int(rng.integers(1, length))
    ids = tuple(int(t) for t in rng.integers(0, 24, length))
    return Target((), token_ids=ids, weights=(0.0,) * prompt + (1.0,) * (length - prompt))


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Example("preference", f"p{i}", target(rng), rejected=target(rng), margin=float(rng.random())) for i in range(n)
    ]


def rollouts(n, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        answer = target(rng)
        old = tuple(float(x) for x in -rng.random(int(sum(answer.weights))))
        made.append(Example("rollout", f"p{i}", answer, reward=float(rng.normal()), behaviour_logprobs=old))
    return made


class Preference:
    """-log sigmoid(beta (log p(chosen) - log p(rejected) - margin)), summed over pairs."""

    def row(self, example):
        chosen, rejected = (
            target_row(example, part, margin=np.float32(example.margin)) for part in (example.target, example.rejected)
        )
        return replace(chosen, others=(rejected,))

    def weight(self, batch):
        return len(batch.spans) / 2

    def loss(self, model, batch):
        logprobs = batch_logprobs(model, batch)
        sums = torch.stack([logprobs[line, start:stop].sum() for line, start, stop in batch.spans]).view(-1, 2)
        margins = batch.extra["margin"].view(-1, 2)[:, 0]
        return -torch.nn.functional.logsigmoid(BETA * (sums[:, 0] - sums[:, 1] - margins)).sum(), {}


class Clipped:
    """The clipped ratio of new to old probability times the reward, summed over trained tokens."""

    def row(self, example):
        old = np.zeros(len(example.target.token_ids), dtype=np.float32)
        old[np.flatnonzero(example.target.weights)] = example.behaviour_logprobs
        return target_row(example, example.target, old=old, reward=np.float32(example.reward))

    def weight(self, batch):
        return float(batch.weights.sum())

    def loss(self, model, batch):
        ratio = (batch_logprobs(model, batch) - batch.extra["old"]).exp()
        total = 0.0
        for (line, start, stop), reward in zip(batch.spans, batch.extra["reward"], strict=True):
            part = ratio[line, start:stop]
            gain = torch.minimum(part * reward, part.clamp(0.8, 1.2) * reward)
            total = total - (gain * batch.weights[line, start:stop]).sum()
        return total, {}


def alone(model, answer):
    """Log-probabilities of the trained tokens of one target, by the definition."""
    ids = torch.tensor([answer.token_ids])
    logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logp[torch.tensor(answer.weights[1:]) != 0]


CUTS = [
    {"batching": "bucket", "micro_batch_tokens": 10_000},
    {"batching": "bucket", "micro_batch_tokens": 50},
    {"batching": "bucket", "micro_batch_tokens": 1},
    {"batching": "pack", "micro_batch_tokens": 60},
    {"batching": "auto"},
]


@pytest.mark.parametrize("cut", CUTS)
def test_preference_pairs_by_hand(llama, cut):
    given, model = pairs(7), llama(1)
    config = TuneConfig(max_steps=1, batch_size=7, clip=None, **cut)
    with torch.no_grad():
        sums = [[alone(model, part).sum().item() for part in (e.target, e.rejected)] for e in given]
    by_hand = [np.log1p(np.exp(-BETA * (a - b - e.margin))) for (a, b), e in zip(sums, given, strict=True)]
    result = fit(model, given, Preference(), config, seed=0)
    assert result.curve[0]["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert result.trained_tokens == sum(sum(p.weights) for e in given for p in (e.target, e.rejected))


@pytest.mark.parametrize("cut", CUTS)
def test_rollouts_by_hand(llama, cut):
    given, model = rollouts(7), llama(1)
    total = 0.0
    with torch.no_grad():
        for example in given:
            ratio = (alone(model, example.target) - torch.tensor(example.behaviour_logprobs)).exp()
            total -= torch.minimum(ratio * example.reward, ratio.clamp(0.8, 1.2) * example.reward).sum().item()
    tokens = sum(sum(e.target.weights) for e in given)
    config = TuneConfig(max_steps=1, batch_size=7, **cut)
    assert fit(model, given, Clipped(), config, seed=0).curve[0]["loss"] == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("objective", [Preference(), Clipped()])
def test_the_gradient_does_not_depend_on_the_cut(llama, objective):
    given = pairs(9) if isinstance(objective, Preference) else rollouts(9)
    norms = [
        fit(llama(1), given, objective, TuneConfig(max_steps=1, batch_size=9, **cut), seed=0).curve[0]["grad_norm"]
        for cut in CUTS
    ]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 100), st.sampled_from(["bucket", "pack"]), st.integers(0, 99))
def test_a_pair_is_never_parted_nor_too_large(n, tokens, batching, seed):
    rows, _ = admit(pairs(n, seed), max_length=99, vocabulary=24, row=Preference().row)
    groups = split(rows, tokens=tokens, batching=batching)
    assert sorted(r.example.id for g in groups for r in g) == sorted(r.example.id for r in rows)
    for group in groups:
        batch = collate(group, packed=batching == "pack")
        ids = [e.id for e in batch.examples]
        assert ids[0::2] == ids[1::2] == [r.example.id for r in group]
        assert batch.input_ids.numel() <= tokens or len(group) == 1


def test_values_lie_where_their_tokens_lie():
    rng = np.random.default_rng(0)
    rows = []
    for length in (4, 7, 4):
        row = target_row(Example("distill", "p", Target(())), Target((), token_ids=(1,) * length, weights=(0.0, 1.0)))
        extra = {"teacher": rng.random((length, 3)).astype(np.float32), "top": rng.integers(0, 9, (length, 3))}
        rows.append(
            replace(
                row, weights=np.eye(length, dtype=np.float32)[1], extra={**extra, "score": np.array(length, np.float32)}
            )
        )
    for packed in (False, True):
        batch = collate(rows, packed=packed)
        assert batch.extra["teacher"].shape == (*batch.input_ids.shape, 3)
        assert batch.extra["top"].dtype == torch.int64
        assert batch.extra["score"].tolist() == [4, 7, 4]
        for row, (line, start, stop) in zip(rows, batch.spans, strict=True):
            for name in ("teacher", "top"):
                assert torch.equal(batch.extra[name][line, start:stop], torch.from_numpy(row.extra[name]))
        assert batch.extra["teacher"].sum() == pytest.approx(sum(r.extra["teacher"].sum() for r in rows))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"old": np.zeros(3, dtype=np.float32)}, "token ids and old differ in length"),
        ({"old": np.array([0, 0, 0, np.inf])}, "old has a value that is not finite"),
        ({"reward": np.float32("nan")}, "reward has a value that is not finite"),
    ],
)
def test_bad_values_are_refused_with_a_reason(extra, reason):
    answer = Target((), token_ids=(1, 2, 3, 4), weights=(0.0, 0.0, 1.0, 1.0))
    example = Example("rollout", "p", answer)
    rows, refused = admit([example], max_length=9, vocabulary=24, row=lambda e: target_row(e, answer, **extra))
    assert (rows, [r.reason for r in refused]) == ([], [reason])


def test_a_pair_with_a_bad_rejected_answer_is_refused():
    (example,) = pairs(1)
    bad = replace(example, rejected=Target((), token_ids=(1, 2), weights=(0.0, 0.0)), id="")
    rows, refused = admit([bad], max_length=99, vocabulary=24, row=Preference().row)
    assert (rows, [r.reason for r in refused]) == ([], ["no trained token"])


def test_memory_runs_out_on_a_pair(llama):
    class Cramped(Preference):
        def loss(self, model, batch):
            raise MemoryError

    with pytest.raises(TrainingError, match="single example"):
        fit(llama(), pairs(4), Cramped(), TuneConfig(max_steps=1), seed=0)


def test_rows_without_extra_have_none():
    assert (
        collate([Row(Example("sft", "p", Target(())), np.ones(3, np.int32), np.ones(3, np.float32))], packed=True).extra
        == {}
    )
