"""Peers whose packets the running daemon can't move, with the reason that their backend or the kernel gave for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, passed, warned
from pyflannel.show.status import PeerState

__all__ = ["served"]

_CHECK: Final = "data plane"
_MEANING: Final = "packets to its containers go nowhere until that is fixed; other peers are not concerned"
_SHOWN: Final = 5


def served(facts: Facts) -> Iterator[Finding]:
    """The peers that have failed, one by one; nothing where no daemon says so, which is a finding of its own."""
    peers = facts.status["peers"] if facts.status is not None else []
    refused = [peer for peer in peers if peer["state"] == PeerState.FAILED]
    for peer in refused[:_SHOWN]:
        text = f"{peer['key']} at {peer['public_ip']}: {peer['reason']}"
        yield warned(_CHECK, text, _MEANING, "pyflannel status   # here, and on that node")
    if len(refused) > _SHOWN:
        text = f"{len(refused) - _SHOWN} more can't be served"
        yield warned(_CHECK, text, "packets to their containers go nowhere", "pyflannel status   # has them all")
    if peers and not refused:
        yield passed(_CHECK, "no peer has failed")
