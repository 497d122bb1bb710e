"""Where the network document of a cluster is: what is read of it, and what holds when it can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.errors import StoreDeniedError
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._kubernetes_document import File


def test_a_file_that_is_gone_says_what_it_said(tmp_path: Path) -> None:
    """A node that runs takes snapshots without it; one that starts is told what is wrong."""
    path = tmp_path / "net-conf.json"
    document = File(path, "kubernetes://")
    with pytest.raises(StoreDeniedError, match="mount it"):
        document.known(Deadline(1))
    path.write_text("{}")
    known = document.known(Deadline(1))
    assert known.value == "{}"
    path.unlink()
    assert document.known(Deadline(1)) == known
    with pytest.raises(StoreDeniedError):
        document.read(Deadline(1))
    path.write_bytes(b"\xff")
    assert document.known(Deadline(1)) == known
    path.write_text("{ }")
    assert document.known(Deadline(1)).value == "{ }"
