"""What befalls a simulated cluster: faults as values, drawn from a seed before anything happens.

A history is the seed and this list. Whatever a fault decides by chance it draws from its own number, so that leaving
one out changes as little as possible of the others: that is what lets a failing history be shrunk.
"""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol, TypeAlias

from pyflannel.kernel.model import Key, Kind
from pyflannel.network.lease import LeaseAttributes
from pyflannel.store import CONFIG_KEY
from pyflannel.testing.simulation import changing
from pyflannel.testing.simulation.judge import Evidence, Judge
from pyflannel.testing.simulation.node import SimulatedNode

__all__ = ["FAULTS", "HOSTILE", "Fault", "Kindred", "Target", "apply"]

HOSTILE: Final = "hostile"
"""The beginning of the node ids of leases that nobody has."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong.

    :param at: seconds from the beginning.
    :param kind: a key of :data:`FAULTS`.
    :param node: whom it befalls, counted from 0; nobody in particular for some kinds.
    :param lasts: seconds until it is over, where it is something that ends.
    :param draw: what it decides by chance is drawn from this number.
    """

    at: float
    kind: str
    node: int
    lasts: float
    draw: int

    def __str__(self) -> str:
        return f"{self.at:9.1f} s  {self.kind:<12} node {self.node}  for {self.lasts:.1f} s  ({self.draw})"


class Target(Evidence, Protocol):
    """What faults are done to."""

    judge: Judge
    document: str
    change: str
    """The id of the change of the network that is under way; empty if none is."""

    def note(self, who: str, what: str) -> None:
        """Remember that something happened."""

    def states_changed(self) -> None:
        """A fault began or ended."""

    def store_changed(self) -> None:
        """Somebody else has written to the store."""

    def store_down(self, lasts: float, rng: random.Random) -> None:
        """The store answers nobody for a while."""

    def store_troubled(self, lasts: float) -> None:
        """For a while nobody can count on the store."""

    def replace(self, node: SimulatedNode) -> None:
        """A machine is gone for good, and another one there in its place."""

    def clone(self, node: SimulatedNode, alike: bool) -> SimulatedNode | None:
        """A copy of a machine is started, alike in its hardware's numbers too; ``None`` where there can't be one."""

    def dismiss(self, clone: SimulatedNode) -> None:
        """The copy is switched off."""


Apply: TypeAlias = Callable[[Target, SimulatedNode, Fault, random.Random], None]


@dataclass(frozen=True, slots=True)
class Kindred:
    """A kind of fault: how it is done, how often it is drawn among others (0: by itself), how long it may last."""

    apply: Apply
    weight: int
    longest: float


def apply(cluster: Target, fault: Fault) -> None:
    """Let it happen."""
    node = cluster.nodes[fault.node % len(cluster.nodes)]
    cluster.note(node.name, f"fault: {fault.kind} for {fault.lasts:.1f} s")
    FAULTS[fault.kind].apply(cluster, node, fault, random.Random(fault.draw))  # noqa: S311 - a simulation


def _later(cluster: Target, fault: Fault, undo: Callable[[], None]) -> None:
    def end() -> None:
        undo()
        cluster.states_changed()

    cluster.agenda.after(fault.lasts, end)


# The wire and the store


def _cut(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.wire.cut += 1
    node.notice_break(0.5 + rng.random() * 30)

    def mend() -> None:
        node.wire.cut -= 1
        node.look()

    _later(cluster, fault, mend)


def _lossy(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.wire.lossy += 1

    def mend() -> None:
        node.wire.lossy -= 1

    _later(cluster, fault, mend)


def _slow(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.wire.slow += 1

    def mend() -> None:
        node.wire.slow -= 1

    _later(cluster, fault, mend)


def _hang(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.wire.hanging += 1

    def mend() -> None:
        node.wire.hanging -= 1
        if not node.wire.hanging:
            node.let_go()

    _later(cluster, fault, mend)


def _outage(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    cluster.store_down(fault.lasts, rng)


def _misfortune(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    names = cluster.model.misfortunes
    if names:
        down = getattr(cluster.model, rng.choice(names))(rng)
        cluster.store_troubled(60.0)
        if down:
            cluster.store_down(down, rng)


# Daemons


def _crash(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.crash()
    life = node.life
    _later(cluster, fault, lambda: node.boot() if node.life == life and not node.gone else None)


def _reboot(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.crash()
    node.wipe_kernel()
    cluster.judge.disturb(node)
    _crash(cluster, node, fault, rng)


def _freeze(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    if not node.running:
        return
    node.freeze()
    life = node.life
    _later(cluster, fault, lambda: node.thaw() if node.life == life else None)


def _replace(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    cluster.replace(node)


def _clone(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    clone = cluster.clone(node, rng.random() < 0.3)
    if clone is not None:
        _later(cluster, fault, lambda: cluster.dismiss(clone))


def _unpublished(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    node.unpublished += 1

    def mend() -> None:
        node.unpublished -= 1

    _later(cluster, fault, mend)


# The underlay and the kernel


def _readdress(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    cluster.judge.disturb(node)
    node.move_to(node.host + (100 if node.address == node.host else 0))


def _link_down(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    if not node.up:
        return
    cluster.judge.disturb(node)
    node.set_up(False)

    def mend() -> None:
        cluster.judge.disturb(node)
        node.set_up(True)

    _later(cluster, fault, mend)


def _ours(node: SimulatedNode) -> list[Key]:
    """What the daemon has put into a kernel, as far as it can be deleted."""
    kernel = node.kernel
    marked = {link.name for link in kernel.links.values() if link.marked}
    found: list[Key] = [link.key for link in kernel.links.values() if link.marked]
    for table in (kernel.addresses, kernel.neighbours):
        found += [item.key for item in table.values() if item.link in marked]
    found += [key for key, ways in kernel.fdb.items() if ways[0].link in marked]
    found += [key for key, entry in kernel.routes.items() if entry.protocol != 4]
    return sorted(found, key=str)


def _delete(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    found = _ours(node)
    cluster.judge.disturb(node)
    for key in rng.sample(found, min(len(found), rng.choice((1, 1, 2, 20)))):
        node.kernel.remove(key)
    node.disturbed()


def _refuse(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    kind = rng.choice((Kind.LINK, Kind.ADDRESS, Kind.NEIGHBOUR, Kind.FDB, Kind.ROUTE))
    cluster.judge.disturb(node)
    node.kernel.fail_next(kind, rng.choice((errno.ENOBUFS, errno.EBUSY, errno.EINVAL)), rng.choice((1, 2, 5)))
    _delete(cluster, node, fault, rng)


def _deaf(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    _delete(cluster, node, fault, rng)
    node.kernel.lose_notifications()
    node.kernel.interrupt_dumps(rng.choice((0, 1, 3)))
    node.disturbed()


def _plane(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    cluster.judge.disturb(node)
    if rng.random() < 0.5:
        node.table.kill()
        node.disturbed()
        return
    node.table.refusing = True

    def mend() -> None:
        cluster.judge.disturb(node)
        node.table.refusing = False

    _later(cluster, fault, mend)


# What others write into the store


def _hostile(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    """A lease that nobody has: in the overlay or outside, huge or tiny, readable or not."""
    key, value = _bad_lease(cluster, node, rng)
    if key in cluster.model.records():
        return
    cluster.model.put(key, value, rng.choice((None, fault.lasts)))
    cluster.store_changed()

    def mend() -> None:
        record = cluster.model.records().get(key)
        if record is not None and record.value == value:
            cluster.model.remove(key)
            cluster.store_changed()

    _later(cluster, fault, mend)


def _bad_lease(cluster: Target, node: SimulatedNode, rng: random.Random) -> tuple[str, str]:
    """A lease with one thing wrong in it, or with none: who has to look at what is wrong looks at each alone."""
    wrong = rng.choice(("key", "key", "address", "address", "mac", "type", "text", "nothing"))
    key = _bad_key(cluster, node, rng) if wrong == "key" else _good_key(cluster, rng)
    nobodys = ("127.0.0.1", "224.0.0.9", "0.0.0.0", "169.254.1.1", f"192.0.2.{node.address}")  # noqa: S104
    mac = rng.choice(("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "nothing")) if wrong == "mac" else "02:bb:00:00:00:01"
    attributes = LeaseAttributes(
        IPv4Address(rng.choice(nobodys) if wrong == "address" else "192.0.2.250"),
        IPv6Address("2001:db8::bad"),
        rng.choice(("udp", "hostile")) if wrong == "type" else cluster.network.backend_type,
        {"VNI": 1, "VtepMAC": mac},
        {"VNI": 1, "VtepMAC": mac},
        node_id=f"{HOSTILE}-{rng.randrange(1000)}",
    )
    return key, rng.choice(("{", "[]", '{"PublicIP": 7}')) if wrong == "text" else attributes.to_json()


def _good_key(cluster: Target, rng: random.Random) -> str:
    families = [family for family in (cluster.network.ipv4, cluster.network.ipv6) if family is not None]
    subnets = [family.subnet(rng.randrange(family.size)) for family in families]
    return "&".join(f"{subnet.network_address}-{subnet.prefixlen}" for subnet in subnets)


def _bad_key(cluster: Target, node: SimulatedNode, rng: random.Random) -> str:
    """Outside the network, all of it or more, across others, within a living node's, or nothing that can be read."""
    keys = ["198.51.100.0-24", "0.0.0.0-0", "10.0.0.0-8", "10.5.0.0-22", "224.0.0.0-8", "10.5.0.1-24", "nonsense"]
    lease = node.state.lease
    mine = lease.subnets.ipv4 if lease is not None else None
    if mine is not None:
        keys += [f"{mine.network_address}-30", f"{mine.supernet(2).network_address}-{mine.prefixlen - 2}"]
    return rng.choice(keys)


def _rob(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    """Somebody deletes a living node's lease."""
    lease = node.state.lease
    if lease is None or cluster.model.assigns_subnets:
        return
    record = cluster.model.records().get(lease.key)
    if record is not None and f'"{node.node_id}"' in record.value:
        cluster.judge.rob(node)
        cluster.model.remove(lease.key)
        cluster.store_changed()


def _scribble(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    """Somebody writes into a living node's lease: rubbish, or fields that this version does not know."""
    lease = node.state.lease
    record = cluster.model.records().get(lease.key) if lease is not None else None
    if record is None or f'"{node.node_id}"' not in record.value:
        return
    cluster.judge.rob(node)
    document = json.loads(record.value)
    text = rng.choice(("{", json.dumps({**document, "Comment": 1}), json.dumps({**document, "PublicIP": "192.0.2.99"})))
    cluster.model.put(record.key, text)
    cluster.store_changed()


def _document(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    """The network document is written anew, with the same meaning or as something that can't be read."""
    if cluster.change:  # whoever takes a change out of the document is told, and nobody follows
        return
    good = cluster.document
    bad = rng.random() < 0.4
    cluster.model.put(CONFIG_KEY, "{" if bad else json.dumps({**json.loads(good), "Comment": rng.random()}))
    cluster.store_changed()
    if bad:
        cluster.broken_documents += 1

        def mend() -> None:
            cluster.broken_documents -= 1
            if not cluster.broken_documents:
                cluster.model.put(CONFIG_KEY, good)
                cluster.store_changed()

        _later(cluster, fault, mend)


def _change(cluster: Target, node: SimulatedNode, fault: Fault, rng: random.Random) -> None:
    """The network is changed to another backend while it runs."""
    changing.begin(cluster, fault.lasts, rng)


FAULTS: Final[Mapping[str, Kindred]] = {
    "cut": Kindred(_cut, 10, 400.0),
    "lossy": Kindred(_lossy, 6, 120.0),
    "slow": Kindred(_slow, 4, 60.0),
    "hang": Kindred(_hang, 5, 90.0),
    "outage": Kindred(_outage, 3, 200.0),
    "misfortune": Kindred(_misfortune, 8, 1.0),
    "crash": Kindred(_crash, 8, 120.0),
    "reboot": Kindred(_reboot, 3, 120.0),
    "freeze": Kindred(_freeze, 7, 200.0),
    "replace": Kindred(_replace, 1, 1.0),
    "clone": Kindred(_clone, 1, 60.0),
    "unpublished": Kindred(_unpublished, 3, 300.0),
    "readdress": Kindred(_readdress, 3, 1.0),
    "link-down": Kindred(_link_down, 3, 60.0),
    "delete": Kindred(_delete, 8, 1.0),
    "refuse": Kindred(_refuse, 4, 1.0),
    "deaf": Kindred(_deaf, 4, 1.0),
    "plane": Kindred(_plane, 3, 30.0),
    "hostile": Kindred(_hostile, 6, 300.0),
    "rob": Kindred(_rob, 2, 1.0),
    "scribble": Kindred(_scribble, 2, 1.0),
    "document": Kindred(_document, 3, 400.0),
    "change": Kindred(_change, 0, 60.0),
}
"""All kinds of faults by name."""
