"""The store for Kubernetes at thousands of Nodes, on a real kube-apiserver (tools/build-kubernetes).

The cluster is made up: Nodes as kubelets write them, with their images and conditions, and flannel's annotations.
Printed are, as medians over the rounds:

* list: the API server's own time for all Nodes, page after page, read and thrown away;
* start: from the process's start to subnet.env, which is written when the last kernel entry is in place, and what of it
  is beyond the list;
* change: from the answer to a changed annotation to the route in the kernel, told by netlink;
* memory and CPU of the daemon, the second while nothing happens and while all kubelets send their heartbeats.

    python benchmarks/kubernetes.py --nodes 5000 --rounds 3 [--beats 500]

Needs root.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.servers.kubernetes import ADMIN, MISSING, PREFIX, Kubernetes, kubernetes

from pyflannel.kernel.netns import call_in
from pyflannel.lab import Lab, Node

TICKS = os.sysconf("SC_CLK_TCK")
OWN = "n1"
CHANGES = 30
BEATING = 30.0


class Client:
    """A connection to the API server that stays open, made in its namespace."""

    def __init__(self, kube: Kubernetes, netns: Path) -> None:
        context = ssl.create_default_context(cafile=str(kube.cafile))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._connection = http.client.HTTPSConnection(kube.host, kube.port, timeout=60, context=context)
        call_in(netns, self._connection.connect)

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": kind}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode()}")
        return text


def made_up(number: int) -> dict[str, Any]:
    """A Node with all that real ones have."""
    high, low = divmod(number, 250)
    notes = {
        "backend-data": f'{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}',
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ip": f"198.51.{100 + high}.{low + 1}",
    }
    cidr = f"10.{100 + high}.{low}.0/24"
    return {
        "metadata": {
            "name": f"node-{number}",
            "labels": {f"label-{index}.example.com/name": f"value-{index}" for index in range(8)},
            "annotations": {PREFIX + name: text for name, text in notes.items()},
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    }


def status(number: int, beat: int) -> dict[str, Any]:
    """The status that a kubelet writes, different with every beat."""
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_700_000_000 + beat))
    images = [
        {"names": [f"registry.example.com/team/image-{index}@sha256:{index:064x}"], "sizeBytes": 12345678 + index}
        for index in range(30)
    ]
    return {
        "status": {
            "conditions": [
                {"type": kind, "status": "False", "reason": f"Kubelet{kind}", "lastHeartbeatTime": stamp}
                for kind in kinds
            ],
            "addresses": [{"type": "Hostname", "address": f"node-{number}"}],
            "nodeInfo": {"kubeletVersion": "v1.34.4", "osImage": "Debian", "machineID": f"{number:032x}"},
            "images": images,
        }
    }


def everywhere(clients: list[Client], count: int, do: Callable[[Client, int], object]) -> None:
    """Do something for each number, side by side."""
    with ThreadPoolExecutor(len(clients)) as pool:
        shares = [range(start, count, len(clients)) for start in range(len(clients))]
        jobs = [
            pool.submit(lambda c, s: [do(c, number) for number in s], client, share)
            for client, share in zip(clients, shares, strict=True)
        ]
        for job in jobs:
            job.result()


def beat(client: Client, number: int, at: int) -> None:
    client.ask("PATCH", f"/api/v1/nodes/node-{number}/status", status(number, at), "application/merge-patch+json")


def list_all(client: Client) -> float:
    """Seconds that the API server takes to list all Nodes in pages, as seen from here."""
    begin, rest = time.perf_counter(), ""
    while True:
        body = client.ask("GET", f"/api/v1/nodes?limit=500{rest and '&continue=' + rest}")
        head = body[:2000].decode(errors="replace")
        _, found, after = head.partition('"continue":"')
        if not found:
            return time.perf_counter() - begin
        rest = after.partition('"')[0]


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Resident megabytes of 1,000,000 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def start(node: Node, url: str) -> tuple[float, float]:
    """Start the daemon; seconds until subnet.env, and its CPU seconds till then."""
    file = node.lab.outside(node.subnet_file)
    file.unlink(missing_ok=True)
    begin = time.perf_counter()
    node.start_daemon(url, "vxlan")
    deadline = time.monotonic() + 120
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"the daemon does not get ready: {node.daemon.log(5)}")
        time.sleep(0.002)
    return time.perf_counter() - begin, cpu(node.daemon.process.pid)


def changes(client: Client, netns: Path) -> list[float]:
    """Milliseconds from a change of a Node's annotations to its route, gone and back again."""
    rtnetlink: socket.socket = call_in(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    rtnetlink.bind((0, 0x40))  # RTMGRP_IPV4_ROUTE
    rtnetlink.settimeout(20)
    took = []
    with rtnetlink:
        for round_ in range(CHANGES):
            patch = {"metadata": {"annotations": {f"{PREFIX}kube-subnet-manager": str(round_ % 2 == 1).lower()}}}
            client.ask("PATCH", "/api/v1/nodes/node-7", patch, "application/merge-patch+json")
            begin = time.perf_counter()
            while socket.inet_aton("10.100.7.0") not in rtnetlink.recv(1 << 16):
                pass
            took.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.2)
    return took


def storm(clients: list[Client], pid: int, count: int, rate: float) -> tuple[float, float]:
    """Percent of a processor that the daemon takes while heartbeats come at this rate, and the rate that came about."""
    stop, done = threading.Event(), [0]

    def send(client: Client, offset: int) -> None:
        pause, number, due = len(clients) / rate, offset, time.monotonic()
        while not stop.is_set():
            beat(client, number % count, number)
            number += len(clients)
            done[0] += 1
            due = max(due + pause, time.monotonic() - 1)
            stop.wait(max(0.0, due - time.monotonic()))

    threads = [threading.Thread(target=send, args=(client, offset)) for offset, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    time.sleep(3)  # each Node's first event is read whole
    before, begin, sent = cpu(pid), time.monotonic(), done[0]
    time.sleep(BEATING)
    found = (cpu(pid) - before) / (time.monotonic() - begin) * 100, (done[0] - sent) / (time.monotonic() - begin)
    stop.set()
    for thread in threads:
        thread.join()
    return found


def measure(lab: Lab, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """All figures, one entry a round."""
    node, place = lab.nodes[0], lab.add_server("kube")
    netns = {name: Path(f"/proc/{lab.sandbox.pid}/root/run/netns/{name}") for name in (place.name, node.name)}
    found: dict[str, list[float]] = defaultdict(list)
    with kubernetes(place=place, netns=netns[place.name], host=str(place.ipv4.ip)) as kube:
        clients = [Client(kube, netns[place.name]) for _ in range(8)]
        print(f"making {arguments.nodes} Nodes ...", file=sys.stderr)
        everywhere(clients, arguments.nodes, lambda c, n: c.ask("POST", "/api/v1/nodes", made_up(n)))
        everywhere(clients, arguments.nodes, lambda c, n: beat(c, n, 0))
        kube.add_node(OWN, "10.0.0.0/24")
        document = kube.directory / "net-conf.json"
        document.write_text('{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}')
        config = kube.kubeconfig(kube.directory / "kubeconfig")
        url = f"kubernetes://?kubeconfig={config}&node={OWN}&net_config={document}"
        for _ in range(arguments.rounds):
            found["list"].append(list_all(clients[0]))
            wall, work = start(node, url)
            found["start"].append(wall)
            found["beyond"].append(wall - found["list"][-1])
            found["start cpu"].append(work)
            pid = node.daemon.process.pid
            found["change"].append(statistics.median(changes(clients[0], netns[node.name])))
            time.sleep(35)  # what a start gives back at leisure
            found["memory"].append(memory(pid))
            before, begin = cpu(pid), time.monotonic()
            time.sleep(20)
            found["idle"].append((cpu(pid) - before) / (time.monotonic() - begin) * 100)
            busy, rate = storm(clients, pid, arguments.nodes, arguments.beats)
            found["storm"].append(busy)
            found["rate"].append(rate)
            found["memory after"].append(memory(pid))
            node.daemon.stop()
            node.ip(["link del flannel.1"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beats", type=float, default=500.0, help="heartbeats a second")
    arguments = parser.parse_args()
    if MISSING is not None:
        print(f"skipped: {MISSING}")
        return
    with Lab(nodes=1, containers=0) as lab:
        found = measure(lab, arguments)
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{arguments.nodes} Nodes, medians of {arguments.rounds} rounds")
    print(f"  the API server's own list  {median['list']:8.2f} s")
    print(f"  start to last entry        {median['start']:8.2f} s    ({median['start cpu']:.2f} s of CPU)")
    print(f"  of it beyond the list      {median['beyond']:8.2f} s")
    print(f"  one change to its route    {median['change']:8.2f} ms")
    print(f"  resident memory            {median['memory']:8.1f} MB   ({median['memory after']:.1f} after heartbeats)")
    print(f"  idle CPU                   {median['idle']:8.2f} %")
    print(f"  CPU, {median['rate']:.0f} heartbeats a second {median['storm']:6.2f} %")


if __name__ == "__main__":
    main()
