"""ipsec on a kernel that has ESP and xfrm interfaces: the conformance kit, and two nodes with real charons."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.testing._live import at_rest, everything
from pyflannel.testing.backends import BackendBehaviour
from pyflannel.testing.stores import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

PSK = "0123456789abcdef" * 6
DEVICE = "flannel-ipsec"
ESP = 50
PATIENCE = 300.0


class TestIpsec(BackendBehaviour):
    backend = "ipsec"
    variants = ({"PSK": PSK}, {"PSK": PSK, "UDPEncap": True, "ESPProposal": "aes256-sha256-modp2048"})


class Pair:
    """Two nodes in a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.one = lab.nodes[0]
        self.pristine = at_rest(self.one)

    def start(self) -> None:
        for node in self.lab.nodes:
            node.start_daemon(self.lab.file_store, "ipsec", "10.244.0.0/16", ["--backend-option", f"PSK={PSK}"])
        for node in self.lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=PATIENCE)
            node.attach_containers()

    def talk(self) -> bool:
        return self.lab.reachability(versions=[4], timeout=PATIENCE).complete

    def file(self, node: Node, name: str) -> str:
        path = self.lab.outside(node.daemon.state_directory / "ipsec" / name)
        return path.read_text() if path.exists() else ""


def policies(node: Node) -> list[str]:
    """Those of our interface, each in one line; charon's sockets have some, too."""
    text = node.run(["ip", "xfrm", "policy", "list"]).stdout
    each = [" ".join(found.split()) for found in re.split(r"(?m)^(?=src)", text)]
    return sorted(found for found in each if "if_id 0x70790000" in found)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab(nodes=2) as lab:
        pair = Pair(lab)
        try:
            pair.start()
            yield pair
        finally:
            for node in lab.nodes:
                print(node.name, node.daemon.log(), pair.file(node, "run/charon.log"), sep="\n")


def test_containers_talk_and_nobody_on_the_underlay_reads_it(pair: Pair) -> None:
    assert pair.talk()
    here, there = (node.containers[0] for node in pair.lab.nodes)
    pattern = b"0123456789abcdef"
    with pair.one.capture() as capture:
        here.run(["ping", "-c3", "-W30", "-p", pattern.hex(), there.address()])
    frames = capture.stop()
    assert [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == ESP]
    assert not [frame for frame in frames if pattern in frame]
    told = pair.one.daemon.log() + str(pair.one.daemon.status()) + pair.file(pair.one, "run/charon.log")
    assert PSK not in told


def test_policies_that_are_deleted_come_back_and_nothing_leaves_without_them(pair: Pair) -> None:
    one, before = pair.one, policies(pair.one)
    assert len(before) == 3
    here, there = (node.containers[0] for node in pair.lab.nodes)
    pattern = b"fedcba9876543210"
    with one.capture() as capture:
        one.run(["ip", "xfrm", "policy", "flush"])
        here.run(["ping", "-c3", "-W1", "-p", pattern.hex(), there.address()], check=False)
    assert not [frame for frame in capture.stop() if pattern in frame]
    eventually(lambda: policies(one) == before, "the policies are back", PATIENCE)
    assert pair.talk()


def test_an_interface_that_is_deleted_comes_back(pair: Pair) -> None:
    pair.one.run(["ip", "link", "delete", DEVICE])
    eventually(lambda: DEVICE in pair.one.run(["ip", "route"]).stdout, "interface and route are back", PATIENCE)
    assert pair.talk()


def test_charon_that_is_killed_is_made_up_for(pair: Pair) -> None:
    one = pair.one
    before = pair.file(one, "run/charon.pid")
    one.run(["kill", "-9", before.strip()])
    eventually(lambda: pair.file(one, "run/charon.pid") not in ("", before), "there is another charon", PATIENCE)
    for node in pair.lab.nodes:
        node.daemon.wait_ready(peers=1, timeout=PATIENCE)
    assert pair.talk()
    assert one.daemon.status()["data_plane"]["charon_started"] == 2


def test_a_restart_keeps_charon_and_loses_no_packet(pair: Pair) -> None:
    one = pair.one
    before = pair.file(one, "run/charon.pid")
    here, there = (node.containers[0] for node in pair.lab.nodes)
    with here.ping(there.address()) as ping:
        ping.wait_replies(5, PATIENCE)
        one.daemon.restart()
        one.daemon.wait_ready(peers=1, timeout=PATIENCE)
        ping.wait_replies(5, PATIENCE)
        assert ping.stop().lost == 0
    assert pair.file(one, "run/charon.pid") == before


def test_cleanup_leaves_nothing(pair: Pair) -> None:
    one = pair.one
    assert one.daemon.stop(PATIENCE) == 0
    one.detach_containers()
    one.run(pyflannel_command("cleanup", "--run-dir", str(one.daemon.run_directory)), timeout=PATIENCE)
    left = sorted(set(everything(one)) ^ set(pair.pristine))
    assert not left
    assert policies(one) == []
    pid = pair.file(one, "run/charon.pid").strip()
    # Nobody in a lab waits for orphans: one that has ended stays as a zombie.
    runs = ["grep", "-q", "^State:[[:space:]]*[^ZX[:space:]]", f"/proc/{pid}/status"]
    eventually(lambda: one.run(runs, check=False).returncode != 0, "charon has ended", PATIENCE)
