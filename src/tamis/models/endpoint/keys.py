"""The key of an endpoint: read from the environment, sent in one header, and taken out of whatever a server says."""

import os

from tamis.errors import ModelError

VARIABLES = ("TAMIS_API_KEY", "OPENAI_API_KEY")
SHORTEST_SECRET = 8
"""Characters: a shorter key ("1", "EMPTY") is a word that answers hold by chance."""


def api_key() -> str:
    """Return the key from the environment, "" without one. Raises ModelError for one that no header can carry."""
    for variable in VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"the key in {variable} has characters that no key has", hint="Set it again.")
        if key:
            return key
    return ""


def redact(text: str, shortest: int = 1) -> str:
    """Return `text` with every key of the environment replaced by [key]: a server may send it back.

    Keys of fewer than `shortest` characters stay: answers, which must not change, are read with `SHORTEST_SECRET`.
    """
    for variable in VARIABLES:
        if len(key := os.environ.get(variable, "").strip()) >= shortest:
            text = text.replace(key, "[key]")
    return text
