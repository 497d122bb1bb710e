"""Doctor names the cause: what went wrong on somebody's nodes, one by one, under daemons that run.

One lab serves all; each leaves it as it found it. Where nothing is wrong, doctor has nothing to say. Where its command
can be run in a lab, it is what mends. The table in docs/doctor.md has all that is walked here, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import until
from tests.integration.examining import MANY_AT_ONCE, NO_FIREWALL, NOT_SERVED, PAST_THE_ENCRYPTION, UNGUARDED, Doctor
from tests.integration.overlay import overlay
from tests.storing import FREE, write_document

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("vxlan", nodes=2, ipv6="fd00:10::/48") as lab:
        yield lab


@pytest.fixture(scope="module")
def doctor(lab: Lab) -> Iterator[Doctor]:
    """What is told no more than where the daemon is."""
    with Doctor(lab.nodes[0]) as doctor:
        yield doctor


def store(lab: Lab) -> Path:
    return lab.outside(lab.nodes[0].directory).parent / "store"


def leased(node: Node) -> str:
    return str(node.daemon.status()["lease"]["key"])


def mend(node: Node, command: str) -> None:
    """Do what doctor says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = node.run(["sh", "-ec", command], env={"PATH": path}, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def healthy(doctor: Doctor) -> None:
    until(lambda: doctor.trouble() == {}, lambda: f"all is well again: {doctor.trouble()}")


@dataclass(frozen=True)
class Row:
    """Something that is done to a node, and what doctor must say of it.

    :param do: shell commands in the node; ``{peer}`` is the other node's subnet, ``{half}`` its second half, ``{near}``
        its first, ``{address}`` an address of it.
    :param undo: what takes it back. Where the command that doctor gives is to ``mend``, that is run before.
    :param check: the finding that must fail or warn; empty: nothing may.
    :param says: what its message must hold; ``fix`` its command. ``probe`` are words for doctor to probe peers by.
    """

    do: str
    undo: str
    check: str = ""
    says: str = ""
    fix: str = ""
    probe: tuple[str, ...] = ()
    mend: bool = False


TUN = "ip link add tun7 type veth peer name tun8; ip link set tun7 up; ip link set tun8 up"
"""A device of somebody else's."""

ROWS = {
    "a VPN's two halves": Row(
        f"{TUN}; ip route add 0.0.0.0/1 dev tun7; ip route add 128.0.0.0/1 dev tun7",
        "ip link delete tun7",
    ),
    "a virtual address": Row("ip addr add 192.0.2.200/32 dev eth0", "ip addr delete 192.0.2.200/32 dev eth0"),
    "another default route": Row(
        TUN + "; ip route add default dev tun7 metric 50",
        "ip link delete tun7",
    ),
    "foreign policy rules": Row(
        f"{TUN}; ip route add default dev tun7 table 100; ip rule add to 203.0.113.0/24 lookup 100",
        "ip rule delete to 203.0.113.0/24 lookup 100; ip link delete tun7",
    ),
    "another address from DHCP": Row(
        "ip addr add 192.0.2.81/24 dev eth0; ip addr delete 192.0.2.1/24 dev eth0; "
        "ip route replace default via 192.0.2.254 dev eth0",
        "ip addr add 192.0.2.1/24 dev eth0; ip addr delete 192.0.2.81/24 dev eth0; "
        "ip route replace default via 192.0.2.254 dev eth0",
    ),
    "a bridge that does not forward": Row(
        "sysctl -qw net.ipv4.conf.cni0.forwarding=0",
        ":",
        "IPv4 forwarding",
        "net.ipv4.conf.cni0.forwarding is 0",
        "sysctl -w net.ipv4.conf.cni0.forwarding=1",
        mend=True,
    ),
    "our own device does not forward": Row("sysctl -qw net.ipv4.conf.flannel/1.forwarding=0", ":"),
    "our own device in a foreign bridge": Row(
        "ip link add br9 type bridge; ip link set br9 up; ip link set flannel.1 master br9", "ip link delete br9"
    ),
    "our own device's carrier is switched off": Row("ip link set flannel.1 protodown on", ":"),
    "IPv6 is switched off on our own device": Row("sysctl -qw net.ipv6.conf.flannel-v6/1.disable_ipv6=1", ":"),
    "a foreign queue on our own device": Row(
        "tc qdisc replace dev flannel.1 root pfifo limit 5",
        "tc qdisc delete dev flannel.1 root",
        "device filters",
        "flannel.1 has a foreign queueing discipline (pfifo)",
        "tc qdisc show dev flannel.1",
    ),
    "a foreign filter on our own device": Row(
        "nft 'add table netdev x; add chain netdev x y {{ type filter hook ingress device flannel.1 priority 0; }}'",
        "nft delete table netdev x",
        "device filters",
        "flannel.1 has nft's chain netdev x y",
        "nft list chains",
    ),
    "a router's advertisements are not heard": Row(
        "sysctl -qw net.ipv6.conf.eth0.accept_ra=1; ip -6 route delete default",
        "ip -6 route add default via 2001:db8::fe dev eth0",
        "router advertisements",
        "eth0 takes none",
        "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        mend=True,
    ),
    "a foreign route inside a peer's subnet": Row(
        TUN + "; ip route add {half} dev tun7",
        "ip link delete tun7",
        "routes of others",
        "{half} dev tun7",
        "ip route delete {half} dev tun7",
        mend=True,
    ),
    "a foreign route that takes all of a peer's subnet": Row(
        TUN + "; ip route add {near} dev tun7",
        "ip link delete tun7",
        "peer overlay",
        "by tun7",
        "ip route get",
        ("--peer", "10.244."),
    ),
    "the subnet was given to another node while this one was off": Row(
        "ip addr add {inside} dev cni0",
        "ip addr delete {inside} dev cni0",
        "routes of others",
        "cni0 has {address}",
        "ip link delete cni0",
    ),
    "our rules are flushed, the check of sources with them": Row("nft flush ruleset", ":"),
    "a policy rule that forbids the overlay": Row(
        "ip rule add to {peer} prohibit priority 100",
        "ip rule delete priority 100 || :",
        "policy rules of others",
        "rule from all to {peer} prohibit",
        "ip rule delete",
        mend=True,
    ),
    "a policy rule for what containers send": Row(
        "ip rule add from {own} to {peer} blackhole priority 100",
        "ip rule delete priority 100 || :",
        "policy rules of others",
        "rule from {own} to {peer} blackhole",
        "ip rule delete",
        mend=True,
    ),
    "a policy rule for users, which catches what containers send": Row(
        "ip rule add iif cni0 to {peer} uidrange 0-0 blackhole priority 100",
        "ip rule delete priority 100 || :",
        "container packets",
        "cni0 send to {there} goes nowhere (blackhole)",
        "ip rule",
        ("--peer", "10.244."),
    ),
    "no way to a peer's address": Row(
        "ip route add unreachable 192.0.2.2",
        "ip route delete unreachable 192.0.2.2",
        "peer underlay",
        "nowhere",
        "ip route get {at}",
        ("--peer", "10.244."),
    ),
    "a bridge that is down": Row(
        "sysctl -qw net.ipv6.conf.cni0.keep_addr_on_down=1; ip link set cni0 down",
        "ip link set cni0 up",
        "container bridge",
        "cni0 is down",
        "ip link set cni0 up",
        mend=True,
    ),
    "a bridge without an address of one family": Row(
        "ip addr delete {gateway} dev cni0",
        "ip addr add {gateway} dev cni0",
        "container bridge",
        "none of this node's {own}",
        "ip link delete cni0",
    ),
    "IPv6 is switched off on the underlay": Row(
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip addr add 2001:db8::1/64 dev eth0 nodad; "
        "ip -6 route add default via 2001:db8::fe dev eth0",
        "underlay",
        "IPv6 is off there",
        "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_happens_on_a_node_is_named(lab: Lab, doctor: Doctor, name: str) -> None:
    node, row = lab.nodes[0], ROWS[name]
    theirs = ip_network(str(lab.nodes[1].daemon.status()["lease"]["subnets"][0]))
    near, half = theirs.subnets()
    address = theirs.network_address + 99
    words = {"peer": theirs, "half": half, "near": near, "address": address, "inside": f"{address}/{theirs.prefixlen}"}
    own = ip_network(str(node.daemon.status()["lease"]["subnets"][0]))
    words |= {
        "at": lab.nodes[1].ipv4.ip,
        "own": own,
        "gateway": f"{own.network_address + 1}/{own.prefixlen}",
        "there": theirs.network_address + 1,
    }
    try:
        node.run(["sh", "-ec", row.do.format(**words)])
        if row.check:
            until(lambda: row.check in doctor.trouble(*row.probe), "it is seen")
            told = doctor.trouble(*row.probe)[row.check]
            assert any(
                row.says.format(**words) in finding["message"] and row.fix.format(**words) in finding["fix"]
                for finding in told
            ), told
            assert "leases" not in doctor.trouble(), "no peer's lease is to blame"
            if row.fix == "ip link delete cni0":
                assert "ip route delete" not in json.dumps(doctor.trouble()), "the bridge's own route stays"
            if row.mend:
                mend(node, told[0]["fix"])
                if row.undo == ":":
                    healthy(doctor)
        else:
            healthy(doctor)
    finally:
        node.run(["sh", "-c", row.undo.format(**words)])
    healthy(doctor)


# Leases ---------------------------------------------------------------------------------------------------------------

VTEP = {"BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}}
ELSEWHERE = {"Run": "ea8c69a3a0a8eb9f3193637e", "Cards": ["dda037fafd08b68e113980e7"]}
"""Marks of another machine."""


@dataclass(frozen=True)
class Planted:
    """A lease that somebody writes: its key, what it says besides the usual, and the finding that must warn of it."""

    key: str
    document: Mapping[str, Any]
    says: str
    check: str = "leases"
    fix: str = "pyflannel leases"


LEASES = {
    "a lease with the link's broadcast address": Planted(
        FREE, {"PublicIP": "192.0.2.255"}, "not an address that a node can have"
    ),
    "a lease with the link's network address": Planted(
        FREE, {"PublicIP": "192.0.2.0"}, "not an address that a node can have: the network address of 192.0.2.0/24"
    ),
    "a lease with an address of nowhere": Planted(FREE, {"PublicIP": "0.1.2.3"}, "not an address that a node can have"),
    "a lease with a reserved address": Planted(FREE, {"PublicIP": "240.0.0.1"}, "240.0.0.0/4 is reserved"),
    "a lease with a loopback address": Planted(FREE, {"PublicIP": "127.0.0.1"}, "a loopback address"),
    "a lease with an IPv6 address in place of an IPv4 one": Planted(
        FREE, {"PublicIP": "::ffff:127.0.0.1"}, "bad address"
    ),
    "a lease with a link-local address": Planted(
        f"{FREE}&fd00:10:0:fff0::-64", {"PublicIP": "192.0.2.9", "PublicIPv6": "fe80::1"}, "a link-local address"
    ),
    "a lease with this node's address": Planted(FREE, {"PublicIP": "192.0.2.1"}, "is this node's own"),
    "a lease whose address is inside the overlay": Planted(
        FREE, {"PublicIP": "10.244.250.3"}, "lies inside the overlay"
    ),
    "a lease of half a megabyte": Planted(
        FREE, {"PublicIP": "192.0.2.9", "X": "x" * 520_000}, "more than 32768 characters"
    ),
    "a lease under another spelling of its key": Planted(
        "10.244.250.0-024", {"PublicIP": "192.0.2.9"}, "another spelling of 10.244.250.0-24"
    ),
    "a lease of every address": Planted("10.244.250.0-24&::-0", {"PublicIP": "192.0.2.9"}, "'::-0' is every address"),
    "a lease whose name would move the cursor": Planted(f"{FREE}%1B", {"PublicIP": "192.0.2.9"}, "lease key"),
    "a lease of another backend": Planted(
        FREE, {"PublicIP": "192.0.2.9", "BackendType": "udp"}, "BackendType is 'udp'"
    ),
    "a lease outside the network": Planted("10.9.9.0-24", {"PublicIP": "192.0.2.9"}, "lies outside the network"),
    "two leases for one subnet": Planted("{ipv4}", {"PublicIP": "192.0.2.9"}, "claims what lease"),
    "a cloned machine": Planted(
        FREE,
        {"PublicIP": "192.0.2.9", "NodeID": "n1", "Machine": ELSEWHERE},
        "another machine has this one's node id 'n1': that of lease 10.244.250.0-24 at 192.0.2.9",
        "node id",
        "--node-id",
    ),
    "the copy of a machine that is known": Planted(
        FREE,
        {"PublicIP": "192.0.2.9", "NodeID": "n1-copy", "Machine": ELSEWHERE, "TwinOf": "n1"},
        "uses another id",
        "node id",
        "systemd-machine-id-setup",
    ),
}


@pytest.mark.parametrize("name", LEASES)
def test_a_lease_that_can_t_be_used_is_named_with_the_reason(lab: Lab, doctor: Doctor, name: str) -> None:
    row = LEASES[name]
    path = store(lab) / "subnets" / f"{row.key.format(ipv4=leased(lab.nodes[1]).partition('&')[0])}.json"
    path.write_text(json.dumps({**VTEP, **row.document}))
    try:
        told = doctor.trouble()[row.check]
        found = [finding for finding in told if row.says in f"{finding['message']}: {finding['meaning']}"]
        assert len(found) == 1, told
        (finding,) = found
        assert row.fix in finding["fix"]
        if row.check == "leases" and finding["message"].isprintable():
            assert str(Path("subnets") / path.name) in finding["fix"], "and what deletes it"
    finally:
        path.unlink()
    healthy(doctor)


MANY = "six hundred leases with one VtepMAC"


def test_many_bad_leases_are_counted(lab: Lab, doctor: Doctor) -> None:
    directory = store(lab) / "subnets"
    paths = [directory / f"10.244.{number // 4}.{number % 4 * 64}-26.json" for number in reversed(range(1000))]
    taken = [ip_network(str(node.daemon.status()["lease"]["subnets"][0])) for node in lab.nodes]
    free = [
        path
        for path in paths
        if not any(ip_network(path.stem.replace("-", "/")).subnet_of(net) for net in taken)  # type: ignore[arg-type]
    ][:600]
    try:
        for number, path in enumerate(free):
            path.write_text(json.dumps({**VTEP, "PublicIP": f"192.0.2.{10 + number % 200}"}))
        until(lambda: len(lab.nodes[0].daemon.status()["peers"]) > 600, "all were read")
        told = doctor.trouble()["leases"]
        assert re.fullmatch(r"\d+ more can't be used", told[-1]["message"])
        assert "claims what lease 10.244." in told[0]["message"]
    finally:
        for path in free:
            path.unlink(missing_ok=True)
    healthy(doctor)


# The network document -------------------------------------------------------------------------------------------------

CHANGED = "pyflannel network change"


@dataclass(frozen=True)
class Changed:
    """A network document that somebody writes while nodes run; ``None`` leaves a key out."""

    changes: Mapping[str, Any]
    says: str = ""
    check: str = "network config"
    fix: str = CHANGED
    mend: bool = False


DOCUMENTS = {
    "an MTU that no packet has": Changed({"Backend": {"Type": "vxlan", "MTU": 2**40}}, "MTU"),
    "a network that is none": Changed({"Network": "10.244.0.0/33"}, "Network"),
    "a backend that is not there": Changed({"Backend": {"Type": "nothing"}}, "nothing"),
    "another VNI is written by hand": Changed({"Backend": {"Type": "vxlan", "VNI": 7}}, "its Backend has another VNI"),
    "another backend is written by hand": Changed({"Backend": {"Type": "host-gw"}}, "host-gw"),
    "IPv6 is switched off by hand": Changed({"EnableIPv6": False}, "switches IPv6 off"),
    "another network is written by hand": Changed(
        {"Network": "10.0.0.0/9", "SubnetMax": None}, "does not contain the present one"
    ),
    "another SubnetLen is written by hand": Changed({"SubnetLen": 26}, check=""),
    "an MTU above the underlay's": Changed(
        {"Backend": {"Type": "vxlan", "MTU": 1600}},
        "eth0 carries 1500",
        "underlay MTU",
        "pyflannel network change --backend-option MTU=1500",
    ),
    "no backend is named": Changed(
        {"Backend": None}, "names no backend", fix="pyflannel config get | pyflannel config set -", mend=True
    ),
    "a key is misspelt": Changed(
        {"Backend": {"Type": "vxlan", "DirectRoutng\x1b[31m": True}},
        "not known and ignored: Backend.DirectRoutng",
        fix="pyflannel config get",
    ),
    "the type in capital letters, as flanneld takes it": Changed({"Backend": {"Type": "VXLAN"}}, check=""),
    "bounds of 0.0.0.0, which mean none": Changed({"SubnetMin": "0.0.0.0", "SubnetMax": "0.0.0.0"}, check=""),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_network_config_that_can_t_be_used_is_named(lab: Lab, doctor: Doctor, name: str) -> None:
    """And is all that is named: nothing is judged by a document that no node goes by."""
    row, path, node = DOCUMENTS[name], store(lab) / "config.json", lab.nodes[0]
    before = path.read_text()
    document = {**json.loads(before), **row.changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    try:
        if not row.check:
            healthy(doctor)
            return
        until(lambda: row.check in doctor.trouble(), "it is seen")
        if row.fix == CHANGED:
            until(lambda: node.daemon.status()["refused"], "the daemon has looked at it")
        told = doctor.trouble()
        (finding,) = told[row.check]
        assert row.says in finding["message"]
        assert row.fix in finding["fix"]
        if row.check == "network config":
            assert set(told) <= {"daemon", "network config"}, told
        if row.mend or row.fix == CHANGED:
            mend(node, f"export PYFLANNEL_STORE={lab.file_store}; {finding['fix']}")
            healthy(doctor)
    finally:
        path.write_text(before)
    healthy(doctor)


# Files ----------------------------------------------------------------------------------------------------------------

PLANTED = {
    "a link to the kernel's log in the store": lambda path: (path / f"{FREE}.json").symlink_to("/proc/kmsg"),
    "a link to a process's memory in the store": lambda path: (path / f"{FREE}.json").symlink_to("/proc/self/mem"),
    "a file whose name would move the cursor": lambda path: (path / "\x1b[2J.json").write_text("x"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_file_that_is_no_lease_is_no_trouble(lab: Lab, doctor: Doctor, name: str) -> None:
    directory = store(lab) / "subnets"
    before = set(directory.iterdir())
    PLANTED[name](directory)
    try:
        answer = doctor.ask("--no-probes", "--run-dir", str(lab.nodes[0].daemon.run_directory))
        assert answer.code == 0
        assert "\x1b" not in answer.stdout + answer.stderr
        assert doctor.trouble() == {}
    finally:
        for path in set(directory.iterdir()) - before:
            path.unlink()


NESTED = "our own record with thousands of brackets"


def test_a_record_of_ours_that_somebody_has_filled_is_written_anew(lab: Lab, doctor: Doctor) -> None:
    node = lab.nodes[0]
    path = store(lab) / "subnets" / f"{leased(node)}.json"
    path.write_text(path.read_text().replace("{", '{"Deep": ' + "[" * 900 + "]" * 900 + ",", 1))
    node.daemon.restart()
    node.daemon.wait_ready(peers=1)
    healthy(doctor)
    assert len(path.read_text()) < 8000


def test_a_lease_in_the_place_of_this_node_s_is_not_taken_for_it(lab: Lab, doctor: Doctor) -> None:
    node = lab.nodes[0]
    path = store(lab) / "subnets" / f"{leased(node)}.json"
    path.write_text(json.dumps({**VTEP, "PublicIP": "192.0.2.9", "NodeID": "n9"}))
    try:
        until(lambda: node.state() == "conflict", "it has seen that")
        told = doctor.trouble()
        assert "node 'n9' at 192.0.2.9" in told["daemon"][0]["message"]
        assert "no lease of this node" in told["lease"][0]["message"]
        assert told.keys() <= {"daemon", "lease"}, "and nothing is compared with the other's"
    finally:
        path.unlink()
    healthy(doctor)


def test_a_restart_is_no_advice_where_the_daemon_says_what_is_in_its_way(lab: Lab, doctor: Doctor) -> None:
    node = lab.nodes[0]
    node.run(["mount", "--bind", str(node.subnet_file), str(node.subnet_file)])  # so that nothing can be renamed to it
    try:
        node.set_mtu(1400)
        until(lambda: node.state() == "degraded", "it can't be written")
        (finding,) = doctor.trouble()["subnet.env"]
        assert "lacks FLANNEL_MTU=" in finding["message"]
        assert finding["fix"].startswith("pyflannel status")
    finally:
        node.run(["umount", str(node.subnet_file)])
        node.set_mtu(1500)
    healthy(doctor)


# Where doctor itself looks --------------------------------------------------------------------------------------------

ENDLESS = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 8500))
print("listening", flush=True)
def pour(client):
    try:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        while True:
            client.sendall(b"a" * 65536)
    except OSError:
        client.close()
while True:
    threading.Thread(target=pour, args=(listener.accept()[0],), daemon=True).start()
"""

STORES = {
    "an answer of the store without an end": (
        ("--store", "consul://127.0.0.1:8500/x"),
        "store",
        "more than 64 MiB",
        "pyflannel leases",
    ),
    "a prefix under which there is no network": (
        ("--store", "file:///run/lab/empty"),
        "network config",
        "holds no network config",
        "--etcd-prefix",
    ),
    "the check of sources is switched off": (
        ("--check-overlay-sources=false",),
        "sources",
        "not checked",
        "systemctl edit pyflannel   # drop --check-overlay-sources=false",
    ),
}


@contextmanager
def endless(node: Node) -> Iterator[None]:
    server = node.start([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE)
    try:
        assert server.proxy.stdout is not None
        assert server.proxy.stdout.readline() == "listening\n"
        yield
    finally:
        server.kill()
        server.proxy.communicate()


@pytest.mark.parametrize("name", STORES)
def test_what_doctor_is_pointed_at_is_named(lab: Lab, doctor: Doctor, name: str) -> None:
    words, check, says, fix = STORES[name]
    node = lab.nodes[0]
    node.run(["mkdir", "-p", "/run/lab/empty/subnets"])
    with endless(node):
        (finding,) = doctor.trouble("--no-probes", *words)[check]
    assert says in finding["message"]
    assert fix in finding["fix"]


SECRETS = {
    "a password in a store's URL": ("etcd:/u:hush@h", "u:hush@h", "etcd://u:p/hush@h", "etcd://u:hush#@h"),
    "a token in a store's options": ("consul://127.0.0.1:1/x?token=hush",),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_never_shown(lab: Lab, doctor: Doctor, name: str) -> None:
    for url in SECRETS[name]:
        answer = doctor.ask("--no-probes", "--json", "--store", url)
        assert answer.code in (3, 9)
        assert "hush" not in answer.stdout + answer.stderr
        assert "store" in answer.stdout + answer.stderr


INHERITED = "a store's token, and commands of the network config"


def test_a_store_s_token_is_not_given_to_commands_of_the_network_config() -> None:
    """The daemon has it in its environment, as anybody who looks for it there sees."""
    with Lab(nodes=1) as lab:
        (node,) = lab.nodes
        seen = lab.new_file("environment")
        commands = {
            "PreStartupCommand": f"env > {seen}; echo data",
            "PostStartupCommand": f"env >> {seen}; echo >> {seen}",
        }
        write_document(lab, {"Type": "extension", **commands})
        node.start_daemon(lab.file_store, None, wrapper=("env", "CONSUL_HTTP_TOKEN=hush"))
        node.daemon.wait_ready(peers=0)
        node.attach_containers()
        until(lambda: lab.outside(seen).read_text().endswith("\n\n"), "both commands have run")
        assert "CONSUL_HTTP_TOKEN=hush" in Path(f"/proc/{node.daemon.process.pid}/environ").read_text()
        with Doctor(node) as doctor:
            healthy(doctor)
            told = doctor.ask("--json", "--all", "--run-dir", str(node.daemon.run_directory)).stdout
        for text in (lab.outside(seen).read_text(), told, node.daemon.log(), json.dumps(node.daemon.status())):
            assert "hush" not in text
        assert lab.outside(seen).read_text().count("PATH=") >= 2


# How a daemon was started ---------------------------------------------------------------------------------------------

CARD = "ip link add eth7 type veth peer name cable8; ip link set cable8 up; ip link set eth7 up"
BRIDGED = "ip addr add 198.51.100.77/24 dev eth7; ip addr add 2001:db8:7::1/64 dev eth7 nodad"


@dataclass(frozen=True)
class Start:
    """A daemon that is started on another kind of machine.

    :param do: what the machine is like; ``undo`` takes it back.
    :param says: what the finding ``check`` must say; it passes where ``fix`` is empty, and then nothing else is wrong.
    :param named: whether the daemon is given ``--iface eth0``, too.
    """

    do: str
    undo: str
    arguments: tuple[str, ...]
    says: str
    check: str = "underlay"
    fix: str = ""
    named: bool = False


UNPLUG = "ip link delete eth7"
NEXT = "would have been next: eth7: its name matches --iface-regex ^eth"
SECOND = ("ip addr add 198.51.100.9/24 dev eth0", "ip addr delete 198.51.100.9/24 dev eth0")
STARTS = {
    "a pattern that matches an interface's second address": Start(
        *SECOND,
        ("--iface-regex", r"^198\.51\."),
        r"eth0, 198.51.100.9, 2001:db8::1: its address 198.51.100.9 matches --iface-regex ^198\.51\.",
    ),
    "a route that prefers another source address": Start(
        f"{SECOND[0]}; ip route add 203.0.113.0/24 via 192.0.2.254 src 198.51.100.9",
        f"ip route delete 203.0.113.0/24; {SECOND[1]}",
        ("--iface-can-reach", "203.0.113.7"),
        "eth0, 198.51.100.9, 2001:db8::1: --iface-can-reach 203.0.113.7: the kernel sends through it",
    ),
    "a policy rule that sends another way": Start(
        f"{CARD}; {BRIDGED}; ip route add default dev eth7 src 198.51.100.77 table 100; "
        "ip rule add to 203.0.113.0/24 lookup 100",
        f"ip rule delete to 203.0.113.0/24 lookup 100; {UNPLUG}",
        ("--iface-can-reach", "203.0.113.7"),
        "eth7, 198.51.100.77, 2001:db8:7::1: --iface-can-reach 203.0.113.7: the kernel sends through it",
    ),
    "a public address that another interface has": Start(
        f"{CARD}; {BRIDGED}",
        UNPLUG,
        ("--public-ip", "198.51.100.77"),
        "eth7, 198.51.100.77, 2001:db8:7::1: --public-ip 198.51.100.77 is its address",
    ),
    "a public address that no interface has": Start(
        ":",
        ":",
        ("--public-ip", "203.0.113.77"),
        "peers know it as 203.0.113.77, which another machine translates to 192.0.2.1",
    ),
    "a public address that no node can have": Start(
        ":",
        ":",
        ("--public-ip", "224.0.0.5"),
        "PublicIP 224.0.0.5 is not an address that a node can have: a multicast address",
        fix="systemctl edit pyflannel",
    ),
    "no interface matches but the containers' bridge": Start(
        ":",
        ":",
        ("--iface-regex", r"^10\."),
        "no interface is, has or matches ^10",
        fix="ip -brief address; ip route; then set --iface",
    ),
    "an address on lo": Start(
        "ip addr add 203.0.113.5/32 dev lo; ip -6 addr add 2001:db8:5::5/128 dev lo",
        "ip addr delete 203.0.113.5/32 dev lo; ip -6 addr delete 2001:db8:5::5/128 dev lo",
        ("--iface", "203.0.113.5"),
        "the way out carries 1500 bytes, containers may send 1450",
        "underlay MTU",
    ),
    "a flag that flanneld ignores, too": Start(
        ":",
        ":",
        ("--kubeconfig-file", "/etc/kubeconfig"),
        "--kubeconfig-file",
        "settings",
        "systemctl edit pyflannel",
        named=True,
    ),
    "a subnet.env of a shell's": Start(
        "sed -i 's/^/export /' /run/lab/n1/subnet.env", ":", (), "agrees with the lease", "subnet.env", named=True
    ),
    "what would have been next": Start(
        f"{CARD}; {BRIDGED}",
        UNPLUG,
        ("--iface-regex", "^eth"),
        f"--iface eth0; {NEXT}",
        named=True,
    ),
}


def of(doctor: Doctor, check: str) -> list[dict[str, Any]]:
    return [finding for finding in doctor.findings("--no-probes") if finding["check"] == check]


@pytest.mark.parametrize("name", STARTS)
def test_how_a_daemon_was_started_is_told(lab: Lab, doctor: Doctor, name: str) -> None:
    node, row = lab.nodes[0], STARTS[name]
    flags = node.daemon.options.arguments
    node.daemon.stop()
    try:
        node.run(["sh", "-ec", row.do])
        interface = "eth0" if row.named else None
        node.start_daemon(lab.file_store, None, None, (*flags, *row.arguments), interface=interface)
        until(lambda: any(row.says in each["message"] for each in of(doctor, row.check)), lambda: of(doctor, row.check))
        found = of(doctor, row.check)
        if row.fix:
            assert any(row.fix in finding["fix"] for finding in found), found
        else:
            healthy(doctor)
            assert row.says in found[0]["message"]
            if NEXT in row.says:
                words = pyflannel_command("status", "--run-dir", str(node.daemon.run_directory))
                assert NEXT in node.run(words).stdout
    finally:
        node.daemon.stop()
        node.run(["sh", "-c", row.undo])
        node.start_daemon(lab.file_store, None, None, flags)
        node.daemon.wait_ready(peers=1)


LOCK = "a link where the run lock should be"


def test_a_link_at_the_run_lock_is_named(lab: Lab, doctor: Doctor) -> None:
    node = lab.nodes[0]
    node.daemon.stop()
    lock = lab.outside(node.daemon.run_directory) / "lock"
    lock.unlink()
    lock.symlink_to("/run/lab/victim")
    try:
        node.daemon.start()
        assert node.daemon.process.wait(60) != 0
        (finding,) = doctor.trouble()["daemon"]
        assert "/run/lab/victim" in finding["message"]
        assert not lab.outside(node.directory.parent / "victim").exists()
        mend(node, finding["fix"])
        assert not lock.is_symlink()
    finally:
        lock.unlink(missing_ok=True)
        if not node.daemon.running:
            node.daemon.start()
    node.daemon.wait_ready(peers=1)
    healthy(doctor)


# The table ------------------------------------------------------------------------------------------------------------


ELSEWHERE_WALKED = (NOT_SERVED, PAST_THE_ENCRYPTION, UNGUARDED, NO_FIREWALL, MANY_AT_ONCE)


def walked() -> dict[str, tuple[str, str]]:
    """All that doctor is tried on, with the finding's name and a part of its command."""
    return {
        **{name: (row.check, row.fix) for name, row in ROWS.items()},
        **{name: (row.check, row.fix) for name, row in LEASES.items()},
        **{name: (row.check, row.fix if row.check else "") for name, row in DOCUMENTS.items()},
        **dict.fromkeys((*PLANTED, *SECRETS, NESTED, INHERITED), ("", "")),
        **{name: (row[1], row[3]) for name, row in STORES.items()},
        **{name: (row.check if row.fix else "", row.fix) for name, row in STARTS.items()},
        MANY: ("leases", "pyflannel status"),
        LOCK: ("daemon", "rm "),
        **{cause.name: (cause.check, cause.fix) for cause in ELSEWHERE_WALKED},
    }


def test_the_documentation_has_what_is_walked() -> None:
    table = PAGE.partition("## Causes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|([^|]+)\|([^|]*)\|([^|]*)\|([^|]*)\|$", table, re.MULTILINE)
    told = {name.strip(): (check.strip(), fix.replace("\\", "")) for name, check, _, fix in rows[2:]}
    assert sorted(told) == sorted(walked())
    for name, (check, fix) in walked().items():
        assert told[name][0] == check, name
        words = re.sub(r"{\w+}|[|#]", "", fix).split()
        assert all(word in told[name][1] for word in words), name
