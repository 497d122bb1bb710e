"""TLS on a connection that the other side has given up."""

from __future__ import annotations

import os
import socket
import ssl
import struct

import pytest
from tests.waiting import until

from pyflannel_stores._tls import wrapped


def test_a_connection_that_was_reset_leaves_no_descriptor_behind() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        there, _ = server.accept()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()  # with a reset
        until(lambda: _is_reset(connection), "the reset to have come")
        before = _descriptors()
        with pytest.raises(OSError, match="not connected"):
            wrapped(connection, context, "localhost")
        assert connection.fileno() >= 0, "it is still the caller's, who closes it"
        assert _descriptors() == before


def _is_reset(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return True
    return False


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
