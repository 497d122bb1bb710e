"""The kernel's own word for where packets of the overlay go: policy rules and all tables, for this node and containers.

Somebody's route or rule that takes them elsewhere looks like a silent peer to whoever only sends probes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed
from pyflannel.doctor.probes import Target
from pyflannel.errors import KernelError
from pyflannel.kernel.inventory import ask_ways
from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.network.underlay import Question

__all__ = ["astray", "of_containers"]


def astray(questions: Sequence[Question], ours: Collection[str] | None) -> dict[IPAddress, str]:
    """Where the kernel sends instead of by a device of ``ours`` (``None``: any): by another one, or nowhere."""
    try:
        answers = ask_ways(questions) if questions else []
    except KernelError:
        return {}
    found = {}
    for question, way in zip(questions, answers, strict=True):
        if isinstance(way, str):
            found[question.address] = f"nowhere ({way})"
        elif ours is not None and way.interface not in ours:
            found[question.address] = f"by {way.interface}"
    return found


def of_containers(facts: Facts, found: Sequence[Target], ours: Collection[str]) -> Iterator[Finding]:
    """Whether what containers send to these peers takes the overlay's way: rules may tell it from the node's own."""
    for subnet in facts.lease.subnets.each if facts.lease is not None else ():
        bridge = _bridge(facts, subnet, ours)
        towards = [target.gateway for target in found if target.gateway.version == subnet.version]
        if bridge is None or not towards:
            continue
        source = subnet.broadcast_address - 1  # the bridge has the first one; nobody sends to himself
        lost = astray([Question(address, source, bridge) for address in towards], ours)
        if not lost:
            yield passed("container packets", f"what comes by {bridge} takes the overlay's way (IPv{subnet.version})")
            continue
        address, where = next(iter(lost.items()))
        others = f", and so to {len(lost) - 1} more peers" if len(lost) > 1 else ""
        yield failed(
            "container packets",
            f"what containers on {bridge} send to {address} goes {where}{others}",
            "a foreign policy rule or route on this node takes it away from the overlay, or this node does not forward",
            f"ip rule; ip route get {address} from {source} iif {bridge}   # shows it",
        )


def _bridge(facts: Facts, subnet: IPNetwork, ours: Collection[str]) -> str | None:
    """The containers' bridge: what else has an address in this node's subnet."""
    for interface in facts.inventory.interfaces if facts.inventory is not None else ():
        if interface.up and interface.name not in ours and any(address in subnet for address in interface.addresses):
            return interface.name
    return None
