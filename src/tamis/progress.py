"""Four ways to watch a run: live on a terminal, plain lines elsewhere, JSON lines, or nothing."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from tamis.errors import ConfigError, nearest

Mode = Literal["auto", "live", "plain", "json", "quiet"]


def listener(mode: Mode = "auto") -> "Listener":
    """Return the listener of this mode; auto is live on a terminal and plain lines elsewhere.

    Raises ConfigError for an unknown mode.
    """
    modes = {"live": Live, "plain": Plain, "json": Json, "quiet": Listener}
    if mode != "auto" and mode not in modes:
        raise ConfigError(f"unknown progress '{mode}'", hint=nearest(str(mode), ["auto", *modes]))
    if mode == "auto":
        mode = "live" if sys.stderr.isatty() else "plain"
    return modes[mode]()


class Listener:
    """Receives a run's events and says nothing: the quiet mode."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        handler = getattr(self, f"on_{event['event']}", None)
        if handler:
            handler(event)

    def close(self) -> None:
        """Leave the terminal as it was."""


class Json(Listener):
    """One JSON object a line on standard output."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        print(json.dumps(event, ensure_ascii=False, default=str), flush=True)


class Plain(Listener):
    """A line when a stage starts and ends, and one every ten seconds between."""

    every = 10.0

    def __init__(self) -> None:
        self.last = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line on standard error, at once."""
        print(text, file=sys.stderr, flush=True)

    def on_stage_start(self, event: Mapping[str, Any]) -> None:
        """Remember when the stage began."""
        self.last = time.monotonic()

    def on_progress(self, event: Mapping[str, Any]) -> None:
        """Say where the stage is, at most every ten seconds."""
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(f"    {progress_line(event)}")

    def on_stage_done(self, event: Mapping[str, Any]) -> None:
        """Say what the stage gave."""
        self.say(done_line(event))

    def on_note(self, event: Mapping[str, Any]) -> None:
        """Say what a stage wants known."""
        self.say(f"    {event.get('text') or dict(event)}")


class Live(Plain):
    """A live line per stage, with rate, accepted so far and time left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(stderr=True)
        self.status: Any = None

    def say(self, text: str) -> None:
        """Print one line above the live one."""
        self.console.print(text, highlight=False, markup=False)

    def on_stage_start(self, event: Mapping[str, Any]) -> None:
        """Begin the live line."""
        self.close()
        self.status = self.console.status(f"{event['stage']} ...")
        self.status.start()

    def on_progress(self, event: Mapping[str, Any]) -> None:
        """Update the live line."""
        if self.status:
            self.status.update(f"{event['stage']}  {progress_line(event)}")

    def on_stage_done(self, event: Mapping[str, Any]) -> None:
        """Replace the live line by what the stage gave."""
        self.close()
        super().on_stage_done(event)

    def on_run_failed(self, event: Mapping[str, Any]) -> None:
        """End the live line."""
        self.close()

    def close(self) -> None:
        """End the live line."""
        if self.status:
            self.status.stop()
            self.status = None


def progress_line(event: Mapping[str, Any]) -> str:
    """Return done/total, tokens/s, accepted so far and time left as one line."""
    total = f"/{event['total']}" if event["total"] else ""
    parts = [f"{event['done']}{total} {event['unit']}"]
    if event["tokens_per_second"]:
        parts.append(f"{event['tokens_per_second']:.0f} tok/s")
    if event["accepted"] is not None:
        parts.append(f"{event['accepted']} accepted")
    if event["eta"] is not None and event["done"] < event["total"]:
        parts.append(f"{duration(event['eta'])} left")
    return " · ".join(parts)


def done_line(event: Mapping[str, Any]) -> str:
    """Return a finished stage as one line: name, time or reuse, counts."""
    took = "reused" if event["reused"] else duration(event["seconds"])
    counts = ", ".join(f"{n} {what}" for what, n in event["counts"].items() if n)
    return f"{event['kind']:<16} {event['component']:<24} {took:>8}  {counts}"


def duration(seconds: float) -> str:
    """Return seconds as 4.2s, 3m05s or 2h07m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def byte_size(count: float) -> str:
    """Return bytes as 2.1 GB, 541 MB or 12 kB."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
