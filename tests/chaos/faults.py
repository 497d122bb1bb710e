"""How each kind of fault is done to a running lab, and how it ends.

A fault is begun by a function that returns what ends it, if that is for us to do. Whatever it decides by chance it
draws from its own number. A daemon's process that goes away meanwhile takes what was done to it along.
"""

from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

from tests.chaos import looks
from tests.chaos.cluster import TTL, Cluster, Member, document, workers
from tests.chaos.memory import Group
from tests.chaos.plan import EVERYBODY, KINDS, Fault

__all__ = ["HOSTILE", "begin"]

HOSTILE: Final = "hostile"
"""The beginning of the node ids of leases that nobody has."""

Undo: TypeAlias = Callable[[], None]
Done: TypeAlias = tuple[str, Undo | None]
"""What was done in a few words, and what ends it."""


def begin(cluster: Cluster, fault: Fault) -> Undo | None:
    """Let a fault happen; returns what ends it."""
    member = None if fault.node == EVERYBODY else cluster.members[fault.node]
    if member is not None and not (member.joined and (member.alive or fault.kind not in _ALIVE)):
        cluster.say(f"{fault.kind} of {member.name}: not now")
        return None
    kind = KINDS[fault.kind]
    whom = member if kind.hinders and kind.hinders != "store" else None
    hindered = cluster.hinder(whom, fault.kind, kind.hinders) if kind.hinders else None
    rng = random.Random(fault.draw)
    done, undo = _DO[fault.kind](cluster, cluster.members[max(fault.node, 0)], fault, rng)
    cluster.say(f"{fault.kind} {member.name if member else ''} {done} {f'for {fault.lasts:.1f} s' if undo else ''}")

    def end() -> None:
        if undo is not None:
            undo()
        if hindered is not None:
            cluster.over(hindered)

    if fault.lasts:
        return end
    end()
    return None


_ALIVE: Final = frozenset({"kill", "freeze", "descriptors", "memory", "cgroup", "replace"})
"""Faults for which there must be a daemon that nothing keeps from working."""


# Daemons


def _kill(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    member.held += 1
    member.node.daemon.kill()

    def start() -> None:
        member.held -= 1
        cluster.start_again(member)

    return "", start


def _freeze(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    member.stopped += 1
    daemon = member.node.daemon.process
    daemon.pause()

    def go_on() -> None:
        member.stopped -= 1
        if daemon.running:
            daemon.resume()

    return "", go_on


def _limit(member: Member, which: int, soft: int) -> Undo:
    """Give a running process less of something; a new process has none of it."""
    process = member.node.daemon.process
    pid = process.pid
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (soft, before[1]))

    def restore() -> None:
        if process.running:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, which, before)

    return restore


def _descriptors(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    there = {int(name) for name in os.listdir(f"/proc/{member.node.daemon.process.pid}/fd")}
    limit = next(number for number in range(1 << 16) if number not in there) + rng.choice((0, 0, 1, 2))
    return f"(limit {limit})", _limit(member, resource.RLIMIT_NOFILE, limit)


def _memory(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    with open(f"/proc/{member.node.daemon.process.pid}/statm") as file:
        there = int(file.read().split()[0]) * resource.getpagesize()
    more = rng.choice((0, 1 << 16, 1 << 20))
    return f"(limit {more >> 10} kB from here)", _limit(member, resource.RLIMIT_AS, there + more)


def _cgroup(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    if cluster.memory is None:
        return "(no cgroup here has room for others)", None
    more = rng.choice((1 << 18, 1 << 20, 4 << 20))
    group = Group(cluster.memory, f"chaos-{os.getpid()}-{member.name}-{fault.draw}")
    cluster.groups.append(group)
    group.take(member.node.daemon.process.pid, more)
    return f"({more >> 10} kB from here)", group.give_back


def _clock(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    """Between half a minute and nine hours, or back as far; ended by the way back."""
    seconds = rng.choice((-1, 1)) * round(30 * 1000 ** rng.random())
    clock = cluster.clock(member)
    clock.set(seconds)
    return f"({seconds:+d} s)", lambda: clock.set(0.0)


def _replace(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    cluster.renew_machine(member)
    return f"by {member.node_id} at {member.node.ipv4.ip}", None


# The wire


def _partition(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    addresses = ", ".join(cluster.store_addresses)
    way = rng.choice(("drop", "drop", "reject with icmp type admin-prohibited"))
    rules = f"""table ip chaos {{
        chain out {{ type filter hook output priority 0; ip daddr {{ {addresses} }} {way}; }}
        chain in {{ type filter hook input priority 0; ip saddr {{ {addresses} }} drop; }}
    }}"""
    member.node.run(["nft", "-f", "-"], input=rules)
    return f"({way})", lambda: _run(member, "nft", "delete", "table", "ip", "chaos")


def _run(member: Member, *words: str) -> None:
    member.node.run(words)


def _unplug(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    if rng.random() < 0.5:
        member.node.unplug()
        return "(no carrier)", member.node.plug
    member.node.ip(["link set eth0 down"])

    def up() -> None:
        host = member.node.host
        routes = (f"route replace default via {router} dev eth0" for router in (host.router_ipv4, host.router_ipv6))
        # Addresses go with the link. Without the second one the kernel can't ask whether a neighbour is still there.
        addresses = (str(member.node.ipv6), f"fe80::{host.number:x}/64")
        lines = (f"address replace {address} dev eth0 nodad" for address in addresses)
        member.node.ip(["link set eth0 up", *lines, *routes])

    return "(link down)", up


def _slow(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    words = ("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "512kbit", "burst", "8k", "latency", "800ms")
    _run(member, *words)
    return "", lambda: _run(member, "tc", "qdisc", "del", "dev", "eth0", "root")


def _readdress(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    cluster.move(member)
    return f"({member.node.ipv4.ip})", None


# The kernel


def _delete(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    gone = looks.break_kernel(member.netns, rng)
    return f"({len(gone)}: {', '.join(gone[:2])})", None


def _rules(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    family, name = rng.choice(looks.TABLES)
    what = rng.choice(("delete", "delete", "flush"))
    member.node.run(["nft", what, "table", family, name], check=False)
    return f"({what} {name})", None


def _worker(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    found = workers(member.netns)
    chosen = rng.sample(found, min(len(found), rng.choice((1, 2))))
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return f"({len(chosen)} of {len(found)})", None


# The store


def _members(cluster: Cluster) -> list[int]:
    return [] if cluster.plan.store == "file" else [0, 1, 2]


def _ask(cluster: Cluster, do: str, undo: str, **words: object) -> Undo:
    cluster.store.tell(do=do, **words)
    return lambda: cluster.store.tell(do=undo, **words)


def _member_kill(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    chosen = rng.sample(_members(cluster), 1)
    return f"{chosen}", _ask(cluster, "kill", "release", members=chosen)


def _member_freeze(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    chosen = rng.sample(_members(cluster), 1)
    return f"{chosen}", _ask(cluster, "pause", "resume", members=chosen)


def _outage(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    if cluster.plan.store == "file":
        return "(read-only)", _ask(cluster, "read-only", "writable")
    chosen = rng.sample(_members(cluster), rng.choice((2, 3)))
    if rng.random() < 0.3:
        return f"(frozen {chosen})", _ask(cluster, "pause", "resume", members=chosen)
    return f"(killed {chosen})", _ask(cluster, "kill", "release", members=chosen)


def _disk_full(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    return "", _ask(cluster, "fill", "empty")


def _lock(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    return "", _ask(cluster, "lock", "unlock")


def _compact(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    cluster.store.tell(do="compact")
    return "", None


def _document(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    good = document(cluster.plan.backend)
    bad = rng.random() < 0.5
    text = "{" if bad else json.dumps({**good, "Comment": rng.random()})
    cluster.store.tell(do="document", value=text)
    return "(rubbish)" if bad else "(other words)", lambda: cluster.store.tell(do="document", value=json.dumps(good))


# What others write into the store


def _rob(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    cluster.store.tell(do="delete", key=member.key, naming=f'"{member.node_id}"')
    return f"({member.key})", None


def _scribble(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    value = dict(looks.lease_value(cluster.table.get(member.key, "")))
    if not value:
        return "(there was none)", None
    address = f"192.0.2.{rng.randrange(60, 90)}"
    text = rng.choice(("{", json.dumps({**value, "Comment": 1}), json.dumps({**value, "PublicIP": address})))
    cluster.store.tell(do="rewrite", key=member.key, value=text, ttl=TTL)
    return f"({member.key})", None


def _hostile(cluster: Cluster, member: Member, fault: Fault, rng: random.Random) -> Done:
    """A lease with one thing wrong in it that no lease of a node can have."""
    wrong = rng.choice(("key", "address", "mac", "text", "type"))
    key = _bad_key(member, rng) if wrong == "key" else _free_key(cluster, rng)
    name = f"{HOSTILE}-{fault.draw}"
    value = _bad_value(cluster, member, name, wrong, rng)
    cluster.store.tell(do="put", key=key, value=value, ttl=None)
    naming = name if name in value else value
    return f"({key}: {wrong})", lambda: cluster.store.tell(do="delete", key=key, naming=naming)


def _bad_value(cluster: Cluster, member: Member, name: str, wrong: str, rng: random.Random) -> str:
    if wrong == "text":
        return rng.choice(("{", "[]", '{"PublicIP": 7}', "\u0000", "null"))
    own = str(member.node.ipv4.ip)
    mac = rng.choice(("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "nothing")) if wrong == "mac" else "02:bb:00:00:00:01"
    address = rng.choice(("127.0.0.1", "224.0.0.9", "0.0.0.0", "169.254.1.1", own)) if wrong == "address" else own
    attributes = {
        "PublicIP": address,
        "PublicIPv6": "ff02::1",
        "BackendType": rng.choice(("extension", "hostile")) if wrong == "type" else cluster.plan.backend,
        "BackendData": {"VNI": 1, "VtepMAC": mac, "PublicKey": mac},
        "BackendV6Data": {"VNI": 1, "VtepMAC": mac, "PublicKey": mac},
        "NodeID": name,
    }
    return json.dumps(attributes)


def _free_key(cluster: Cluster, rng: random.Random) -> str:
    """A key in the network that overlaps no node's."""
    keys = [key for key, value in cluster.leases.items() if f'"{HOSTILE}' not in value]
    taken = [subnets for key in keys if (subnets := looks.subnets_of(key)) is not None]
    while True:
        key = f"10.244.{rng.randrange(1, 255)}.0-24"
        if len(cluster.versions) == 2:
            key += f"&fd00:244:0:{rng.randrange(1, 1 << 16):x}::-64"
        subnets = looks.subnets_of(key)
        if subnets is not None and not any(subnets.overlaps(other) for other in taken):
            return key


def _bad_key(member: Member, rng: random.Random) -> str:
    """Outside the network, all of it or more, or nothing that can be read."""
    outside = (
        "198.18.0.0-24",
        "10.0.0.0-8",
        "10.244.0.0-16",
        "224.0.0.0-8",
        "10.244.0.1-24",
        "nonsense",
        "192.0.2.0-25",
    )
    return rng.choice(outside)


Do: TypeAlias = Callable[[Cluster, Member, Fault, random.Random], Done]

_DO: Final[Mapping[str, Do]] = {
    "kill": _kill,
    "freeze": _freeze,
    "descriptors": _descriptors,
    "memory": _memory,
    "cgroup": _cgroup,
    "clock": _clock,
    "clocks": _clock,
    "partition": _partition,
    "unplug": _unplug,
    "slow": _slow,
    "readdress": _readdress,
    "delete": _delete,
    "rules": _rules,
    "worker": _worker,
    "replace": _replace,
    "rob": _rob,
    "scribble": _scribble,
    "member-kill": _member_kill,
    "member-freeze": _member_freeze,
    "outage": _outage,
    "disk-full": _disk_full,
    "lock": _lock,
    "compact": _compact,
    "document": _document,
    "hostile": _hostile,
}
assert _DO.keys() == KINDS.keys()
