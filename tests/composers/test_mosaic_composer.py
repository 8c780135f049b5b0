import pytest

from composers.pools import completion, context, pool_of, prompt, sampled
from tamis.composers.mosaic import MosaicSFT
from tamis.errors import ConfigError
from tamis.mosaic import Rule, parse_mosaic, parse_output
from tamis.records import Message, Prompt, from_table, to_table


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(MosaicSFT(**options).compose(pool, ctx)), ctx


def pool(n=23, scores=None):
    asked = [prompt(k) for k in range(n)]
    return pool_of(asked, [sampled(p, f"answer {k}.") for k, p in enumerate(asked)], scores)


def test_examples_can_be_taken_apart_also_after_they_were_stored():
    given = pool()
    examples, ctx = compose(given)
    texts = {c.id: c.text for c in given.completions}
    for example in from_table(to_table(examples, type(examples[0])), type(examples[0])):
        numbered = parse_mosaic(example)
        assert [n for n, _ in numbered] == example.metadata["shown_order"]
        assert [text for _, text in numbered] == [texts[example.sources[n - 1]] for n, _ in numbered]
        rule = Rule.read(example.metadata["rule"])
        if rule.tag:
            read = parse_output(example.target.messages[-1].content, rule, example.metadata["shown_order"])
            assert read == [text for _, text in numbered]
        assert len(example.metadata["row_ids"]) == len(example.sources)
    assert ctx.counts["rows"] == 23
    assert ctx.counts["mosaics"] == len(examples)
    assert ctx.counts["examples saved"] == 4 * 23 - len(examples)


def test_the_output_and_its_end_are_trained_and_nothing_else():
    ctx = context()
    for example in compose(pool(), ctx)[0]:
        trained = "".join(text for text, on in ctx.chat.trained_text(example.target) if on)
        assert trained == example.target.messages[-1].content + "<|im_end|>"


def test_each_row_is_in_every_pass_once():
    given = pool()
    examples, _ = compose(given, passes=3)
    for part in range(3):
        used = [s for e in examples if e.metadata["pass"] == part for s in e.sources]
        assert sorted(used) == sorted(c.id for c in given.completions)


def test_the_order_of_the_pool_does_not_matter_and_the_seed_does():
    given = pool()
    turned = pool_of(list(given.prompts.values())[::-1], given.completions[::-1])
    first, turned_round, other = (
        [e.target for e in compose(p, context(seed=seed))[0]] for p, seed in ((given, 0), (turned, 0), (given, 1))
    )
    assert first == turned_round
    assert first != other


def test_only_accepted_answers_to_single_questions_are_rows():
    asked = [prompt(k) for k in range(4)]
    talk = Prompt((Message("system", "be kind"), Message("user", "hello")))
    done = [sampled(p, f"answer {k}.") for k, p in enumerate([*asked, talk])]
    cut = completion(asked[3], "cut", 1, finish_reason="length")
    examples, ctx = compose(pool_of([*asked, talk], [*done, cut], [1, 0, 1, 1, 1, 1]), passes=1)
    used = {s for e in examples for s in e.sources}
    assert {c.id for c in (done[0], done[2], done[3])} <= used
    assert not {c.id for c in (done[1], done[4], cut)} & used
    assert ctx.counts["not accepted"] == 1
    assert {d["reason"] for d in ctx.dropped} == {"the prompt is not one user message", "cut at the length limit"}


def test_long_rows_are_dropped_and_a_limit_below_all_is_refused():
    asked = [prompt(k) for k in range(6)]
    texts = ["short"] * 5 + ["long " * 300]
    done = [sampled(p, text) for p, text in zip(asked, texts, strict=True)]
    examples, ctx = compose(pool_of(asked, done), max_tokens=300)
    assert [(d["record"], d["reason"]) for d in ctx.dropped] == [(done[5].id, "max_tokens or more")]
    assert ctx.counts["rows"] == 5
    assert all(ctx.chat.count([m.content for m in e.target.messages]).sum() < 300 for e in examples)
    with pytest.raises(ConfigError, match="max_tokens: 3 is too small"):
        compose(pool_of(asked, done), max_tokens=3)


def test_weights_are_averaged():
    given = pool(6)
    weighed = given.take(range(6), weights=[1, 2, 3, 4, 5, 6])
    ids = {c.id: w for c, w in zip(given.completions, range(1, 7), strict=True)}
    for example in compose(weighed)[0]:
        assert example.weight == pytest.approx(sum(map(ids.get, example.sources)) / len(example.sources))


def test_unknown_versions_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="version"):
        MosaicSFT.component.build({"version": "all"})
    with pytest.raises(ConfigError, match="max_rows"):
        MosaicSFT.component.build({"max_rows": 0})
