"""What overlays carry between two nodes on this machine, all in one run: ours, hand-made ones, and others' programs.

Every way has a lab of two nodes of its own (:mod:`pyflannel.lab`), ours with real daemons. The ways take turns, so that
a busy moment of the machine hits all of them; a number is the median over the rounds. Measured are TCP in one and in
four streams, segments that had to be sent again, the CPU seconds that the whole machine spends per gigabyte, loss of
UDP at a given rate, and ping. What plain veth does in the same run is the yardstick.

tinc, openvpn, nebula and wireguard-go take part where they are installed (``make bench-peers``, which builds the
present wireguard-go where Go is there), the first two without encryption; the others can't do without. Results go to
``benchmarks/results``: all numbers as JSON, and a plot if matplotlib is there.

    python benchmarks/overlays.py --rounds 3 --seconds 3 --ways veth udp wireguard-go

Needs root, iperf3 and ping. Everything else on the machine should be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyflannel.errors import PyflannelError
from pyflannel.lab import Lab, Node
from pyflannel.version import VERSION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NETWORK = "10.5.0.0/16"
RESULTS = Path(__file__).with_name("results")
BUILT = Path(__file__).resolve().parents[1] / ".cache" / "bin"
"""Programs that ``make bench-peers`` has built; they go before installed ones."""
DATAGRAM = 1300
"""Bytes of payload that no way has to fragment."""
COLUMNS = {
    "tcp": "TCP Gbit/s",
    "tcp4": "4 streams",
    "again": "sent again",
    "cpu": "CPU s/GB",
    "loss": "UDP loss %",
    "ping": "ping ms",
    "ping_busy": "2 ms apart",
}

Results = dict[str, dict[str, list[float]]]

LACKING: set[str] = set()
"""What a backend of ours had to do without, and why: for whoever wonders at its numbers."""


@dataclass(frozen=True)
class Way:
    """One way from node 1 to node 2.

    ``build`` makes it in a lab and returns node 2's address on it; ``programs`` are what it needs, ``version`` is the
    command that tells the first one's, ``colour`` its bar's.
    """

    build: Callable[[Lab], str]
    programs: tuple[str, ...] = ()
    version: tuple[str, ...] = ()
    colour: str = "#9aa5b1"


def script(node: Node, *lines: str) -> None:
    node.run(["sh", "-ec", "\n".join(lines)])


def directory(node: Node) -> str:
    return str(node.directory)


def wait_for(node: Node, *command: str) -> None:
    """Until ``command`` succeeds on ``node``."""
    deadline = time.monotonic() + 20
    while node.run(command, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise PyflannelError(f"{node.name}: {' '.join(command)} never succeeded")
        time.sleep(0.02)


def numbered(lab: Lab) -> Sequence[tuple[int, Node, Node]]:
    """Each node with its number and the other one."""
    first, second = lab.nodes
    return (1, first, second), (2, second, first)


# Made by hand


def veth(lab: Lab) -> str:
    return str(lab.nodes[1].ipv4.ip)


def vxlan_by_hand(lab: Lab) -> str:
    for number, node, other in numbered(lab):
        node.ip(
            [
                f"link add vxlan.1 type vxlan id 1 local {node.ipv4.ip} remote {other.ipv4.ip} dstport 8472 dev eth0",
                f"address add 10.5.{number}.1/16 dev vxlan.1",
                "link set vxlan.1 up",
            ]
        )
    return "10.5.2.1"


def routes_by_hand(lab: Lab) -> str:
    for number, node, other in numbered(lab):
        node.ip([f"address add 10.5.{number}.1/32 dev lo", f"route add 10.5.{3 - number}.0/24 via {other.ipv4.ip}"])
    return "10.5.2.1"


# Ours


def note_what_is_lacking(backend: str, status: Any) -> None:
    for name, said in status["backend"]["details"].items():
        if name.endswith("_path") and said.startswith("no:"):
            LACKING.add(f"{backend} without {name}: {said.removeprefix('no: ')}")


def daemon(backend: str, *options: str) -> Callable[[Lab], str]:
    def build(lab: Lab) -> str:
        words = [word for option in options for word in ("--backend-option", option)]
        for node in lab.nodes:
            node.start_daemon(lab.file_store, backend, NETWORK, words)
        target = ""
        for node in lab.nodes:
            note_what_is_lacking(backend, node.daemon.wait_ready(peers=1))
            gateway = node.daemon.container_network().ipv4
            assert gateway is not None
            target = str(gateway.ip)
            node.ip([f"address add {target}/32 dev lo"])
        return target

    return build


# Others' programs


def tinc(lab: Lab) -> str:
    for number, node, _ in numbered(lab):
        where = directory(node)
        script(
            node,
            f"mkdir -p {where}/hosts",
            f"printf 'Name=n{number}\\nInterface=tun0\\nAddressFamily=ipv4\\nConnectTo=n{3 - number}\\n' "
            f">{where}/tinc.conf",
            f"printf 'Address={node.ipv4.ip}\\nSubnet=10.5.{number}.0/24\\nCipher=none\\nDigest=none\\n' "
            f">{where}/hosts/n{number}",
            f"tincd -c {where} -K 2048 </dev/null",
        )
    first, second = lab.nodes
    script(first, f"cp {directory(first)}/hosts/n1 {directory(second)}/hosts/")
    script(first, f"cp {directory(second)}/hosts/n2 {directory(first)}/hosts/")
    for number, node, _ in numbered(lab):
        node.start(["tincd", "-c", directory(node), "-D", "--pidfile", f"{directory(node)}/pid"])
        wait_for(node, "ip", "link", "show", "tun0")
        node.ip(["link set tun0 mtu 1400 up", f"address add 10.5.{number}.1/16 dev tun0"])
    return "10.5.2.1"


def openvpn(lab: Lab) -> str:
    for number, node, other in numbered(lab):
        words = f"--dev tun0 --local {node.ipv4.ip} --remote {other.ipv4.ip} --cipher none --auth none --fast-io"
        words += f" --ifconfig 10.5.{number}.1 10.5.{3 - number}.1 --tun-mtu 1400 --sndbuf 4194304 --rcvbuf 4194304"
        node.start(["openvpn", *words.split()])
        wait_for(node, "ip", "link", "show", "tun0")
    return "10.5.2.1"


def nebula(lab: Lab) -> str:
    first, second = lab.nodes
    where = directory(first)
    script(
        first,
        f"cd {where}",
        "nebula-cert ca -name benchmark",
        "nebula-cert sign -name n1 -ip 10.5.0.1/24",
        "nebula-cert sign -name n2 -ip 10.5.0.2/24",
    )
    anybody = [{"port": "any", "proto": "any", "host": "any"}]
    for number, node, _ in numbered(lab):
        config = {
            "pki": {"ca": f"{where}/ca.crt", "cert": f"{where}/n{number}.crt", "key": f"{where}/n{number}.key"},
            "static_host_map": {"10.5.0.2": [f"{second.ipv4.ip}:4242"]} if number == 1 else {},
            "lighthouse": {"am_lighthouse": number == 2, "hosts": ["10.5.0.2"] if number == 1 else []},
            "listen": {"host": str(node.ipv4.ip), "port": 4242, "read_buffer": 1 << 22, "write_buffer": 1 << 22},
            "cipher": "aes",
            "tun": {"dev": "tun0", "mtu": 1400, "tx_queue": 1000},
            "firewall": {"outbound": anybody, "inbound": anybody},
        }
        file = f"{directory(node)}/nebula.json"
        lab.outside(node.directory / "nebula.json").write_text(json.dumps(config))
        node.start(["nebula", "-config", file])
        wait_for(node, "ip", "link", "show", "tun0")
    return "10.5.0.2"


def wireguard_go(lab: Lab) -> str:
    for number, node, _ in numbered(lab):
        node.start(["wireguard-go", "-f", f"wg{number}"])
        script(node, f"cd {directory(node)}; umask 077; wg genkey >key; wg pubkey <key >public")
    for number, node, other in numbered(lab):
        key = other.run(["cat", f"{directory(other)}/public"]).stdout.strip()
        peer = f"peer {key} endpoint {other.ipv4.ip}:51820 allowed-ips {NETWORK}"
        wait_for(node, "wg", "show", f"wg{number}")
        script(node, f"wg set wg{number} listen-port 51820 private-key {directory(node)}/key {peer}")
        node.ip([f"address add 10.5.{number}.1/16 dev wg{number}", f"link set wg{number} mtu 1420 up"])
    return "10.5.2.1"


OURS = "#1f77b4"
WAYS: Mapping[str, Way] = {
    "veth": Way(veth),
    "routes by hand": Way(routes_by_hand),
    "host-gw": Way(daemon("host-gw"), colour=OURS),
    "vxlan by hand": Way(vxlan_by_hand),
    "vxlan": Way(daemon("vxlan"), colour=OURS),
    "udp": Way(daemon("udp"), colour=OURS),
    "udp, no offload": Way(daemon("udp", "Offload=false"), colour=OURS),
    "wireguard": Way(daemon("wireguard", "Implementation=userspace"), colour=OURS),
    "tinc": Way(tinc, ("tincd",), ("tincd", "--version"), "#d98c5f"),
    "openvpn": Way(openvpn, ("openvpn",), ("openvpn", "--version"), "#d98c5f"),
    "nebula": Way(nebula, ("nebula", "nebula-cert"), ("nebula", "-version"), "#d98c5f"),
    "wireguard-go": Way(wireguard_go, ("wireguard-go", "wg"), ("wireguard-go", "--version"), "#d98c5f"),
}


# Measuring


class Measured:
    """A way that is up, and what was measured on it."""

    def __init__(self, way: Way, lab: Lab) -> None:
        self.first, self.second = lab.nodes
        self.target = way.build(lab)
        self.results: dict[str, list[float]] = {name: [] for name in COLUMNS}
        wait_for(self.first, "ping", "-n", "-c1", "-W1", self.target)

    def round(self, seconds: int, rate: str) -> None:
        """Measure everything once."""
        ping, ping_busy = self._ping("0.05"), self._ping("0.002")
        before = busy_seconds()
        one = self._iperf(seconds)
        spent = busy_seconds() - before
        four = self._iperf(seconds, "-P", "4")
        datagrams = self._iperf(seconds, "-u", "-b", rate, "-l", str(DATAGRAM))
        numbers = {
            "tcp": one["sum_received"]["bits_per_second"] / 1e9,
            "tcp4": four["sum_received"]["bits_per_second"] / 1e9,
            "again": one["sum_sent"]["retransmits"],
            "cpu": spent / (one["sum_received"]["bytes"] / 1e9),
            "loss": datagrams["sum"]["lost_percent"],
            "ping": ping,
            "ping_busy": ping_busy,
        }
        for name, value in numbers.items():
            self.results[name].append(value)

    def _iperf(self, seconds: int, *words: str) -> dict[str, Any]:
        """One iperf3 run from node 1 to node 2."""
        server = self.second.start(["iperf3", "-s", "-1", "-B", self.target])  # UDP's replies come from where we sent
        try:
            wait_for(self.second, "sh", "-c", "ss -Hltn sport = :5201 | grep -q .")
            words = ("iperf3", "-J", "-c", self.target, "-t", str(seconds), *words)
            answer = json.loads(self.first.run(words, timeout=seconds + 30).stdout)
            if "error" in answer:
                raise PyflannelError(f"iperf3: {answer['error']}")
            server.wait(10)
            end: dict[str, Any] = answer["end"]
            return end
        finally:
            server.kill()

    def _ping(self, interval: str) -> float:
        """The average round trip in milliseconds."""
        words = ("ping", "-n", "-q", "-c", "50", "-i", interval, self.target)
        summary = self.first.run(words).stdout.splitlines()[-1]
        return float(summary.split("=")[1].split("/")[1])


def busy_seconds() -> float:
    """CPU seconds that all processors have spent at work since boot (``proc(5)``, /proc/stat)."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def measure(names: Sequence[str], rounds: int, seconds: int, rate: str) -> Results:
    """Bring all ways up and let them take turns; one that fails is left out, and said so."""
    up: dict[str, Measured] = {}
    with ExitStack() as labs:
        for name in names:
            way = WAYS[name]
            missing = [program for program in way.programs if shutil.which(program) is None]
            if missing:
                print(f"{name}: left out, {' and '.join(missing)} not installed (make bench-peers)", file=sys.stderr)
                continue
            lab = labs.enter_context(Lab(nodes=2, containers=0))
            try:
                up[name] = Measured(way, lab)
            except PyflannelError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
        for number in range(1, rounds + 1):
            for name in list(up):
                print(f"round {number}: {name} ", end="\r", file=sys.stderr, flush=True)
                try:
                    up[name].round(seconds, rate)
                except PyflannelError as error:
                    print(f"{name}: left out from round {number} on: {error}", file=sys.stderr)
                    del up[name]
        return {name: measured.results for name, measured in up.items()}


# Telling


def versions(names: Sequence[str]) -> str:
    """What was measured where: the kernel, the machine, and each program's own words."""
    commands = {"iperf3": ("iperf3", "--version"), **{name: WAYS[name].version for name in names if WAYS[name].version}}
    found = [f"Linux {platform.release()}, {os.cpu_count()} CPUs", f"Python {platform.python_version()}"]
    found.append(f"pyflannel {VERSION}")
    found.append(f"TCP {Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()}")
    for name, command in commands.items():
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        words = (said.stdout or said.stderr).splitlines()[0].split()
        number = next((word for word in words if any(letter.isdigit() for letter in word)), "")
        found.append(f"{name} {number.removeprefix('v')}")
    return ", ".join(found)


def table(results: Results) -> str:
    """Medians, and each way's TCP rates relative to veth."""
    widths = {name: max(len(title), 8) + 2 for name, title in COLUMNS.items()}
    head = "".join(f"{title:>{widths[name]}}" for name, title in COLUMNS.items())
    lines = [f"{'':16}{head}{'TCP / veth':>12}{'4 / veth':>10}"]
    medians = {way: {name: statistics.median(numbers[name]) for name in COLUMNS} for way, numbers in results.items()}
    for way, median in medians.items():
        cells = "".join(f"{median[name]:{widths[name]}.{0 if name == 'again' else 2}f}" for name in COLUMNS)
        plain = medians.get("veth")
        ratios = f"{median['tcp'] / plain['tcp']:12.2f}{median['tcp4'] / plain['tcp4']:10.2f}" if plain else ""
        lines.append(f"{way:16}{cells}{ratios}")
    return "\n".join(lines)


def differences(results: Results) -> str:
    """Whether our ways differ from the same thing made by hand by more than either differs from itself."""
    lines = []
    for ours, theirs in (("host-gw", "routes by hand"), ("vxlan", "vxlan by hand")):
        if ours in results and theirs in results:
            mine, other = results[ours]["tcp"], results[theirs]["tcp"]
            ratio = statistics.median(mine) / statistics.median(other)
            spread = max(max(rates) / min(rates) for rates in (mine, other)) - 1
            verdict = "within" if abs(ratio - 1) <= spread else "NOT within"
            lines.append(f"{ours} / {theirs}: {ratio:.2f}, {verdict} the spread of rounds ({spread:.0%})")
    return "\n".join(lines)


def plot(results: Results, title: str, directory: Path) -> None:
    """Medians as bars and each round as a dot, in one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = ("tcp", "tcp4", "cpu", "ping")
    figure, axes = pyplot.subplots(1, len(shown), figsize=(15, 0.42 * len(results) + 1.6), sharey=True)
    for panel, name in zip(axes, shown, strict=True):
        _panel(panel, results, name)
    axes[0].invert_yaxis()
    figure.text(0.01, 0.01, title, fontsize=7, wrap=True)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    for suffix in ("png", "svg"):
        figure.savefig(directory / f"overlays.{suffix}", dpi=150)
        print(f"wrote {directory / f'overlays.{suffix}'}")


def _panel(panel: Axes, results: Results, name: str) -> None:
    ways = list(results)
    medians = [statistics.median(results[way][name]) for way in ways]
    bars = panel.barh(ways, medians, color=[WAYS[way].colour for way in ways])
    panel.bar_label(bars, fmt="%.2f", fontsize=7, padding=3)
    for row, way in enumerate(ways):
        panel.plot(results[way][name], [row] * len(results[way][name]), "k.", markersize=3)
    panel.set_title({"tcp": "TCP, one stream, Gbit/s", "tcp4": "TCP, four streams, Gbit/s"}.get(name, COLUMNS[name]))
    panel.margins(x=0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each iperf3 run")
    parser.add_argument("--rate", default="500M", help="of the UDP run, in bit/s, as iperf3 takes it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory for the numbers and the plot")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{BUILT}{os.pathsep}{os.environ['PATH']}"
    results = measure(arguments.ways, arguments.rounds, arguments.seconds, arguments.rate)
    title = versions(list(results))
    title += (
        f"; {arguments.rounds} rounds of {arguments.seconds} s, UDP at {arguments.rate}bit/s, {time.strftime('%F')}"
    )
    title = "; ".join([title, *sorted(LACKING)])
    print(table(results), differences(results), title, sep="\n")
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "overlays.json").write_text(json.dumps({"title": title, "results": results}, indent=1))
    try:
        plot(results, title, arguments.results)
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[bench]')")


if __name__ == "__main__":
    main()
