"""The control socket: whatever is sent to it is answered, and it goes on answering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyflannel.daemon.control import ControlServer, request
from pyflannel.small.server import ask


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"null", b"[]", b'{"backend": "x"}', b"\xff\xfe", b"[" * 4000, b"x" * 5000],
    ids=["nothing", "half", "null", "a list", "no action", "no text", "thousands of brackets", "too long"],
)
def test_what_is_no_request_is_told_so(tmp_path: Path, sent: bytes) -> None:
    server = ControlServer(tmp_path, lambda backend, action: f"{backend} {action}")
    try:
        answer = json.loads(ask(tmp_path / "control.sock", sent + b"\n", 30))
        assert answer == {"failed": "that is not a request", "exit_code": 2}
        assert request(tmp_path, "vxlan", "turn") == "vxlan turn"
    finally:
        server.close()
