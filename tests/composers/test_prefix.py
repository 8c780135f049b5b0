import pytest

from composers.pools import completion, context, pool_of, prefix_law, prompt, sampled
from tamis.composers.prefix import Prefix
from tamis.errors import ConfigError
from tamis.prefixes import DEFAULT_TASK_SENTENCE
from tokenizers_made import chat

TRACE = "First add the numbers, then check the sum. It is 42."


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(Prefix(**options).compose(pool, ctx)), ctx


def cut_to(asked, tokens, text=TRACE, index=0):
    """A D_p completion as the sampler gives it: at most `tokens` tokens, its end token included."""
    made = chat("chatml")
    ids = (*made.tokenizer(text, add_special_tokens=False)["input_ids"], made.end_ids[0])
    ended = len(ids) <= tokens
    ids = ids[:tokens]
    shown = made.decode(ids[:-1] if ended else ids)
    finish = "stop" if ended else "length"
    law = prefix_law(tokens)
    return completion(asked, shown, index, token_ids=ids, finish_reason=finish, sampler="prefix:cut", law=law)


@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
def test_a_cut_prefix_trains_its_tokens_and_no_end(tokens):
    asked = prompt(1)
    done = cut_to(asked, tokens)
    ((example,), ctx) = compose(pool_of([asked], [done]))
    trained = [i for i, w in zip(example.target.token_ids, example.target.weights, strict=True) if w]
    assert trained == list(done.token_ids)
    assert len(trained) == tokens
    assert example.target.token_ids[-1] != chat("chatml").end_ids[0]
    assert not example.target.ended
    assert example.target.messages[0].content == f"question 1?\n{DEFAULT_TASK_SENTENCE}"
    assert ctx.counts["trained tokens: cut"] == tokens


def test_a_prefix_that_ended_by_itself_trains_its_end():
    asked = prompt(1)
    length = len(chat("chatml").tokenizer("It is 42.", add_special_tokens=False)["input_ids"]) + 1
    for tokens, ended in ((length, True), (length + 3, True), (length - 1, False)):
        ((example,), _) = compose(pool_of([asked], [cut_to(asked, tokens, "It is 42.")]))
        assert example.target.ended is ended
        assert sum(example.target.weights) == min(tokens, length)
        assert (example.target.token_ids[-1] == chat("chatml").end_ids[0]) is ended


def test_a_structure_trace_is_whole_under_the_plain_question():
    asked, other = prompt(1), prompt(2)
    whole = sampled(asked, TRACE, sampler="prefix:structure")
    cut = sampled(other, TRACE, ended=False, sampler="prefix:structure")
    examples, ctx = compose(pool_of([asked, other], [whole, cut]))
    assert [e.target.messages[0].content for e in examples] == ["question 1?", "question 2?"]
    assert [e.target.ended for e in examples] == [True, False]
    assert [sum(e.target.weights) for e in examples] == [len(whole.token_ids), len(cut.token_ids)]
    assert ctx.counts["trained tokens: structure"] == len(whole.token_ids) + len(cut.token_ids)


def test_the_supervised_variant_cuts_the_first_accepted_trace():
    asked, failed, structure = prompt(1), prompt(2), prompt(3)
    tries = [sampled(asked, f"{k} {TRACE}", k, sampler="prefix:cut") for k in range(3)]
    wrong = sampled(failed, TRACE, sampler="prefix:cut")
    full = sampled(structure, TRACE, sampler="prefix:structure")
    pool = pool_of([asked, failed, structure], [*tries, wrong, full], [0.0, 1.0, 1.0, 0.0, 1.0])
    examples, ctx = compose(pool, prefix_tokens=4)
    assert [e.sources[0] for e in examples] == [tries[1].id, full.id]
    assert examples[0].target.target_ids == tries[1].token_ids[:4]
    assert not examples[0].target.ended
    assert examples[1].target.ended
    assert ctx.counts["prompts without an accepted completion"] == 1
    with pytest.raises(ConfigError, match="prefix_tokens is needed"):
        compose(pool)


def test_one_example_per_prompt_and_only_from_the_sampler_prefix():
    asked = prompt(1)
    two = [cut_to(asked, 3, f"{k} {TRACE}", k) for k in range(2)]
    examples, _ = compose(pool_of([asked], two))
    assert [e.sources[0] for e in examples] == [two[0].id]
    with pytest.raises(ConfigError, match="made by the sampler 'temperature'"):
        compose(pool_of([asked], [sampled(asked, TRACE)]))


def test_tokens_that_are_not_the_models_are_dropped_with_a_reason():
    asked = prompt(1)
    none, ctx = compose(pool_of([asked], [completion(asked, "text only", sampler="prefix:cut")]))
    assert none == []
    assert ctx.dropped[0]["reason"] == "its tokens are not those of the model to be tuned"


def test_empty_pool():
    assert compose(pool_of([], []))[0] == []
