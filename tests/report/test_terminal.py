import io
import re

from rich.console import Console

from tamis.records import Completion, Example, Message, Prompt, Target, Turn, Verdict
from tamis.report.terminal import (
    LONGEST,
    printable,
    show_completions,
    show_examples,
    target_text,
    trained_summary,
)
from tokenizers_made import chat


def target(answer, ended=True):
    return chat("chatml").render(Target((Message("user", "What?"), Message("assistant", answer)), ended))


def printed(show, *arguments, color=None, **options):
    file = io.StringIO()
    show(
        *arguments,
        console=Console(file=file, width=100, force_terminal=color is not None, color_system=color),
        **options,
    )
    return file.getvalue()


def test_only_trained_tokens_are_underlined():
    text = target_text(target("This."), chat("chatml"))
    marked = [text.plain[s.start : s.end] for s in text.spans if "underline" in str(s.style)]
    assert marked == ["This.<|im_end|>"]
    assert text.plain == chat("chatml").decode(target("This.").token_ids)
    assert "\x1b[4;32mThis.<|im_end|>" in printed(
        show_examples, [Example("sft", "p", target("This."))], chat("chatml"), color="standard"
    )


def test_examples_show_weight_sources_and_end():
    sft = Example("sft", "p", target("cut", ended=False), weight=0.5, sources=("completion-1", "verdict-1"))
    pair = Example("preference", "p", target("good"), rejected=target("bad"), margin=0.75)
    out = printed(show_examples, [sft, pair], chat("chatml"))
    for part in ("weight 0.5", "completion-1 verdict-1", "no end of turn: cut", "chosen", "rejected", "margin 0.75"):
        assert part in out
    assert trained_summary([sft, pair]) in out


def test_of_many_sources_the_first_are_shown():
    many = Example("sft", "p", target("x"), sources=tuple(f"row-{k}" for k in range(10)))
    assert "sources row-0 row-1 row-2 row-3 and 6 more" in printed(show_examples, [many], chat("chatml"))


def test_at_most_n_are_shown_and_none_is_said():
    examples = [Example("sft", "p", target(f"answer {k}")) for k in range(3)]
    out = printed(show_examples, examples, chat("chatml"), n=2)
    assert "answer 1" in out
    assert "answer 2" not in out
    assert "example 1 of 3" in out
    assert "No example." in printed(show_examples, [], chat("chatml"))
    assert "No completion." in printed(show_completions, [], {})


def test_completions_with_prompts_and_verdicts():
    asked = Prompt((Message("system", "Be short."), Message("user", "What is 1 + 1?")))
    done = Completion(asked.id, (Turn("assistant", "It is 2."),), token_ids=(1, 2, 3), sampler="temperature")
    verdicts = [
        Verdict(asked.id, (done.id,), "answer", 1.0, "correct"),
        Verdict(asked.id, (done.id,), "rubric", None, "unparseable_verdict"),
        Verdict(asked.id, ("other",), "answer", 0.0, "not of this one"),
    ]
    out = printed(show_completions, [done], {asked.id: asked}, verdicts)
    for part in (
        "What is 1 + 1?",
        "It is 2.",
        "3 tokens, finish: stop",
        "answer: 1, correct",
        "no score, unparseable_verdict",
    ):
        assert part in out
    assert "not of this one" not in out
    assert "It is 2." in printed(show_completions, [done], {})


def test_hostile_text_neither_styles_nor_escapes():
    assert printable("a\x1b[31mb\x9bc\x7f\r\n\t") == "a␛[31mb\ufffdc␡␍\n\t"
    done = Completion("p", (Turn("assistant", "[red]x[/red] \x1b]0;title\x07"),))
    out = printed(show_completions, [done], {})
    assert "[red]x[/red]" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_long_texts_are_cut_with_a_note():
    done = Completion("p", (Turn("assistant", "a" * (LONGEST + 500)),))
    out = printed(show_completions, [done], {})
    assert "[...500characters...]" in re.sub(r"[\s│]+", "", out)
