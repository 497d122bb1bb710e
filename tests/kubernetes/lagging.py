"""A proxy before the API server whose watches lag behind: requests go through at once, events come late.

So it is with an API server whose watch cache is behind, and with a connection that is short of bandwidth: what a node
reads and writes is newer than what it is told.
"""

from __future__ import annotations

import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.servers.kubernetes import Kubernetes

from pyflannel.kernel.netns import call_in

__all__ = ["lagging"]

_PASSED_ON = ("authorization", "content-type", "accept")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kube: Kubernetes
    netns: Path
    lag: float

    def _ask(self) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        context = ssl.create_default_context(cafile=str(self.kube.cafile))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection(self.kube.host, self.kube.port, timeout=60, context=context)
        call_in(self.netns, connection.connect)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        connection.request(self.command, self.path, body or None, headers)
        return connection, connection.getresponse()

    def do_GET(self) -> None:
        connection, answer = self._ask()
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["content-type"])
            if "watch=" in self.path and answer.status == 200:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self._relay_late(answer)
            else:
                text = answer.read()
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
        finally:
            connection.close()

    do_PATCH = do_GET  # noqa: N815 - the server's own name for it

    def _relay_late(self, answer: http.client.HTTPResponse) -> None:
        arrived: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def take_in() -> None:
            piece = b"-"
            while piece:
                try:
                    piece = answer.read1(1 << 16)
                except (OSError, ValueError, AttributeError, http.client.HTTPException):  # closed meanwhile
                    piece = b""
                arrived.put((time.monotonic(), piece))

        threading.Thread(target=take_in, daemon=True).start()
        while True:
            when, piece = arrived.get()
            time.sleep(max(0.0, when + self.lag - time.monotonic()))
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if not piece:
                return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
        """Nothing is logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever closes a watch does so in its midst."""


@contextmanager
def lagging(kube: Kubernetes, netns: Path, seconds: float) -> Iterator[str]:
    """The URL of a proxy beside the API server, whose watches tell everything so much later.

    :param netns: where the API server is.
    """
    handler = type("Handler", (_Handler,), {"kube": kube, "netns": netns, "lag": seconds})
    server = _Server((kube.host, 0), handler, bind_and_activate=False)
    server.socket.close()
    listener: socket.socket = call_in(netns, lambda: socket.create_server((kube.host, 0)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kube.certificate.certfile, kube.certificate.keyfile)
    server.socket = context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield f"https://{kube.host}:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
