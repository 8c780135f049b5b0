"""Models: protocols by capability, resolution of names, and the engines behind them."""

from tamis.models.base import ModelRef
from tamis.models.resolve import load, resolve

__all__ = ["ModelRef", "load", "resolve"]
