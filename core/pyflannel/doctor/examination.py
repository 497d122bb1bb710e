"""The whole examination: which checks there are, in which order, and how the probes join in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias, TypeVar

from pyflannel.doctor import containers, data_plane, firewall, membership, node, ways, wireguard
from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.doctor.probes import Target, checksum_errors, judge, probe_peers, targets
from pyflannel.errors import KernelError
from pyflannel.network.underlay import Question

__all__ = ["GROUPS", "MAX_PROBED", "examine", "spread"]

MAX_PROBED: Final = 200
"""Peers that are probed in one examination; dead ones take their time."""

T = TypeVar("T")
Check: TypeAlias = Callable[[Facts], Iterator[Finding]]

GROUPS: Final[Mapping[str, Sequence[Check]]] = {
    "node": (
        node.rights,
        node.kernel_features,
        node.underlay,
        node.underlay_mtu,
        node.forwarding,
        node.advertisements,
        node.return_path_filter,
        node.interception,
        node.bridge_filter,
    ),
    "membership": (
        membership.daemon,
        membership.store,
        membership.clock,
        membership.network,
        membership.node_id,
        membership.lease,
        membership.device,
        membership.objects,
        data_plane.served,
        membership.diversions,
        membership.subnet_file,
        membership.bridges,
        containers.assigned,
        containers.announcement,
        containers.cni_network,
        containers.cni_plugins,
    ),
    "firewall": (firewall.own_rules, firewall.sources, firewall.exits, firewall.foreign_drops),
}
"""The checks that look and send nothing, by group."""


def examine(facts: Facts, probes: bool = True, peers: Sequence[str] = ()) -> Iterator[Finding]:
    """All findings, as they are made.

    :param probes: send packets to the peers, too.
    :param peers: only to those whose subnet or address holds one of these texts; empty: to all.
    """
    for group, checks in GROUPS.items():
        for check in checks:
            for finding in check(facts):
                yield replace(finding, group=group)
    if probes:
        for finding in _probe(facts, peers):
            yield replace(finding, group="peers")
    for finding in wireguard.handshakes(facts):  # after the probes, which make peers shake hands
        yield replace(finding, group="peers")


def _probe(facts: Facts, peers: Sequence[str]) -> Iterator[Finding]:
    if facts.overlay is None:
        yield skipped("peers", f"not known: {facts.problems['overlay']}")
        return
    found: list[Target] = [
        target for target in targets(facts) if not peers or any(text in target.name for text in peers)
    ]
    if not found:
        yield skipped("peers", "no other node to probe")
        return
    if len(found) > MAX_PROBED:
        text = f"{MAX_PROBED} of {len(found)} are probed, evenly spread; name others with --peer"
        yield skipped("peers", text)
        found = spread(found, MAX_PROBED)
    before = checksum_errors()
    try:
        reached = probe_peers(found)
    except KernelError as error:
        yield skipped("peers", str(error))
        return
    port = getattr(facts.overlay.backend.options, "port", None)
    ours = frozenset(link.name for link in facts.links) | {target.interface for target in found}
    silent = [target for target, reach in zip(found, reached, strict=True) if reach.overlay is None]
    astray = ways.astray([Question(target.gateway) for target in silent], ours)
    below = ways.astray([Question(target.underlay) for target in silent], None)
    for target, heard in zip(found, reached, strict=True):
        reach = replace(heard, astray=astray.get(target.gateway, ""), no_way=below.get(target.underlay, ""))
        yield from judge(target, reach, facts.overlay.node.underlay.interface, port)
    yield from ways.of_containers(facts, [target for target in found if target.gateway not in astray], ours)
    yield from _counter(before, checksum_errors())


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items``, in order and evenly spread; ``count`` must not be larger than their number."""
    return [items[number * len(items) // count] for number in range(count)]


def _counter(before: int | None, after: int | None) -> Iterator[Finding]:
    if before is None or after is None:
        return
    fix = "nstat -az UdpInCsumErrors   # on the nodes that send: ethtool -K DEVICE tx-checksum-ip-generic off"
    if after > before:
        meaning = "what peers answered was damaged on the way, or by their network card"
        yield failed("UDP checksum errors", f"{after - before} more during the probes", meaning, fix)
    elif after:
        meaning = "packets have arrived damaged, from a peer or anybody else; see whether the number grows"
        yield warned("UDP checksum errors", f"{after} since this node was started", meaning, fix)
    else:
        yield passed("UDP checksum errors", "none since this node was started")
