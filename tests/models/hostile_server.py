"""A real HTTP server on 127.0.0.1 that answers chat requests as a test tells it to, misbehaviour included."""

import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Act = Callable[["BaseHTTPRequestHandler"], None]
"""What writes to the socket itself instead."""


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    return status, headers, body if isinstance(body, bytes) else json.dumps(body).encode()


def chat(text: Any, finish: str = "stop", **more: Any) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    return reply({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def refusal(status: int, message: str, **headers: str) -> Reply:
    return reply({"error": {"message": message}}, status, **headers)


def echo(request: dict[str, Any]) -> str:
    return f"{request['messages'][-1]['content']}|{request.get('seed')}"


class Server:
    """A chat server; `answer(request, how many times the same was asked)` decides each answer.

    `requests` and `keys` are what came, `heads` the target and the headers of each request, `answered` how often each whole
    chat completion (by its `echo`) was sent. `models` is what GET
    /models gives (JSON, a whole `Reply`, or a function that gives one). With `tls` it is spoken to over TLS alone.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.answer: Callable[[dict[str, Any], int], Reply | Act] = lambda request, tries: chat(echo(request))
        self.models: Any = {"data": [{"id": "m", "owned_by": "me", "created": time.time()}]}
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.connections = self.in_flight = self.most_in_flight = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.port = 0
        self.open()

    @property
    def base(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def open(self) -> None:
        """Begin to listen; after `close`, on the same port again."""
        self.closing.clear()
        self.http = _Http(("127.0.0.1", self.port), type("Handler", (_Handler,), {"home": self}))
        self.port = self.http.server_address[1]
        if self.tls:
            self.http.socket = self.tls.wrap_socket(self.http.socket, server_side=True)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
        self.http.cut()
        self.thread.join()

    def take(self, request: dict[str, Any], key: str | None) -> Reply | Act:
        with self.lock:
            self.requests.append(request)
            self.keys.append(key)
            self.asked[echo(request)] += 1
            tries = self.asked[echo(request)]
        return self.answer(request, tries)


class _Http(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self.sockets: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for one in list(self.sockets):
            reset(one)

    def handle_error(self, *_: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    home: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.home.lock:
            self.home.connections += 1

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            self.home.heads.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        return parsed

    def do_GET(self) -> None:
        models = self.home.models() if callable(self.home.models) else self.home.models
        self.send(models if isinstance(models, tuple) else reply(models))

    def do_POST(self) -> None:
        home = self.home
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with home.lock:
            home.in_flight += 1
            home.most_in_flight = max(home.most_in_flight, home.in_flight)
        try:
            answer = home.take(request, self.headers.get("authorization"))
        finally:
            with home.lock:
                home.in_flight -= 1
        if callable(answer):
            self.close_connection = True
            answer(self)
            return
        if answer[0] == 200:
            with home.lock:
                home.answered[echo(request)] += 1
        self.send(answer)

    def send(self, answer: Reply) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def reset(connection: socket.socket) -> None:
    """Close with a TCP reset."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()
    except OSError:
        pass


def raw(data: bytes) -> Act:
    """Send these bytes and close."""
    return lambda handler: handler.wfile.write(data)


def cut(handler: Any) -> None:
    """Close without a byte."""


def reset_now(handler: Any) -> None:
    reset(handler.connection)


def hang(handler: Any) -> None:
    """Say nothing until the server closes."""
    handler.home.closing.wait(20)


def drip(handler: Any) -> None:
    """Send a good answer one byte at a time, too slowly to ever end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while not handler.home.closing.wait(0.02):
        handler.wfile.write(b" ")


WHOLE = chat("half")[2]
HALF = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WHOLE) + WHOLE[: len(WHOLE) // 2]
CHUNK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
STORM: dict[str, Reply | Act] = {
    "500": refusal(500, "oops"),
    "502 page": reply(b"<html>bad gateway</html>", 502, Content_Type="text/html"),
    "503": refusal(503, "busy"),
    "429": refusal(429, "slow"),
    "429 seconds": refusal(429, "slow", Retry_After="0.05"),
    "429 date": refusal(429, "slow", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 nonsense": refusal(429, "slow", Retry_After="soon"),
    "hang": hang,
    "slow drip": drip,
    "cut": cut,
    "reset": reset_now,
    "half a body": raw(HALF),
    "half a head": raw(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "chunk cut": raw(CHUNK + b"40\r\n" + WHOLE[:20]),
    "chunk without size": raw(CHUNK + b"zz\r\n" + WHOLE),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 9\r\n\r\n" + WHOLE),
    "endless head": raw(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 40_000),
    "giant body": raw(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 3_000_000),
    "invalid JSON": reply(b'{"choices": [{"mess'),
    "deep JSON": reply(b"[" * 100_000),
    "not UTF-8": reply(b'{"choices": "\xff\xfe"}'),
    "a list": reply([1, 2]),
    "null": reply(None),
    "no choices": reply({"choices": []}),
    "null choices": reply({"choices": None}),
    "text as message": reply({"choices": [{"message": "hello"}]}),
    "an event stream": reply(b'data: {"choices": []}\n\n', Content_Type="text/event-stream"),
    "aborted": chat("half an ans", "abort"),
    "a page": reply(b"<html>welcome</html>", Content_Type="text/html"),
    "empty": reply(b""),
}
"""Ways to go wrong after which asking again is right."""
