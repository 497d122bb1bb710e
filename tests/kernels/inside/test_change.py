"""Changes of a running network on another kernel: from and to the tunnels that this machine's own kernel may lack.

Pairs of backends that every kernel has are tried elsewhere (:mod:`tests.changes.test_matrix`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.changing import DUAL, HOST_GW, UDP, VXLAN, Document, go_round, network, options, overlay, pinging, tour

pytestmark = [pytest.mark.root, pytest.mark.timeout(0)]

IPIP: Document = {"Type": "ipip"}
GRE: Document = {"Type": "gre"}
SELDOM = 0.1
"""Seconds between two pings of a pair: of a hundred a second from each of six, a busy machine like these loses some
without a change, too."""


@pytest.mark.parametrize(
    ("versions", "tunnels"), [((4,), [IPIP, GRE]), ((4, 6), [GRE])], ids=["one family", "two families"]
)
def test_from_every_tunnel_to_every_other(versions: Sequence[int], tunnels: Sequence[Document]) -> None:
    others = [VXLAN, HOST_GW]
    go_round(tour([*others, *tunnels], apart=[others]), "file", versions, streams=False, interval=SELDOM)


def test_between_a_process_and_a_tunnel_of_the_kernel() -> None:
    go_round([UDP, IPIP, UDP], "file", (4,), streams=False, interval=SELDOM)


KERNEL: Document = {"Type": "wireguard", "Implementation": "kernel"}
SHUT: Document = {
    **KERNEL,
    "ListenPort": 51900,
    "ListenPortV6": 51901,
    "PSK": "TsP23gTYx8hFJfOWzQsgEyKdhvFzNzq4aIXPnAq3G0I=",
}
PROCESS: Document = {**KERNEL, "Implementation": "userspace", "ListenPort": 51910, "ListenPortV6": 51911}
USUAL: Document = {**KERNEL, "ListenPort": 51820, "ListenPortV6": 51821}
IPSEC: Document = {"Type": "ipsec", "PSK": "0123456789abcdef" * 6}
SECRET = ("wireguard", "ipsec")


@pytest.mark.parametrize(
    ("versions", "backends"),
    [
        ((4,), [VXLAN, KERNEL, VXLAN]),
        ((4, 6), [KERNEL, SHUT, PROCESS, USUAL]),
        ((4,), [GRE, KERNEL, GRE]),
        ((4,), [VXLAN, IPSEC, VXLAN]),
        ((4,), [KERNEL, IPSEC, KERNEL]),
    ],
    ids=["wireguard", "other wireguards", "wireguard and gre", "ipsec", "wireguard and ipsec"],
)
def test_to_encryption_in_the_kernel_and_back(versions: Sequence[int], backends: Sequence[Document]) -> None:
    """After each change packets can be read on the underlay, or none of them can.

    Two nodes, and ten pings a second from each: the machine is emulated.
    """
    first, *following = backends
    with (
        overlay(network(first, **(DUAL if len(versions) > 1 else {})), nodes=2) as made,
        pinging(made.lab, versions, interval=SELDOM) as pings,
    ):
        for backend in following:
            made.change(*options(backend))
            made.run_on(str(backend["Type"]))
            for version in versions:
                frames, readable = made.overheard(version)
                assert frames
                assert bool(readable) is (backend["Type"] not in SECRET)
            pings.note(str(backend))
