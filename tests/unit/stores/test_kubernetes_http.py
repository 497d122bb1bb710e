"""The client of the API server at its edge: a server that hangs up at the worst time."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from pyflannel.errors import StoreUnavailableError
from pyflannel_stores._kubernetes_access import Access, ApiServer
from pyflannel_stores._kubernetes_http import connect

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
