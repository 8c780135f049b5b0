"""One HTTP/1.1 connection on asyncio: `h11` reads the protocol, this module moves the bytes.

A general client costs 1 to 20 ms of CPU for each request with 200 of them in flight, where this one costs 0.2 ms
(`benchmarks/endpoint.py`). It follows no redirect, asks for no compression, and takes no more bytes than it is told to.
"""

import asyncio
import base64
import os
import re
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import h11

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
    """Where requests go. `proxy` is (host, port, value of Proxy-Authorization or "")."""

    host: str
    port: int
    path: str
    tls: bool
    proxy: tuple[str, int, str] | None = None

    @classmethod
    def of(cls, base: str) -> "Server":
        """Return the server behind a base URL; a proxy comes from the environment. Raises ModelError for a bad address."""
        try:
            parts = urlsplit(base)
            name = parts.hostname or ""
            if not re.fullmatch(r"[\w.:%-]+", name):
                raise ValueError
            tls, host = parts.scheme == "https", name.encode("idna").decode()
            return cls(host, parts.port or (443 if tls else 80), parts.path, tls, _proxy(parts.scheme, parts.netloc))
        except ValueError:
            pass
        raise ModelError(
            "this is not the address of a server", where=base, hint="Example: http://127.0.0.1:8000/v1#NAME"
        )

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def target(self, path: str) -> str:
        """Return the request target of `path` below the base; a proxy for plain HTTP is told the whole address."""
        return f"http://{self.authority}{self.path}{path}" if self.proxy and not self.tls else f"{self.path}{path}"


def _proxy(scheme: str, netloc: str) -> tuple[str, int, str] | None:
    given = urllib.request.getproxies()
    url = given.get(scheme) or given.get("all")
    if not url or urllib.request.proxy_bypass(netloc):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname:
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            basic = f"Basic {base64.b64encode(login.encode()).decode()}" if parts.username else ""
            return parts.hostname, parts.port or 80, basic
    except ValueError:
        pass
    raise ModelError(
        f"the proxy that the environment sets for {scheme} is not of the form http://host:port",
        hint="Set it again, or name the server's host in NO_PROXY.",
    )


@cache
def _tls() -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class Connection:
    """A connection that is opened when needed and kept while both sides like it; one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._channel: _Channel | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", limit: int = 1 << 20
    ) -> Response:
        """Return the response, of at most `limit` bytes. Raises Unreachable or Cut; cancelling drops the connection."""
        server = self.server
        named = {"Host": server.authority, "User-Agent": "tamis", "Accept-Encoding": "identity", **headers}
        if server.proxy and server.proxy[2] and not server.tls:
            named["Proxy-Authorization"] = server.proxy[2]
        try:
            if self._channel is None or self._channel.closed:
                self._channel = await self._open()
            return await self._channel.exchange(method, server.target(path), named, body, limit)
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        if self._channel is not None:
            self._channel.drop()
        self._channel = None

    async def _open(self) -> "_Channel":
        server = self.server
        host, port, login = server.proxy or (server.host, server.port, "")
        tls = _tls() if server.tls and not server.proxy else None
        failure = f"no connection within {CONNECT_TIMEOUT:g} s"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, channel = await asyncio.get_running_loop().create_connection(_Channel, host, port, ssl=tls)
                return await channel.tunnel(server, login) if server.tls and server.proxy else channel
        except TimeoutError:
            pass
        except ssl.SSLCertVerificationError as error:
            failure = f"its certificate is not trusted: {error.verify_message}"
        except (OSError, Cut) as error:
            number = getattr(error, "errno", None) or 0
            failure = os.strerror(number) if number > 0 else str(error)
        raise Unreachable(f"{failure} (by the proxy {host}:{port})" if server.proxy else failure)


class _Channel(asyncio.Protocol):
    """One transport. Bytes that nothing was asked for close it, so that no answer is taken for another request's."""

    def __init__(self) -> None:
        self._wire = h11.Connection(h11.CLIENT)
        self._waiting: asyncio.Future[Response] | None = None

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()

    def drop(self) -> None:
        self._transport.abort()

    async def exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes, limit: int) -> Response:
        """Send one request and return its response."""
        self._head: h11.Response | None = None
        self._body, self._limit = bytearray(), limit
        self._waiting = asyncio.get_running_loop().create_future()
        length = {"Content-Length": str(len(body))} if body else {}
        request = h11.Request(method=method, target=target, headers=list({**headers, **length}.items()))
        parts = [self._wire.send(event) for event in (request, h11.Data(data=body), h11.EndOfMessage())]
        self._transport.write(b"".join(part for part in parts if part))
        try:
            return await self._waiting
        finally:
            self._waiting = None

    async def tunnel(self, server: Server, login: str) -> "_Channel":
        """Ask the proxy at the other end for a way to the server, and return a channel that speaks TLS over it."""
        aim = f"{server.host}:{server.port}"
        headers = {"Host": aim, **({"Proxy-Authorization": login} if login else {})}
        response = await self.exchange("CONNECT", aim, headers, b"", 1 << 16)
        if not 200 <= response.status < 300:
            self.drop()
            raise Cut(f"HTTP {response.status}")
        inner, loop = _Channel(), asyncio.get_running_loop()
        inner._transport = await loop.start_tls(self._transport, inner, _tls(), server_hostname=server.host)
        return inner

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.drop()
            return
        self._read(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is None or self._waiting.done():
            return
        if error is None:
            self._read(b"")
        if not self._waiting.done():
            self._waiting.set_exception(Cut("the connection was cut"))

    def _read(self, data: bytes) -> None:
        """Give bytes (none: the end) to the protocol, and settle the response when it is whole or cannot become so."""
        assert self._waiting is not None
        try:
            self._wire.receive_data(data)
            while (event := self._wire.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self._head = event
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.ConnectionClosed):
                    raise Cut("the connection was cut")
                elif event is h11.PAUSED or isinstance(event, h11.EndOfMessage):
                    self._waiting.set_result(self._response())
                    return
                if len(self._body) > self._limit:
                    raise Cut(f"the answer is larger than {self._limit:,} bytes")
        except Cut as failure:
            self._waiting.set_exception(failure)
        except h11.RemoteProtocolError:
            self._waiting.set_exception(Cut("the connection was cut, or the server does not speak HTTP"))

    def _response(self) -> Response:
        assert self._head is not None
        head, wire = self._head, self._wire
        if wire.their_state is h11.DONE and wire.our_state is h11.DONE and not wire.trailing_data[0]:
            wire.start_next_cycle()
        elif wire.their_state is not h11.SWITCHED_PROTOCOL:
            self.drop()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        return Response(head.status_code, headers, bytes(self._body))
