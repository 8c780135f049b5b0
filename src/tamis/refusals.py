"""Refusals in words: sentences that say that an answer is not known, phrases that give a refusal away, and prompts without an
answer."""

import re

from tamis.records import Prompt

SENTENCES = (
    "I do not know the answer.",
    "I don't know.",
    "I am not able to answer this question.",
    "I cannot answer this question.",
    "The answer is not known to me.",
    "I have no answer to this question.",
    "This is beyond what I know.",
    "I lack the knowledge to answer this.",
    "It is not possible for me to answer this question.",
    "There is not enough information to answer this question.",
    "I have no knowledge of this.",
    "I am unable to answer this question.",
    "The answer is unknown.",
    "I am not certain enough to give an answer.",
    "This question cannot be answered.",
    "I can't say what the answer is.",
)
"""Sixteen ways to say that the answer is not known."""

PHRASES = (
    r"\bI (?:do not|don't|really don't) know\b",
    r"\bI (?:cannot|can't|can not|could not|couldn't) (?:answer|say|tell|find (?:an|the|any) (?:answer|information))\b",
    r"\b(?:unable|not able|not possible(?: for me)?) to (?:answer|say|provide an answer|determine)\b",
    r"\bI have no (?:answer|knowledge|information)\b",
    r"\bI lack the (?:knowledge|information)\b",
    r"\bbeyond (?:what I know|my knowledge)\b",
    r"\banswer is (?:unknown|not known)\b",
    r"\bnot certain enough to\b",
    r"\b(?:cannot|can't|can not) be (?:answered|determined)\b",
    r"\b(?:not enough|insufficient|no) information\b",
    r"\b(?:does not|doesn't|do not|don't) (?:contain|provide|give|include|have) (?:an answer|the answer|any information|"
    r"the information|enough information|sufficient information)\b",
    r"\bnot (?:mentioned|specified|stated|given|provided) in the (?:context|text|passage|document|article)\b",
    r"^\W*(?:unanswerable|unknown|no answer)\W*$",
)
"""Regular expressions that a refusal matches (English, case aside)."""

_REFUSAL = re.compile("|".join(PHRASES), re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether a text says, by one of `PHRASES`, that it gives no answer. An empty text says nothing: False."""
    return bool(_REFUSAL.search(text.replace("\u2019", "'")))


def unanswerable(prompt: Prompt) -> bool:
    """Whether a prompt is known to have no answer: metadata "answerable" is false, or its first reference is a refusal."""
    return prompt.metadata.get("answerable") is False or any(map(refuses, prompt.references[:1]))
