"""The data plane of ipsec with strongSwan's real charon: two nodes in namespaces of network and mounts.

A kernel without ESP takes no keys: there the nodes authenticate each other and get no further, and the data plane says
so. On others (tests/kernels runs this in one) the tunnels come up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from pyflannel.backend import Lease, LeaseAttributes, Secret, Subnets
from pyflannel.errors import ConfigError
from pyflannel.kernel.netns import call_in
from pyflannel_backends.ipsec import DEVICE
from pyflannel_backends.ipsec import charon as charons
from pyflannel_backends.ipsec.charon import Charon, Session
from pyflannel_backends.ipsec.connections import Tunnel
from pyflannel_backends.ipsec.dataplane import IpsecDataPlane

HAS_CHARON = any(shutil.which(name) for name in charons.PROGRAMS)

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0 or not HAS_CHARON, reason="needs root, and charon of strongSwan"),
]

PSK = "0123456789abcdef" * 6
IF_ID = 0x70790000


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def subnets(number: int) -> Subnets:
    return Subnets(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:0:0:{number}::/64"))


class Node:
    """A namespace, what is kept on disk, and the data plane in it."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number, self.directory = number, directory
        self.netns = f"ipsec-{uuid.uuid4().hex[:8]}"
        self.plane: IpsecDataPlane | None = None
        self.charons: list[Charon] = []

    @property
    def path(self) -> Path:
        return Path("/run/netns", self.netns)

    def tunnels(self, lease: Lease) -> tuple[Tunnel, ...]:
        number = int(str(lease.subnets.ipv4).split(".")[2])
        version = self.version
        before = "192.0.2." if version == 4 else "2001:db8::"
        here, there = (ip_address(f"{before}{each}") for each in (self.number, number))
        own, theirs = subnets(self.number).of(version), subnets(number).of(version)
        assert own is not None
        assert theirs is not None
        return (Tunnel(here, there, own, theirs, "aes128gcm16-sha256-prfsha256-ecp256", False, IF_ID, 11),)

    version = 4

    def charon(self, psk: str = PSK, *settings: str) -> Charon:
        return Charon(self.directory, Secret(psk.encode()), DEVICE, settings)

    def start(self, *peers: int, psk: str = PSK) -> IpsecDataPlane:
        charon = self.charon(psk)
        made = call_in(self.path, lambda: IpsecDataPlane(self.tunnels, charon))
        self.charons.append(charon)
        for number in peers:
            made.put(lease(number))
        self.plane = made
        return made

    def session(self) -> Session:
        found: list[Session] = []

        def connected() -> bool:
            session = self.charon().connect()
            found.extend([session] if session is not None else [])
            return bool(found)

        until(connected, "charon answers")
        return found[0]

    def sas(self) -> list[Any]:
        session = self.session()
        try:
            return session.ask_all("list-sas", "list-sa")
        finally:
            session.close()

    def authenticated(self) -> bool:
        return any(ike.get("state") == b"ESTABLISHED" for answer in self.sas() for ike in answer.values())

    @property
    def pid(self) -> int:
        """Of the charon that runs, as it says itself; 0 while there is none."""
        try:
            return int((self.directory / "run" / "charon.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def running(self) -> list[int]:
        """Each charon of this node's folder."""
        mine = ip("netns", "pids", self.netns).stdout.split()
        return [int(pid) for pid in mine if _name(pid) == "charon"]


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def lease(number: int) -> Lease:
    public = IPv4Address(f"192.0.2.{number}"), IPv6Address(f"2001:db8::{number}")
    return Lease(subnets(number), LeaseAttributes(*public, backend_type="ipsec"))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Node]]:
    made = [Node(number, tmp_path / str(number)) for number in (1, 2)]
    for node in made:
        node.version = request.param
        ip("netns", "add", node.netns)
    try:
        one, two = made
        ip("-n", one.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two.netns)
        for node in made:
            ip("-n", node.netns, "link", "add", DEVICE, "type", "bridge")
            ip("-n", node.netns, "link", "set", "lo", "up")
            ip("-n", node.netns, "address", "add", f"192.0.2.{node.number}/24", "dev", "eth0")
            ip("-n", node.netns, "address", "add", f"2001:db8::{node.number}/64", "dev", "eth0", "nodad")
            ip("-n", node.netns, "link", "set", "eth0", "up")
        yield made
    finally:
        for node in made:
            if node.plane is not None:
                node.plane.stop()
            for pid in ip("netns", "pids", node.netns).stdout.split():
                with suppress(ProcessLookupError):  # it may end by itself just now
                    os.kill(int(pid), signal.SIGKILL)
            for charon in node.charons:
                charon.reap(patience=60.0)
            ip("netns", "delete", node.netns)


def has_esp(node: Node) -> bool:
    ends = ["src", "192.0.2.7", "dst", "192.0.2.8", "proto", "esp", "spi", "0x100"]
    key = ["aead", "rfc4106(gcm(aes))", "0x" + "11" * 20, "128", "mode", "tunnel"]
    return ip("-n", node.netns, "xfrm", "state", "add", *ends, *key).returncode == 0


def why(node: Node) -> str:
    """Why its one peer has no tunnel."""
    assert node.plane is not None
    return " ".join(node.plane.check().values())


def both(nodes: list[Node]) -> tuple[IpsecDataPlane, IpsecDataPlane]:
    one, two = nodes
    return one.start(2), two.start(1)


def up(node: Node, esp: bool) -> Callable[[], bool]:
    """Whether the tunnel is there, as far as this kernel has any."""
    plane = node.plane
    assert plane is not None
    return lambda: (not plane.check()) if esp else node.authenticated()


def test_nodes_with_one_key_have_a_tunnel_and_charon_s_end_is_made_up_for(nodes: list[Node]) -> None:
    one, _ = nodes
    esp = has_esp(one)
    for plane in both(nodes):
        assert all("yet" in reason or "starting" in reason for reason in plane.check().values())
    for node in nodes:
        until(up(node, esp), lambda: (one.directory / "run/charon.log").read_text()[-2000:])
    if esp:
        shown = ip("-n", one.netns, "xfrm", "state").stdout
        assert f"if_id {IF_ID:#x}" in shown
        assert "reqid 11" in shown
    before = one.pid
    os.kill(before, signal.SIGKILL)
    until(lambda: one.pid != before and one.running == [one.pid], "there is another charon")
    for node in nodes:
        until(up(node, esp), "the nodes have found each other again")
    assert one.plane is not None
    assert one.plane.counters()["charon_started"] == 2


def test_a_daemon_s_restart_changes_nothing_and_peers_that_left_meanwhile_are_forgotten(nodes: list[Node]) -> None:
    one, _ = nodes
    esp = has_esp(one)
    both(nodes)
    until(up(one, esp), "the tunnel is there")
    (tunnel,) = one.tunnels(lease(2))
    ends = {(ike["local-host"], ike["remote-host"]) for answer in one.sas() for ike in answer.values()}
    assert ends == {(str(tunnel.local).encode(), str(tunnel.remote).encode())}, "one is known by its ends"
    assert one.plane is not None
    one.plane.put(lease(3))
    names = "pyflannel-10.244.{}.0/24" if one.version == 4 else "pyflannel-fd00:0:0:{}::/64"

    def conns() -> set[str]:
        session = one.session()
        found = {raw.decode() for raw in session.ask("get-conns")["conns"]}
        session.close()
        return found

    until(lambda: conns() == {names.format(2), names.format(3)}, conns)
    before = one.pid
    one.plane.stop()
    assert one.running == [before], "charon ends with the daemon"
    plane = one.start(2)
    until(lambda: not any("starting" in reason for reason in plane.check().values()), "it is connected")
    until(lambda: conns() == {names.format(2)}, conns)
    until(up(one, esp), "the tunnel is there as before")
    assert one.pid == before
    assert plane.counters()["charon_started"] == 0
    plane.remove(lease(2).subnets)
    until(lambda: conns() == set(), conns)
    until(lambda: one.sas() == [], one.sas)


def test_another_key_is_no_key(nodes: list[Node]) -> None:
    one, two = nodes
    one.start(2), two.start(1, psk=PSK[::-1])
    log = one.directory / "run/charon.log"
    until(lambda: log.exists() and "AUTHENTICATION_FAILED" in log.read_text(), "they have met")
    assert not one.authenticated()
    for node, other in ((one, 2), (two, 1)):
        until(lambda node=node: "another preshared key" in why(node), lambda node=node: why(node))  # type: ignore[misc]
        assert node.plane is not None
        assert node.plane.check().keys() == {lease(other).key}
    assert str(log) in why(one)
    assert PSK not in log.read_text()
    # A node that gets the right key has a charon with that, and not the one that was there.
    assert two.plane is not None
    wrong = two.pid
    two.plane.stop()
    two.start(1)
    until(lambda: one.authenticated(), "they know each other now")
    assert two.pid != wrong
    assert two.running == [two.pid]


def test_charon_ends_with_its_interface(nodes: list[Node]) -> None:
    one, _ = nodes
    plane = one.start()
    until(lambda: one.running, "it runs")
    plane.stop()
    ip("-n", one.netns, "link", "delete", DEVICE)
    until(lambda: not one.running, "it has ended")


def test_charon_ends_where_the_network_has_gone_over_to_another_backend(nodes: list[Node]) -> None:
    one, _ = nodes
    plane = one.start(2)
    until(lambda: one.running, "it runs")
    plane.end()
    until(lambda: not one.running, "it has ended")
    assert ip("-n", one.netns, "link", "show", DEVICE).returncode == 0, "not because of its interface"


def test_without_its_interface_charon_is_waited_for_and_named(nodes: list[Node]) -> None:
    one, _ = nodes
    ip("-n", one.netns, "link", "delete", DEVICE)
    plane = one.start(2)
    until(lambda: DEVICE in why(one), lambda: why(one))
    assert plane.counters()["charon_started"] == 0
    ip("-n", one.netns, "link", "add", DEVICE, "type", "bridge")
    until(lambda: one.running, "it runs")


def test_a_port_that_another_program_has_is_named_and_charon_follows_when_it_is_free(nodes: list[Node]) -> None:
    one, two = nodes
    code = "import socket, time; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 500)); "
    holder = subprocess.Popen(
        ["ip", "netns", "exec", one.netns, sys.executable, "-c", f"{code}print(flush=True); time.sleep(3600)"],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        both(nodes)
        until(lambda: "another program has UDP port 500" in why(one), lambda: why(one))
    finally:
        holder.kill()
        holder.communicate()
    for node in (one, two):
        until(lambda node=node: node.authenticated(), lambda node=node: why(node))  # type: ignore[misc]


def test_a_peer_that_does_not_answer_is_told_from_one_with_another_key(nodes: list[Node]) -> None:
    one, _ = nodes
    one.start(2)
    until(lambda: "it does not answer" in why(one), lambda: why(one))


def test_without_charon_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(charons, "PROGRAMS", ("/nowhere/charon",))
    with pytest.raises(ConfigError, match="apt-get install strongswan-charon"):
        Charon(tmp_path, Secret(PSK.encode()), DEVICE)


def test_one_that_ends_at_once_is_named_with_what_it_said(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "charon"
    program.write_text("#!/bin/sh\necho no luck today >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(charons, "PROGRAMS", (str(program),))
    one, _ = nodes
    plane = one.start(2)
    until(lambda: "no luck today" in plane.check().get(lease(2).key, ""), plane.check)
    kept = one.directory / "strongswan.conf"
    assert "settings " in kept.read_text(encoding="ascii"), "a digest of the key"
    assert kept.stat().st_mode & 0o777 == 0o600
