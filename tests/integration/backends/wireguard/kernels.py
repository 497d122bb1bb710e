"""The kernel's WireGuard: whether it is there, and what wg(8) shows of a node's."""

from __future__ import annotations

import shutil
from base64 import b64encode
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from tests import waiting

from pyflannel.errors import KernelError
from pyflannel.kernel.generic import has_family
from pyflannel.lab import Lab, Node

__all__ = [
    "NETWORK",
    "PATIENCE",
    "PSK",
    "Entry",
    "entries",
    "needs_wireguard",
    "public_key",
    "reachable",
    "until",
    "wg",
]

PATIENCE = max(120.0, waiting.PATIENCE)
until = partial(waiting.until, patience=PATIENCE)
NETWORK = "10.244.0.0/16"
PSK = b64encode(bytes(range(32))).decode()


def _lack() -> str:
    try:
        there = has_family("wireguard")
    except KernelError as error:
        return str(error)
    if not there:
        return "not applicable: this kernel has no WireGuard; tests/kernels runs this in one that has"
    return "" if shutil.which("wg") else "needs wg, of Debian's wireguard-tools"


_LACK = _lack()

needs_wireguard = pytest.mark.skipif(bool(_LACK), reason=_LACK)


@dataclass(frozen=True)
class Entry:
    """A peer as ``wg show dump`` has it."""

    key: str
    psk: str
    endpoint: str
    allowed_ips: str
    handshake: int
    received: int
    sent: int
    keepalive: str


def wg(node: Node, *words: str) -> str:
    return str(node.run(["wg", *words]).stdout)


def entries(node: Node) -> dict[str, Entry]:
    rows = [line.split("\t") for line in wg(node, "show", "flannel-wg", "dump").splitlines()[1:]]
    found = (
        Entry(key, psk, endpoint, ips, int(handshake), int(received), int(sent), keepalive)
        for key, psk, endpoint, ips, handshake, received, sent, keepalive in rows
    )
    return {entry.key: entry for entry in found}


def public_key(node: Node) -> str:
    key: Any = node.daemon.status()["backend"]["details"]["public_key"]
    return str(key)


def reachable(lab: Lab) -> bool:
    return lab.reachability().complete
