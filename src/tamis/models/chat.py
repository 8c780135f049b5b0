"""The one place where a chat template is applied: token ids for sampling, token ids and weights for training.

Which tokens are trained is decided by position, never by token id: a turn's end token is trained also where it equals the
padding token. Training sees the very prompt tokens that sampling saw: `render(t).token_ids` starts with
`prompt_ids(t.messages[:-1])`.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np

from tamis.errors import DataError, ModelError
from tamis.hashing import digest
from tamis.records import Message, Target

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)
"""Stands in for a missing chat template: contents, each ended by a line break, an assistant's also by the end token."""

TEMPLATE_DATE = datetime(2024, 7, 26)
"""What `strftime_now` is in every template: a prompt must not change from one day to the next."""

_PROBE = "qzxprobe"


class _Layout(NamedTuple):
    """What a template writes around an assistant's text: `header` where it ignores the generation prompt, white space
    between prompt and text, and the token that ends the turn."""

    header: str
    gap: str
    end: int | None


class ChatFormat:
    """The chat format of a `transformers` tokenizer: its own chat template, or `PLAIN_TEMPLATE` where it has none.

    Prompts are tokenised as `tokenizer.apply_chat_template(..., add_generation_prompt=True)` does it: what the template
    writes is all there is, so a beginning-of-sequence token is never doubled (with `PLAIN_TEMPLATE` it is put first where the
    tokenizer adds one by itself). Text in a message that looks like a special token ("</s>") is encoded as ordinary text.
    Where a template ignores the generation prompt, the assistant's header that it writes before an answer is added.

    A system message that the template refuses or leaves out (Mistral, Gemma) is folded into the first user message, with an
    empty line between them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._last_prompt: tuple[tuple[Message, ...], str, list[int]] | None = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens a model continues: the conversation with the generation prompt.

        A conversation that ends in an assistant message is continued inside that message (prefill). Raises DataError for no
        message, ModelError when the template refuses the conversation.
        """
        if messages and messages[-1].role == "assistant":
            text, ids = self._prompt(messages[:-1])
            return ids + self._content_ids(text, ids, messages[-1].content)
        return list(self._prompt(messages)[1])

    def render(self, target: Target, *, train: Literal["last", "all"] | int = "last") -> Target:
        """Return `target` with `token_ids` and `weights` (1.0 where trained, 0.0 elsewhere) filled in.

        `train`: "last" (default: what a sampled completion is, earlier assistant turns are part of the prompt), "all"
        assistant messages, or an int: the assistant messages from that index on (the model's turns of a trajectory).
        A trained turn is its content and its end token; what the template writes around them is not trained. The sequence
        is the prompt, the last message (`target_ids` as they are, else its text, white space kept also where the template
        would trim it), and, when `ended`, the token that ends the turn; nothing follows.

        Raises DataError when the last message is not the assistant's or nothing precedes it; ModelError when the template
        refuses the conversation, has no end token, or (`train` other than "last") rewrites earlier turns.
        """
        if not target.messages or target.messages[-1].role != "assistant":
            roles = [m.role for m in target.messages]
            raise DataError(f"the last message of a training target must be the assistant's, not {roles}")
        *history, last = target.messages
        text, prompt = self._prompt(history)
        if history[-1].role == "assistant":
            self._apply(self._fold(target.messages), generate=False)
        content = list(target.target_ids) or self._content_ids(text, prompt, last.content)
        end = [self._turn_end] if target.ended else []
        weights = np.zeros(len(prompt), dtype=np.float32)
        if train != "last":
            weights = self._history_weights(history, text, 0 if train == "all" else train)
        ids = (*prompt, *content, *end)
        trained = [*weights.tolist(), *[1.0] * (len(ids) - len(prompt))]
        if trained:
            trained[0] = 0.0
        return replace(target, token_ids=ids, weights=tuple(trained))

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which sampling stops: the one that ends an assistant turn in the template, then the tokenizer's EOS."""
        ends = (self._layout.end, self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ends if i is not None))

    @cached_property
    def template_digest(self) -> str:
        """Content hash of the template and the special tokens it can write."""
        return digest("chat template", self._template, self.tokenizer.special_tokens_map)

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, without special tokens, as (len(texts),) int64."""
        if not len(texts):
            return np.zeros(0, dtype=np.int64)
        rows = self._call(list(texts), return_attention_mask=False)["input_ids"]
        return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens and white space as they are."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def trained_text(self, target: Target) -> list[tuple[str, bool]]:
        """Return the rendered target as pieces of text, each with whether it is trained; together they are its whole text."""
        pieces = []
        done, start = "", 0
        for trained, group in groupby(weight > 0 for weight in target.weights):
            end = start + len(list(group))
            whole = self.decode(target.token_ids[:end])
            piece = whole[len(done) :] if whole.startswith(done) else self.decode(target.token_ids[start:end])
            pieces.append((piece, trained))
            done, start = whole, end
        return pieces

    @cached_property
    def _template(self) -> str:
        if self.tokenizer.chat_template is not None:
            return _with_fixed_date(self.tokenizer.get_chat_template())
        alone = self.tokenizer("")["input_ids"]
        adds_bos = self.tokenizer.bos_token_id is not None and self.tokenizer.bos_token_id in alone[:1]
        return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE

    @cached_property
    def _folds_system(self) -> bool:
        try:
            text = self._apply((Message("system", _PROBE), Message("user", "u")), generate=True)
        except ModelError:
            return True
        return _PROBE not in text

    @cached_property
    def _layout(self) -> _Layout:
        question = (Message("user", "u"),)
        asked = self._apply(question, generate=True)
        whole = self._apply((*question, Message("assistant", _PROBE)), generate=False)
        head, _, tail = whole.rpartition(_PROBE)
        between = head[len(asked) :] if head.startswith(asked) else ""
        ignores_prompt = asked == self._apply(question, generate=False)
        added = self.tokenizer.added_tokens_decoder
        ends = {*(i for i, token in added.items() if token.content.strip()), self.tokenizer.eos_token_id}
        return _Layout(
            header=between if between.strip() and ignores_prompt else "",
            gap=between if not between.strip() else "",
            end=next((i for i in self._encode(tail) if i in ends), self.tokenizer.eos_token_id),
        )

    @property
    def _turn_end(self) -> int:
        if self._layout.end is None:
            raise ModelError(
                "neither the chat template nor the tokenizer has a token that ends an assistant turn",
                hint="Set tokenizer.eos_token, or train on targets with ended=False.",
            )
        return self._layout.end

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in added if token.special and token.content.strip())

    def _prompt(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Text and tokens of a conversation with the generation prompt; the last one is kept (n completions share it)."""
        key = tuple(messages)
        kept = self._last_prompt
        if kept is None or kept[0] != key:
            text = self._prompt_text(key)
            has_special = any(self._has_special(m.content) for m in key)
            ids = self._sanitized_ids(key) if has_special else self._encode(text)
            kept = self._last_prompt = (key, text, ids)
        return kept[1], kept[2]

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        return self._apply(self._fold(messages), generate=True) + self._layout.header

    def _sanitized_ids(self, messages: Sequence[Message]) -> list[int]:
        opening = self._encode(self._layout.header) if self._layout.header else []
        return self._apply(self._fold(messages), generate=True, tokenize=True) + opening

    def _fold(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if not messages or messages[0].role != "system" or not self._folds_system:
            return tuple(messages)
        system, *rest = messages
        if not rest or rest[0].role != "user":
            return (Message("user", system.content), *rest)
        return (Message("user", f"{system.content}\n\n{rest[0].content}"), *rest[1:])

    def _apply(self, messages: Sequence[Message], *, generate: bool, tokenize: bool = False) -> Any:
        """The rendered text; with `tokenize` the token ids, special tokens in messages encoded as ordinary text."""
        from jinja2 import TemplateError

        if not messages:
            raise DataError("a conversation needs at least one message before the assistant's")
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                chat_template=self._template,
                add_generation_prompt=generate,
                tokenize=tokenize,
                sanitize_control_tokens=tokenize,
                return_dict=False,
            )
        except (TemplateError, ValueError) as error:
            raise ModelError(
                f"the chat template refuses a conversation of {[m.role for m in messages]}: {error}",
                where=repr(messages[0].content[:80]),
                hint="Change the roles of the messages, or use a tokenizer whose template takes them.",
            ) from None

    def _content_ids(self, prompt_text: str, prompt_ids: list[int], content: str) -> list[int]:
        """Tokens of an assistant's text after the prompt: those of the whole text where its tokens start with the prompt's.

        Where a token would span the border, or the text holds special tokens, the text is encoded by itself (behind an
        anchor, since some tokenizers put a space at the start of a text).
        """
        if not content.startswith(self._layout.gap):
            content = self._layout.gap + content
        plain = self._has_special(content)
        whole = [] if plain else self._encode(prompt_text + content)
        if prompt_ids and whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        for anchor in ("\n", "0"):
            head = self._encode(anchor)
            ids = self._encode(anchor + content, split_special_tokens=plain)
            if ids[: len(head)] == head and self.decode(ids) == anchor + content:
                return ids[len(head) :]
        return self._encode(content, split_special_tokens=plain)

    def _history_weights(self, history: Sequence[Message], text: str, first: int) -> np.ndarray:
        """Weights (prompt tokens,) float32 of the assistant turns `history[first:]`, found by character offsets."""
        spans = [
            self._span(history[:k], m.content, text)
            for k, m in enumerate(history)
            if k >= first and m.role == "assistant"
        ]
        if not spans:
            return np.zeros(len(self._prompt(history)[1]), dtype=np.float32)
        if not self.tokenizer.is_fast or any(self._has_special(m.content) for m in history):
            raise ModelError(
                "earlier turns cannot be located by token: the tokenizer gives no offsets, or a message holds special tokens",
                where=repr(history[-1].content[:80]),
                hint="Use train='last', or a fast tokenizer and messages without special tokens.",
            )
        starts, ends = np.array(self._call(text, return_offsets_mapping=True)["offset_mapping"]).T
        inside = [(starts >= a) & (starts < b) & (ends > starts) for a, b in spans]
        return np.any(inside, axis=0).astype(np.float32)

    def _span(self, before: Sequence[Message], content: str, text: str) -> tuple[int, int]:
        """First and one past the last character of an earlier assistant turn (content and end token) in `text`."""
        head = self._prompt_text(before)
        rest, body = text[len(head) :], content.strip()
        start = len(rest) - len(rest.lstrip())
        if not text.startswith(head) or not rest.startswith(body, start):
            raise ModelError(
                "the chat template rewrites earlier turns, so they cannot be trained in place",
                where=repr(content[:80]),
                hint="Use train='last': only the last assistant message is trained.",
            )
        stop = start + len(body)
        tail = rest[stop:].lstrip()
        end = self.tokenizer.convert_ids_to_tokens(self._layout.end) if self._layout.end is not None else None
        if end and tail.startswith(end):
            stop = len(rest) - len(tail) + len(end)
        return len(head), len(head) + stop

    def _has_special(self, text: str) -> bool:
        return any(token in text for token in self._special_texts)

    def _encode(self, text: str, **options: Any) -> list[int]:
        return self._call(text, **options)["input_ids"]

    def _call(self, text: str | list[str], **options: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)


def _with_fixed_date(template: str) -> str:
    """Return `template` with its `strftime_now` replaced by a macro that always writes `TEMPLATE_DATE`."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f"|replace('%{c}', '{TEMPLATE_DATE.strftime('%' + c)}')" for c in "aAbBdejmyYFTHIMSp")
    return "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro +%}" + template
