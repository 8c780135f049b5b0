from dataclasses import replace

import numpy as np
import pytest
import torch

from tamis.checks import c093_upft as check
from tamis.checks.harness import Table
from tamis.checks.sums import bench
from tamis.lab.nano import PRINTABLE
from tamis.lab.worlds import StyledSums


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAMIS_HOME", str(tmp_path_factory.mktemp("home")))
        on = bench(StyledSums(3, 3), 7, 0.05, size=15, heldout=12, vocab=PRINTABLE)
        return check.World(on, on)


@pytest.fixture(scope="module")
def upft(world):
    return check.upft(world)


def test_tokens_sampled_and_trained_are_counted_exactly(world, upft):
    assert upft["sampled tokens"] == upft["trained tokens"] == upft["_expected tokens"]
    lengths = sorted(len(c.token_ids) for c in world.traces().completions)
    assert 13 * check.PREFIX < upft["_expected tokens"] <= 13 * check.PREFIX + sum(lengths[-2:])


def test_a_prefix_is_the_beginning_of_the_full_trace(world):
    full = {c.prompt_id: c for c in world.traces().completions}
    pool = check.prefixes(world.good)
    assert len(pool) == len(full)
    structure = [c for c in pool.completions if c.sampler == "prefix:structure"]
    assert len(structure) == 2
    for completion in pool.completions:
        length = len(full[completion.prompt_id].token_ids) if completion in structure else check.PREFIX
        assert completion.token_ids == full[completion.prompt_id].token_ids[:length]


def test_only_the_prefix_gets_a_gradient(world, upft):
    assert upft["_stray gradient"] == 0


def test_a_trained_end_token_or_a_lost_prefix_token_is_a_stray_gradient(world):
    on, pool = world.good, check.prefixes(world.good)
    examples = on.compose({"prefix": {}}, pool)
    cut = next(e for e in examples if e.metadata["origin"] == "prefix:cut")
    assert check.stray_gradient(on, pool, [cut]) == 0
    ended = on.base.chat.render(replace(cut.target, ended=True))
    assert check.stray_gradient(on, pool, [replace(cut, target=ended, id="")]) > 0
    lost = replace(cut.target, weights=(*cut.target.weights[:-1], 0.0))
    assert check.stray_gradient(on, pool, [replace(cut, target=lost, id="")]) > 0


def test_gradient_at_the_logits_is_softmax_minus_one_hot(world):
    on = world.good
    example = on.compose({"prefix": {}}, check.prefixes(on))[0]
    found = check.logit_gradient(on, [example])[0]
    ids = torch.tensor(example.target.token_ids)
    logits = on.base.module()(input_ids=ids[None]).logits[0].detach()
    wanted = torch.zeros_like(logits)
    for i in range(1, len(ids)):
        if example.target.weights[i]:
            wanted[i - 1] = torch.softmax(logits[i - 1], -1)
            wanted[i - 1, ids[i]] -= 1
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_share_is_the_probability_of_the_letter_at_the_plain_prompt(world):
    on = world.good
    found = check.measured(on, on.base)
    prompt = on.heldout[3]
    ids = torch.tensor(on.base.tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    logits = on.base.module().eval()(input_ids=ids[None]).logits[0, -1].detach().double()
    letter = on.base.tokenizer.convert_tokens_to_ids("A")
    assert found["share of A"][3] == pytest.approx(float(torch.softmax(logits / 0.7, -1)[letter]), abs=1e-5)
    assert found["share of A at T=1"][3] == pytest.approx(float(torch.softmax(logits, -1)[letter]), abs=1e-5)
    assert set(found["accuracy"]) <= {0.0, 1.0}


def test_training_prompt_of_a_prefix_has_the_sentence_and_no_end_and_the_arm_without_it_differs_in_that_alone(world):
    on, pool = world.good, check.prefixes(world.good)
    with_sentence = [e for e in on.compose({"prefix": {}}, pool) if e.metadata["origin"] == "prefix:cut"]
    plain = {e.prompt_id: e for e in on.compose({"accepted_sft": {"truncated": "prefix"}}, pool)}
    assert len(plain) == len(on.train)
    for example in with_sentence:
        other = plain[example.prompt_id]
        assert example.target.messages[0].content.startswith(other.target.messages[0].content + "\n")
        assert [m.content for m in other.target.messages][1:] == [m.content for m in example.target.messages][1:]
        trained = [sum(w > 0 for w in e.target.weights) for e in (example, other)]
        assert trained == [check.PREFIX, check.PREFIX]


@pytest.mark.parametrize(("ratio", "tries", "share"), [(0.1, 16, 0.0085), (0.1, 1, 0.136), (0.02, 16, 0.0037)])
def test_sampling_share(ratio, tries, share):
    assert check.sampling_share(ratio, tries) == pytest.approx(share, abs=1e-12)
    assert share == pytest.approx((ratio * 200 + (1 - ratio) * 8) / (tries * 200))


def synthetic(share, tokens=(1600.0, 1600.0)):
    fields = {"accuracy": 0.5, "share of A at T=1": 0.5, "sampled tokens": tokens[0], "trained tokens": tokens[1]}
    exact = {"_expected tokens": 1600.0, "_stray gradient": 0.0}
    noise = np.linspace(-0.01, 0.01, 50)
    cells = {
        seed: {
            arm: {**fields, **exact, "share of A": noise + share(arm)} | {"accuracy": noise, "share of A at T=1": noise}
            for arm in check.ARMS
        }
        for seed in (1, 2, 3)
    }
    return Table(cells, row=93)


def gates(table):
    return [f.holds for f in check.verdict(table) if f.kind == "gate"]


def test_verdict():
    moved = {"base": 0.65, "upft": 0.7, "base, B majority": 0.3, "upft, B majority": 0.2}
    assert gates(synthetic(lambda arm: moved.get(arm, 0.5))) == [True] * 8
    still = synthetic(lambda arm: 0.5, tokens=(1601.0, 1600.0))
    assert gates(still) == [False, False, True, True, False, True, True, True]
    kinds = [f.kind for f in check.verdict(still)]
    assert kinds.count("gpu") == 3


def test_seeds_are_the_rows_own():
    assert tuple(range(50_000 + check.ROW, 50_000 + check.ROW + 3)) == check.SEEDS
