"""Consul servers for tests, a look at them from outside the driver, and a wire between that can lose answers.

The servers themselves are :mod:`pyflannel.lab.servers.consul`'s. What is here speaks HTTP by itself, so that tests
don't check the driver with the driver's own client.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.servers.memory import in_memory

from pyflannel.lab.servers.consul import ConsulCluster, ConsulServer, find_consul

MISSING = None if find_consul() else "Consul is not there: run tools/fetch-consul"
"""Why there are no Consul tests here, or ``None``."""


@contextmanager
def consul(size: int = 1, **options: Any) -> Iterator[ConsulCluster]:
    """A healthy cluster on data in memory, gone without a trace afterwards."""
    with (
        TemporaryDirectory(prefix="pyflannel-consul-", dir=in_memory()) as data,
        ConsulCluster(Path(data), size, **options) as cluster,
    ):
        yield cluster


def put(cluster: ConsulCluster, path: str, body: Any = b"", server: ConsulServer | None = None) -> Any:
    """A PUT to the first server, or another one, with all rights; the answer is JSON. Bytes are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(send(cluster, "PUT", path, data, server) or b"null")


def send(
    cluster: ConsulCluster, method: str, path: str, data: bytes | None = None, server: ConsulServer | None = None
) -> bytes:
    """A request to a server without TLS, with all rights; the answer is bytes."""
    headers = {"X-Consul-Token": cluster.token} if cluster.token else {}
    url = f"http://{(server or cluster.servers[0]).host}{path}"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        found: bytes = answer.read()
    return found


def sessions(cluster: ConsulCluster) -> dict[str, dict[str, Any]]:
    """All sessions by id."""
    return {session["ID"]: session for session in cluster.servers[0].get("/v1/session/list?consistent")}


class LossyWire:
    """A TCP proxy to a server. Once :meth:`lose` was called, the next answers to such requests never arrive.

    The server has done what it was asked for then, and the client sees a connection that broke. A context manager.
    """

    def __init__(self, server: ConsulServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._request = b""
        self._times = 0
        self._cuts = self._cut = False
        self._marked: set[socket.socket] = set()
        self._open: list[socket.socket] = []
        self.lost = 0
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def lose(self, request: str, times: int = 1, *, cut: bool = False) -> None:
        """Lose the next ``times`` answers to requests that begin so, such as ``PUT /v1/txn``.

        :param cut: let nothing through afterwards, until :meth:`mend`.
        """
        self._request, self._times, self._cuts = request.encode(), times, cut

    def mend(self) -> None:
        """Let everything through again."""
        self._times, self._cut = 0, False

    def __enter__(self) -> LossyWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self._cut:
                client.close()
                continue
            upstream = socket.create_connection((self._server.address, self._server.ports["http"]))
            self._open += [client, upstream]
            threading.Thread(target=self._carry, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._carry_back, args=(client, upstream), daemon=True).start()

    def _carry(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self._times and data.startswith(self._request):
                    self._times -= 1
                    self._marked.add(upstream)
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)

    def _carry_back(self, client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(1 << 16):
                if upstream in self._marked:
                    self.lost += 1
                    self._cut = self._cuts and not self._times
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
