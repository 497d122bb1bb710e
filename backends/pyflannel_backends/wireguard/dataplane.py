"""What turns a node's plan into the workers that move its packets in userspace: one for each of its devices.

In mode ``separate`` a node with both families has two devices, as with the kernel's WireGuard, so two tunnels with one
key: IPv4 over IPv4, IPv6 over IPv6, on a port each. In every other mode one tunnel carries both, and has a socket of
each family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2s
from typing import TYPE_CHECKING, Any

from pyflannel.backend import DataPlane, Lease, Node, Subnets
from pyflannel.errors import ConfigError
from pyflannel_backends.userspace import leaves_a_cpu
from pyflannel_backends.userspace.control import Row
from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind

from . import keys
from .worker import WireguardConfig

if TYPE_CHECKING:
    from . import WireguardBackend

__all__ = ["WireguardDataPlane", "rows", "worker_config"]

_TIMESTAMP_FILE = "timestamp"
_NAMES = {"flannel-wg": "wireguard", "flannel-wg-v6": "wireguard-v6"}
"""What the workers of the usual devices are called; the others have their device's name."""


class WireguardDataPlane(DataPlane):
    """See the module's docstring. Takes over the workers that an earlier daemon left behind, or starts them.

    :raises ConfigError: the underlay has no address to receive at.
    """

    def __init__(self, backend: WireguardBackend, node: Node) -> None:
        secrets = {} if backend.psk is None else {"psk": backend.psk.reveal().hex()}
        kinds = [
            WorkerKind(
                _NAMES.get(device) or device.replace("flannel-", ""),
                f"{__package__}.worker",
                worker_config(backend, node, device),
                lambda peer, device=device: rows(backend, node, peer, device),  # type: ignore[misc]
                secrets,
            )
            for device in dict.fromkeys(map(backend.device, node.network.versions))
        ]
        self.planes = [UserspaceDataPlane(kind, node.state_dir, 1) for kind in kinds]

    def put(self, peer: Lease) -> None:
        for plane in self.planes:
            plane.put(peer)

    def remove(self, subnets: Subnets) -> None:
        for plane in self.planes:
            plane.remove(subnets)

    def check(self) -> Mapping[str, str]:
        return {key: why for plane in self.planes for key, why in plane.check().items()}

    def counters(self) -> Mapping[str, int]:
        """See :class:`DataPlane`: the sums over all workers."""
        totals: dict[str, int] = {}
        for plane in self.planes:
            for name, count in plane.counters().items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def describe(self) -> Mapping[str, str]:
        """See :class:`DataPlane`: of the peers that a worker had a handshake with last, what ``wg show`` would say."""
        notes: dict[str, list[str]] = {}
        for plane in self.planes:
            met = {peer: about for told in plane.statuses() for peer, about in told.get("peers", {}).items()}
            for key, peer in plane.peers().items():
                if peer in met:
                    notes.setdefault(key, []).append(_note(met[peer]))
        return {key: "; ".join(texts) for key, texts in notes.items()}

    def stop(self) -> None:
        """See :class:`DataPlane`. The workers go on."""
        for plane in self.planes:
            plane.stop()

    def end(self) -> None:
        """See :class:`DataPlane`. The workers end, too."""
        for plane in self.planes:
            plane.end()


def worker_config(backend: WireguardBackend, node: Node, device: str) -> WireguardConfig:
    """What the worker of ``device`` has to know.

    :raises ConfigError: the underlay has no address to receive at.
    """
    versions = [version for version in node.network.versions if backend.device(version) == device]
    families = versions if backend.options.mode == "separate" else [4, 6]
    addresses = [{4: node.underlay.ipv4, 6: node.underlay.ipv6}[family] for family in families]
    listen = [(str(address), backend.port(versions[-1])) for address in addresses if address is not None]
    if not listen:
        raise ConfigError(
            f"backend wireguard: interface {node.underlay.interface} has no address for {device} to receive at; "
            "choose another one with --iface"
        )
    return WireguardConfig(
        device=device,
        mtu=backend.mtu(node.underlay),
        own=[str(subnet) for version in versions if (subnet := node.subnets.of(version)) is not None],
        offload=True,
        realtime=leaves_a_cpu(len(set(map(backend.device, node.network.versions)))),
        listen=listen,
        key_file=str(keys.key_path(node.state_dir)),
        timestamp_file=str(node.state_dir / f"{device}-{_TIMESTAMP_FILE}"),
        keepalive=backend.options.keepalive,
        psk_digest="" if backend.psk is None else blake2s(backend.psk.reveal(), person=b"psk").hexdigest(),
    )


def rows(backend: WireguardBackend, node: Node, peer: Lease, device: str) -> Iterable[Row]:
    """A lease's rows of a device's table: subnet, public key, and how :class:`~.tunnel.Tunnel` finds who holds it.

    The subnet's name in them says that a new key is the same node's, whatever other family its lease gains or loses. A
    node elsewhere that got the subnet is another.
    """
    return [
        (
            str(subnet),
            entry.public_key,
            f"{entry.allowed_ips[0]} {entry.endpoint.address}",
            str(entry.endpoint.address),
            entry.endpoint.port,
        )
        for entry in backend.reach(node, peer)
        if entry.link == device and entry.endpoint is not None
        for subnet in entry.allowed_ips
    ]


def _note(about: Mapping[str, Any]) -> str:
    address, port = about["endpoint"]
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    megabytes = [f"{about[name] / 1e6:.1f} MB" for name in ("received_bytes", "sent_bytes")]
    return f"at {place}, handshake {about['handshake_age']:.0f} s ago, {megabytes[0]} received, {megabytes[1]} sent"
