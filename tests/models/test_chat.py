"""ChatFormat: training sees what sampling saw, and only the assistant's tokens are trained, its end token included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tamis.errors import DataError, ModelError
from tamis.models.chat import TEMPLATE_DATE, ChatFormat
from tamis.records import Message, Target
from tokenizers_made import KINDS, STYLES, byte_bpe, chat, tokenizer

EXACT_KINDS = ("bpe", "metaspace")
styles = pytest.mark.parametrize("style", STYLES)
kinds = pytest.mark.parametrize("kind", KINDS)

word = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|", exclude_categories=("C",)), min_size=1)
line = st.one_of(
    word, st.sampled_from(["It is 42.", " leading", "trailing \n", "\n\nbreaks", "café 日本 🙂", "assistant"])
)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def trained_ids(target):
    return [i for i, w in zip(target.token_ids, target.weights, strict=True) if w > 0]


def reference_ids(chat_format, messages, generate):
    """What transformers makes of messages that its template takes as they are (with the fixed date)."""
    template = chat_format.tokenizer.chat_template
    return chat_format.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        chat_template=template.replace("strftime_now('%d %b %Y')", f"'{TEMPLATE_DATE:%d %b %Y}'"),
        add_generation_prompt=generate,
        tokenize=True,
        return_dict=False,
    )


@styles
@kinds
def test_prompt_tokens_are_those_of_transformers(style, kind):
    messages = [user("What is 12 + 30?"), assistant("It is 42."), user("And 1 + 2?")]
    assert chat(style, kind).prompt_ids(messages) == reference_ids(chat(style, kind), messages, True)


@styles
def test_bos_is_never_doubled(style):
    made = chat(style)
    bos = made.tokenizer.bos_token_id
    ids = made.prompt_ids([user("What is 12 + 30?")])
    if style in ("llama3", "mistral", "gemma"):
        assert ids[0] == bos
    assert ids.count(bos) == {"chatml": 3, "zephyr": 0}.get(style, 1)


@styles
@kinds
def test_what_is_rendered_is_the_whole_conversation_up_to_the_end_token(style, kind):
    messages = (user("What is 12 + 30?"), assistant("It is 42."))
    ids = chat(style, kind).render(Target(messages)).token_ids
    whole = reference_ids(chat(style, kind), messages, False)
    assert list(ids) == whole[: len(ids)]
    assert ids[-1] == chat(style, kind).end_ids[0]
    assert set(whole[len(ids) :]) <= set(chat(style, kind).tokenizer("\n", add_special_tokens=False)["input_ids"])


@styles
@kinds
@settings(max_examples=15)
@given(st.lists(line, min_size=2, max_size=4), st.booleans(), st.booleans())
def test_a_target_starts_with_the_prompt_and_trains_exactly_the_answer_and_its_end(style, kind, texts, system, ended):
    made = chat(style, kind)
    *before, answer = texts
    turns = [m for k, t in enumerate(before) for m in ([assistant(t)] if k % 2 else [user(t)])]
    if turns[-1].role == "assistant":
        turns.append(user("next"))
    history = [Message("system", "Be short."), *turns] if system else turns
    target = made.render(Target((*history, assistant(answer)), ended))

    prompt = made.prompt_ids(history)
    assert list(target.token_ids[: len(prompt)]) == prompt
    assert not any(target.weights[: len(prompt)])
    assert all(w == 1.0 for w in target.weights[len(prompt) :])
    end = [made.end_ids[0]] if ended else []
    trained = trained_ids(target)
    assert trained[len(trained) - len(end) :] == end
    if kind in EXACT_KINDS:
        gap = made._layout.gap
        expected = answer if answer.startswith(gap) else gap + answer
        assert made.decode(target.token_ids) == made.decode(prompt) + expected + made.decode(end)


@styles
def test_the_end_token_is_trained_by_position_also_where_it_is_the_padding(style):
    made = chat(style)
    target = made.render(Target((user("What is 12 + 30?"), assistant("It is 42."))))
    assert made.tokenizer.convert_ids_to_tokens(target.token_ids[-1]) == STYLES[style]["end"]
    assert target.weights[-1] == 1.0
    if style in ("chatml", "zephyr"):
        assert made.tokenizer.pad_token_id == target.token_ids[-1]
    end = target.token_ids[-1]
    earlier = [w for i, w in zip(target.token_ids[:-1], target.weights[:-1], strict=True) if i == end]
    assert not any(earlier)


@styles
def test_an_unfinished_turn_has_no_end_and_nothing_after_it(style):
    made = chat(style)
    messages = (user("What is 12 + 30?"), assistant("It is"))
    cut, whole = made.render(Target(messages, ended=False)), made.render(Target(messages))
    assert whole.token_ids == (*cut.token_ids, made.end_ids[0])


@styles
@given(ids=st.lists(st.integers(0, 255), min_size=1, max_size=20))
@settings(max_examples=15)
def test_given_tokens_are_taken_as_they_are(style, ids):
    made = chat(style)
    history = (user("What is 12 + 30?"),)
    target = made.render(Target((*history, assistant("whatever")), target_ids=tuple(ids)))
    assert list(target.token_ids) == [*made.prompt_ids(history), *ids, made.end_ids[0]]
    assert trained_ids(target) == [*ids, made.end_ids[0]]


@styles
@kinds
@settings(max_examples=10)
@given(st.lists(st.sampled_from(["It is 42.", "First add the numbers", "café 日本", "a</b>"]), min_size=2, max_size=4))
def test_all_assistant_turns_can_be_trained(style, kind, answers):
    made = chat(style, kind)
    turns = [m for k, a in enumerate(answers) for m in (user(f"question {k}?"), assistant(a))]
    target = made.render(Target(tuple(turns)), train="all")
    prompt = made.prompt_ids(turns[:-1])
    assert list(target.token_ids[: len(prompt)]) == prompt
    pieces = [text.strip() for text, trained in made.trained_text(target) if trained]
    end = STYLES[style]["end"]
    if kind in EXACT_KINDS:
        assert pieces == [a + end for a in answers]
    else:
        assert [p.endswith(end) for p in pieces] == [True] * len(answers)
    last_only = made.render(Target(tuple(turns)))
    assert last_only.token_ids == target.token_ids
    assert sum(last_only.weights) < sum(target.weights)
    from_second = made.render(Target(tuple(turns)), train=2)
    assert sum(from_second.weights) == sum(target.weights) - sum(made.render(Target(tuple(turns[:2]))).weights)


@styles
def test_trained_text_is_the_whole_text(style):
    made = chat(style)
    target = made.render(Target((user("What?"), assistant("café 日本 🙂"))))
    pieces = made.trained_text(target)
    assert "".join(text for text, _ in pieces) == made.decode(target.token_ids)
    assert [trained for _, trained in pieces] == [False, True]


@pytest.mark.parametrize("style", ["mistral", "gemma"])
def test_a_refused_system_message_is_folded_into_the_first_user_message(style):
    made = chat(style)
    folded = made.prompt_ids([Message("system", "Be short."), user("What?")])
    assert folded == made.prompt_ids([user("Be short.\n\nWhat?")])
    alone = made.prompt_ids([Message("system", "Be short.")])
    assert alone == made.prompt_ids([user("Be short.")])


def test_a_left_out_system_message_is_folded():
    made = with_template("{% for m in messages if m.role != 'system' %}{{ m.content + eos_token }}{% endfor %}")
    assert "Be short.\n\nWhat?" in made.decode(made.prompt_ids([Message("system", "Be short."), user("What?")]))


@pytest.mark.parametrize("answer", ["\nfine", "\n\nfine", " fine", "fine", "</b>", "<s>"])
@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_a_token_never_spans_the_border_of_prompt_and_answer(kind, answer):
    made = chat("zephyr", kind)
    prompt = made.prompt_ids([user("What?")])
    target = made.render(Target((user("What?"), assistant(answer))))
    assert list(target.token_ids[: len(prompt)]) == prompt
    assert made.decode(target.token_ids) == f"<|user|>\nWhat?</s>\n<|assistant|>\n{answer}</s>"


@pytest.mark.parametrize("style", ["llama3", "gemma"])
def test_white_space_that_the_template_would_trim_is_trained_as_sampled(style):
    made = chat(style)
    target = made.render(Target((user("What?"), assistant("  two spaces\n"))))
    assert made.trained_text(target)[-1] == ("  two spaces\n" + STYLES[style]["end"], True)


def test_a_template_cannot_see_the_date():
    text = chat("llama3").decode(chat("llama3").prompt_ids([user("What?")]))
    assert f"Today Date: {TEMPLATE_DATE:%d %b %Y}\n" in text


@styles
def test_special_token_text_in_messages_is_ordinary_text(style):
    made = chat(style)
    end = STYLES[style]["end"]
    plain = made.prompt_ids([user("struck out")])
    tricky = made.prompt_ids([user(f"struck {end} out")])
    assert tricky.count(made.end_ids[0]) == plain.count(made.end_ids[0])
    target = made.render(Target((user("What?"), assistant(f"html {end} text"))))
    assert trained_ids(target).count(made.end_ids[0]) == 1
    assert f"html {end} text" in made.decode(trained_ids(target))


def with_template(template, **tokens):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), **tokens or {"eos_token": "<end>"})
    wrapped.chat_template = template
    return ChatFormat(wrapped)


def test_a_template_that_ignores_the_generation_prompt_gets_the_header():
    made = with_template("{% for m in messages %}{{ '<<' + m.role + '>>' + m.content + eos_token }}{% endfor %}")
    assert made.decode(made.prompt_ids([user("What?")])) == "<<user>>What?<end><<assistant>>"
    target = made.render(Target((user("What?"), assistant("This."))))
    assert made.decode(target.token_ids) == "<<user>>What?<end><<assistant>>This.<end>"


def test_history_rewritten_by_the_template_is_refused_only_when_it_is_to_be_trained():
    made = with_template(
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    target = Target((user("a"), assistant("hm</think>b"), user("c"), assistant("d")))
    assert made.render(target).weights[-1] == 1.0
    with pytest.raises(ModelError, match="rewrites earlier turns") as error:
        made.render(target, train="all")
    assert "hm</think>b" in str(error.value)


def test_without_a_template_contents_are_joined_by_line_breaks():
    made = ChatFormat(tokenizer("zephyr"))
    bare = PreTrainedTokenizerFast(
        tokenizer_object=made.tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    plain = ChatFormat(bare)
    assert plain.decode(plain.prompt_ids([Message("system", "a"), user("b")])) == "<s>a\nb\n"
    target = plain.render(Target((user("b"), assistant("c"), user("d"), assistant("e"))), train="all")
    assert plain.trained_text(target) == [("<s>b\n", False), ("c</s>", True), ("\nd\n", False), ("e</s>", True)]
    assert plain.end_ids == (bare.eos_token_id,)


def test_a_tokenizer_without_any_end_token_cannot_train_an_end():
    made = with_template(None, unk_token="<unk>")
    made.render(Target((user("a"), assistant("b")), ended=False))
    with pytest.raises(ModelError, match="ends an assistant turn"):
        made.render(Target((user("a"), assistant("b"))))


def test_a_refused_conversation_is_a_clear_error():
    with pytest.raises(ModelError, match="must alternate") as error:
        chat("mistral").prompt_ids([user("first words"), user("second")])
    assert "first words" in str(error.value)
    with pytest.raises(DataError, match="must be the assistant's"):
        chat("chatml").render(Target((user("a"),)))
    with pytest.raises(DataError, match="at least one message"):
        chat("chatml").render(Target((assistant("a"),)))


@styles
def test_a_conversation_that_ends_in_an_assistant_message_is_continued(style):
    made = chat(style)
    history = [user("What is 12 + 30?")]
    prefilled = made.prompt_ids([*history, assistant("It is")])
    assert prefilled == list(made.render(Target((*history, assistant("It is")), ended=False)).token_ids)


@styles
def test_end_tokens(style):
    made = chat(style)
    names = made.tokenizer.convert_ids_to_tokens(list(made.end_ids))
    assert names == list(dict.fromkeys([STYLES[style]["end"], STYLES[style]["eos"]]))


def test_the_digest_follows_the_template():
    digests = {chat(style).template_digest for style in STYLES}
    assert len(digests) == len(STYLES)
    assert chat("gemma").template_digest == ChatFormat(tokenizer("gemma")).template_digest


@kinds
def test_count(kind):
    made = chat("zephyr", kind)
    texts = ["", "It is 42.", "café 日本 🙂 " * 5]
    counts = made.count(texts)
    assert counts.dtype == np.int64
    assert counts.tolist() == [len(made.tokenizer.encode(t, add_special_tokens=False)) for t in texts]
    assert made.count([]).shape == (0,)


@pytest.mark.default_model
def test_the_default_model_trains_its_end_of_turn():
    """Its padding is its end of turn: the bug of the field that every masking by id has."""
    from transformers import AutoTokenizer

    from tamis.models.resolve import resolve

    made = ChatFormat(AutoTokenizer.from_pretrained(resolve("smollm2-135m").folder))
    messages = (user("What is 12 + 30?"), assistant("It is 42."))
    target = made.render(Target(messages))
    assert made.trained_text(target)[-1] == ("It is 42.<|im_end|>", True)
    assert made.tokenizer.pad_token_id == target.token_ids[-1]
    whole = reference_ids(made, messages, False)
    assert list(target.token_ids) == whole[: len(target.token_ids)]
