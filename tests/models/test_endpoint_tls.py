"""The endpoint client over TLS and through proxies: whom it trusts, and what a proxy is told."""

import base64
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.models.hostile_server import Server
from tests.models.test_endpoint_secrets import KEY, PASSWORD, PROMPTS, shown

from tamis.errors import ModelError
from tamis.models import load, resolve
from tamis.models.endpoint import traffic
from tamis.records import Completion, Law

REQUEST = """
[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = a test
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = IP:127.0.0.1
"""
"""A certificate for 127.0.0.1 that signs itself."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds a certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    request, made = folder / "request", folder / "made.pem"
    request.write_text(REQUEST)
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-config", request, "-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run(["openssl", "req", *kind, *files], check=True, capture_output=True)
    made.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return made


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat server whose certificate is trusted."""
    monkeypatch.setenv("TAMIS_API_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(traffic, "FIRST_WAIT", 0.005)
    for variable in ("https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Server(context)
    yield made
    made.close()


def ask(base: str) -> list[Completion]:
    model = load(resolve(f"{base}#m"), concurrency=1, timeout=10.0, patience=1.0)
    return list(model.generate(PROMPTS, Law(), candidates=[(0,)] * 3, seed=0))


@contextmanager
def listening(talk: Callable[[Any], None]) -> Iterator[int]:
    """Give the port of a server that hands each connection's handler to `talk`."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                talk(self)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made.server_address[1]
        made.shutdown()
        thread.join()


def head(handler: Any) -> list[str]:
    """Return the lines of a request's head."""
    lines = iter(lambda: handler.rfile.readline().decode().rstrip("\r\n"), "")
    return list(lines)


def test_a_certificate_that_is_trusted(server: Server) -> None:
    assert [c.finish_reason for c in ask(server.base)] == ["stop"] * 3
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert server.connections == 2


def test_one_that_is_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ModelError, match=r"no server answers: its certificate is not trusted: self.signed"):
        ask(server.base)
    assert not server.heads


def test_one_of_another_host(server: Server) -> None:
    with pytest.raises(ModelError, match=r"its certificate is not trusted: Hostname mismatch"):
        ask(f"https://localhost:{server.port}/v1")
    assert not server.heads


def test_a_server_without_tls(server: Server) -> None:
    with (
        listening(lambda handler: handler.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port,
        pytest.raises(ModelError, match="no server answers: it does not speak TLS"),
    ):
        ask(f"https://127.0.0.1:{port}/v1")


def test_a_proxy_carries_tls_and_is_told_its_password_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[list[str]] = []

    def carry(handler: Any) -> None:
        heads.append(head(handler))
        host, _, port = heads[-1][0].split()[1].rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            handler.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ways = {handler.connection: there, there: handler.connection}
            while data := (come := select.select(ways, [], [])[0][0]).recv(1 << 16):
                ways[come].sendall(data)

    with listening(carry) as port:
        monkeypatch.setenv("https_proxy", f"http://us%C3%A9r:{PASSWORD}@127.0.0.1:{port}")
        assert [c.finish_reason for c in ask(server.base)] == ["stop"] * 3
    login = base64.b64encode(f"usér:{PASSWORD}".encode()).decode()
    assert [lines[0] for lines in heads] == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"] * 2
    assert all(f"Proxy-Authorization: Basic {login}" in lines for lines in heads)
    assert KEY not in str(heads)
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert not any("proxy-authorization" in headers for _, headers in server.heads)


def test_a_proxy_that_refuses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handler: Any) -> None:
        head(handler)
        handler.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")

    with listening(refuse) as port:
        monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@127.0.0.1:{port}")
        with pytest.raises(ModelError, match=rf"HTTP 407 \(by the proxy http://127.0.0.1:{port}\)") as caught:
            ask(server.base)
    assert PASSWORD not in shown(caught.value)
    assert not server.heads
