"""What doctor reads of the machine, from files made for the purpose."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pyflannel.doctor.node import availability, capabilities, set_sysctl, sysctl


@pytest.mark.parametrize(
    ("mask", "held"),
    [
        ("000001ffffffffff", {"CAP_NET_ADMIN", "CAP_NET_RAW"}),
        ("0000000000001000", {"CAP_NET_ADMIN"}),
        ("0000000000002000", {"CAP_NET_RAW"}),
        ("0000000000000000", set()),
    ],
)
def test_capabilities_are_read_from_the_effective_set(mask: str, held: set[str]) -> None:
    text = (
        f"Name:\tx\nCapInh:\tffffffffffffffff\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\nCapBnd:\tffffffffffffffff\n"
    )
    assert capabilities(text) == held


def put(root: Path, name: str, text: str | bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_module_in_use_needs_no_more(tmp_path: Path) -> None:
    (tmp_path / "sys/module/vxlan").mkdir(parents=True)
    assert availability("vxlan", "6.1", tmp_path) == "in use"


@pytest.mark.parametrize("name", ["vxlan.ko", "vxlan.ko.xz", "vxlan.ko.zst"])
def test_a_module_on_disk_can_be_loaded(tmp_path: Path, name: str) -> None:
    put(
        tmp_path,
        "lib/modules/6.1/modules.dep",
        f"kernel/a/ip6_udp_tunnel.ko:\nkernel/b/{name}: kernel/a/ip6_udp_tunnel.ko\n",
    )
    assert availability("vxlan", "6.1", tmp_path) == "a module that can be loaded"
    assert availability("vxlan", "6.2", tmp_path) == ""
    assert availability("tun", "6.1", tmp_path) == ""


def test_a_module_that_others_only_need_is_not_there(tmp_path: Path) -> None:
    put(tmp_path, "lib/modules/6.1/modules.dep", "kernel/b/geneve.ko: kernel/a/my_tun.ko\n")
    assert availability("tun", "6.1", tmp_path) == ""


def test_what_is_built_in_is_found_in_any_of_three_places(tmp_path: Path) -> None:
    put(tmp_path, "a/lib/modules/6.1/modules.builtin", "kernel/drivers/net/vxlan/vxlan.ko\n")
    put(tmp_path, "b/proc/config.gz", gzip.compress(b"CONFIG_VXLAN=y\n"))
    put(tmp_path, "c/boot/config-6.1", "CONFIG_VXLAN=y\n")
    put(tmp_path, "d/boot/config-6.1", "# CONFIG_VXLAN is not set\nCONFIG_VXLAN=m\n")
    found = [availability("vxlan", "6.1", tmp_path / root) for root in "abcd"]
    assert found == ["built in", "built in", "built in", ""]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/flannel.1/rp_filter", "net.ipv4.conf.flannel/1.rp_filter"),
        ("net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding"),
    ],
)
def test_a_device_with_a_dot_in_its_name_is_written_as_sysctl_reads_it(path: str, name: str) -> None:
    assert set_sysctl(path, 1) == f"sysctl -w {name}=1"


def test_a_parameter_that_is_not_there_is_none(tmp_path: Path) -> None:
    put(tmp_path, "net/ipv4/ip_forward", "1\n")
    put(tmp_path, "net/ipv4/odd", "4096 87380\n")
    assert sysctl("net/ipv4/ip_forward", tmp_path) == 1
    assert sysctl("net/ipv4/odd", tmp_path) is None
    assert sysctl("net/bridge/bridge-nf-call-iptables", tmp_path) is None
