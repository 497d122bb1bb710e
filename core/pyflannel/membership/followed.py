"""The network document that this node followed last, kept over restarts.

A node that starts reads the document in the store. Should that be one by which it reached nobody, written behind
everybody's back, it goes on by the one that it has here. It may hold a preshared key, so it is for our eyes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyflannel.network.parsing import MAX_DOCUMENT
from pyflannel.small import files

__all__ = ["keep", "path", "read"]

_NAME: Final = "network.json"


def path(state_dir: Path) -> Path:
    """Where it is kept."""
    return state_dir / _NAME


def read(state_dir: Path) -> str:
    """The document; empty if there is none that can be read."""
    try:
        text = files.read_own(path(state_dir)).decode()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) <= MAX_DOCUMENT else ""


def keep(state_dir: Path, document: str) -> None:
    """Keep a document in place of the one before.

    :raises OSError: it can't be written there.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(path(state_dir), document, 0o600)
