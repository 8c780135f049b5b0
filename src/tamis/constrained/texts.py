"""Constraints on text, as yes or no about generated tokens: any predicate on bytes, a regular expression, a JSON schema.

Patterns and schemas are compiled by llguidance (MIT, the extra `constrained`), here over single bytes, so that one automaton
serves every tokenizer. It refuses prefixes that nothing completes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from tamis.constrained.awrs import Predicate, checked
from tamis.errors import ConfigError, MissingExtra, ModelError

BytePredicate = Callable[[bytes], bool]
_ANSWERS = 2**16
_KEPT = 1024
_STRIDE = 24
_END = 256


class TextConstraint(NamedTuple):
    """`constraint(tokens)`: these generated tokens can be completed. `complete(tokens)`: they are complete, without an end."""

    constraint: Predicate
    complete: Predicate


def text_constraint(tokenizer: Any, can_extend: BytePredicate, is_complete: BytePredicate) -> TextConstraint:
    """Return a constraint on the bytes of the generated tokens (a token may end inside a character).

    `can_extend(text)`: some text that begins with `text` (itself included) is allowed. Answers are kept per text, the last
    65,536 of each. Tokens without text (special ones) are refused. Raises ConfigError where an answer is not a bool.
    """
    table = token_bytes(tokenizer)
    extend, end = (lru_cache(_ANSWERS)(lambda text, ask=ask: checked(ask(text))) for ask in (can_extend, is_complete))

    def asking(ask: Callable[[bytes], bool]) -> Predicate:
        def answer(tokens: Sequence[int]) -> bool:
            parts = [table.get(token) for token in tokens]
            return None not in parts and ask(b"".join(part for part in parts if part))

        return answer

    return TextConstraint(asking(extend), asking(end))


def regex_constraint(tokenizer: Any, pattern: str) -> TextConstraint:
    """Return the constraint that the whole text matches `pattern` (syntax of Rust's regex: no look-around, no back-references).

    Raises ConfigError for a pattern that does not compile or that no text matches, MissingExtra without llguidance.
    """
    return _constraint(tokenizer, regex_grammar(pattern))


def json_constraint(tokenizer: Any, schema: Mapping[str, Any]) -> TextConstraint:
    """Return the constraint that the text is JSON that a JSON schema accepts; white space between its parts is free.

    Raises ConfigError for a schema that llguidance does not know or that nothing satisfies, MissingExtra without llguidance.
    """
    return _constraint(tokenizer, json_grammar(schema))


def _constraint(tokenizer: Any, grammar: "Grammar") -> TextConstraint:
    return text_constraint(tokenizer, grammar.can_extend, grammar.is_complete)


class Grammar:
    """A compiled llguidance grammar as two predicates on bytes.

    The parser's state is kept after texts that were allowed (the last 1,024 that lie some 24 bytes apart), so that an answer
    costs a few steps from the nearest of them, about 3 microseconds, not a parse of the whole text.
    """

    def __init__(self, source: str, what: str) -> None:
        from llguidance import LLMatcher

        opened = LLMatcher(_byte_tokenizer(), source, log_level=0)
        if opened.is_error():
            raise ConfigError(f"the {what} cannot be compiled: {opened.get_error().strip()}")
        if not any(opened.validate_tokens([byte]) for byte in range(_END + 1)):
            raise ConfigError(f"no text satisfies the {what}")
        self.what, self._opened = what, opened
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def can_extend(self, text: bytes) -> bool:
        """Whether some allowed text begins with `text`."""
        state, rest = self._nearest(text)
        if not self._passes(state, rest):
            return False
        if len(rest) > _STRIDE:
            self._keep(text, state, rest)
        return True

    def is_complete(self, text: bytes) -> bool:
        """Whether `text` is allowed."""
        state, rest = self._nearest(text)
        return self._passes(state, [*rest, _END])

    def _nearest(self, text: bytes) -> tuple[Any, list[int]]:
        """Return the kept state of the longest prefix of `text` that has one, and the bytes after it."""
        for cut in range(len(text), 0, -1):
            if (state := self._kept.get(text[:cut])) is not None:
                self._kept.move_to_end(text[:cut])
                return state, list(text[cut:])
        return self._opened, list(text)

    def _passes(self, state: Any, rest: list[int]) -> bool:
        passed = state.validate_tokens(rest) == len(rest)
        if state.is_error():
            raise ConfigError(f"the {self.what} is too complex: {state.get_error().strip()}", hint="Make it simpler.")
        return passed

    def _keep(self, text: bytes, state: Any, rest: list[int]) -> None:
        after = state.deep_copy()
        if after.consume_tokens(rest):
            self._kept[text] = after
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def regex_grammar(pattern: str) -> Grammar:
    """Return the grammar of a regular expression."""
    _need_llguidance()
    from llguidance import LLMatcher

    return Grammar(LLMatcher.grammar_from_regex(pattern), "pattern")


def json_grammar(schema: Mapping[str, Any]) -> Grammar:
    """Return the grammar of the JSON texts that a schema accepts."""
    _need_llguidance()
    from llguidance import LLMatcher

    return Grammar(LLMatcher.grammar_from_json_schema(dict(schema)), "JSON schema")


def _need_llguidance() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise MissingExtra("llguidance", "constrained", "A constraint by pattern or JSON schema") from None


@cache
def _byte_tokenizer() -> Any:
    """Return the llguidance tokenizer of 256 bytes and an end."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


class _Bytes:
    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(_END)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Return the bytes that each token of a fast `transformers` tokenizer adds to a text; special tokens are left out.

    Knows byte-level vocabularies, word-boundary signs with byte fall-back, and plain ones. Raises ModelError for others.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = str(getattr(backend, "decoder", None))
    if backend is None or any(kind in decoder for kind in ("WordPiece", "BPEDecoder", "CTC")):
        raise ModelError(
            f"the bytes of the tokens of {type(tokenizer).__name__} are not known (decoder {decoder:.60})",
            hint="Constraints on text need a byte-level or SentencePiece-like tokenizer.",
        )
    added = tokenizer.added_tokens_decoder
    marked = "▁" in decoder or "Metaspace" in decoder
    read = _byte_level if "ByteLevel" in decoder else _word_marked if marked else str.encode
    found = {i: added[i].content.encode() if i in added else read(token) for token, i in tokenizer.get_vocab().items()}
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return {i: text for i, text in found.items() if text and i not in special}


def _byte_level(token: str) -> bytes:
    known = [_byte_alphabet().get(sign) for sign in token]
    return b"" if None in known else bytes(byte for byte in known if byte is not None)


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each sign of byte-level vocabularies: printable ones are themselves, others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _word_marked(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
