"""Examples and completions in the terminal: what is trained is coloured and underlined, so that it also shows without colour.

`example_view` and `completion_view` return `rich` renderables, `show_examples` and `show_completions` print them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tamis.records import Completion, Example, Prompt, Target, Verdict

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from tamis.models.chat import ChatFormat

TRAINED, REJECTED, PLAIN, QUIET = "underline green", "underline red", "", "dim"
LONGEST = 4000
"""Most characters shown of one text."""
SOURCES = 4
"""Most sources shown of one example."""


def show_examples(
    examples: Sequence[Example], chat: "ChatFormat", n: int = 3, console: "Console | None" = None
) -> None:
    """Print the first `n` examples with their trained tokens marked, then how many there are."""
    console = console or _console()
    for index, example in enumerate(examples[:n]):
        console.print(example_view(example, chat, f"example {index + 1} of {len(examples)}"))
    if not examples:
        console.print("No example.", style=QUIET)
        return
    console.print(trained_summary(examples), style=QUIET)


def show_completions(
    completions: Sequence[Completion],
    prompts: Mapping[str, Prompt],
    verdicts: Sequence[Verdict] = (),
    n: int = 3,
    console: "Console | None" = None,
) -> None:
    """Print the first `n` completions with their prompts (by id) and verdicts."""
    console = console or _console()
    for completion in completions[:n]:
        own = [v for v in verdicts if completion.id in v.completion_ids]
        console.print(completion_view(completion, prompts.get(completion.prompt_id), own))
    if not completions:
        console.print("No completion.", style=QUIET)


def example_view(example: Example, chat: "ChatFormat", title: str = "example") -> "RenderableType":
    """Return a panel: the rendered text with trained tokens underlined, then weight, tokens, end and sources."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    preference = example.rejected is not None
    parts: list[RenderableType] = [Text("chosen", style="bold")] if preference else []
    parts += [target_text(example.target, chat, TRAINED), Text(_facts(example.target), style=QUIET)]
    if example.rejected is not None:
        parts += [Text("\nrejected", style="bold"), target_text(example.rejected, chat, REJECTED)]
        parts += [Text(_facts(example.rejected), style=QUIET)]
    parts.append(Text(_origin(example), style=QUIET))
    return Panel(Group(*parts), title=Text(f"{title}, {example.kind}"), title_align="left")


def target_text(target: Target, chat: "ChatFormat", style: str = TRAINED) -> "Text":
    """Return the text of a rendered target, special tokens included, `style` on what is trained."""
    from rich.text import Text

    text = Text()
    for piece, trained in chat.trained_text(target):
        text.append(printable(_short(piece)), style=style if trained else PLAIN)
    return text


def completion_view(
    completion: Completion, prompt: Prompt | None = None, verdicts: Sequence[Verdict] = ()
) -> "RenderableType":
    """Return a panel: prompt, what was written (the model's turns in bold), how it ended, and each verdict."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[RenderableType] = []
    for message in prompt.messages if prompt is not None else ():
        parts.append(Text(printable(f"{message.role}: {_short(message.content)}"), style=QUIET))
    for turn in completion.turns:
        style = "bold" if turn.by == "model" else PLAIN
        parts.append(Text(printable(f"{turn.role}: {_short(turn.content)}"), style=style))
    parts.append(Text(_ending(completion), style=QUIET))
    parts += [Text(printable(_verdict(v)), style=QUIET) for v in verdicts]
    title = Text(printable(", ".join(filter(None, (f"completion {completion.index}", completion.sampler)))))
    return Panel(Group(*parts), title=title, title_align="left")


def trained_summary(examples: Sequence[Example]) -> str:
    """Return one line: examples, their tokens, and how many of these are trained."""
    targets = [t for e in examples for t in (e.target, e.rejected) if t is not None]
    tokens = sum(len(t.token_ids) for t in targets)
    trained = sum(w > 0 for t in targets for w in t.weights)
    share = f" ({100 * trained / tokens:.0f} %)" if tokens else ""
    return f"{len(examples)} examples, {tokens} tokens, {trained} trained{share}"


def printable(text: str) -> str:
    """Return `text` with control characters (terminal escapes too) as visible symbols; line breaks and tabs stay."""
    return "".join(_symbol(c) for c in text)


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0x80 <= code < 0xA0 else character


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def _facts(target: Target) -> str:
    trained = sum(w > 0 for w in target.weights)
    end = "end of turn trained" if target.ended else "no end of turn: cut"
    return f"{trained} of {len(target.token_ids)} tokens trained, {end}"


def _origin(example: Example) -> str:
    margin = "" if example.margin is None else f", margin {example.margin:g}"
    more = len(example.sources) - SOURCES
    sources = " ".join(example.sources[:SOURCES]) + (f" and {more} more" if more > 0 else "")
    return f"weight {example.weight:g}{margin}, sources {sources or 'none'}"


def _ending(completion: Completion) -> str:
    return f"{len(completion.token_ids)} tokens, finish: {completion.finish_reason}"


def _verdict(verdict: Verdict) -> str:
    score = "no score" if verdict.score is None else f"{verdict.score:g}"
    said = [score, verdict.label, _short(verdict.rationale)]
    return f"{verdict.judge}: {', '.join(part for part in said if part)}"


def _console() -> "Console":
    from rich.console import Console

    return Console()
