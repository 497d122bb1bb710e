"""Checks of what containers get from this node: the subnet that the store assigns, and the CNI network made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyflannel.daemon import cni
from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.network.lease import Subnets
from pyflannel.small import files
from pyflannel.store import Unassigned

__all__ = ["announcement", "assigned", "cni_network", "cni_plugins"]

PLUGIN_DIRECTORIES: Final = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
"""Where runtimes look for CNI plugins, and where distributions put them."""

_CONDITION: Final = (
    "kubectl describe nodes   # the condition NetworkUnavailable; --set-node-network-unavailable may be off"
)
_NEEDED: Final = ("bridge", "host-local", "portmap")


def assigned(facts: Facts) -> Iterator[Finding]:
    """What the store has for this node, where it is the store that decides."""
    found = facts.store.assigned if facts.store is not None else None
    if found is None:
        return
    if isinstance(found, Unassigned):
        yield failed("assigned subnet", found.reason, "this node has no part in the overlay, and its pods can't start")
    elif facts.network is not None:
        subnets = Subnets.from_key(found.key)
        networks = ", ".join(str(family.network) for family in facts.network.families)
        if facts.network.contains(facts.network.used(subnets)):
            yield passed("assigned subnet", f"{subnets} of {networks}")
        else:
            meaning = "the network config and the cluster's range differ, and this node does not join"
            fix = "kubectl get nodes -o custom-columns=NODE:.metadata.name,CIDR:.spec.podCIDRs"
            yield failed("assigned subnet", f"{subnets} lies outside {networks}", meaning, fix)


def announcement(facts: Facts) -> Iterator[Finding]:
    """What the store tells of this node to those who would start work here, against what is so."""
    told = facts.store.announced if facts.store is not None else None
    if told is None:
        return
    works = facts.status is not None and bool(facts.status["ready"])
    if told == works:
        yield passed("announcement", "containers may come" if told else "no containers for now, and rightly so")
    elif works:
        text = "the store says that this node has no network, though the overlay works"
        yield failed("announcement", text, "no container is started on this node", _CONDITION)
    else:
        text = "the store says that this node has its network, though the overlay does not work"
        meaning = "containers are started here, and reach no other node"
        yield warned("announcement", text, meaning, "pyflannel status")


def cni_network(facts: Facts) -> Iterator[Finding]:
    """The conflist that ``--cni-conf`` asks for, and whether runtimes take it."""
    path = facts.settings.cni_conf
    if path is None:
        return
    if not cni.is_ours(path):
        meaning = "runtimes have no network, or another one, to start containers in"
        yield failed("CNI network", f"{path} is not there, or not pyflannel's", meaning, "pyflannel status")
        return
    first = next(iter(sorted(each for each in path.parent.iterdir() if each.suffix in cni.SUFFIXES)), path)
    if first != path:
        meaning = "runtimes take the first file by name: containers get another network than pyflannel's"
        yield warned("CNI network", f"{first} comes before {path.name}", meaning, f"mv {first} {first}.off")
        return
    said = _subnets(path)
    wanted = [str(subnet) for subnet in facts.overlay.node.subnets.each] if facts.overlay is not None else said
    if said != wanted:
        meaning = "containers get addresses that lead to no node, or to another one"
        yield failed("CNI network", f"{path} has {said}, this node's are {wanted}", meaning, "pyflannel status")
    else:
        yield passed("CNI network", f"{path}, {' '.join(said)}")


def cni_plugins(facts: Facts) -> Iterator[Finding]:
    """The plugins that the conflist names."""
    if facts.settings.cni_conf is None:
        return
    places = [place for place in PLUGIN_DIRECTORIES if place.is_dir()]
    if not places:
        named = ", ".join(map(str, PLUGIN_DIRECTORIES))
        yield skipped("CNI plugins", f"none of {named} is here (in a container, the host's are not seen)")
        return
    missing = [name for name in _NEEDED if not any((place / name).exists() for place in places)]
    if missing:
        meaning = "no container can start on this node"
        fix = "apt-get install kubernetes-cni   # or containernetworking-plugins"
        yield failed("CNI plugins", f"{', '.join(missing)} missing in {', '.join(map(str, places))}", meaning, fix)
    else:
        yield passed("CNI plugins", f"{', '.join(_NEEDED)} are here")


def _subnets(path: Path) -> list[str]:
    try:
        document: dict[str, Any] = json.loads(files.read_own(path))
        return [each[0]["subnet"] for each in document["plugins"][0]["ipam"]["ranges"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
