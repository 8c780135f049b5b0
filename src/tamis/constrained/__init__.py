"""Generation under hard constraints: one token (`AWRS`), whole texts (`smc`), and constraints on text."""

from tamis.constrained.awrs import AWRS, Draw
from tamis.constrained.smc import WeightedSequences, smc
from tamis.constrained.texts import TextConstraint, json_constraint, regex_constraint, text_constraint, token_bytes

__all__ = [
    "AWRS",
    "Draw",
    "TextConstraint",
    "WeightedSequences",
    "json_constraint",
    "regex_constraint",
    "smc",
    "text_constraint",
    "token_bytes",
]
