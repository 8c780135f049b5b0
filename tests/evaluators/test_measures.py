import math
from dataclasses import replace

import numpy as np
import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.evaluators import stats
from tamis.lab import nano
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, judged_view
from tamis.lab.worlds import ModularSums
from tamis.metrics import View
from tamis.models.chat import ChatFormat
from tamis.pool import Pool
from tamis.records import Completion, Law, Message, Prompt, Turn, Verdict

PROMPTS = [
    Prompt((Message("user", f"{i}+{i}="),), references=(f"#{2 * i}",), metadata={"answer": str(2 * i)})
    for i in range(60)
]


def build(name, **options):
    return registry.get("evaluator", name).build(options)


def measure(evaluator, rates=0.5, prompts=PROMPTS, **judge):
    return evaluator.measure(judged_view(evaluator, prompts, ScriptedModel(rates), ScriptedJudge(**judge)))


def answers_pool(*rows):
    """A pool of one prompt per row; an answer of None is unparseable, the right one is "r"."""
    prompts = [Prompt((Message("user", f"q{i}"),)) for i in range(len(rows))]
    completions, verdicts = [], []
    for prompt, row in zip(prompts, rows, strict=True):
        for index, answer in enumerate(row):
            made = Completion(prompt.id, (Turn("assistant", f"so {answer}, maybe {index}"),), index=index)
            label = "unparseable_answer" if answer is None else "correct" if answer == "r" else "wrong"
            score = None if answer is None else float(answer == "r")
            completions.append(made)
            verdicts.append(
                Verdict(prompt.id, (made.id,), "answer", score, label, rationale=f"extracted {answer!r}, gold 'r'")
            )
    return prompts, Pool({p.id: p for p in prompts}, completions, verdicts)


def test_accuracy_counts_right_greedy_answers():
    rates = {p.id: float(i < 42) for i, p in enumerate(PROMPTS)}
    (metric,) = measure(build("accuracy"), rates)
    assert metric.value == 0.7
    assert (metric.low, metric.high) == pytest.approx(stats.wilson(42, 60)[1:])
    assert metric.per_item == {p.id: rates[p.id] for p in PROMPTS}
    assert (metric.n, metric.notes, metric.unit) == (60, {}, "share")


def test_accuracy_never_counts_the_unparseable_as_right_and_shows_them():
    (metric,) = measure(build("accuracy"), 1.0, unparseable=0.3)
    unread = metric.notes["unparseable_verdict"]
    assert 5 < unread < 35
    assert metric.value == pytest.approx(1 - unread / 60)


def test_accuracy_counts_truncated_completions():
    (metric,) = measure(build("accuracy", max_new_tokens=1), 1.0)
    assert metric.value == 0.0
    assert metric.notes == {"truncated": 60}


def test_pass_at_k_is_the_mean_of_the_unbiased_estimate():
    evaluator = build("pass_at_k", k=[1, 4], n=10)
    view = judged_view(evaluator, PROMPTS, ScriptedModel(0.4), ScriptedJudge())
    (pool,) = view.pools.values()
    one, four = evaluator.measure(view)
    right = np.array([sum(pool.score(i) for i in rows) for rows in pool.by_prompt.values()])
    assert one.value == pytest.approx(right.mean() / 10)
    expected = np.mean([1 - math.comb(10 - int(c), 4) / math.comb(10, 4) for c in right])
    assert four.value == pytest.approx(expected)
    assert four.per_item == pytest.approx(dict(zip(pool.by_prompt, stats.pass_at_k(10, right, 4), strict=True)))
    assert one.name == "pass@1"
    assert one.low < one.value < one.high


def test_pass_at_k_draws_the_largest_k_and_refuses_more():
    (draw,) = build("pass_at_k").draws()
    assert (draw.n, draw.law.temperature) == (8, 0.7)
    for options in ({"k": [1, 9], "n": 8}, {"k": [0]}):
        with pytest.raises(ConfigError, match="every k must lie between 1 and n"):
            build("pass_at_k", **options)


def test_maj_at_k_and_pass_at_k_share_their_samples_by_default():
    assert build("maj_at_k").draws() == build("pass_at_k").draws()


def test_majority_votes():
    cases = [
        (["r", "w", "r"], 1, "majority right"),
        (["w", "r", "w"], 0, "majority wrong"),
        (["r", "w", "x"], 1, "tie: first seen"),
        (["w", "r", "x"], 0, "tie: first seen"),
        ([None, None, "r"], 1, "unparseable ones do not vote"),
        ([None, "r", "w"], 1, "tie among those who vote"),
        ([None, None, None], 0, "no vote"),
    ]
    prompts, pool = answers_pool(*(row for row, _, _ in cases))
    evaluator = build("maj_at_k", k=3)
    (metric,) = evaluator.measure(View(prompts, {evaluator.draws()[0]: pool}))
    for prompt, (_, expected, why) in zip(prompts, cases, strict=True):
        assert metric.per_item[prompt.id] == expected, why
    assert metric.notes == {"no_vote": 1, "ties": 3, "unparseable_answer": 6}
    assert metric.name == "maj@3"


def test_votes_are_for_answers_not_texts():
    """Where the judge names no extracted answer, the text's own final answer votes: "18.0" and "$18" are one."""
    prompt = Prompt((Message("user", "q"),))
    texts = ["The answer is 7", "The answer is 18.0", "so the answer is $18"]
    made = [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts)]
    verdicts = [Verdict(prompt.id, (c.id,), "rubric", float(i > 0)) for i, c in enumerate(made)]
    evaluator = build("maj_at_k", k=3)
    view = View([prompt], {evaluator.draws()[0]: Pool({prompt.id: prompt}, made, verdicts)})
    assert evaluator.measure(view)[0].value == 1.0


def test_votes_are_what_the_answer_judge_extracted():
    prompt = Prompt((Message("user", "q"),), references=("#4",))
    texts = ["1+3=4,#4", "5,#9", "2+2=4,#04", "no answer", "7,#9", "it's #4"]
    made = [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts)]
    judge = registry.get("judge", "answer").build({"kind": "regex", "pattern": r"#(\d+)"})
    pool = Pool({prompt.id: prompt}, made, list(judge.judge({prompt.id: prompt}, made, Context())))
    assert [v.score for v in pool.verdicts] == [1, 0, 1, None, 0, 1]
    evaluator = build("maj_at_k", k=6)
    (metric,) = evaluator.measure(View([prompt], {evaluator.draws()[0]: pool}))
    assert (metric.value, metric.notes) == (1.0, {"unparseable_answer": 1})


@pytest.mark.parametrize("name", ["accuracy", "pass_at_k", "maj_at_k"])
def test_missing_samples_and_verdicts_are_named(name):
    evaluator = build(name)
    view = judged_view(evaluator, PROMPTS, ScriptedModel(0.5), ScriptedJudge())
    ((draw, pool),) = view.pools.items()
    short = Pool(pool.prompts, pool.completions[1:], pool.verdicts)
    with pytest.raises(DataError, match=rf"has {draw.n - 1} completions where {draw.n} are needed"):
        evaluator.measure(replace(view, pools={draw: short}))
    with pytest.raises(ConfigError, match="not judged"):
        evaluator.measure(replace(view, pools={draw: Pool(pool.prompts, pool.completions)}))


class Scorer:
    """A nano model behind the capabilities "scoring" and "tokens", one sequence at a time."""

    context_length = nano.CONTEXT

    def __init__(self):
        self.module, self.tokenizer = nano.nano_module(ModularSums().alphabet)
        self.chat = ChatFormat(self.tokenizer)

    def logprobs(self, sequences):
        import torch

        rows = []
        for ids in sequences:
            with torch.inference_mode():
                logits = self.module(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)
            told = logits[:-1].gather(1, torch.tensor(list(ids))[1:, None])[:, 0].numpy()
            rows.append(np.concatenate([[0.0], told]).astype(np.float32))
        return rows


def test_perplexity_equals_a_hand_made_one():
    import torch

    world = ModularSums()
    problems, solutions = world.batch(np.random.default_rng(0), 5)
    prompts = [Prompt((Message("user", p),), references=(s, "#0")) for p, s in zip(problems, solutions, strict=True)]
    unusable = [Prompt((Message("user", "1"),)), Prompt((Message("user", "1"),), references=("1" * 600,))]
    model = Scorer()
    (metric,) = build("perplexity").measure(View([*prompts, *unusable], {}, model))
    nll = {}
    for prompt, solution in zip(prompts, solutions, strict=True):
        text = f"{prompt.text}{solution}<eos>"
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        labels = ids.clone()
        labels[:, : len(prompt.text)] = -100
        nll[prompt.id] = model.module(input_ids=ids, labels=labels).loss.item()
    assert metric.per_item == pytest.approx(nll, rel=1e-4)
    assert metric.value == pytest.approx(math.exp(np.mean(list(nll.values()))), rel=1e-4)
    assert metric.low <= metric.value <= metric.high
    assert not metric.higher_is_better
    assert metric.notes == {"tokens": 5 * (world.solution_length + 1), "no reference": 1, "too long": 1}
    with pytest.raises(DataError, match="no held-out prompt has a reference"):
        build("perplexity").measure(View(unusable, {}, model))


def test_measures_do_not_depend_on_the_order_of_prompts():
    for name in ("accuracy", "pass_at_k", "maj_at_k"):
        assert measure(build(name), prompts=PROMPTS[::-1]) == measure(build(name))


def test_laws():
    assert build("accuracy").draws()[0].law == Law(temperature=0.0, max_new_tokens=256)
