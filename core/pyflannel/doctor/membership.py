"""Checks of this node's place in the network: daemon, store, lease, and what the kernel should hold because of them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

from pyflannel.backend import parse_options
from pyflannel.daemon import runlock
from pyflannel.daemon import subnet_env as envfile
from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.errors import MalformedError, PluginError, PyflannelError, StoreDeniedError
from pyflannel.kernel.model import KernelObject, Key, Link, Sysctl, WireguardPeer
from pyflannel.membership import followed
from pyflannel.network.change import read
from pyflannel.network.lease import Lease
from pyflannel.settings.settings import Settings
from pyflannel.show.readiness import is_rule, leads_nowhere, removal
from pyflannel.show.status import State
from pyflannel.small import files
from pyflannel.small.server import NotAdmittedError
from pyflannel.small.text import counted
from pyflannel.store import Record
from pyflannel.version import VERSION

__all__ = ["bridges", "clock", "daemon", "device", "lease", "network", "node_id", "objects", "store", "subnet_file"]

SLOW_STORE: Final = 1.0
"""Seconds for one snapshot from which on a store is slow."""

CLOCK_SLACK: Final = 2.0
"""Seconds that this node's clock and the store's may differ without a word."""

BRIDGES: Final = ("docker0", "cni0")
"""The bridges that container runtimes make for one subnet."""

_SHOWN: Final = 5
_RESTART: Final = "systemctl restart pyflannel"
_NEW_MACHINE_ID: Final = f"rm -f /etc/machine-id /var/lib/dbus/machine-id && systemd-machine-id-setup && {_RESTART}"


def daemon(facts: Facts) -> Iterator[Finding]:
    """Whether a daemon answers, and what it says of itself."""
    status = facts.status
    if status is None:
        if isinstance(facts.problems["status"], NotAdmittedError):
            yield skipped("daemon", str(facts.problems["status"]))
            return
        meaning = "what is in the kernel keeps working, but nobody renews the lease, follows peers or repairs anything"
        text, fix, lock = (
            str(facts.problems["status"]),
            "systemctl start pyflannel",
            runlock.path(facts.settings.run_dir),
        )
        if lock.is_symlink():
            text, fix = (
                f"{lock} is a link: no daemon starts here, for it would write to {lock.readlink()}",
                f"rm {lock}",
            )
        yield failed("daemon", text, meaning, fix)
        return
    state, message = State(status["state"]), status["message"]
    if state is State.READY:
        yield passed("daemon", f"ready: {message}")
    elif state is State.DEGRADED:
        yield warned("daemon", f"degraded: {message}", "the overlay works, but not all of it", "pyflannel status")
    else:
        meaning = "containers on this node can't use the overlay, or not for long"
        yield failed("daemon", f"{state.value}: {message}", meaning, "pyflannel status; journalctl -u pyflannel -n 50")
    if status["version"] != VERSION:
        yield warned(
            "daemon version",
            f"the daemon is {status['version']}, this command {VERSION}",
            "an installed update is not running yet",
            _RESTART,
        )
    for warning in status.get("warnings", ()):
        meaning = "the node works without it, but not as whoever set it may have expected"
        yield warned("settings", warning, meaning, "systemctl edit pyflannel   # or where else it was given")


# The store -----------------------------------------------------------------------------------------------------------


def store(facts: Facts) -> Iterator[Finding]:
    """Whether the store answers this command, and how quickly."""
    if facts.store is None:
        meaning = "forwarding continues, but new peers stay unknown, and this node's lease expires if that lasts"
        problem, fix = facts.problems["store"], "pyflannel leases   # asks the store, too"
        if facts.settings.store.scheme == "kubernetes" and isinstance(problem, StoreDeniedError):
            fix = "kubectl auth can-i list nodes --as ACCOUNT; kubectl apply -k contrib/kubernetes/base   # its rights"
        yield failed("store", str(problem), meaning, fix)
        return
    leases = counted(len(facts.store.snapshot.leases), "lease")
    took = f"{facts.settings.store}: {leases} in {facts.store.seconds * 1000:.0f} ms"
    if facts.store.seconds > SLOW_STORE:
        yield warned("store", took, "it is slow: changes arrive late, renewals may time out", "pyflannel leases")
    else:
        yield passed("store", took)


def clock(facts: Facts) -> Iterator[Finding]:
    """This node's clock against the store's."""
    if facts.clock is None:
        yield skipped("clock", _reason(facts, "clock"))
        return
    said, decides = facts.clock.said, facts.clock.decides
    if said is None:
        yield skipped("clock", f"the {facts.settings.store.scheme} store does not tell the time")
        return
    ahead = facts.clock.before - said.latest if said.latest is not None else -math.inf
    behind = said.earliest - facts.clock.after
    if max(ahead, behind) <= CLOCK_SLACK:
        told = "agrees with" if said.latest is not None else "is not behind"
        yield passed("clock", f"this node's {told} {said.source}")
        return
    which = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
    text, fix = f"this node's is {which} {said.source}", "chronyc tracking   # or: timedatectl timesync-status"
    if decides:
        meaning = "one of the two is wrong, and leases expire by these clocks: not when their nodes expect it"
        yield failed("clock", text, meaning, fix)
    else:
        meaning = (
            "one of the two is wrong. Leases are not affected, because the store counts their time itself; but "
            "certificates are judged by these clocks, and the logs of two nodes won't match"
        )
        yield warned("clock", text, meaning, fix)


def network(facts: Facts) -> Iterator[Finding]:
    """The network config and its backend."""
    if facts.store is None:
        yield skipped("network config", "the store does not answer")
        return
    if facts.network is None or facts.backend is None:
        yield _unusable(facts, facts.problems.get("network") or facts.problems["backend"])
        return
    wanted = facts.settings.backend
    if wanted is not None and wanted.lower() != facts.backend.name:
        text, fix = f"--backend is {wanted}, the network's is {facts.backend.name}", "drop --backend"
        if _has_gone_over(facts):
            yield warned("network config", text, "the network has been changed, and the daemon follows it", fix)
        else:
            yield failed("network config", text, "the daemon refuses to start with these settings", fix)
        return
    asked = (facts.problems.get(name) for name in ("overlay", "mtu"))
    broken = next((error for error in asked if isinstance(error, PluginError)), None)
    if broken is not None:
        meaning = "the daemon asks the backend for the same, and is held up in the same way"
        yield failed("network config", str(broken), meaning, "pyflannel plugins   # which package it is from")
        return
    if facts.network.assumption:
        meaning = "a node that starts later may assume something else, and flanneld assumes udp"
        yield warned(
            "network config", facts.network.assumption, meaning, "pyflannel config get | pyflannel config set -"
        )
    unknown = (
        *facts.network.unknown_keys,
        *(f"Backend.{key}" for key in parse_options(type(facts.backend).Options, facts.network.backend_options)[1]),
    )
    if unknown:
        text = f"not known and ignored: {', '.join(unknown[:_SHOWN])}"
        yield warned("network config", text, "a key that is misspelt does nothing", "pyflannel config get")
    if not unknown and not facts.network.assumption:
        networks = " ".join(str(family.network) for family in facts.network.families)
        yield passed("network config", f"{networks} on {facts.backend.name}")


def _unusable(facts: Facts, error: PyflannelError) -> Finding:
    """About a network config that this node does not go by."""
    status, fix = facts.status, "pyflannel config get; pyflannel plugins"
    if facts.store is not None and facts.store.snapshot.config is None:
        meaning = "no node can join; if others have joined, this node looks in a different place than they do"
        fix = "pyflannel config set -   # or give this node the others' --store or --etcd-prefix"
    elif status is not None and status["lease"] is not None:
        meaning = "nodes keep the one in force; nodes that start from now on would not reach them"
        earlier = "-"
        with suppress(PyflannelError):
            kept = followed.read(facts.settings.state_dir)
            if kept and read(kept).change is None:  # to config set, it is the earlier one that is new to the nodes
                earlier = f"--force {shlex.quote(str(followed.path(facts.settings.state_dir)))}"
        fix = f"pyflannel config set {earlier}   # the earlier one again; then: pyflannel network change"
    else:
        meaning = "no node can join with it, or none with what is installed here"
    return failed("network config", str(error), meaning, fix)


def _has_gone_over(facts: Facts) -> bool:
    """Whether the network config is one that the nodes have gone over to together, or are about to."""
    config = facts.store.snapshot.config if facts.store is not None else None
    written = read(config.value) if config is not None else None
    return written is not None and written.agreed


def lease(facts: Facts) -> Iterator[Finding]:
    """This node's lease as the store has it, against what the daemon believes."""
    if facts.store is None:
        yield skipped("lease", "the store does not answer")
        return
    if facts.record is None or facts.lease is None:
        reason = facts.problems.get("record") or facts.problems["lease"]
        meaning = "other nodes don't know this node, and its subnet may be given to another node"
        yield failed("lease", str(reason), meaning, "pyflannel status")
        return
    believed = facts.status["lease"] if facts.status is not None else None
    if facts.status is not None and (believed is None or believed["key"] != facts.lease.key):
        meaning = "store and daemon disagree about this node's subnet"
        held = believed["key"] if believed is not None else "none"
        yield failed("lease", f"the store has {facts.lease.key}, the daemon {held}", meaning, _RESTART)
    elif facts.record.permanent:
        kind = "assigned by the store" if facts.store.assigned is not None else "a reservation"
        yield passed("lease", f"{facts.lease.subnets}, {kind}")
    else:
        yield from _expiry(facts)


def node_id(facts: Facts) -> Iterator[Finding]:
    """Whether another machine has this one's node id, as a cloned image and its original have."""
    if facts.store is None:
        yield skipped("node id", "the store does not answer")
        return
    me, leases = facts.myself, list(_leases(facts.store.snapshot.leases))
    twin = next((lease for lease in leases if me.is_twins(lease.attributes)), None)
    copy = next((lease for lease in leases if me.is_copys(lease.attributes)), None)
    if twin is not None:
        text = f"another machine has this one's node id {me.node_id!r}: that of lease {twin.key} at {_where(twin)}"
        meaning = "it keeps that lease, and this node gets another, under another id. Was one copied from the other?"
        yield warned("node id", text, meaning, _new_id(facts.settings))
    elif copy is not None:
        text = f"another machine has this one's node id {me.node_id!r}: that of lease {copy.key} at {_where(copy)}"
        meaning = "it uses another id, and both work. Was it copied from this one? It should have an id of its own"
        yield warned("node id", text, meaning, f"{_NEW_MACHINE_ID}   # on {_where(copy)}")
    else:
        yield passed("node id", f"{me.node_id or 'none yet'}, and no other machine's")


def _leases(records: Iterable[Record]) -> Iterator[Lease]:
    for record in records:
        with suppress(MalformedError):
            yield Lease.from_record(record.key, record.value)


def _where(lease: Lease) -> str:
    return str(lease.attributes.public_ip or lease.attributes.public_ipv6)


def _new_id(settings: Settings) -> str:
    """What gives this node an id of its own, according to where it has the present one from."""
    if settings.node_id is not None:
        return f"{_RESTART}   # with another --node-id"
    kept = settings.state_dir / "node-id"
    return f"rm {kept} && {_RESTART}" if kept.exists() else _NEW_MACHINE_ID


def _expiry(facts: Facts) -> Iterator[Finding]:
    assert facts.record is not None
    assert facts.lease is not None
    assert facts.store is not None
    ttl = facts.store.ttl.get(facts.record.key, facts.record.ttl)
    if ttl is None:
        yield passed("lease", f"{facts.lease.subnets}; the store does not say when it expires")
    elif facts.status is not None and ttl < facts.settings.renew_margin * 0.9:
        meaning = f"it should have been renewed {facts.settings.renew_margin:.0f} s before its end"
        text = f"{facts.lease.subnets} expires in {ttl:.0f} s"
        yield warned("lease", text, meaning, "pyflannel status   # says why the renewal fails")
    else:
        yield passed("lease", f"{facts.lease.subnets}, expires in {ttl:.0f} s")


# What follows from the lease -----------------------------------------------------------------------------------------


def device(facts: Facts) -> Iterator[Finding]:
    """The addresses by which peers reach this node, and its devices' MAC addresses, against the lease and the plan.

    What a backend would publish (``BackendData``) is not asked for: to say it, it may make keys or run commands.
    """
    if facts.overlay is None or facts.lease is None:
        yield skipped("device and lease", _reason(facts, "overlay"))
        return
    node, said = facts.overlay.node, facts.lease.attributes
    for version in node.network.versions:
        name, ours, theirs = (
            f"PublicIP{'' if version == 4 else 'v6'}",
            node.underlay.public(version),
            said.public(version),
        )
        if ours != theirs:
            yield failed(
                "device and lease",
                f"the lease says {name} {theirs}, this node is {ours}",
                "peers send their packets to an address that is not this node's",
                _rewriting(facts),
            )
            return
    for wanted in facts.links:
        actual = (facts.kernel or {}).get(wanted.key)
        same = isinstance(actual, Link) and actual.info.kind == wanted.info.kind  # else it is somebody else's
        if same and isinstance(actual, Link) and wanted.mac is not None and actual.mac != wanted.mac:
            meaning = "the kernel drops what peers send: it is addressed to another MAC"
            text = f"{wanted.name} has MAC {actual.mac}, this node's is {wanted.mac}"
            yield failed("device and lease", text, meaning, f"ip link set {wanted.name} address {wanted.mac}")
            return
    yield passed("device and lease", "peers are told this node's addresses, and its devices are as planned")


def _rewriting(facts: Facts, then: str = "") -> str:
    """How to have the daemon write again what follows from its lease, and what to run afterwards.

    One that is in trouble may be kept from it by just that, and a restart is no cure: a node that was only degraded
    would not get ready any more.
    """
    if facts.status is not None and facts.status["state"] != State.READY.value:
        return "pyflannel status   # what it names comes first"
    return f"{_RESTART}{then}"


def objects(facts: Facts) -> Iterator[Finding]:
    """Every kernel object of the plan, against the kernel."""
    if facts.overlay is None or facts.kernel is None:
        yield skipped("kernel objects", _reason(facts, "overlay" if facts.overlay is None else "kernel"))
        return
    desired = facts.overlay.desired
    wrong = [_difference(item, facts.kernel.get(key)) for key, item in desired.items() if _differs(key, item, facts)]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        yield failed(
            "kernel objects",
            f"{len(wrong)} of {len(desired)}: {'; '.join(wrong[:_SHOWN])}{more}",
            "packets to these peers, or all packets, go nowhere. A running daemon repairs this within a second, unless "
            "the kernel refuses to",
            "pyflannel status   # then: " + _RESTART,
        )
    else:
        yield passed("kernel objects", f"all {len(desired)} in place")
    skipped_peers = [peer for peer in facts.overlay.peers.values() if peer.reason]
    for peer in skipped_peers[:_SHOWN]:
        meaning = "this node does not use that lease: packets to its subnet go nowhere"
        yield warned("leases", f"{peer.key}: {peer.reason}", meaning, _drop(facts.settings, peer.key))
    if len(skipped_peers) > _SHOWN:
        text = f"{len(skipped_peers) - _SHOWN} more can't be used"
        yield warned("leases", text, "packets to their subnets go nowhere", "pyflannel status   # has them all")


def _drop(settings: Settings, key: str) -> str:
    """Who wrote a lease, and what deletes it where the store's own tools are known."""
    store = settings.store
    commands = {
        "file": f"rm {shlex.quote(f'{store.path}/subnets/{key}.json')}",
        "etcd": f"etcdctl del {shlex.quote(f'{store.path}/subnets/{key}')}",
        "consul": f"consul kv delete {shlex.quote(f'{store.path}/subnets/{key}'.lstrip('/'))}",
    }
    known = store.scheme in commands and key.isprintable()
    delete = f"; if no node of yours: {commands[store.scheme]}" if known else ""
    return f"pyflannel leases   # says whose it is{delete}"


def diversions(facts: Facts) -> Iterator[Finding]:
    """Routes, IPsec policies and policy rules of others that divert the overlay's packets, as the daemon sees them."""
    if facts.status is None:
        yield skipped("routes of others", f"not known: {facts.problems['status']}")
        return
    found = facts.status.get("diversions") or []
    for route in found[:_SHOWN]:
        if route.startswith("xfrm policy "):
            meaning = "packets to these addresses are encrypted for somebody else, or dropped, before they reach ours"
            yield failed("IPsec policies of others", f"{route} comes before ours", meaning, removal(route))
            continue
        if is_rule(route):
            lost = "go nowhere" if leads_nowhere(route) else "go another way, in plaintext if the overlay encrypts"
            meaning = f"packets of the overlay that this rule selects {lost}"
            yield failed("policy rules of others", f"{route} comes before our routes", meaning, removal(route))
            continue
        connected = _connected(facts, route)
        if connected is not None:
            yield connected
            continue
        meaning = "packets to these addresses leave the overlay: they go nowhere, or in plaintext past the encryption"
        yield failed("routes of others", f"{route} comes before ours", meaning, removal(route))
    if not found:
        yield passed("routes of others", "none leads into the overlay, and no policy rule diverts its packets")


def _connected(facts: Facts, route: str) -> Finding | None:
    """About a route that is there because its device has an address in it, such as a bridge from an earlier lease."""
    network, device = route.split()[0], re.search(r" dev (\S+)", route)
    interface = facts.inventory.interface(device[1]) if facts.inventory is not None and device is not None else None
    if interface is None:
        return None
    addresses = [address for address in interface.addresses if address in ip_network(network, strict=False)]
    if not addresses:
        return None
    length = network.partition("/")[2] or str(addresses[0].max_prefixlen)
    if interface.name in BRIDGES:
        fix = _mend(interface.name)
    else:
        fix = f"ip address delete {addresses[0]}/{length} dev {interface.name}"
    return failed(
        "routes of others",
        f"{interface.name} has {addresses[0]}, an address of {network}, which is another node's subnet now",
        "this node keeps packets for that node; if the subnet was once its own, its containers still use it",
        fix,
    )


def _differs(key: Key, item: KernelObject, facts: Facts) -> bool:
    actual = (facts.kernel or {}).get(key)
    if isinstance(item, WireguardPeer) and isinstance(actual, WireguardPeer) and actual.endpoint is not None:
        actual = replace(actual, endpoint=item.endpoint)  # the kernel follows a peer's packets
    return actual != item and not (isinstance(item, Sysctl) and item.optional and actual is None)


def _difference(wanted: KernelObject, actual: KernelObject | None) -> str:
    return f"{wanted} is missing" if actual is None else f"{wanted} is {actual}"


def subnet_file(facts: Facts) -> Iterator[Finding]:
    """What container runtimes read, against the lease."""
    path = facts.settings.subnet_file
    if facts.lease is None or facts.network is None or facts.mtu is None:
        yield skipped("subnet.env", _reason(facts, "lease"))
        return
    if facts.underlay is not None and max(facts.mtu, facts.given_mtu or 0) > facts.underlay.mtu:
        yield skipped("subnet.env", "no node can have this MTU: see 'underlay MTU'")
        return
    try:
        text = files.read_own(path).decode(errors="replace")
    except OSError as error:
        meaning = "container runtimes can't learn this node's subnet"
        yield failed("subnet.env", f"{path}: {error.strerror}", meaning, "pyflannel status")
        return
    wanted = envfile.render(facts.network, facts.lease.subnets, facts.mtu, facts.settings.ip_masq)
    wrong = set(wanted.splitlines()) - set(text.splitlines())
    masquerade = {line for line in wrong if line.startswith("FLANNEL_IPMASQ=")}
    if wrong - masquerade:
        lines = ", ".join(sorted(wrong - masquerade))
        meaning = "new containers get addresses or an MTU that the overlay does not carry"
        yield failed("subnet.env", f"{path} lacks {lines}", meaning, _rewriting(facts, " && systemctl restart docker"))
    elif masquerade:
        meaning = "the settings of this command and of the daemon differ, or the daemon was not restarted"
        yield warned("subnet.env", f"{path} lacks {masquerade.pop()}", meaning, _RESTART)
    else:
        yield passed("subnet.env", f"{path} agrees with the lease")


def bridges(facts: Facts) -> Iterator[Finding]:
    """The container runtimes' bridges, against subnet and MTU."""
    if facts.lease is None or facts.inventory is None or facts.mtu is None:
        yield skipped("container bridge", _reason(facts, "lease"))
        return
    subnets = facts.lease.subnets.each
    found = [interface for interface in facts.inventory.interfaces if interface.name in BRIDGES]
    if not found:
        yield skipped("container bridge", f"no {' or '.join(BRIDGES)} here; other names are not looked at")
    for bridge in found:
        lacking = [subnet for subnet in subnets if not any(address in subnet for address in bridge.addresses)]
        addresses = ", ".join(map(str, bridge.addresses)) or "no address"
        if not bridge.up:
            meaning = "containers on this bridge reach nobody, and nobody reaches them"
            yield failed("container bridge", f"{bridge.name} is down", meaning, f"ip link set {bridge.name} up")
        elif lacking and len(lacking) < len(subnets):
            yield warned(
                "container bridge",
                f"{bridge.name} has {addresses}, and none of this node's {', '.join(map(str, lacking))}",
                f"its containers reach no other node by IPv{lacking[0].version}",
                _mend(bridge.name),
            )
        elif lacking:
            yield warned(
                "container bridge",
                f"{bridge.name} has {addresses}, this node's subnet is {facts.lease.subnets}",
                "containers on this bridge are not part of the overlay",
                _mend(bridge.name),
            )
        elif bridge.mtu > facts.mtu:
            yield warned(
                "container bridge",
                f"{bridge.name} has MTU {bridge.mtu}, the overlay carries {facts.mtu}",
                "full packets of containers are fragmented or dropped; a bridge without containers may show the "
                "kernel's default",
                "pyflannel docker-opts && systemctl restart docker   # new containers get --mtu",
            )
        else:
            yield passed("container bridge", f"{bridge.name}, {addresses}, MTU {bridge.mtu}")


def _mend(bridge: str) -> str:
    """How a bridge gets an address of the present subnet."""
    if bridge == "cni0":
        return "ip link delete cni0   # the next pod creates it again; then start the others on this node again"
    return "pyflannel docker-opts && systemctl restart docker   # see docs/operations.md"


def _reason(facts: Facts, name: str) -> str:
    error: PyflannelError | None = facts.problems.get(name)
    return str(error) if error is not None else "not known"
