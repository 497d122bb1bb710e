"""The CNI network of this node's containers: a conflist that is there when, and only when, the node has its subnet.

flannel installs its conflist before it knows the subnet, and has a CNI plugin of its own read ``subnet.env`` at every
pod; a runtime so calls the network ready when it is not. Here the daemon writes what that plugin would have made of it,
for the plugins that every runtime has: ``bridge``, ``host-local`` and ``portmap``. The network's name is flannel's,
``cbr0``: host-local keeps its addresses by that name, and so gives none away twice when a node moves from one to the
other. Kubernetes' runtimes, nerdctl, Podman and Nomad read the same file.

The file outlives a reboot, and the overlay does not. So a daemon that starts where ``subnet.env`` is gone, which lies
in memory, takes it away until the node has its subnet again.

A runtime takes the first file of the directory by name. flannel's own, which would come before ours, is put aside.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import ConfigError, KernelError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets
from pyflannel.small import files
from pyflannel.small.scarcity import lacking

__all__ = ["ASIDE", "NETWORK", "SUFFIXES", "is_ours", "remove", "remove_after_reboot", "render", "write"]

log = logging.getLogger(__name__)

NETWORK: Final = "cbr0"
BRIDGE: Final = "cni0"

ASIDE: Final = ".before-pyflannel"
"""What is put behind the name of flannel's conflist, which no runtime then reads."""

_MARK: Final = "pyflannel"
_VERSION: Final = "0.3.1"
SUFFIXES: Final = (".conf", ".conflist", ".json")
"""What runtimes read (libcni)."""


def render(network: NetworkConfig, subnets: Subnets, mtu: int, ip_masq: bool) -> str:
    """The conflist's text.

    :param ip_masq: whether pyflannel masquerades what leaves the overlay; else the bridge plugin does.
    """
    used = [subnet for subnet in subnets.each if network.family(subnet.version) is not None]
    routes = [{"dst": str(family.network)} for family in network.families]
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": BRIDGE,
        "mtu": mtu,
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": not ip_masq,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": str(subnet)}] for subnet in used], "routes": routes},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"cniVersion": _VERSION, "name": NETWORK, _MARK: True, "plugins": [bridge, portmap]}
    return json.dumps(document, indent=2) + "\n"


def write(path: Path, text: str) -> bool:
    """Make ``path`` hold ``text``, and put flannel's conflist aside if a runtime would prefer it.

    :returns: whether anything was done.
    :raises ConfigError: it can't be written there.
    :raises KernelError: it could not be written now, for want of descriptors or memory.
    """
    try:
        written = files.replace(path, text)
        return _put_aside(path) or written
    except OSError as error:
        scarce = lacking(error)
        if scarce:
            raise KernelError(f"CNI network {path}: can't be written: {scarce}") from error
        raise ConfigError(
            f"CNI network {path}: can't be written: {error.strerror}; name another place with --cni-conf, or make this "
            "one writable"
        ) from error


def is_ours(path: Path) -> bool:
    """Whether a conflist was written by us."""
    return _read(path).get(_MARK) is True


def remove(path: Path) -> bool:
    """Remove the conflist if it is ours; whether it was. What was put aside stays aside: whoever wants it knows why.

    :raises ConfigError: it can't be removed.
    """
    if not is_ours(path):
        return False
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(f"CNI network {path}: can't be removed: {error.strerror}") from error
    return True


def remove_after_reboot(path: Path, subnet_file: Path) -> None:
    """Remove a conflist of ours where nothing else of the overlay has been left: no container is to start on it yet."""
    if subnet_file.exists():
        return
    try:
        if remove(path):
            log.info("CNI network %s: of before the reboot, removed until the node has its subnet", path)
    except ConfigError as error:
        log.warning("%s", error)


def _put_aside(path: Path) -> bool:
    done = False
    for other in sorted(path.parent.iterdir()):
        if other.name < path.name and other.suffix in SUFFIXES and _is_flannels(other):
            other.replace(other.with_name(other.name + ASIDE))
            done = True
    return done


def _is_flannels(path: Path) -> bool:
    document = _read(path)
    plugins = document.get("plugins", [document])
    return isinstance(plugins, list) and any(
        isinstance(plugin, dict) and plugin.get("type") == "flannel" for plugin in plugins
    )


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if it is none."""
    with suppress(OSError, ValueError, RecursionError):
        document = json.loads(files.read_own(path))
        if isinstance(document, dict):
            return document
    return {}
