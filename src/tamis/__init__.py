"""tamis: sample, judge, select, compose, tune, evaluate, and go round again."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "judge", "run", "sample"]


def __getattr__(name: str) -> Any:
    if name in ("run", "sample", "judge"):
        from tamis import api

        return getattr(api, name)
    if name == "Run":
        from tamis.runs import Run

        return Run
    raise AttributeError(f"module 'tamis' has no attribute '{name}'")
