"""Whether something in the kernel that a plain overlay leaves alone makes containers' packets faster.

Two nodes with real daemons (vxlan, masquerading and forwarding rules on) and a container each behind a bridge, as
Docker has them. What can be switched on is, one thing at a time, on both nodes, and the ways take turns:

* ``gro``: the underlay's interface joins segments before they are routed on (a veth's does not by itself);
* ``udp gro``: and datagrams of a flow that is only forwarded (``rx-udp-gro-forwarding``), on the overlay's device too;
* ``rps``: packets that arrive are spread over all processors by their flow (``rps_cpus``);
* ``xps``: and the queues that they leave by (``xps_cpus``);
* ``noqueue``: no queueing discipline on the underlay's interface and the overlay's device, where there is one;
* ``flowtable``: connections that nftables has let through go past its rules from then on.

What the kernel lacks is left out, and said so. Measured are TCP in one and in four streams between the containers, the
CPU seconds that the whole machine spends per gigabyte, and ping.

    python benchmarks/kernel_paths.py --rounds 5 --seconds 2

Needs root, iperf3, ethtool, nft and tc. Everything else on the machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import PyflannelError
from pyflannel.lab import Container, Lab, Machine, Node
from pyflannel.lab.topology import BRIDGE, UPLINK

NETWORK: Final = "10.5.0.0/16"
DEVICE: Final = "flannel.1"
TABLE: Final = "kernel_paths"
PORT: Final = "5201"
COLUMNS: Final = {
    "tcp": "TCP Gbit/s",
    "tcp4": "4 streams",
    "cpu": "CPU s/GB",
    "cpu4": "of 4 streams",
    "ping": "ping ms",
}


@dataclass(frozen=True)
class Way:
    """Something that can be switched on and off on a node: lines for a shell, of which each must succeed."""

    on: str = ""
    off: str = ""


def _queues(kind: str, names: str, value: str) -> str:
    """Write to a device's queues by sysfs, of which a namespace sees its own devices where it has mounted it anew."""
    mounted = "mount -t sysfs sysfs /sys"
    lines = [f"for f in /sys/class/net/{name}/queues/{kind}; do echo {value} >$f; done" for name in names.split()]
    return f"unshare -m sh -ec '{mounted}; {'; '.join(lines)}'"


ALL: Final = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
FLOWTABLE: Final = f"""nft -f - <<'.'
table inet {TABLE} {{
    flowtable fast {{ hook ingress priority 0; devices = {{ {UPLINK}, {DEVICE}, {BRIDGE} }}; }}
    chain forward {{ type filter hook forward priority -10; meta l4proto {{ tcp, udp }} flow add @fast; }}
}}
."""

WAYS: Final[Mapping[str, Way]] = {
    "as it is": Way(),
    "gro": Way(f"ethtool -K {UPLINK} gro on", f"ethtool -K {UPLINK} gro off"),
    "udp gro": Way(
        f"ethtool -K {UPLINK} gro on rx-udp-gro-forwarding on; ethtool -K {DEVICE} rx-udp-gro-forwarding on",
        f"ethtool -K {DEVICE} rx-udp-gro-forwarding off; ethtool -K {UPLINK} rx-udp-gro-forwarding off gro off",
    ),
    "rps": Way(
        _queues("rx-*/rps_cpus", f"{UPLINK} {DEVICE}", ALL), _queues("rx-*/rps_cpus", f"{UPLINK} {DEVICE}", "0")
    ),
    "xps": Way(
        _queues("tx-*/xps_cpus", f"{UPLINK} {DEVICE}", ALL), _queues("tx-*/xps_cpus", f"{UPLINK} {DEVICE}", "0")
    ),
    "noqueue": Way(
        f"tc qdisc replace dev {UPLINK} root noqueue; tc qdisc replace dev {DEVICE} root noqueue",
        f"tc qdisc del dev {UPLINK} root; tc qdisc del dev {DEVICE} root",
    ),
    "flowtable": Way(FLOWTABLE, f"nft delete table inet {TABLE}"),
}


def shell(node: Node, lines: str) -> str:
    """Run lines on a node; what went wrong, if something did."""
    if not lines:
        return ""
    done = node.run(["sh", "-ec", lines], check=False)
    said = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (said[0] if said else f"exit code {done.returncode}")


def wait_for(machine: Machine, *command: str) -> None:
    """Until ``command`` succeeds there."""
    deadline = time.monotonic() + 20
    while machine.run(command, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise PyflannelError(f"{machine.name}: {' '.join(command)} never succeeded")
        time.sleep(0.02)


def busy_seconds() -> float:
    """CPU seconds that all processors have spent at work since boot (``proc(5)``, /proc/stat)."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def switch(lab: Lab, way: Way) -> str:
    """Switch a way on, on all nodes or on none; why it can't be, if it can't."""
    for number, node in enumerate(lab.nodes):
        trouble = shell(node, way.on)
        if trouble:
            for each in lab.nodes[: number + 1]:
                shell(each, way.off)
            return trouble
    return ""


class Connection:
    """From one container to another."""

    def __init__(self, source: Container, target: Container) -> None:
        self.source, self.target = source, target
        self.address = target.address()
        wait_for(source, "ping", "-n", "-c1", "-W1", self.address)

    def round(self, seconds: int) -> dict[str, float]:
        """Measure everything once."""
        one, spent = self._iperf(seconds)
        four, spent4 = self._iperf(seconds, "-P", "4")
        return {
            "tcp": one["bits_per_second"] / 1e9,
            "tcp4": four["bits_per_second"] / 1e9,
            "cpu": spent / (one["bytes"] / 1e9),
            "cpu4": spent4 / (four["bytes"] / 1e9),
            "ping": self._ping(),
        }

    def _iperf(self, seconds: int, *words: str) -> tuple[dict[str, Any], float]:
        """What arrived, and the machine's CPU seconds."""
        server = self.target.start(["iperf3", "-s", "-1", "-B", self.address])
        try:
            wait_for(self.target, "sh", "-c", f"ss -Hltn sport = :{PORT} | grep -q .")
            before = busy_seconds()
            words = ("iperf3", "-J", "-c", self.address, "-t", str(seconds), *words)
            answer = json.loads(self.source.run(words, timeout=seconds + 30).stdout)
            spent = busy_seconds() - before
            if "error" in answer:
                raise PyflannelError(f"iperf3: {answer['error']}")
            server.wait(10)
            return answer["end"]["sum_received"], spent
        finally:
            server.kill()

    def _ping(self) -> float:
        """The average round trip in milliseconds."""
        done = self.source.run(("ping", "-n", "-q", "-c", "50", "-i", "0.01", self.address))
        return float(done.stdout.splitlines()[-1].split("=")[1].split("/")[1])


def measure(names: list[str], rounds: int, seconds: int) -> dict[str, dict[str, list[float]]]:
    """All ways in turns, in one lab."""
    found: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in names}
    with Lab(nodes=2, containers=1) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan", NETWORK, ["--ip-masq"])
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        connection = Connection(lab.nodes[0].containers[0], lab.nodes[1].containers[0])
        for number in range(1, rounds + 1):
            for name in list(found):
                print(f"round {number}: {name:12}", end="\r", file=sys.stderr, flush=True)
                trouble = switch(lab, WAYS[name])
                if trouble:
                    print(f"{name}: left out: {trouble}", file=sys.stderr)
                    del found[name]
                    continue
                try:
                    for column, value in connection.round(seconds).items():
                        found[name][column].append(value)
                finally:
                    for node in lab.nodes:
                        shell(node, WAYS[name].off)
    return found


def table(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Medians, and how they differ from those of the overlay as it is."""
    lines = [f"{'':12}" + "".join(f"{title:>22}" for title in COLUMNS.values())]
    plain = found.get("as it is")
    for name, numbers in found.items():
        cells = []
        for column in COLUMNS:
            median = statistics.median(numbers[column])
            change = f" ({median / statistics.median(plain[column]) - 1:+.0%})" if plain and name != "as it is" else ""
            cells.append(f"{f'{median:.3f}{change}':>22}")
        lines.append(f"{name:12}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each iperf3 run")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    print(table(measure(arguments.ways, arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    main()
