"""The CNI network with Debian's plugins: pods of two nodes, as a container runtime makes them, without a runtime.

A "pod" is a network namespace; what containerd or CRI-O do with a conflist (libcni) is done here in a few lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.sandbox import Namespace

PLUGINS = Path(os.environ.get("CNI_PATH", "/usr/lib/cni"))

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (PLUGINS / "bridge").exists(), reason="no CNI plugins: containernetworking-plugins"),
]

DOCUMENTS = {
    "ipv4": {"Network": "10.244.0.0/16", "SubnetLen": 24},
    "ipv6": {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10::/48"},
    "both": {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/48"},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, containers=0) as lab:
        yield lab


class Runtime:
    """What a container runtime does with a node's conflist."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def conflist(self) -> dict[str, Any]:
        """The first file of the directory, as runtimes take it."""
        files = sorted(self.node.lab.outside(self.node.directory / "net.d").glob("*.conflist"))
        found: dict[str, Any] = json.loads(files[0].read_text())
        return found

    def add(self, pod: str) -> list[str]:
        """Make a pod; its addresses."""
        self.node.lab.shell("", [f"netns add {pod}"])
        self.node.lab.shell(pod, ["link set lo up"])  # which runtimes do by a plugin of their own
        result: dict[str, Any] = {}
        for plugin in self.conflist["plugins"]:
            result = json.loads(self._call("ADD", pod, plugin, result))
        self.results[pod] = result
        return [str(each["address"]).partition("/")[0] for each in result["ips"]]

    def delete(self, pod: str) -> None:
        """Take a pod away."""
        for plugin in reversed(self.conflist["plugins"]):
            self._call("DEL", pod, plugin, self.results[pod])
        self.node.lab.shell("", [f"netns del {pod}"])

    def _call(self, command: str, pod: str, plugin: dict[str, Any], before: dict[str, Any]) -> str:
        network = self.conflist
        config = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
        if before:
            config["prevResult"] = before
        if "ipam" in config:  # a node's own disk: these share one
            config["ipam"] = {**config["ipam"], "dataDir": str(self.node.directory / "ipam")}
        if config.pop("capabilities", None):
            config["runtimeConfig"] = {"portMappings": []}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod,
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
        }
        return self.node.run([PLUGINS / str(plugin["type"])], input=json.dumps(config), env=environment).stdout


def pings(lab: Lab, pod: str, address: str) -> bool:
    words = ["ping", "-c", "1", "-W", "1", address]
    return not Namespace(lab.sandbox, pod).run(words, check=False).returncode


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_pods_of_two_nodes_reach_each_other_and_no_address_is_given_twice(lab: Lab, kind: str) -> None:
    store = f"file://{lab.new_file('store')}"
    document = lab.new_file("net-conf.json")
    lab.outside(document).write_text(json.dumps({**DOCUMENTS[kind], "Backend": {"Type": "vxlan"}}))
    runtimes = [Runtime(node) for node in lab.nodes]
    for node in lab.nodes:
        conf = f"--cni-conf={node.directory / 'net.d' / '10-pyflannel.conflist'}"
        node.start_daemon(store, "vxlan", arguments=[f"--net-config-path={document}", conf])
    try:
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
        addresses = {
            f"{runtime.node.name}-{kind}-p{number}": runtime.add(f"{runtime.node.name}-{kind}-p{number}")
            for runtime in runtimes
            for number in range(2)
        }
        every = [address for each in addresses.values() for address in each]
        assert len(set(every)) == len(every) == 4 * (2 if kind == "both" else 1)
        for pod in addresses:
            for address in every:
                until(lambda pod=pod, address=address: pings(lab, pod, address), f"{pod} to {address}")  # type: ignore[misc]
        mtu = runtimes[0].conflist["plugins"][0]["mtu"]
        link = Namespace(lab.sandbox, f"n1-{kind}-p0").run(["ip", "link", "show", "eth0"]).stdout
        assert f" mtu {mtu} " in link

        first, second = f"n1-{kind}-p0", f"n1-{kind}-p1"
        runtimes[0].delete(first)
        lab.nodes[0].daemon.restart()
        lab.nodes[0].daemon.wait_ready(peers=1)
        again = runtimes[0].add(first)
        assert not {*again} & {*addresses[second]}, "what a pod has is nobody else's"
        assert {ip_address(each).version for each in again} == {ip_address(each).version for each in addresses[first]}
        for address in addresses[f"n2-{kind}-p0"]:
            until(lambda address=address: pings(lab, first, address), f"the new pod to {address}")  # type: ignore[misc]
    finally:
        for runtime in runtimes:
            for pod in list(runtime.results):
                runtime.delete(pod)
            runtime.node.daemon.stop()
            runtime.node.run(["sh", "-c", "ip link del cni0; ip link del flannel.1; ip link del flannel-v6.1; true"])
            runtime.node.run(["rm", "-rf", str(runtime.node.directory / "subnet.env")])


def test_cleanup_removes_the_network(lab: Lab) -> None:
    node = lab.nodes[0]
    conf = node.directory / "net.d" / "10-cleanup.conflist"
    node.start_daemon(f"file://{lab.new_file('store')}", "vxlan", "10.244.0.0/16", arguments=[f"--cni-conf={conf}"])
    node.daemon.wait_ready()
    assert lab.outside(conf).exists()
    node.daemon.stop()
    words = ["--run-dir", str(node.daemon.run_directory), f"--cni-conf={conf}"]
    said = node.run(pyflannel_command("cleanup", *words)).stdout
    assert f"removed CNI network {conf}" in said
    assert not lab.outside(conf).exists()
