"""Sampling from and scoring with any `transformers` causal language model; token ids in, token ids out."""

from tamis.generation.engine import OnEvent, sample
from tamis.generation.rows import Request, Sampled
from tamis.generation.sampling import Drawn, check_law, draw, truncate
from tamis.generation.scoring import next_logits, score
from tamis.generation.session import Session, open_session
from tamis.generation.stops import StopStrings
from tamis.generation.tree import PrefixTree

__all__ = [
    "Drawn",
    "OnEvent",
    "PrefixTree",
    "Request",
    "Sampled",
    "Session",
    "StopStrings",
    "check_law",
    "draw",
    "next_logits",
    "open_session",
    "sample",
    "score",
    "truncate",
]
