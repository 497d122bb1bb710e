from __future__ import annotations

from ipaddress import ip_address

from tests import recordings

from pyflannel.backend import DesiredState, LeaseAttributes, Node, NoOptions, Published, Underlay
from pyflannel.daemon import subnet_env as envfile
from pyflannel.planning.overlay import Overlay
from pyflannel.plugins import load_backend
from pyflannel_backends.alloc import AllocBackend

UNDERLAY = Underlay("eth0", 1500, ipv4=ip_address("192.0.2.1"), public_ipv4=ip_address("192.0.2.1"))  # type: ignore[arg-type]


def test_it_is_found_by_its_name() -> None:
    assert load_backend("alloc") is AllocBackend


def test_flanneld_s_leases_are_peers_without_a_kernel_object() -> None:
    own, *others = sorted(recordings.leases("alloc"), key=lambda lease: str(lease.attributes.public_ip))
    node = Node("node-1", recordings.network("alloc"), UNDERLAY, own.subnets)
    overlay = Overlay(AllocBackend(NoOptions()), node)
    for lease in others:
        overlay.put(lease.key, lease.attributes.to_json())
    assert {key: peer.reason for key, peer in overlay.peers.items()} == {lease.key: "" for lease in others}
    assert dict(overlay.desired) == {}
    assert AllocBackend(NoOptions()).plan_node(node) == DesiredState()


def test_the_lease_is_as_flanneld_writes_it() -> None:
    backend = AllocBackend(NoOptions())
    (own,) = [lease for lease in recordings.leases("alloc") if str(lease.attributes.public_ip) == "192.0.2.1"]
    assert backend.publish(Node("n", recordings.network("alloc"), UNDERLAY, own.subnets)) == Published()
    assert backend.capabilities.untyped_leases
    assert own.attributes == LeaseAttributes(public_ip=own.attributes.public_ip)


def test_subnet_env_is_flanneld_s() -> None:
    (own,) = [lease for lease in recordings.leases("alloc") if str(lease.attributes.public_ip) == "192.0.2.1"]
    mtu = AllocBackend(NoOptions()).mtu(UNDERLAY)
    text = envfile.render(recordings.network("alloc"), own.subnets, mtu, True)
    assert text == (recordings.GOLDEN / "alloc" / "subnet.env").read_text()
