"""The whole story with Docker: etcd, two nodes, two dockerds, containers that reach each other and the world outside.

Each dockerd lives in a node of a lab with directories of its own, so it meets no other Docker of this machine. Its
image is one static busybox.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NETWORK = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
PROGRAMS = ("dockerd", "docker", "containerd", "runc", "etcd", "etcdctl", "busybox")


class Docker:
    """A dockerd on a node, started as flannel's guides say: with what ``subnet.env`` has."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.directory = node.directory / "docker"
        self.cgroup = f"pyflannel-test-{os.getpid()}-{node.name}"
        self.log = node.lab.outside(node.directory) / "docker.log"
        flags = {
            "--storage-driver": "vfs",
            "--data-root": self.directory / "data",
            "--exec-root": self.directory / "exec",
            "--pidfile": self.directory / "pid",
            "--host": self.host,
            "--ip-masq": "false",
            "--cgroup-parent": f"/{self.cgroup}",
        }
        words = " ".join(f"{flag}={value}" for flag, value in flags.items())
        sourced = f". {node.subnet_file}; exec dockerd {words} --bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = node.start(["sh", "-ec", sourced], stdout=log, stderr=subprocess.STDOUT)
        until(self.answers, "dockerd answers")

    @property
    def host(self) -> str:
        return f"unix://{self.directory}/docker.sock"

    def answers(self) -> bool:
        assert self.process.running, self.log.read_text(encoding="utf-8")
        return not self.node.run(["docker", "--host", self.host, "version"], check=False).returncode

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.node.run(["docker", "--host", self.host, *words], check=check, timeout=60)

    def run_container(self) -> None:
        root = self.directory / "image"
        outside = self.node.lab.outside(root)
        (outside / "bin").mkdir(parents=True)
        shutil.copy(Path(shutil.which("busybox") or "/bin/busybox"), outside / "bin" / "busybox")
        self.node.run(["sh", "-ec", f"tar -C {root} -c . | docker --host {self.host} import - busybox"])
        self("run", "--detach", "--name", "box", "busybox", "/bin/busybox", "sleep", "1000")

    def inside(self, *words: str) -> bool:
        """Whether busybox in the container succeeds with these words."""
        return not self("exec", "box", "/bin/busybox", *words, check=False).returncode

    @property
    def address(self) -> str:
        (box,) = json.loads(self("inspect", "box").stdout)
        return str(box["NetworkSettings"]["IPAddress"])

    def stop(self) -> None:
        if self.process.running:
            self("rm", "--force", "box", check=False)
            self.process.stop()
        for left in Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}"):
            left.rmdir()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not os.access("/sys/fs/cgroup", os.W_OK):
        pytest.skip("containers need cgroups")
    with Lab(nodes=2, containers=0) as lab:
        yield lab


def sources(frames: Sequence[bytes]) -> set[str]:
    """Where the pings in a capture come from."""
    pings = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 8]
    return {socket.inet_ntoa(frame[26:30]) for frame in pings}


def rules_in_place(node: Node) -> str:
    """By what the node's rules are made; nothing if they are not all there."""
    firewall = node.daemon.status()["firewall"]
    return firewall["port"] if firewall["in_place"] else ""


def test_containers_of_two_dockers_reach_each_other_and_the_outside(lab: Lab) -> None:
    url = lab.start_store("etcd")
    outside = lab.add_server("outside")
    endpoints = f"--endpoints=http://{url.removeprefix('etcd://')}"
    put = ["etcdctl", endpoints, "put", "/coreos.com/network/config", json.dumps(NETWORK)]
    outside.run(put, env={"ETCDCTL_API": "3"})
    for node in lab.nodes:
        node.start_daemon(url, "vxlan", arguments=["--ip-masq"])
    with ExitStack() as stack:
        dockers = []
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.daemon.pause()  # so that it is Docker that finds forwarding switched off
            node.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
            dockers.append(Docker(node))
            stack.callback(dockers[-1].stop)
            dockers[-1].run_container()
            assert "-P FORWARD DROP" in node.run(["iptables", "-S", "FORWARD"]).stdout, "Docker's own doing"
        first, second = dockers
        assert not first.inside("ping", "-c", "1", "-W", "1", second.address), "Docker's policy stands in the way"
        for node in lab.nodes:
            node.daemon.resume()
        until(lambda: first.inside("ping", "-c", "1", "-W", "1", second.address), "the way across")
        until(lambda: second.inside("ping", "-c", "1", "-W", "1", first.address), "the way back")
        for node in lab.nodes:
            until(lambda node=node: rules_in_place(node) == "iptables-nft", "rules in place, where Docker's are")  # type: ignore[misc]

        with lab.nodes[1].capture("docker0") as capture:
            assert first.inside("ping", "-c", "2", "-W", "5", second.address)
        assert sources(capture.stop()) == {first.address}, "the container's own address"
        with outside.capture() as capture:
            assert first.inside("ping", "-c", "2", "-W", "5", str(outside.ipv4.ip))
        assert sources(capture.stop()) == {str(lab.nodes[0].ipv4.ip)}, "the node's address"
        lab.nodes[0].run(["ping", "-c", "1", "-W", "5", second.address])  # a node reaches a far container
