"""The health port's server: real sockets, clients that behave and clients that don't."""

from __future__ import annotations

import http.client
import resource
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.errors import ConfigError, ExitCode
from pyflannel.show.health import HealthServer, HttpResponse
from pyflannel.small import server as server_module


def answer(path: str) -> HttpResponse:
    if path == "/broken":
        raise RuntimeError("secret detail")
    return HttpResponse.text(HTTPStatus.OK, f"you asked for {path}")


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[HealthServer]:
    server = HealthServer(ip_address(request.param), 0, answer)
    server.host = request.param  # type: ignore[attr-defined]
    yield server
    server.close()


def ask(server: HealthServer, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)  # type: ignore[attr-defined]
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def talk(server: HealthServer, request: bytes) -> bytes:
    """Everything the server says to these bytes, until it ends the connection."""
    with socket.create_connection((server.host, server.port), timeout=20) as channel:  # type: ignore[attr-defined]
        channel.sendall(request)
        answer = b""
        while chunk := channel.recv(65536):
            answer += chunk
        return answer


def test_get_and_head(server: HealthServer) -> None:
    status, headers, body = ask(server, "GET", "/a?b=c")
    assert (status, body) == (200, b"you asked for /a\n")
    assert headers["Content-Length"] == "17"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(server, "HEAD", "/a") == (200, headers, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: HealthServer, method: str) -> None:
    status, headers, _ = ask(server, method, "/")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_fault_of_ours_is_named_without_detail(server: HealthServer, caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = ask(server, "GET", "/broken")
    assert (status, body) == (500, b"RuntimeError; see the daemon's log\n")
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("line", [b"hello", b"GET / HTTP/2", b"GET http://x/ HTTP/1.1", b"GET /a b HTTP/1.1", b""])
def test_what_is_no_request_is_refused(server: HealthServer, line: bytes) -> None:
    assert talk(server, line + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_request_that_does_not_end_is_cut_off(server: HealthServer) -> None:
    assert talk(server, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000).startswith(b"HTTP/1.1 431 ")


def test_a_large_answer_reaches_a_slow_reader() -> None:
    body = bytes(range(256)) * 8_000  # more than the buffers of both sides hold
    server = HealthServer(ip_address("127.0.0.1"), 0, lambda _: HttpResponse(HTTPStatus.OK, body))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        channel.sendall(b"GET / HTTP/1.1\r\n\r\n")
        received = b""
        while chunk := channel.recv(65536):
            received += chunk
    server.close()
    assert received.partition(b"\r\n\r\n")[2] == body


def test_idle_connections_do_not_keep_others_out(server: HealthServer) -> None:
    idle = [
        socket.create_connection((server.host, server.port), timeout=20)  # type: ignore[attr-defined]
        for _ in range(server_module.MAX_CONNECTIONS + 20)
    ]
    try:
        assert ask(server, "GET", "/")[0] == 200
        assert idle[0].recv(1) == b"", "the oldest had to go"
    finally:
        for channel in idle:
            channel.close()


def test_clients_leave_the_daemon_its_descriptors_where_these_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it can't repair what was changed."""
    monkeypatch.setattr(server_module, "MAX_SECONDS", 600.0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (16 * 8, limits[1]))
    try:
        server = HealthServer(ip_address("127.0.0.1"), 0, answer)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(9)]
    assert idle[0].recv(1) == b"", "the oldest had to go"
    idle[1].settimeout(0.0)
    with pytest.raises(BlockingIOError):
        idle[1].recv(1)
    for channel in idle:
        channel.close()
    server.close()


def test_a_slow_client_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_SECONDS", 0.2)
    server = HealthServer(ip_address("127.0.0.1"), 0, answer)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as channel:
        channel.sendall(b"GET / HT")
        assert channel.recv(1) == b""
    server.close()


def test_clients_that_go_away_harm_nobody(server: HealthServer) -> None:
    for _ in range(50):
        channel = socket.create_connection((server.host, server.port))  # type: ignore[attr-defined]
        channel.sendall(b"GET / HTTP/1.1\r\n\r\n")
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        channel.close()
    assert ask(server, "GET", "/")[0] == 200


def test_many_at_once(server: HealthServer) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(ask(server, "GET", "/")[0])) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 30


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_address_is_one_of_either_family(address: str) -> None:
    server = HealthServer(ip_address(address), 0, answer)
    try:
        for host in ("127.0.0.1", "::1"):
            server.host = host  # type: ignore[attr-defined]
            assert ask(server, "GET", "/")[0] == 200
    finally:
        server.close()


def test_a_port_in_use_is_a_configuration_error(server: HealthServer) -> None:
    with pytest.raises(ConfigError, match=f"--healthz-port {server.port}: can't listen there: Address already") as info:
        HealthServer(ip_address(server.host), server.port, answer)  # type: ignore[attr-defined]
    assert info.value.exit_code is ExitCode.CONFIG


def test_closing_ends_everything() -> None:
    server = HealthServer(ip_address("127.0.0.1"), 0, answer)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as channel:
        server.close()
        server.close()
        assert channel.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


@settings(max_examples=25)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6))
def test_no_bytes_can_stop_the_server(pieces: list[bytes]) -> None:
    server = HealthServer(ip_address("127.0.0.1"), 0, answer)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as channel:
            try:
                for piece in pieces:
                    channel.sendall(piece)
            except OSError:
                pass  # it had heard enough
        server.host = "127.0.0.1"  # type: ignore[attr-defined]
        assert ask(server, "GET", "/")[0] == 200
    finally:
        server.close()
