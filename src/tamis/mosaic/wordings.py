"""How the rule of a mosaic is said: number tags, begin and end marks, and meta-instructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

from tamis.errors import ConfigError
from tamis.mosaic.rules import MASKS, ORDERS

TAGS = (
    ("", ""),
    ("(", ")"),
    ("[", "]"),
    ("<", ">"),
    ("{", "}"),
    ("<<", ">>"),
    ("[[", "]]"),
    ("#", ""),
    ("### ", ""),
    ("No. ", ""),
)
"""What stands around a number before an instruction and its response."""
PUNCTUATION = ("", ".", ":")
MARK_WORDS = (
    ("Start", "End"),
    ("Begin", "End"),
    ("Begin", "Finish"),
    ("Start", "Finish"),
    ("Start", "Stop"),
    ("Open", "Close"),
    ("Opening", "Closing"),
    ("First", "Last"),
    ("Head", "Tail"),
    ("Enter", "Exit"),
    ("Entry", "Exit"),
    ("Top", "Bottom"),
    ("Launch", "Land"),
    ("Initiate", "Terminate"),
    ("Commence", "Conclude"),
    ("Intro", "Outro"),
    ("Prologue", "Epilogue"),
)
"""Words of the marks that begin and end a response."""
MARK_BRACKETS = (
    *(("[", "]"), ("(", ")"), ("{", "}"), ("<", ">"), ("<<", ">>"), ("[[", "]]"), ("((", "))"), ("{{", "}}")),
    *(("<|", "|>"), ("[|", "|]"), ("<-", "->"), ("[-", "-]"), ("<#", "#>")),
    *((side, side) for side in ("*", "**", "#", "##", "-", "--", "=", "==", "~", "|", "@", "%")),
)
"""What stands around such a word."""
SEQUENCE_TAGS = (
    ("", ""),
    ("(", ")"),
    ("[", "]"),
    ("<", ">"),
    ("#", ""),
    ("No. ", ""),
    ("Instruction ", ""),
    ("Task ", ""),
)
SEPARATORS = (", ", " ", "; ", " - ", " -> ", " | ", " / ")
"""How a fixed list of numbers is written."""

MARKED = (
    "Put {begin} before and {end} after each response.",
    "Every response begins with {begin} and ends with {end}.",
    "Start each response with {begin} and finish it with {end}.",
    "Wrap each of your responses in {begin} and {end}.",
    "Place each response between {begin} and {end}.",
    "Write {begin} in front of every response and {end} behind it.",
    "Each answer should open with {begin} and close with {end}.",
    "Use {begin} to begin and {end} to end each answer.",
    "Enclose every answer in {begin} and {end}.",
    "Let {begin} introduce and {end} conclude each response.",
    "Mark the beginning of a response with {begin} and its end with {end}.",
    "For each instruction, give a response that runs from {begin} to {end}.",
    "Your responses must be enclosed by {begin} and {end}.",
    "Each response has to stand between the marks {begin} and {end}.",
    "Answer every instruction, with {begin} ahead of the answer and {end} at its end.",
    "Surround each response with {begin} and {end}.",
    "Set off every response by {begin} at its start and {end} at its end.",
    "Please write each response after {begin} and before {end}.",
    "Respond to each instruction; a response opens with {begin} and closes with {end}.",
    "The response to each instruction is to be put between {begin} and {end}.",
    "Give each answer the opening {begin} and the closing {end}.",
    "Make each response start with {begin} and stop with {end}.",
    "Frame every single response by {begin} and {end}.",
    "Show where each response starts by {begin} and where it ends by {end}.",
    "Delimit each response: {begin} first, {end} last.",
    "Responses are delimited by {begin} and {end}.",
    "Bracket each answer with the marks {begin} and {end}.",
    "Begin a response by writing {begin}, and once it is complete write {end}.",
    "Do not forget to put {begin} at the head and {end} at the tail of each response.",
    "As a format, write {begin}, then the response, then {end}, for each instruction.",
)
PLAIN = (
    "Respond to each of the instructions.",
    "Please answer the following instructions one by one.",
    "Here are some instructions. Give a response to each.",
    "Several instructions are given together; respond to them separately.",
    "Answer the instructions below in the format in which they are given.",
    "Below are instructions that describe tasks. Write a response to each that completes it.",
    "Work through the instructions and give each its own response.",
)
ORDER = {
    "fixed": (
        "Respond in this order: {sequence}.",
        "Give the responses in the following sequence: {sequence}.",
        "The responses must be ordered as follows: {sequence}.",
    ),
    "reverse": (
        "Respond in reverse order, from the last instruction to the first.",
        "Give the responses in the reverse of the order of the instructions.",
    ),
    "alphabetical": (
        "Respond in alphabetical order of the instructions.",
        "Sort the instructions alphabetically, from A to Z, and respond in that order.",
    ),
    "reverse_alphabetical": (
        "Respond in reverse alphabetical order of the instructions.",
        "Sort the instructions reverse-alphabetically, from Z to A, and respond in that order.",
    ),
    "fewest_words": (
        "Respond first to the instruction with the fewest words, and last to the one with the most.",
        "Order the responses by the word count of the instructions, fewest words first.",
    ),
    "most_words": (
        "Respond first to the instruction with the most words, and last to the one with the fewest.",
        "Order the responses by the word count of the instructions, most words first.",
    ),
    "fewest_characters": (
        "Respond first to the instruction with the fewest characters, and last to the one with the most.",
        "Order the responses by the character count of the instructions, fewest characters first.",
    ),
    "most_characters": (
        "Respond first to the instruction with the most characters, and last to the one with the fewest.",
        "Order the responses by the character count of the instructions, most characters first.",
    ),
    "odd_first": (
        "Respond to the odd-numbered instructions first, then to the even-numbered ones.",
        "Give the responses to all odd-numbered instructions before those to the even-numbered ones.",
    ),
    "even_first": (
        "Respond to the even-numbered instructions first, then to the odd-numbered ones.",
        "Give the responses to all even-numbered instructions before those to the odd-numbered ones.",
    ),
}
MASK = {
    "fixed": (
        "Ignore these instructions: {sequence}.",
        "Do not respond to the following instructions: {sequence}.",
        "Leave these instructions without a response: {sequence}.",
    ),
    "longest": (
        "Ignore the longest instructions by number of words, {count} in all.",
        "Counted in words, leave out the longest instructions ({count} of them).",
    ),
    "shortest": (
        "Ignore the shortest instructions by number of words, {count} in all.",
        "Counted in words, leave out the shortest instructions ({count} of them).",
    ),
    "odd": ("Ignore the odd-numbered instructions.", "Do not respond to any odd-numbered instruction."),
    "even": ("Ignore the even-numbered instructions.", "Do not respond to any even-numbered instruction."),
}
FIELDS = {("order", "fixed"): {"sequence"}, ("mask", "fixed"): {"sequence"}} | {
    ("mask", method): {"count"} for method in ("longest", "shortest")
}
"""What a phrasing of a method must name; the others name nothing."""


@dataclass(frozen=True)
class Wordings:
    """Meta-instructions, by default in English.

    `marked` name "{begin}" and "{end}", `plain` nothing; `order` and `mask` have phrasings of every method of
    `tamis.mosaic.rules`: of the order "fixed" and the mask "fixed" with "{sequence}", of "longest" and "shortest" with
    "{count}". Raises ConfigError for a missing phrasing, and for one that does not name just what it must.
    """

    marked: tuple[str, ...] = MARKED
    plain: tuple[str, ...] = PLAIN
    order: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: ORDER)
    mask: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MASK)

    def __post_init__(self) -> None:
        self._check("marked", self.marked, {"begin", "end"})
        self._check("plain", self.plain, set())
        for kind, methods, given in (("order", ORDERS, self.order), ("mask", MASKS, self.mask)):
            for method in methods:
                self._check(f"{kind} '{method}'", given.get(method, ()), FIELDS.get((kind, method), set()))

    def _check(self, kind: str, phrasings: tuple[str, ...], needed: set[str]) -> None:
        if not phrasings:
            raise ConfigError("there is no phrasing", where=f"wordings, {kind}")
        for phrasing in phrasings:
            try:
                named = {name for _, name, _, _ in Formatter().parse(phrasing) if name is not None}
            except ValueError:
                named = {"?"}
            if named != needed:
                must = " and ".join(f"{{{name}}}" for name in sorted(needed)) or "nothing in braces"
                raise ConfigError(f"the phrasing {phrasing!r} must name {must}", where=f"wordings, {kind}")


DEFAULT = Wordings()
