"""TLS on a connection that stands already."""

from __future__ import annotations

import socket
import ssl

__all__ = ["wrapped"]


def wrapped(connection: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """The connection, with TLS on it; it is not to be used, nor need be closed, by itself any more.

    Of a connection that the other side has closed or reset already, :meth:`ssl.SSLContext.wrap_socket` would leave a
    descriptor open. So that is found out before.

    :param host: whose certificate is expected.
    :raises OSError: the handshake fails, or the connection is gone.
    """
    connection.getpeername()
    return context.wrap_socket(connection, server_hostname=host)
