"""HTTP by aiohttp: requests to one server and their whole responses, of no more bytes than is said.

No redirect is followed and no compression asked for. Proxies are read from the environment here, since aiohttp's `trust_env`
reads ~/.netrc too, anew for each request, and refuses the key where that has a password for the host. aiohttp 3.14 does not
end a response whose chunks go wrong after its head has come: that shows as a time-out.
"""

import os
import re
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp.connector import Connection

from tamis.errors import ModelError

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection to be made, TLS and proxy included."""


class Unreachable(Exception):
    """No connection could be made."""


class Cut(Exception):
    """The connection ended, or what came over it was not HTTP, before the response was whole."""


@dataclass(frozen=True)
class Response:
    """A whole response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Server:
    """Where requests go, and the proxy on the way there: its address and the header that logs in."""

    base: str
    proxy: str | None
    login: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, base: str) -> "Server":
        """Return the server behind a base URL; a proxy comes from the environment. Raises ModelError for a bad address."""
        try:
            parts = urlsplit(base)
            name = parts.hostname or ""
            if re.fullmatch(r"[\w.:%-]+", name) and name.encode("idna") and parts.port != 0:
                return cls(base, *_proxy(parts.scheme, parts.netloc))
        except ValueError:
            pass
        raise ModelError(
            "this is not the address of a server", where=base, hint="Example: http://127.0.0.1:8000/v1#NAME"
        )

    @property
    def tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.base.startswith("https:")


def _proxy(scheme: str, netloc: str) -> tuple[str | None, Mapping[str, str]]:
    given = urllib.request.getproxies()
    url = given.get(scheme) or given.get("all")
    if not url or urllib.request.proxy_bypass(netloc):
        return None, {}
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname:
            login = (unquote(parts.username or ""), unquote(parts.password or ""))
            basic = {"Proxy-Authorization": aiohttp.encode_basic_auth(*login)} if parts.username else {}
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"http://{host}:{parts.port or 80}", basic
    except ValueError:
        pass
    raise ModelError(
        f"the proxy that the environment sets for {scheme} is not of the form http://host:port",
        hint="Set it again, or name the server's host in NO_PROXY.",
    )


class Session:
    """Requests to one server, over connections that are kept while both sides like it. Lives in one event loop."""

    def __init__(self, base: str) -> None:
        self.server = Server.of(base)
        self._client: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", limit: int = 1 << 20
    ) -> Response:
        """Return the response, of at most `limit` bytes. Raises Unreachable or Cut; cancelling drops the connection."""
        server = self.server
        self._client = self._client or _client(server)
        asked = self._client.request(
            method,
            f"{server.base}{path}",
            headers=headers if server.tls else {**headers, **server.login},
            data=body or None,
            allow_redirects=False,
            proxy=server.proxy,
            proxy_headers=server.login if server.tls else None,
        )
        content = bytearray()
        try:
            async with asked as answer:
                async for part in answer.content.iter_any():
                    content += part
                    if len(content) > limit:
                        raise Cut(f"the answer is larger than {limit:,} bytes")
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.raw_headers}
            return Response(answer.status, named, bytes(content))
        except aiohttp.ClientError as error:
            failure = _failure(error, server)
        raise failure

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.close()


class _Connector(aiohttp.TCPConnector):
    """Leaves connections on which bytes came that nothing was asked for: they would pass for the next answer."""

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        while True:
            connection = await super().connect(*arguments, **named)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


def _client(server: Server) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, ssl=_tls() if server.tls else True),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT),
        headers={"User-Agent": "tamis", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def _tls() -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _failure(error: aiohttp.ClientError, server: Server) -> Unreachable | Cut:
    """Return what went wrong, without what an aiohttp error holds of the request."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        why = f"no connection within {CONNECT_TIMEOUT:g} s"
    elif isinstance(error, aiohttp.ClientConnectorError):
        why = _why(error.os_error)
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        why = f"HTTP {error.status}"
    else:
        spoken = not isinstance(error, aiohttp.ClientResponseError)
        return Cut("the connection was cut" + ("" if spoken else ", or the server does not speak HTTP"))
    return Unreachable(f"{why} (by the proxy {server.proxy})" if server.proxy else why)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS ({error.reason})"
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)
