"""The key of an endpoint: read from the environment, sent in one header, and taken out of whatever a server says."""

import os

from tamis.errors import ModelError

VARIABLES = ("TAMIS_API_KEY", "OPENAI_API_KEY")


def api_key() -> str:
    """Return the key from the environment, "" without one. Raises ModelError for one that no header can carry."""
    for variable in VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(f"the key in {variable} has characters that no key has", hint="Set it again.")
        if key:
            return key
    return ""


def redact(text: str) -> str:
    """Return `text` with every key of the environment replaced by [key]: a server may send it back."""
    for variable in VARIABLES:
        if key := os.environ.get(variable, "").strip():
            text = text.replace(key, "[key]")
    return text
