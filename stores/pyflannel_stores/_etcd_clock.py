"""The wall clock of an etcd member, which its own API does not tell: the ``Date`` of an answer over HTTP.

etcd answers HTTP/1.1 on the port for its clients, beside gRPC and through the same TLS, and Go's server dates every
answer (RFC 9110, section 6.6.1). ``/version`` wants neither a user nor a leader; whatever the answer's status, its
date will do. A member with a separate HTTP port (``--listen-client-http-urls``), or a gRPC proxy before it, has none.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from typing import Final

from pyflannel.errors import StoreUnavailableError
from pyflannel.store import StoreTime
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._etcd_access import Access, MemberAddress
from pyflannel_stores._etcd_refusal import tls_context
from pyflannel_stores._tls import wrapped

__all__ = ["ask"]

_LARGEST_HEAD: Final = 1 << 16
_DATE: Final = re.compile(rb"^date:[ \t]*([ -~]+?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)


def ask(access: Access, endpoints: Iterable[MemberAddress], deadline: Deadline) -> StoreTime:
    """The clock of the first of these members that tells it.

    :raises StoreUnavailableError: none does; the message says why, for each.
    """
    asked = tuple(endpoints)
    reasons = []
    for number, endpoint in enumerate(asked):
        try:
            date = _date(access, endpoint, deadline.share(len(asked) - number))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            reasons.append(f"{endpoint}: {reason}")
        else:
            return StoreTime(date, date + 1, f"etcd {endpoint}")
    raise StoreUnavailableError(f"no member of etcd tells the time over HTTP ({'; '.join(reasons)})")


def _date(access: Access, endpoint: MemberAddress, deadline: Deadline) -> float:
    """:raises ValueError: what came back is no dated answer."""
    context = tls_context(access) if access.cafile is not None else None
    with ExitStack() as stack:
        connection = stack.enter_context(
            socket.create_connection((endpoint.host, endpoint.port), deadline.left or None)
        )
        if context is not None:
            connection = stack.enter_context(wrapped(connection, context, endpoint.host))
        request = f"GET /version HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode("ascii"))
        head = _head(connection, deadline)
    found = _DATE.search(head) if head.startswith(b"HTTP/1") else None
    if found is None:
        raise ValueError("it does not answer HTTP with a date")
    return parsedate_to_datetime(found[1].decode("ascii")).timestamp()


def _head(connection: socket.socket, deadline: Deadline) -> bytes:
    """All up to the empty line that ends the header, or as much as there is."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD:
        if not deadline.left:
            raise TimeoutError("no answer in time")
        connection.settimeout(deadline.left)
        chunk = connection.recv(4096)
        if not chunk:
            break
        head += chunk
    return head
