"""How fast and how small the daemon is at thousands of peers: cold start, one change, a resync, memory, CPU.

A lab of one node; its store is filled with leases of peers that don't exist, as etcdctl or an editor could have written
them. Printed are, as medians over the rounds:

* start: from the process's start to subnet.env, which is written when the last of the kernel's entries (three per
  peer) is in place; ``cold`` with an empty kernel, ``warm`` with everything there already, as after an upgrade;
* floor: ``ip -batch`` and ``bridge -batch`` writing the same entries in the same namespace, their routes without
  the metrics that ours have, and the ratio;
* change: from a lease's writing in the store to the route in the kernel, told by netlink;
* check: a comparison with the kernel in which nothing differs;
* showing all peers by ``pyflannel status``, ``/metrics`` and the page, and removing all of it by ``pyflannel cleanup``;
* memory and idle CPU of the daemon;
* with ``--outage``, its CPU while the store's server is frozen (SIGSTOP: connections stay, nothing answers) and while
  it is gone (SIGKILL: connections are refused).

    python benchmarks/daemon.py --peers 5000 --rounds 3 --store file|etcd|consul [--outage] [--idle 60]

CPU seconds stand beside each start: where other programs run too, they tell more than the time on the wall.

Needs root, or user namespaces.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import socket
import statistics
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

NETWORK = {"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}
DEVICE = "flannel.1"
CHANGES = 20
PORT = 8401
IDLE = 60.0
OUTAGE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


def peers(count: int) -> Iterator[tuple[str, str, str]]:
    """Subnet, MAC and public address of made-up peers."""
    for number in range(count):
        high, low = divmod(number, 250)
        yield f"10.{16 + high}.{low}.0", f"02:00:00:00:{high:02x}:{low:02x}", f"198.18.{high}.{low + 1}"


def lease(mac: str, public_ip: str) -> str:
    """A lease's text, as flannel writes it."""
    data = {"VNI": 1, "VtepMAC": mac}
    return json.dumps({"PublicIP": public_ip, "PublicIPv6": None, "BackendType": "vxlan", "BackendData": data})


# What runs inside the node's namespace


def fill(url: str, count: int) -> None:
    """Write the network document and all leases."""
    with _store(url) as store:
        store.write_config(json.dumps(NETWORK), None)
        for subnet, mac, public_ip in peers(count):
            store.create(f"{subnet}-24", lease(mac, public_ip), None)


def change(url: str) -> None:
    """Create and delete a lease again and again; print the milliseconds until its route was there."""
    rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    rtnetlink.bind((0, 0x40))  # RTMGRP_IPV4_ROUTE
    rtnetlink.settimeout(10)
    took = []
    with _store(url) as store:
        for _ in range(CHANGES):
            for written in (True, False):
                begin = time.perf_counter()
                if written:
                    record = store.create("10.250.0.0-24", lease("02:00:00:00:ff:01", "198.19.0.1"), None)
                else:
                    store.delete(record)
                while socket.inet_aton("10.250.0.0") not in rtnetlink.recv(1 << 16):
                    pass
                took.append((time.perf_counter() - begin) * 1000)
    print(json.dumps(took))


def check(count: int) -> None:
    """Compare the kernel with what it should hold; print the seconds and the number of writes."""
    from ipaddress import ip_address, ip_network

    from pyflannel.kernel.model import FdbEntry, KernelObject, Key, Neighbour, Route
    from pyflannel.kernel.netlink import NetlinkPort
    from pyflannel.kernel.packed import Plan, Wanted
    from pyflannel.kernel.port import Scope
    from pyflannel.kernel.tracker import Tracker
    from pyflannel.planning.spread import kept

    class Peers(Wanted):
        """The node's own objects, and a plan for each peer as the overlay keeps it."""

        def __init__(self, own: dict[Key, KernelObject]) -> None:
            self.own, self.peers = own, list(map(self.plan, peers(count)))

        @staticmethod
        def plan(peer: tuple[str, str, str]) -> Plan:
            network, mac, remote = ip_network(f"{peer[0]}/24"), peer[1], ip_address(peer[2])
            gateway = network.network_address
            route = Route(network, DEVICE, gateway, onlink=True)
            return kept((Neighbour(DEVICE, gateway, mac), FdbEntry(DEVICE, mac, remote), route))

        def plans(self) -> list[Plan]:
            return [tuple(self.own.values()), *self.peers]

        def __len__(self) -> int:
            return len(self.own) + 3 * count

        def __getitem__(self, key: Key) -> KernelObject:
            return self.own[key]

    port = NetlinkPort()
    found = port.dump(Scope(frozenset({DEVICE})))
    wanted = Peers({key: item for key, item in found.items() if type(item) not in (Neighbour, FdbEntry, Route)})
    tracker = Tracker(port, time.monotonic)
    tracker.follow(wanted)
    tracker.sweep = True
    tracker.reconcile()
    tracker.request_resync()
    begin = time.perf_counter()
    outcome = tracker.reconcile()
    print(json.dumps([time.perf_counter() - begin, outcome.written]))


def show(port: str) -> None:
    """Ask the daemon for what it shows over HTTP; print the seconds that each took."""
    took = {}
    for name, path in (("metrics", "/metrics"), ("page", "/")):
        begin = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            answer.read()
        took[name] = time.perf_counter() - begin
    print(json.dumps(took))


def compile_modules() -> None:
    """As an installed package is: where Python may write no bytecode, each start would compile all modules."""
    for name in ("pyflannel", "pyflannel_backends", "pyflannel_stores"):
        for folder in importlib.import_module(name).__path__:
            compileall.compile_dir(folder, quiet=2)


def _store(url: str) -> Any:
    from pyflannel.plugins import load_store
    from pyflannel.store import StoreLocation

    location = StoreLocation.parse(url)
    return load_store(location.scheme)(location)


# What drives it


def inside(node: Node, *words: str) -> str:
    """Run a part of this file in the node's namespace."""
    return node.run([sys.executable, str(Path(__file__).resolve()), "--inside", *words], timeout=600).stdout


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for a condition, looking often."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the daemon does not get ready")
        time.sleep(0.002)


def start(lab: Lab, node: Node, url: str) -> tuple[float, float]:
    """Start the daemon; seconds from its process's start to subnet.env, and its CPU seconds till then."""
    file = lab.outside(node.subnet_file)
    file.unlink(missing_ok=True)
    begin = time.perf_counter()
    node.start_daemon(url, "vxlan", arguments=["--healthz-ip", "127.0.0.1", "--healthz-port", str(PORT)])
    until(file.exists)
    return time.perf_counter() - begin, cpu(node.daemon.process.pid)


def batch(node: Node, count: int) -> float:
    """Seconds that iproute2's batch modes take for the same entries, on a device of the same kind."""
    device = "vxlan9"
    node.ip(
        [f"link add {device} mtu 1450 type vxlan id 9 dstport 8479 dev eth0 local 192.0.2.1", f"link set {device} up"]
    )
    files: list[tuple[str, str, Iterable[str]]] = [
        ("ip", "neigh", (f"neigh add {s} lladdr {m} dev {device} nud permanent" for s, m, _ in peers(count))),
        ("bridge", "fdb", (f"fdb append {m} dev {device} dst {p}" for _, m, p in peers(count))),
        ("ip", "route", (f"route add {s}/24 via {s} dev {device} onlink metric 9" for s, _, _ in peers(count))),
    ]
    took = 0.0
    for program, name, lines in files:
        path = node.directory / f"{name}.batch"
        node.lab.outside(path).write_text("\n".join(lines) + "\n")
        begin = time.perf_counter()
        node.run([program, "-batch", str(path)], timeout=120)
        took += time.perf_counter() - begin
    node.ip([f"link del {device}"])
    return took


def timed(node: Node, *words: str) -> float:
    """Seconds that a command of pyflannel's takes."""
    begin = time.perf_counter()
    node.run(pyflannel_command(*words, "--run-dir", str(node.daemon.run_directory)), timeout=600)
    return time.perf_counter() - begin


def memory(pid: int) -> float:
    """Resident megabytes of a process: of 1,000,000 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, those of threads that have ended included; to the hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy(pid: int, seconds: float) -> float:
    """Percent of a processor that a process takes during the next ``seconds``."""
    before, begin = cpu(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu(pid) - before) / (time.monotonic() - begin) * 100


def outage(node: Node, store: str) -> dict[str, list[float]]:
    """The daemon's CPU while the server says nothing, and while it is gone, which it is from then on."""
    daemon, server = node.daemon, node.lab.servers[-1]
    server_pid = server.run(["pidof", "-s", store]).stdout.strip()
    found = {}
    for signal, name in (("STOP", "frozen"), ("KILL", "gone")):
        server.run(["kill", f"-{signal}", server_pid])
        daemon.wait_status(lambda status: status["state"] == "degraded", "missing its store", 120)
        found[name] = [busy(daemon.process.pid, OUTAGE)]
        server.run(["kill", "-CONT", server_pid], check=False)
        if signal == "STOP":
            daemon.wait_status(lambda status: status["state"] == "ready", "back at its store", 120)
    return found


def measure(lab: Lab, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """All figures, one entry a round."""
    node, store, count = lab.nodes[0], arguments.store, arguments.peers
    url = lab.file_store if store == "file" else lab.start_store(store)
    print(f"filling {store} with {count} leases ...", file=sys.stderr)
    inside(node, "fill", url, str(count))
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name in ("cold", "warm"):
            wall, work = start(lab, node, url)
            found[name].append(wall)
            found[f"{name} cpu"].append(work)
            if name == "cold":
                node.daemon.stop()
        found["change"].append(statistics.median(json.loads(inside(node, "change", url))))
        pid = node.daemon.process.pid
        time.sleep(5)  # what a start does at leisure is no idle CPU
        found["idle"].append(busy(pid, arguments.idle))
        found["memory"].append(memory(pid))
        found["status"].append(timed(node, "status", "--json"))
        for name, seconds in json.loads(inside(node, "show", str(PORT))).items():
            found[name].append(seconds)
        node.daemon.stop()
        seconds, writes = json.loads(inside(node, "check", str(count)))
        if writes:
            raise SystemExit(f"a check in which nothing differed made {writes} writes")
        found["check"].append(seconds)
        found["cleanup"].append(timed(node, "cleanup"))
        found["floor"].append(batch(node, count))
    if arguments.outage:
        start(lab, node, url)
        found.update(outage(node, store))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", choices=("file", "etcd", "consul"), default="file")
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds of idling to measure (default %(default)s)")
    parser.add_argument("--outage", action="store_true", help="also measure while the store's server is away")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        part, *words = arguments.inside
        {
            "fill": lambda: fill(words[0], int(words[1])),
            "change": lambda: change(words[0]),
            "check": lambda: check(int(words[0])),
            "show": lambda: show(words[0]),
        }[part]()
        return
    compile_modules()
    if arguments.outage and arguments.store == "file":
        parser.error("a file store has no server that could fail")
    with Lab(nodes=1, containers=0) as lab:
        found = measure(lab, arguments)
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{arguments.peers} peers on {arguments.store}, medians of {arguments.rounds} rounds")
    print(f"  cold start to last entry   {median['cold']:8.3f} s    ({median['cold cpu']:.2f} s of CPU)")
    ratio = median["cold"] / median["floor"]
    print(
        f"  ip and bridge -batch       {median['floor']:8.3f} s    (the whole cold start takes {ratio:.2f} times that)"
    )
    print(f"  warm start                 {median['warm']:8.3f} s    ({median['warm cpu']:.2f} s of CPU)")
    print(f"  one change to its route    {median['change']:8.2f} ms")
    print(f"  check, nothing differs     {median['check']:8.3f} s")
    print(f"  status --json              {median['status']:8.3f} s")
    print(f"  /metrics, the page         {median['metrics']:8.3f} s, {median['page']:.3f} s")
    print(f"  cleanup                    {median['cleanup']:8.3f} s")
    print(f"  resident memory            {median['memory']:8.1f} MB")
    print(f"  idle CPU                   {median['idle']:8.3f} %")
    if arguments.outage:
        print(f"  CPU, server frozen         {median['frozen']:8.3f} %")
        print(f"  CPU, server gone           {median['gone']:8.3f} %")


if __name__ == "__main__":
    main()
