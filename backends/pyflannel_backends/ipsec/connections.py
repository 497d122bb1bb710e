"""What charon is told about a tunnel, and what it says of its own: messages of vici as values. No I/O.

The names of settings are those of ``swanctl.conf(5)``; how a node looks on the wire to a node that runs flanneld is
decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyflannel.backend import IPAddress, IPNetwork

__all__ = ["PREFIX", "Tunnel", "connecting", "established", "troubles"]

PREFIX: Final = "pyflannel-"
"""What the names of our connections begin with."""

IKE_PROPOSAL: Final = "aes256-sha256-modp4096"
"""Flannel's."""

REKEY: Final = "1h"
"""Flannel's. Either end may begin; keys are replaced before the old ones end, and no packet is lost."""

DEAD_PEER: Final = "30s"
"""After as long a silence a peer is asked whether it is there; one that does not answer is connected to anew."""

_ANOTHER_KEY: Final = "it has another preshared key, or another node has its address"

_SILENT: Final = "it does not answer: does it run, and do UDP ports 500 and 4500 pass on the way?"

_MEANINGS: Final = {
    "AUTHENTICATION_FAILED": _ANOTHER_KEY,
    "MAC mismatched": _ANOTHER_KEY,
    "retransmit 2 of": _SILENT,
    "giving up after": _SILENT,
    "NO_PROPOSAL_CHOSEN": "it has none of our algorithms: has it the same ESPProposal?",
    "no acceptable proposal found": "it has none of our algorithms: has it the same ESPProposal?",
    "TS_UNACCEPTABLE": "it does not know our subnet, or has another one than its lease says",
    "unable to add SAD entry": "this kernel does not take the keys: it needs the modules esp4 and esp6, and the "
    "algorithms of ESPProposal",
}
"""What there is in a line of charon's log to what it means, of the peer."""

_said = re.compile(rf"(?m)\] <({PREFIX}[^|>]+)\|\d+> (.*)$").findall


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel between this node and a peer, for one subnet of each."""

    local: IPAddress
    remote: IPAddress
    own: IPNetwork
    theirs: IPNetwork
    proposal: str
    encapsulated: bool
    if_id: int
    reqid: int

    @property
    def name(self) -> str:
        """The connection's and its child's, by the peer's subnet."""
        return f"{PREFIX}{self.theirs}"

    @property
    def begins(self) -> bool:
        """Whether it is this node that connects, and the peer that waits for a while: if both do at once, each may
        take down what the other one has just made."""
        return int(self.local) < int(self.remote)

    @property
    def connection(self) -> dict[str, Any]:
        """The message of ``load-conn``.

        charon installs keys and no policies, which are the plan's. A peer behind another address (MOBIKE) would not
        fit them. Connecting is our business, too: charon's own ``start_action`` gives up after a while.
        """
        child = {
            "local_ts": [str(self.own)],
            "remote_ts": [str(self.theirs)],
            "esp_proposals": [self.proposal],
            "mode": "tunnel",
            "policies": "no",
            "reqid": str(self.reqid),
            "if_id_in": str(self.if_id),
            "if_id_out": str(self.if_id),
            "rekey_time": REKEY,
            "dpd_action": "clear",
        }
        return {
            self.name: {
                "version": "2",
                "local_addrs": [str(self.local)],
                "remote_addrs": [str(self.remote)],
                "proposals": [IKE_PROPOSAL],
                "encap": "yes" if self.encapsulated else "no",
                "mobike": "no",
                "dpd_delay": DEAD_PEER,
                "local": {"auth": "psk"},
                "remote": {"auth": "psk"},
                "children": {self.name: child},
            }
        }


def established(answers: Iterable[Mapping[str, Any]]) -> frozenset[tuple[str, str, str]]:
    """The names of connections with keys in the kernel, and between which addresses, ours first, from the answers to
    ``list-sas``. Keys from an address that we had before fit none of our policies."""
    return frozenset(
        (name, ike.get("local-host", b"").decode(), ike.get("remote-host", b"").decode())
        for answer in answers
        for name, ike in answer.items()
        if any(child.get("state") == b"INSTALLED" for child in ike.get("child-sas", {}).values())
    )


def connecting(answers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of connections that are being made, from the same."""
    return frozenset(name for answer in answers for name, ike in answer.items() if ike.get("state") == b"CONNECTING")


def troubles(log: str) -> dict[str, str]:
    """The names of connections to why they failed last, from what charon wrote."""
    return {name: meaning for name, text in _said(log) for words, meaning in _MEANINGS.items() if words in text}
