"""What stands for an endpoint's model in cache keys: URL, model name and what the server says of the model."""

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tamis.hashing import digest
from tamis.models.cache import cache_root
from tamis.models.endpoint.background import Background
from tamis.models.endpoint.http import Cut, Response, Session, Unreachable
from tamis.models.endpoint.keys import api_key

REPORTED = ("id", "root", "parent", "owned_by", "max_model_len", "meta", "system_fingerprint")
"""What of a server's /models entry enters the identity: nothing that changes from call to call."""
TRIES = 3
PATIENCE = 3.0
"""Seconds for one try."""
LARGEST = 1 << 24
"""Bytes of the list of models."""


def endpoint_identity(base: str, model: str) -> str:
    """Return the digest of URL, model name and what the server's /models says of that model.

    When the server does not answer, it is the digest of what it said last time, kept in the cache (nothing of it but the
    digest): a run whose sampling is done goes on with the server switched off. Raises ModelError for a bad address or key.
    """
    memory = cache_root() / "endpoints" / digest(base, model)
    response = _models(base)
    if response is None or response.status >= 500 or response.status in (401, 403, 408, 429):
        with suppress(OSError):
            return memory.read_text()
        return digest("endpoint", base, model, {})
    identity = digest("endpoint", base, model, _reported(response, model))
    with suppress(OSError):
        _remember(memory, identity)
    return identity


def _models(base: str) -> Response | None:
    """Return the server's answer to GET /models, None when there is none."""
    key, session = api_key(), Session(base)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    background = Background(session.close)
    try:
        return background.result(_ask(session, headers))
    finally:
        background.close()


async def _ask(session: Session, headers: dict[str, str]) -> Response | None:
    response = None
    with suppress(Unreachable):
        for tries in range(TRIES):
            await asyncio.sleep(0.5 * tries)
            with suppress(Cut, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    response = await session.request("GET", "/models", headers, limit=LARGEST)
                if response.status not in (429, 503):
                    break
    return response


def _reported(response: Response, model: str) -> dict[str, Any]:
    try:
        rows = json.loads(response.body)["data"] if response.status == 200 else []
        row: dict[str, Any] = next((row for row in rows if row.get("id") == model), {})
        return {name: row[name] for name in REPORTED if name in row}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _remember(memory: Path, identity: str) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, prefix=".making-", delete=False) as file:
        file.write(identity)
    os.replace(file.name, memory)
