"""What stands for an endpoint's model in cache keys: URL, model name and which weights the server says it serves."""

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tamis.errors import ModelError
from tamis.hashing import digest
from tamis.models.cache import cache_root
from tamis.models.endpoint.background import Background
from tamis.models.endpoint.http import Cut, Response, Session, Unreachable
from tamis.models.endpoint.keys import VARIABLES, api_key
from tamis.models.endpoint.wire import said, whole

REPORTED = ("id", "root", "parent")
"""What of a server's /models entry enters the identity: what names the weights. `root` is where vLLM has them from,
`parent` the model under an adapter. Not `created` (the moment of asking, in vLLM), `owned_by`, `max_model_len` and `meta`:
another server version, another context length or a model still loading changes them, with the same weights behind them.
"""
TRIES = 4
PATIENCE = 5.0
"""Seconds for one try."""
FIRST_WAIT = 0.5
"""Seconds before the second try; they double."""
REFUSED = frozenset({401, 402, 403})
PASSING = frozenset({408, 409, 425, 429})
NO_LIST = 501
LARGEST = 1 << 24
"""Bytes of the list of models."""


def endpoint_identity(base: str, model: str) -> str:
    """Return the digest of URL, model name and the weights that the server's /models names for that model (`REPORTED`).

    A server without such a list (404, 405, 501, no JSON), or one that does not list the model, has the digest of URL and
    name. When it cannot be asked now (nothing listens, 5xx, 429, 401, 403, a time-out), it is the digest of last time, kept
    in the cache (nothing of it but the digest): a run whose sampling is done goes on with the server switched off.
    Where there is no last time, nothing is known yet: a ModelError, but for a server that nothing listens at, which has
    the digest of URL and name and cannot sample. Raises ModelError for a bad address or key, too.
    """
    memory = cache_root() / "endpoints" / digest(base, model)
    answer = _models(base)
    if isinstance(answer, Response) and answer.status not in REFUSED and not _passes(answer):
        identity = digest("endpoint", base, model, _reported(answer, model))
        with suppress(OSError):
            _remember(memory, identity)
        return identity
    with suppress(OSError):
        return memory.read_text()
    if answer is None:
        return digest("endpoint", base, model, {})
    refused = isinstance(answer, Response) and answer.status in REFUSED
    reason = f"HTTP {answer.status}: {said(answer)}" if isinstance(answer, Response) else answer
    raise ModelError(
        f"the server does not say which model '{model}' is: GET {base}/models gives {reason}",
        where=base,
        hint=f"Set the right key in the environment: {' or '.join(VARIABLES)}."
        if refused
        else "Nothing was sampled yet. Run the same command again when the server is ready.",
    )


def _passes(response: Response) -> bool:
    """Whether another answer may come later."""
    return response.status in PASSING or (response.status >= 500 and response.status != NO_LIST)


def _models(base: str) -> Response | str | None:
    """Return the server's answer to GET /models, why there is none, or None when no server is there."""
    key, session = api_key(), Session(base)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    background = Background(session.close)
    try:
        return background.result(_ask(session, headers))
    finally:
        background.close()


async def _ask(session: Session, headers: dict[str, str]) -> Response | str | None:
    found: Response | str | None = None
    for tries in range(TRIES):
        if tries:
            await asyncio.sleep(FIRST_WAIT * 2 ** (tries - 1))
        try:
            async with asyncio.timeout(PATIENCE):
                found = await session.request("GET", "/models", headers, limit=LARGEST)
        except Unreachable:
            break
        except TimeoutError:
            found = f"no answer within {PATIENCE:g} s"
        except Cut as error:
            found = str(error)
        if isinstance(found, Response) and not _passes(found):
            break
    return found


def _reported(response: Response, model: str) -> dict[str, Any]:
    try:
        rows = json.loads(response.body)["data"] if response.status == 200 else []
        row: dict[str, Any] = next((row for row in rows if row.get("id") == model), {})
        return {name: whole(row[name]) for name in REPORTED if isinstance(row.get(name), str)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _remember(memory: Path, identity: str) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, prefix=".making-", delete=False) as file:
        file.write(identity)
    os.replace(file.name, memory)
