import numpy as np
import pytest

from composers.pools import completion, context, pool_of, prompt, sampled, verdict
from tamis.composers.accepted import content_ids
from tamis.composers.accepted_sft import AcceptedSFT
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Completion, Example, Turn, from_table, to_table
from tokenizers_made import chat


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(AcceptedSFT(**options).compose(pool, ctx)), ctx


def answers(examples):
    return [e.target.messages[-1].content for e in examples]


def test_only_accepted_completions_are_trained_with_their_end():
    asked = prompt(1)
    done = [sampled(asked, t, i) for i, t in enumerate(["right", "wrong", "unclear", "also right"])]
    pool = pool_of([asked], done, [1.0, 0.0, None, 0.5])
    examples, ctx = compose(pool)
    assert answers(examples) == ["right", "also right"]
    assert ctx.counts["not accepted: score below threshold"] == 1
    assert ctx.counts["not accepted: no score"] == 1
    for example, source in zip(examples, (done[0], done[3]), strict=True):
        made = chat("chatml")
        prompt_ids = made.prompt_ids(asked.messages)
        assert example.target.token_ids == (*prompt_ids, *source.token_ids)
        assert sum(example.target.weights) == len(source.token_ids)
        assert example.sources == (source.id, next(v.id for v in pool.verdicts if v.completion_ids == (source.id,)))
    assert from_table(to_table(examples, Example), Example) == examples


def test_sampled_tokens_are_trained_exactly_even_where_the_text_would_be_tokenised_otherwise():
    asked = prompt(1)
    made = chat("chatml")
    ids = tuple(i for letter in "answer" for i in made.tokenizer(letter, add_special_tokens=False)["input_ids"])
    odd = completion(asked, "answer", token_ids=(*ids, made.end_ids[0]))
    assert len(ids) > made.count(["answer"])[0]
    ((example,), _) = compose(pool_of([asked], [odd]))
    assert example.target.target_ids == ids
    assert example.target.token_ids[-len(ids) - 1 :] == (*ids, made.end_ids[0])


@pytest.mark.parametrize("ids", [(), (5, 6, 7), (10**6,)])
def test_tokens_of_another_tokenizer_or_a_trimmed_text_are_not_used(ids):
    asked = prompt(1)
    done = completion(asked, "answer", token_ids=ids)
    assert content_ids(done, chat("chatml")) == ()
    ((example,), _) = compose(pool_of([asked], [done]))
    assert chat("chatml").trained_text(example.target)[-1] == ("answer<|im_end|>", True)


def test_an_end_token_that_the_template_does_not_know_is_cut_off():
    made = chat("gemma")
    asked = prompt(1)
    ids = tuple(made.tokenizer("answer", add_special_tokens=False)["input_ids"])
    other_end = made.tokenizer.convert_tokens_to_ids("<start_of_turn>")
    assert content_ids(completion(asked, "answer", token_ids=(*ids, other_end)), made) == ids
    cut = completion(asked, "answer", token_ids=(*ids, other_end), finish_reason="length")
    assert content_ids(cut, made) == ()


def test_a_cut_completion_is_never_trained_as_whole_unless_asked():
    asked = prompt(1)
    done = sampled(asked, "half an ans", ended=False)
    none, ctx = compose(pool_of([asked], [done]))
    assert none == []
    assert ctx.dropped == [{"record": done.id, "reason": "cut at the length limit", "prompt": asked.id}]
    ((cut,), _) = compose(pool_of([asked], [done]), truncated="prefix")
    ((whole,), _) = compose(pool_of([asked], [done]), truncated="complete")
    assert not cut.target.ended
    assert whole.target.token_ids == (*cut.target.token_ids, chat("chatml").end_ids[0])


def test_errors_and_empty_texts_are_dropped_with_a_reason():
    asked = prompt(1)
    failed = completion(asked, "half", 0, finish_reason="error")
    empty = completion(asked, " \n", 1)
    none, ctx = compose(pool_of([asked], [failed, empty]))
    assert none == []
    assert [d["reason"] for d in ctx.dropped] == ["the model returned an error", "empty text"]
    assert ctx.counts["prompts without an accepted completion"] == 1


def test_gold_policies():
    solved, unsolved, bare = prompt(1, ("gold one",)), prompt(2, ("gold two",)), prompt(3)
    done = [sampled(solved, "mine"), sampled(unsolved, "bad"), sampled(bare, "bad too")]
    pool = pool_of([solved, unsolved, bare], done, [1.0, 0.0, 0.0])
    never, ctx = compose(pool)
    assert answers(never) == ["mine"]
    assert ctx.counts["prompts without an accepted completion"] == 2
    missing, ctx = compose(pool, gold="missing")
    assert answers(missing) == ["mine", "gold two"]
    assert {"record": bare.id, "reason": "no gold solution", "source": "data.jsonl:3"} in ctx.dropped
    always, _ = compose(pool, gold="always")
    assert answers(always) == ["gold one", "mine", "gold two"]
    assert always[0].sources == (solved.id,)
    assert [e.metadata["origin"] for e in always] == ["gold", "temperature", "gold"]
    assert all(e.target.weights[-1] == 1.0 for e in always)


def test_gold_blocks_an_equal_text_only_when_asked():
    asked = prompt(1, ("same text",))
    done = [sampled(asked, "same text"), sampled(asked, "own text", 1)]
    assert answers(compose(pool_of([asked], done), gold="always")[0]) == ["same text", "same text", "own text"]
    blocked, ctx = compose(pool_of([asked], done), gold="always", gold_blocks=True)
    assert answers(blocked) == ["same text", "own text"]
    assert ctx.counts["dropped: same text as the gold solution"] == 1
    never, _ = compose(pool_of([asked], done), gold_blocks=True)
    assert answers(never) == ["same text", "own text"]


def test_a_gold_completion_is_not_trained_twice():
    asked = prompt(1, ("gold",))
    own = completion(asked, "gold", sampler="gold", model="data")
    assert answers(compose(pool_of([asked], [own]), gold="always")[0]) == ["gold"]
    assert answers(compose(pool_of([asked], [own]))[0]) == ["gold"]


def test_gold_of_prompts_without_a_completion_and_never_of_heldout_ones():
    train, held = prompt(1, ("gold",)), prompt(2, ("secret",), split="heldout")
    leaked = sampled(held, "secret answer")
    examples, ctx = compose(pool_of([train, held], [leaked]), gold="always")
    assert answers(examples) == ["gold"]
    assert ctx.counts["prompts without a completion"] == 1


def test_equal_texts_and_the_cap():
    asked, other = prompt(1), prompt(2)
    texts = ["a", "a", "b", "c"]
    done = [sampled(asked, t, i) for i, t in enumerate(texts)] + [sampled(other, "a")]
    pool = pool_of([asked, other], done)
    examples, ctx = compose(pool, per_prompt=2)
    assert answers(examples) == ["a", "b", "a"]
    assert ctx.counts["over per_prompt"] == 1
    assert ctx.dropped[0]["same_as"] == done[0].id
    assert answers(compose(pool, dedup="none")[0]) == [*texts, "a"]


def test_a_selectors_repeats_and_weights_are_kept():
    asked = prompt(1)
    done = [sampled(asked, "a", 0), sampled(asked, "b", 1)]
    pool = pool_of([asked], done).take([0, 0, 1], np.array([2.0, 2.0, 0.5]))
    examples, _ = compose(pool, per_prompt=2)
    assert answers(examples) == ["a", "a", "b"]
    assert [e.weight for e in examples] == [2.0, 2.0, 0.5]
    assert len({e.id for e in examples}) == 3


def test_prompts_come_in_the_order_of_the_data_and_twice_gives_the_same():
    asked = [prompt(k) for k in range(4)]
    done = [sampled(p, f"answer {k}") for k, p in enumerate(asked)]
    pool = pool_of(asked, done[::-1])
    first, _ = compose(pool)
    assert [e.prompt_id for e in first] == [p.id for p in asked]
    assert compose(pool)[0] == first


def test_a_trajectory_trains_every_turn_of_the_model_and_none_of_the_worlds():
    asked = prompt(1)
    turns = (
        Turn("assistant", "look up"),
        Turn("user", "found 42", by="world"),
        Turn("assistant", "It is 42."),
        Turn("user", "game over", by="world"),
    )
    done = Completion(asked.id, turns)
    ((example,), _) = compose(pool_of([asked], [done]))
    trained = [text for text, on in chat("chatml").trained_text(example.target) if on]
    assert trained == ["look up<|im_end|>", "It is 42.<|im_end|>"]
    assert "game over" not in chat("chatml").decode(example.target.token_ids)


def test_what_the_template_refuses_is_dropped_with_its_message():
    asked = prompt(1)
    twice = Completion(asked.id, (Turn("assistant", "a"), Turn("assistant", "b")))
    none, ctx = compose(pool_of([asked], [twice]), context("mistral"))
    assert none == []
    (dropped,) = ctx.dropped
    assert dropped["reason"] == "cannot be rendered in the chat format"
    assert "must alternate" in dropped["error"]


def test_an_empty_pool_and_a_missing_tokenizer():
    assert compose(pool_of([], []))[0] == []
    asked = prompt(1)
    with pytest.raises(ConfigError, match="no tokenizer"):
        compose(pool_of([asked], [completion(asked, "a")]), Context())


def test_a_threshold_of_its_own():
    asked = prompt(1)
    done = [sampled(asked, t, i) for i, t in enumerate("abc")]
    pool = Pool({asked.id: asked}, done, [verdict(c, s) for c, s in zip(done, (0.2, 0.7, 0.9), strict=True)])
    assert answers(compose(pool, threshold=0.8)[0]) == ["c"]
