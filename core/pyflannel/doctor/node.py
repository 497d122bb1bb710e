"""Checks of the machine: rights, kernel, underlay, forwarding."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.errors import KernelError
from pyflannel.firewall import programs
from pyflannel.firewall.nftables import Nft
from pyflannel.kernel.interception import read_interception
from pyflannel.kernel.model import KernelObject, Link, XfrmPolicy
from pyflannel.kernel.refusal import module_of
from pyflannel.network.underlay import LOOPBACK
from pyflannel.planning.judging import own_public_problem

__all__ = [
    "advertisements",
    "bridge_filter",
    "forwarding",
    "interception",
    "kernel_features",
    "return_path_filter",
    "rights",
    "underlay",
    "underlay_mtu",
]

_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}  # linux/capability.h
_KINDS: Final = frozenset({"gre", "ip6gre", "ipip", "tun", "vxlan", "wireguard", "xfrm"})
"""The kinds of devices that the backends make."""

_SWITCHES: Final = {"ip_gre": "NET_IPGRE", "ip6_gre": "IPV6_GRE", "esp4": "INET_ESP", "esp6": "INET6_ESP"}
"""The names of what builds modules in, where they are not the modules' own."""

_STRICT = 1
_SHOWN: Final = 5


def sysctl(path: str, root: Path = Path("/proc/sys")) -> int | None:
    """A kernel parameter's number; ``None`` where the kernel has none of this name."""
    try:
        return int((root / path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def set_sysctl(path: str, value: int) -> str:
    """The command that sets a kernel parameter; a dot in a name, as in ``flannel.1``, is a slash to it."""
    named = ".".join(part.replace(".", "/") for part in path.split("/"))
    return f"sysctl -w {named}={value}"


def capabilities(text: str) -> frozenset[str]:
    """Those of :data:`_CAPABILITIES` that are effective, from the text of ``/proc/<pid>/status``."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    return frozenset(name for name, bit in _CAPABILITIES.items() if mask >> bit & 1)


def rights(_: Facts) -> Iterator[Finding]:
    """What this process may do: less than the daemon needs makes for fewer findings."""
    held = capabilities(Path("/proc/self/status").read_text(encoding="ascii"))
    if "CAP_NET_ADMIN" in held:
        yield passed("rights", "CAP_NET_ADMIN is there")
    else:
        yield warned(
            "rights",
            "this process has no CAP_NET_ADMIN",
            "the daemon needs it, and without it firewall rules can't be read here",
            "sudo pyflannel doctor",
        )


# The kernel ----------------------------------------------------------------------------------------------------------


def kernel_features(facts: Facts) -> Iterator[Finding]:
    """Whether the kernel has the kinds of devices that the backend plans, and the encryption behind its policies."""
    if facts.overlay is None:
        yield skipped("kernel features", "not known which are needed: " + str(facts.problems["overlay"]))
        return
    planned = [*facts.overlay.own_objects, *facts.overlay.desired.values()]
    modules = sorted({module for item in planned if (module := _module(item)) is not None})
    if not modules:
        yield passed("kernel features", f"backend {facts.overlay.backend.name} needs none")
    for module in modules:
        present = any(isinstance(item, Link) and _module(item) == module for item in (facts.kernel or {}).values())
        how = "a device of this kind is there" if present else availability(module, os.uname().release)
        if how:
            yield passed("kernel features", f"{module}: {how}")
        else:
            yield failed(
                "kernel features",
                f"{module} is neither built in nor a loadable module of {os.uname().release}",
                f"backend {facts.overlay.backend.name} can't do without it",
                f"modprobe {module}   # after installing the kernel's extra modules package",
            )


def _module(item: KernelObject) -> str | None:
    if isinstance(item, XfrmPolicy):
        return f"esp{item.tunnel_source.version}"
    if not isinstance(item, Link):
        return None
    return module_of(item.info.kind) if item.info.kind in _KINDS else None


def availability(module: str, release: str, root: Path = Path("/")) -> str:
    """How a kernel module can be had, without loading it; empty if it can't, as far as the files say."""
    if (root / "sys/module" / module).is_dir():
        return "in use"
    directory = root / "lib/modules" / release
    for name, how in (("modules.builtin", "built in"), ("modules.dep", "a module that can be loaded")):
        try:
            text = (directory / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if re.search(rf"/{module}\.ko(\.\w+)?(:|$)", text, re.MULTILINE):
            return how
    return "built in" if f"CONFIG_{_SWITCHES.get(module, module.upper())}=y" in _kernel_config(release, root) else ""


def _kernel_config(release: str, root: Path) -> str:
    try:
        return gzip.decompress((root / "proc/config.gz").read_bytes()).decode("ascii", "replace")
    except OSError:
        pass  # CONFIG_IKCONFIG_PROC is off: distributions put the file into /boot
    try:
        return (root / "boot" / f"config-{release}").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


# The underlay --------------------------------------------------------------------------------------------------------


def underlay(facts: Facts) -> Iterator[Finding]:
    """An interface that is up and has addresses of the network's families."""
    if facts.underlay is None:
        yield failed(
            "underlay",
            str(facts.problems["underlay"]),
            "without an underlay this node has no way to its peers",
            "ip -brief address; ip route; then set --iface",
        )
        return
    found = facts.underlay
    interface = facts.inventory.interface(found.interface) if facts.inventory is not None else None
    addresses = ", ".join(str(address) for address in (found.ipv4, found.ipv6) if address is not None)
    if interface is not None and not interface.up:
        meaning = "no packet of the overlay leaves this node"
        yield failed("underlay", f"{found.interface} is down", meaning, f"ip link set {found.interface} up")
        return
    for version in facts.network.versions if facts.network is not None else ():
        if found.local(version) is None:
            switch = f"net/ipv6/conf/{found.interface}/disable_ipv6"
            off = version == 6 and sysctl(switch) == 1
            yield failed(
                "underlay",
                f"{found.interface} has no usable IPv{version} address" + (": IPv6 is off there" if off else ""),
                f"the network has IPv{version} subnets, which travel between addresses of this family",
                f"{set_sysctl(switch, 0)}   # then its address" if off else f"ip address show dev {found.interface}",
            )
            return
        problem = own_public_problem(facts.network, found, version) if facts.network is not None else ""
        if problem:
            meaning = "every other node skips the lease of this one: no packet comes from there, and none gets there"
            yield failed("underlay", problem, meaning, "systemctl edit pyflannel   # another --public-ip or --iface")
            return
    why, others = _chosen(facts)
    known_as = "".join(
        f"; peers know it as {public}, which another machine translates to {found.local(public.version)}"
        for public in (found.public_ipv4, found.public_ipv6)
        if public is not None and public != found.local(public.version)
    )
    more = f"; would have been next: {', '.join(others)}" if others else ""
    yield passed("underlay", f"{found.interface}, {addresses}: {why}{known_as}{more}")


def _chosen(facts: Facts) -> tuple[str, Sequence[str]]:
    """Why this underlay, and what would have been chosen without it: as the daemon has it, else as it would choose."""
    known = facts.status.get("underlay") if facts.status is not None else None
    if known is not None and known["interface"] == (facts.underlay and facts.underlay.interface) and known.get("why"):
        return str(known["why"]), known.get("others", ())
    return (facts.underlay.why, facts.underlay.others) if facts.underlay is not None else ("", ())


def underlay_mtu(facts: Facts) -> Iterator[Finding]:
    """Whether the overlay's devices leave room for the encapsulation."""
    if facts.underlay is None or facts.mtu is None:
        reason = next(facts.problems[name] for name in ("underlay", "backend", "mtu") if name in facts.problems)
        yield skipped("underlay MTU", str(reason))
        return
    underlay, mtu = facts.underlay, facts.mtu
    way = "the way out" if underlay.interface == LOOPBACK else underlay.interface
    if mtu > underlay.mtu or (facts.given_mtu or 0) > underlay.mtu:
        yield failed(
            "underlay MTU",
            f"containers may send {mtu} bytes, but {way} carries {underlay.mtu}, the encapsulation included",
            "full packets are fragmented or dropped: connections are made, and then hang",
            f"pyflannel network change --backend-option MTU={underlay.mtu}   # or raise the underlay's, on all nodes",
        )
    elif facts.network is not None and facts.network.ipv6 is not None and mtu < 1280:
        yield failed(
            "underlay MTU",
            f"{way} carries {underlay.mtu} bytes, which leaves {mtu} for containers",
            "IPv6 needs 1280 (RFC 8200, 5)",
            f"ip link set {underlay.interface} mtu 1500",
        )
    else:
        text = f"{way} carries {underlay.mtu} bytes, containers may send {mtu}"
        yield passed("underlay MTU", text)


# Forwarding ----------------------------------------------------------------------------------------------------------


def forwarding(facts: Facts) -> Iterator[Finding]:
    """Whether this node forwards packets of the network's families, on all interfaces they cross."""
    versions = facts.network.versions if facts.network is not None else (4,)
    for version in versions:
        switch = "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
        paths = [switch]
        if version == 4:
            wrapped = facts.overlay is not None and facts.overlay.entrances
            ways = [link.name for link in facts.links] if wrapped else _interfaces(facts)
            names = dict.fromkeys((*ways, *_bridges(facts)))
            paths += [f"net/ipv4/conf/{name}/forwarding" for name in names]
        off = [path for path in paths if sysctl(path) == 0]
        check = f"IPv{version} forwarding"
        if off:
            yield failed(
                check,
                f"{off[0].replace('/', '.')} is 0",
                "packets between containers and the overlay end here",
                " && ".join(set_sysctl(path, 1) for path in off),
            )
        else:
            yield passed(check, "on")


def _interfaces(facts: Facts) -> list[str]:
    """The interfaces that packets of the overlay cross, wrapped or not."""
    names = [facts.underlay.interface] if facts.underlay is not None else []
    return names + [link.name for link in facts.links]


def _bridges(facts: Facts) -> list[str]:
    """The interfaces that have an address of this node's own subnet: the containers' bridges."""
    if facts.inventory is None or facts.lease is None:
        return []
    subnets = facts.lease.subnets.each
    ours = {link.name for link in facts.links}
    return [
        interface.name
        for interface in facts.inventory.interfaces
        if interface.name not in ours
        and any(address in subnet for address in interface.addresses for subnet in subnets)
    ]


def advertisements(facts: Facts) -> Iterator[Finding]:
    """Whether a node that forwards IPv6 still hears the router it has its routes from."""
    if facts.network is None or facts.network.ipv6 is None or facts.underlay is None or facts.inventory is None:
        return
    if facts.underlay.ipv6 is None:
        return
    name = facts.underlay.interface
    deaf = sysctl(f"net/ipv6/conf/{name}/accept_ra") == 1 and sysctl("net/ipv6/conf/all/forwarding") == 1
    if deaf and facts.inventory.default_route(6) is None:
        yield failed(
            "router advertisements",
            f"{name} takes none (accept_ra is 1 while IPv6 forwarding is on), and there is no IPv6 default route",
            "if this node gets its routes by advertisement, it has lost its way out, maybe to the store and peers",
            set_sysctl(f"net/ipv6/conf/{name}/accept_ra", 2),
        )
    else:
        yield passed("router advertisements", f"{name} loses no route by them")


def return_path_filter(facts: Facts) -> Iterator[Finding]:
    """Strict reverse path filtering (``ip-sysctl.rst``, rp_filter); the larger of all and the interface's counts."""
    everywhere = sysctl("net/ipv4/conf/all/rp_filter") or 0
    strict = [
        name
        for name in _interfaces(facts)
        if max(everywhere, sysctl(f"net/ipv4/conf/{name}/rp_filter") or 0) == _STRICT
    ]
    if strict:
        yield warned(
            "rp_filter",
            f"strict on {', '.join(strict)}",
            "a packet is silently dropped if the reply to it would leave through another interface, as on a node with "
            "several underlay interfaces; loose (2) is enough against spoofing",
            " && ".join(set_sysctl(f"net/ipv4/conf/{name}/rp_filter", 2) for name in strict),
        )
    else:
        yield passed("rp_filter", "not strict on the overlay's way")


def interception(facts: Facts) -> Iterator[Finding]:
    """Whether somebody's program or filter sees the packets of the overlay's devices before the kernel does."""
    check, names = "device filters", [link.name for link in facts.links]
    if not names:
        return
    try:
        there = read_interception()
    except KernelError as error:
        yield skipped(check, str(error))
        return
    chains = _device_chains()
    told = {name: (*there.get(name, ()), *(f"nft's chain {chain}" for chain in chains.get(name, ()))) for name in names}
    found = {name: words for name, words in told.items() if words}
    for name, words in found.items():
        yield warned(
            check,
            f"{name} has {' and '.join(words)}",
            "the overlay's packets meet it first: what it drops is lost, and what it holds back is late",
            f"tc filter show dev {name} ingress; tc qdisc show dev {name}; ip link show {name}; nft list chains",
        )
    if not found:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield passed(check, f"none on {', '.join(names[:_SHOWN])}{more}")


def _device_chains() -> Mapping[str, tuple[str, ...]]:
    """As nft tells; nothing where it can't, which the checks of the firewall say."""
    nft = programs.find("nft")
    try:
        return Nft(nft).device_chains() if nft is not None else {}
    except KernelError:
        return {}


def bridge_filter(facts: Facts) -> Iterator[Finding]:
    """Whether bridged packets meet iptables (the module br_netfilter)."""
    value = sysctl("net/bridge/bridge-nf-call-iptables")
    if value is None and facts.store is not None and facts.store.assigned is not None:
        yield warned(
            "bridge-nf-call-iptables",
            "br_netfilter is not loaded: bridged packets don't meet iptables",
            "with kube-proxy on iptables or nftables, a pod gets no answer from a service whose pod is on the same "
            "node: the answer takes the bridge, past the rules that would put the service's address back into it",
            "modprobe br_netfilter && echo br_netfilter >/etc/modules-load.d/kubernetes.conf",
        )
    elif value is None:
        yield passed("bridge-nf-call-iptables", "br_netfilter is not loaded: bridged packets don't meet iptables")
    elif value == 0 or facts.settings.forward_rules:
        yield passed("bridge-nf-call-iptables", f"{value}")
    else:
        yield warned(
            "bridge-nf-call-iptables",
            "1, and our forward rules are off",
            "packets between two containers on this node go through the FORWARD chain, too, and may be dropped there",
            "start the daemon with --iptables-forward-rules, or: sysctl -w net.bridge.bridge-nf-call-iptables=0",
        )
