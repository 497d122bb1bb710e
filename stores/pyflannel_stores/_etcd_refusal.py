"""Asking a member of etcd that would not let gRPC in what it minds.

gRPC has one answer to everything that goes wrong with TLS: unavailable, with words ("Unwrap failed") that differ from
release to release and help nobody. So we knock once more ourselves, with the same files: a TLS greeting, an HTTP/2
greeting without TLS where that tells more, and whatever comes back first.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from pyflannel_stores._etcd_access import Access, MemberAddress
from pyflannel_stores._tls import wrapped

__all__ = ["refusal", "tls_context"]

# A client's side of HTTP/2 begins with this preface and a SETTINGS frame; the server's with a SETTINGS frame: three
# bytes of length, then its type, 4 (RFC 9113, sections 3.4, 4.1 and 6.5).
_HTTP2_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def refusal(access: Access, endpoint: MemberAddress, timeout: float) -> str | None:
    """Why TLS, or the lack of it, keeps us out of a member; ``None`` if that is not the reason, or there is no telling.

    Takes two ``timeout`` of seconds at most.
    """
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout) as raw:
            try:
                context = tls_context(access)
                context.set_alpn_protocols(["h2"])
            except OSError as error:
                files = ", ".join(path for path in (access.cafile, access.certfile, access.keyfile) if path)
                return f"can't use the certificates in {files}: {_short(error)}"
            return _greet(access, endpoint, context, raw)
    except OSError:
        return None


def tls_context(access: Access) -> ssl.SSLContext:
    """TLS with the files of ``access``; without a cafile nothing is verified.

    :raises OSError: a file can't be read, or is no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if access.cafile is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(access.cafile)
    if access.certfile:
        # An encrypted key would make OpenSSL ask at the terminal.
        context.load_cert_chain(access.certfile, access.keyfile, password=lambda: "")
    return context


def _greet(access: Access, endpoint: MemberAddress, context: ssl.SSLContext, raw: socket.socket) -> str | None:
    try:
        with wrapped(raw, context, endpoint.host) as tls:
            if access.cafile is None:
                return "it speaks TLS and we don't; add cafile, or tls=true"
            # With TLS 1.3 a server turns a client's certificate down after the handshake, in its first answer.
            tls.recv(1)
            return None
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not good ({error.verify_message}); check cafile, the address and the clock"
    except ssl.SSLError as error:
        reason = error.reason or ""
    except ConnectionError:
        reason = ""  # a server that reads no TLS hangs up, and what it said before may be lost
    if access.cafile is None:
        return "it speaks TLS and we don't; add cafile, or tls=true" if "ALERT" in reason else None
    if "ALERT" in reason:
        return _alerted(access, reason)
    if _speaks_plain_http2(endpoint, raw.gettimeout()):
        return "it does not speak TLS; drop cafile, certfile, keyfile and tls"
    return None


def _alerted(access: Access, reason: str) -> str:
    said = reason.replace("_", " ").lower()
    if "CERTIFICATE" not in reason and "UNKNOWN_CA" not in reason:
        return f"it ended the TLS handshake: {said}"
    if access.certfile is None:
        return "it wants a client certificate; add certfile and keyfile"
    return (
        f"it does not accept our certificate {access.certfile} ({said}); has it expired, or is it of a CA that etcd "
        "doesn't trust?"
    )


def _speaks_plain_http2(endpoint: MemberAddress, timeout: float | None) -> bool:
    with socket.create_connection((endpoint.host, endpoint.port), timeout) as raw:
        raw.sendall(_HTTP2_GREETING)
        return raw.recv(4, socket.MSG_WAITALL)[3:] == bytes([4])


def _short(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or str(error)).replace("_", " ").lower()
