"""Whether two mathematical expressions are equal: math-verify in a process of its own, with a limit on its time.

Computer algebra on a model's text can run for ever (`9^{9^{9^9}}`) and inside code that no signal handler or thread can
stop. So it runs in a child process that the operating system ends after 5 seconds of processor time for one question (or
TAMIS_MATH_SECONDS from the environment). Waiting does not count, so a busy machine gives the same verdicts. Only LaTeX is
parsed (ANTLR grammar); the plain-expression parser of math-verify is not used, because it evaluates text.
"""

import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any, Literal

_CPU_SECONDS = "5"
_MEMORY_BYTES = 4 << 30
_LONGEST = 1000
_DEEPEST = 20

Comparison = Literal["correct", "wrong", "unparseable_answer", "unparseable_gold"]


def compare(gold: str, answer: str) -> Comparison:
    """Compare two expressions in LaTeX or plain notation ("2x+1", "\\frac{1}{2}", "(1, 2)"), without delimiters.

    What cannot be read, or cannot be decided in the time given, is unparseable, never wrong.
    """
    if not _readable(gold):
        return "unparseable_gold"
    if not _readable(answer):
        return "unparseable_answer"
    equal = _equal(gold, answer)
    return "unparseable_answer" if equal is None else "correct" if equal else "wrong"


@lru_cache(maxsize=4096)
def _readable(text: str) -> bool:
    return bool(_plausible(text) and _ask("parse", text))


@lru_cache(maxsize=4096)
def _equal(gold: str, answer: str) -> bool | None:
    return _ask("equal", gold, answer)


def _plausible(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return 0 < len(text) <= _LONGEST and deepest <= _DEEPEST


_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None
_owner = 0


def _ask(*question: str) -> bool | None:
    """Return the child's answer, None when it could not answer or was ended. The next question starts a new child."""
    global _child, _owner
    with _lock:
        if _child is None or _owner != os.getpid() or _child.poll() is not None:
            _child, _owner = _start(), os.getpid()
        assert _child.stdin is not None
        assert _child.stdout is not None
        try:
            _child.stdin.write(json.dumps(question) + "\n")
            _child.stdin.flush()
            reply = _child.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if reply:
            return json.loads(reply)
    stop()
    return None


def stop() -> None:
    """End the child process, if there is one. The next question starts another."""
    global _child
    with _lock:
        if _child is not None and _owner == os.getpid():
            _child.kill()
            _child.communicate()
        _child = None


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tamis.mathcheck"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


_UNITS = ("\\text", "\\mathrm", "\\mbox", "\\circ", "\\$", "\\%", "%", "$")


def _parse(text: str) -> list[Any]:
    """Parse an expression. Units are dropped only where they are set as text, else "3c" would be read as 3 cents."""
    from dataclasses import replace

    from math_verify import LatexExtractionConfig, parse

    latex = LatexExtractionConfig()
    rules = replace(latex.normalization_config, units=any(mark in text for mark in _UNITS))
    latex = replace(latex, normalization_config=rules)
    return parse(f"\\boxed{{{text}}}", [latex], fallback_mode="no_fallback", parsing_timeout=None)


def _reply(question: list[str]) -> bool | None:
    from math_verify import verify

    try:
        if question[0] == "parse":
            return bool(_parse(question[1]))
        gold, answer = _parse(question[1]), _parse(question[2])
        return bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    except (Exception, RecursionError, MemoryError):
        return None


def _serve() -> None:
    """Answer questions, one JSON line each, until the input ends. SIGPROF's default action ends an overrun."""
    import logging
    import resource
    import signal

    logging.disable(logging.CRITICAL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    import math_verify  # noqa: F401  (its import time is not a question's time)

    limit = float(os.environ.get("TAMIS_MATH_SECONDS", _CPU_SECONDS))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit)
        reply = _reply(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    _serve()
