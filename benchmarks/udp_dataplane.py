"""What the udp backend's data plane carries, next to plain veth and vxlan made by hand, in one run on one machine.

Two network namespaces on one veth pair are the two nodes. For each way between them: TCP in one and in four streams,
UDP at a given rate, ping, and the CPU seconds that the whole machine spends per gigabyte. Every number is the median of
``--repeat`` runs; the ways take turns, so that a busy moment of the machine hits all of them. Needs root, iproute2,
iputils-ping and iperf3; everything else on the machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

NETWORK = "10.5.0.0/16"
UDP_OPTIONS: dict[str, dict[str, Any]] = {"udp": {}, "udp, no offload": {"Offload": False}}
WAYS = ("veth", "vxlan by hand", *UDP_OPTIONS)
COLUMNS = {
    "tcp": "TCP Gbit/s",
    "tcp4": "4 streams",
    "retransmits": "retransmits",
    "cpu": "CPU s/GB",
    "udp": "UDP Gbit/s",
    "loss": "loss %",
    "ping": "ping ms",
    "ping_busy": "ping ms, 2 ms apart",
}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Pair:
    """The two namespaces, with one way between them: ``target`` is node 2's address on it."""

    def __init__(self, way: str, directory: Path) -> None:
        self.way = way
        self.names = [f"pfbench{os.getpid()}-{number}" for number in (1, 2)]
        self.target = "192.0.2.2"
        self._directory = directory
        self._daemons: list[subprocess.Popen[str]] = []

    def build(self) -> None:
        for name in self.names:
            run("ip", "netns", "add", name)
        first, second = self.names
        run("ip", "-n", first, "link", "add", "under", "type", "veth", "peer", "name", "under", "netns", second)
        for number, name in enumerate(self.names, 1):
            run("ip", "-n", name, "addr", "add", f"192.0.2.{number}/24", "dev", "under")
            for link in ("lo", "under"):
                run("ip", "-n", name, "link", "set", link, "up")
            if self.way.startswith("vxlan"):
                self._vxlan(name, number)
            elif self.way in UDP_OPTIONS:
                self._udp(name, number)
        if self.way != "veth":
            self.target = "10.5.2.0"
        self._wait()

    def _vxlan(self, name: str, number: int) -> None:
        link = ("vxlan.1", "type", "vxlan", "id", "1", "local", f"192.0.2.{number}", "remote", f"192.0.2.{3 - number}")
        run("ip", "-n", name, "link", "add", *link, "dstport", "8472", "dev", "under")
        run("ip", "-n", name, "addr", "add", f"10.5.{number}.0/16", "dev", "vxlan.1")
        run("ip", "-n", name, "link", "set", "vxlan.1", "up")

    def _udp(self, name: str, number: int) -> None:
        run("ip", "-n", name, "tuntap", "add", "flannel0", "mode", "tun", "vnet_hdr", "multi_queue")
        run("ip", "-n", name, "addr", "add", f"10.5.{number}.0/32", "dev", "flannel0")
        run("ip", "-n", name, "link", "set", "flannel0", "mtu", "1472", "up")
        run("ip", "-n", name, "route", "add", NETWORK, "dev", "flannel0")
        state = str(self._directory / name)
        words = ("--node", str(number), "--state", state, "--options", json.dumps(UDP_OPTIONS[self.way]))
        daemon = self.start(name, sys.executable, __file__, *words, stdin=subprocess.PIPE)
        self._daemons.append(daemon)

    def start(self, name: str, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(("ip", "netns", "exec", name, *command), text=True, **options)

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        probe = ("ip", "netns", "exec", self.names[0], "ping", "-c1", "-W1", self.target)
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.way}: node 2 can't be reached")

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.communicate()
        for name in self.names:
            subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)

    def iperf(self, seconds: int, *words: str) -> dict[str, Any]:
        """One iperf3 run from node 1 to node 2."""
        first, second = self.names
        with self.start(second, "iperf3", "-s", "-1", stdout=subprocess.DEVNULL):
            while not run("ip", "netns", "exec", second, "ss", "-Hltn", "sport = :5201"):
                time.sleep(0.01)
            words = ("iperf3", "-J", "-c", self.target, "-t", str(seconds), *words)
            answer: dict[str, Any] = json.loads(run("ip", "netns", "exec", first, *words))["end"]
            return answer

    def ping(self, interval: str) -> float:
        """The average round trip in milliseconds."""
        words = ("ping", "-n", "-q", "-c", "50", "-i", interval, self.target)
        summary = run("ip", "netns", "exec", self.names[0], *words).splitlines()[-1]
        return float(summary.split("=")[1].split("/")[1])


@contextmanager
def pair(way: str) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        made = Pair(way, Path(directory))
        try:
            made.build()
            yield made
        finally:
            made.close()


def busy_seconds() -> float:
    """CPU seconds that all processors have spent at work since boot (``proc(5)``, /proc/stat)."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def measure(way: str, seconds: int, rate: str) -> dict[str, float]:
    with pair(way) as nodes:
        result = {"ping": nodes.ping("0.05"), "ping_busy": nodes.ping("0.002")}
        before = busy_seconds()
        one = nodes.iperf(seconds)
        spent = busy_seconds() - before
        four = nodes.iperf(seconds, "-P", "4")
        datagrams = nodes.iperf(seconds, "-u", "-b", rate, "-l", "1400")["sum"]
    received = one["sum_received"]
    return result | {
        "tcp": received["bits_per_second"] / 1e9,
        "tcp4": four["sum_received"]["bits_per_second"] / 1e9,
        "retransmits": one["sum_sent"]["retransmits"],
        "cpu": spent / (received["bytes"] / 1e9),
        "udp": datagrams["bits_per_second"] / 1e9 * (1 - datagrams["lost_percent"] / 100),
        "loss": datagrams["lost_percent"],
    }


def serve(number: int, state: Path, options: dict[str, Any]) -> None:
    """One node's data plane, until standard input ends."""
    from pyflannel.backend import Lease, LeaseAttributes, NetworkConfig, Node, Subnets, Underlay, parse_options
    from pyflannel_backends.udp import UdpBackend, UdpOptions
    from pyflannel_backends.udp.dataplane import UdpDataPlane

    backend = UdpBackend(parse_options(UdpOptions, options)[0])
    network = NetworkConfig.from_json(json.dumps({"Network": NETWORK, "Backend": {"Type": "udp"}}))
    underlay = Underlay("under", 1500, IPv4Address(f"192.0.2.{number}"))
    plane = backend.start(Node("node", network, underlay, Subnets.from_key(f"10.5.{number}.0-24"), state))
    peer = LeaseAttributes(public_ip=IPv4Address(f"192.0.2.{3 - number}"))
    plane.put(Lease(Subnets.from_key(f"10.5.{3 - number}.0-24"), peer))
    plane.check()
    sys.stdin.read()
    assert isinstance(plane, UdpDataPlane)
    plane.end()


def report(results: dict[str, dict[str, list[float]]]) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ", end="")
    print(run("iperf3", "--version").split("\n", 1)[0], f"(load average now {os.getloadavg()[0]:.1f})")
    print(f"{'':18}" + "".join(f"{title:>21}" for title in COLUMNS.values()) + f"{'TCP to veth':>14}")
    plain = statistics.median(results["veth"]["tcp"]) if "veth" in results else None
    for way, numbers in results.items():
        medians = {name: statistics.median(numbers[name]) for name in COLUMNS}
        ratio = f"{medians['tcp'] / plain:14.2f}" if plain else ""
        print(f"{way:18}" + "".join(f"{medians[name]:21.3f}" for name in COLUMNS) + ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of each iperf3 run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rate", default="500M", help="of the UDP run, in bit/s, as iperf3 takes it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node is not None:
        serve(arguments.node, arguments.state, arguments.options)
        return
    results: dict[str, dict[str, list[float]]] = {way: {name: [] for name in COLUMNS} for way in arguments.ways}
    for _ in range(arguments.repeat):
        for way in arguments.ways:
            for name, value in measure(way, arguments.seconds, arguments.rate).items():
                results[way][name].append(value)
    report(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
