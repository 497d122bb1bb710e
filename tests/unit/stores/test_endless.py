"""Servers whose answers have no end: each driver gives up with an error, and holds no more than an answer may have."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import pytest
from tests.recordings import GOLDEN

from pyflannel.errors import StoreUnavailableError
from pyflannel.store import Store, StoreLocation
from pyflannel_stores import _etcd_cluster

LIMIT = 4 << 20
"""Bytes that an answer may have here, for this to be quick; what the drivers allow is another test's."""


@pytest.fixture(autouse=True)
def lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel_stores._bounds.LARGEST_ANSWER", LIMIT)


@contextmanager
def endless(head: bytes, piece: bytes) -> Iterator[int]:
    """A server on loopback that answers anything with ``head`` and then ``piece``, for ever; gives its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, args=(listener, head, piece), daemon=True).start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, head: bytes, piece: bytes) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=pour, args=(client, head, piece), daemon=True).start()


def pour(client: socket.socket, head: bytes, piece: bytes) -> None:
    with suppress(OSError), client:
        client.recv(65536)
        client.sendall(head)
        while True:
            client.sendall(piece)


def consul(port: int) -> Store:
    from pyflannel_stores.consul import ConsulStore

    return ConsulStore(StoreLocation("consul", (f"127.0.0.1:{port}",), "/x"))


DOCUMENT = GOLDEN / "vxlan" / "config.json"


def kubernetes(port: int) -> Store:
    from pyflannel_stores.kubernetes import KubernetesStore

    options = {"tls": "false", "node": "n", "net_config": str(DOCUMENT)}
    return KubernetesStore(StoreLocation("kubernetes", (f"127.0.0.1:{port}",), "", options))


BODY = b"a" * 65536
CHUNK = b"10000\r\n" + BODY + b"\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", BODY),
        (b"HTTP/1.1 200 OK\r\n\r\n", BODY),
        (b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
    ],
    ids=["chunked", "long", "until-closed", "refusal"],
)
@pytest.mark.parametrize("opened", [consul, kubernetes])
def test_an_answer_over_http_without_an_end_is_an_error(
    opened: Callable[[int], Store], head: bytes, piece: bytes
) -> None:
    with endless(head, piece) as port, closing(opened(port)) as store:
        tracemalloc.start()
        try:
            with pytest.raises(StoreUnavailableError, match="its answer has more than 64 MiB"):
                store.snapshot()
            assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
        finally:
            tracemalloc.stop()


def test_an_answer_of_etcd_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyflannel_stores._etcd_loader import load_grpc
    from pyflannel_stores.etcd import EtcdStore

    options = tuple({**dict(_etcd_cluster._CHANNEL), "grpc.max_receive_message_length": LIMIT}.items())
    monkeypatch.setattr(_etcd_cluster, "_CHANNEL", options)
    grpc = load_grpc()
    answer = grpc.unary_unary_rpc_method_handler(lambda request, context: bytes(LIMIT + 1))

    class Anything(grpc.GenericRpcHandler):  # type: ignore[misc, name-defined]
        def service(self, details: object) -> object:
            return answer

    server = grpc.server(ThreadPoolExecutor(1), [Anything()], options=[("grpc.max_send_message_length", -1)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        store = EtcdStore(StoreLocation("etcd", (f"127.0.0.1:{port}",)))
        with closing(store), pytest.raises(StoreUnavailableError, match="its answer has more than 64 MiB"):
            store.snapshot()
    finally:
        server.stop(None)


def test_etcd_reads_no_more_than_the_others() -> None:

    assert dict(_etcd_cluster._CHANNEL)["grpc.max_receive_message_length"] == 64 << 20
