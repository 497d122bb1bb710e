"""The driver at its edge: a server that hangs up at the worst time, or that is no Kubernetes."""

from __future__ import annotations

import gc
import http.client
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.servers.web import web

from pyflannel.errors import StoreDeniedError, StoreUnavailableError
from pyflannel.store import StoreLocation
from pyflannel_stores._kubernetes_access import Access, ApiServer
from pyflannel_stores._kubernetes_http import LONGEST_PAUSE, _Answer, _proxy, _retry_after, connect, unanswered
from pyflannel_stores.kubernetes import KubernetesStore

RESET = struct.pack("ii", 1, 0)
"""``SO_LINGER`` that makes close() reset the connection, as the end of a process does."""


@dataclass
class Slow(Access):
    """TLS files that take so long to read that whatever connection there is has been reset meanwhile."""

    listener: socket.socket | None = None

    def tls(self) -> ssl.SSLContext:
        assert self.listener is not None
        with suppress(BlockingIOError):
            client, _ = self.listener.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
        return super().tls()


def test_a_server_that_hangs_up_before_tls_leaves_no_socket_behind() -> None:
    """Whatever is open when it is collected is a warning, and so an error."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        server = ApiServer("127.0.0.1", listener.getsockname()[1], True)
        with pytest.raises(StoreUnavailableError):
            connect(Slow(server, "kubernetes", listener=listener), 0.2)
    gc.collect()


@pytest.mark.parametrize(
    ("host", "spared"),
    [
        ("10.96.0.1", True),
        ("10.112.0.1", False),
        ("fd00:10::1", True),
        ("fd01::1", False),
        ("192.0.2.7", True),
        ("api.example.com", True),
        ("api.example.net", False),
    ],
)
def test_no_proxy_names_hosts_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, host: str, spared: bool) -> None:
    for name in ("https_proxy", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.99:3128")
    monkeypatch.setenv("NO_PROXY", "10.96.0.0/12, fd00:10::/32,192.0.2.7,.example.com")
    way = _proxy(Access(ApiServer(host, 6443), "kubernetes"))
    assert way == (None if spared else ApiServer("192.0.2.99", 3128, False))


@pytest.mark.parametrize("host", ["proxy..example", f"{'x' * 64}.example"])
def test_a_proxy_whose_name_nobody_can_look_up_is_refused(host: str) -> None:
    with pytest.raises(StoreDeniedError, match="only proxies of the form"):
        _proxy(Access(ApiServer("192.0.2.1", 6443), "kubernetes", proxy=f"http://{host}:3128"))


@pytest.mark.parametrize(
    "end", ["/x@192.0.2.99:3128", "#x@192.0.2.99", "?x@192.0.2.99", "@192.0.2.99:99999", "@[192.0.2.99"]
)
def test_what_is_wrong_about_a_proxy_is_said_without_its_password(end: str) -> None:
    with pytest.raises(StoreDeniedError, match="only proxies of the form") as refused:
        _proxy(Access(ApiServer("192.0.2.1", 6443), "kubernetes", proxy=f"http://me:hidden{end}"))
    assert "hidden" not in str(refused.value)


def test_what_a_server_says_instead_of_http_is_told_in_short() -> None:
    told = unanswered("kubernetes", http.client.BadStatusLine("x" * 60_000))
    assert len(str(told)) < 500


def away(store: KubernetesStore) -> object:
    return store.away(())


@pytest.mark.parametrize(
    ("status", "said", "seconds"),
    [
        (429, "3", 3.0),
        (503, "3", 3.0),
        (429, "", 1.0),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", 1.0),
        (503, "", None),
        (200, "3", None),
        (503, "3600", LONGEST_PAUSE),
        (429, "9" * 4000, LONGEST_PAUSE),
    ],
)
def test_a_server_is_obeyed_that_asks_to_wait_but_not_for_hours(status: int, said: str, seconds: float | None) -> None:
    headers = {"Retry-After": said} if said else {}
    assert _retry_after(_Answer(status, headers, b"")) == seconds


CALLS = (KubernetesStore.read_config, KubernetesStore.snapshot, away)


@pytest.mark.parametrize(
    ("status", "body", "call"),
    [
        (status, body, call)
        for status, body in (
            (404, b"<html>nothing here"),
            (200, b"<html>"),
            (200, b"[]"),
            (200, b"[" * 100_000),
            (500, b"[" * 100_000),
            (200, b'{"items":' + b"[" * 100_000),
        )
        for call in CALLS
    ]
    + [(200, b'{"items":[{}]}', away), (410, b"{}", away)],
    ids=lambda value: value[:20].decode() if isinstance(value, bytes) else None,
)
def test_what_is_no_kubernetes_is_a_store_that_is_not_there(
    tmp_path: Path, status: int, body: bytes, call: Callable[[Any], object]
) -> None:
    (tmp_path / "net.json").write_text('{"Network": "10.244.0.0/16"}')
    options = {"net_config": str(tmp_path / "net.json"), "tls": "false", "node": "a"}
    with web(status, body) as port:
        location = StoreLocation.parse(f"kubernetes://127.0.0.1:{port}", options)
        with KubernetesStore(location) as store, pytest.raises(StoreUnavailableError):
            call(store)
