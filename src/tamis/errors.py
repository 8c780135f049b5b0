"""Errors a user can mend: each says what was wrong, where, and what to do."""

from collections.abc import Iterable


class TamisError(Exception):
    """Base of every error that is shown to a user without a traceback (exit code 2).

    `message` says what was wrong, `where` names the file, line, field or run, `hint` says what to do.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        said = f"{_shown(self.where)}: {_shown(self.message)}" if self.where else _shown(self.message)
        return f"{said}\n{_shown(self.hint)}" if self.hint else said


def _shown(text: str) -> str:
    """Return text as a terminal can show it: control characters escaped, the middle of what is very long left out."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 4 :]}"


_LONGEST = 2000


class ConfigError(TamisError):
    """A recipe, option or component field is wrong."""


class DataError(TamisError):
    """A data file or a record is wrong."""


class ModelError(TamisError):
    """A model cannot be found, loaded or cannot do what is asked of it."""


class StoreError(TamisError):
    """A run folder is busy, damaged or cannot be written."""


class TrainingError(TamisError):
    """Training cannot go on (no trained token, loss not finite)."""


class MissingExtra(TamisError):
    """An optional package is needed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            hint=f"Install it with: pip install 'tamis[{extra}]'",
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the closest of `known`, or the list when nothing is close."""
    import difflib

    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(options)}." if options else "Nothing is registered there."
