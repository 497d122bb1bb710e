"""How fast the kernel is programmed: NetlinkPort against ``ip -batch`` and ``bridge -batch``.

Each round makes fresh namespaces with an underlay and a VXLAN device, writes the same routes, neighbours and forwarding
entries (three per peer) through the port, once as packed plans (``fill``: a first start) and once object by object
(``apply``: everything else), and through iproute2, in turns, and removes the namespaces. The port's IPv4 routes have
the metrics that the core gives them, iproute2's are plain. Also printed is the time of a full dump. Needs root.

    python benchmarks/programming.py --peers 5000 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pyflannel.kernel.model import FdbEntry, KernelObject, Link, Neighbour, Route, VxlanInfo
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.packed import pack
from pyflannel.kernel.port import Scope, Write
from pyflannel.planning.spread import spread

DEVICE = "flannel.1"
TARGETS = {"fill": 0.3, "apply": 1.2}
"""How much of iproute2's time each may take at most."""


def entries(peers: int, version: int) -> list[KernelObject]:
    """Three kernel objects for each peer."""
    found: list[KernelObject] = []
    for number in range(peers):
        mac = f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        if version == 4:
            subnet: IPv4Network | IPv6Network = IPv4Network((0x0A010000 + (number << 8), 24))
            remote: IPv4Address | IPv6Address = IPv4Address(0xC6120000 + number)
        else:
            subnet = IPv6Network((0xFD << 120 | number << 64, 64))
            remote = IPv6Address(0x20010DB8 << 96 | number + 16)
        found += spread(
            [
                Neighbour(DEVICE, subnet.network_address, mac),
                FdbEntry(DEVICE, mac, remote),
                Route(subnet, DEVICE, subnet.network_address, onlink=True),
            ]
        )
    return found


@contextmanager
def namespace(version: int) -> Iterator[str]:
    """A namespace with an underlay and an empty VXLAN device."""
    name = f"pyflannel-bench-{os.getpid()}"
    address = "192.0.2.1" if version == 4 else "2001:db8::1"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
        run(
            "ip",
            "-n",
            name,
            "address",
            "add",
            f"{address}/{24 if version == 4 else 64}",
            "dev",
            "eth0",
            *nodad(version),
        )
        run("ip", "-n", name, "link", "set", "wire0", "up")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        vxlan = ["id", "1", "dev", "eth0", "local", address, "dstport", "8472", "nolearning"]
        run("ip", "-n", name, "link", "add", DEVICE, "type", "vxlan", *vxlan)
        run("ip", "-n", name, "link", "set", DEVICE, "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


def nodad(version: int) -> list[str]:
    return ["nodad"] if version == 6 else []


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def with_port(name: str, wanted: list[KernelObject], version: int, way: str) -> tuple[float, float]:
    """Seconds to write everything through the port, in one of two ways, and to dump it."""
    port = NetlinkPort(Path("/run/netns") / name)
    try:
        address = IPv4Address("192.0.2.1") if version == 4 else IPv6Address("2001:db8::1")
        scope = Scope(frozenset({Link(DEVICE, VxlanInfo(1, 8472, address, "eth0"), 1450).name}))
        port.dump(scope)
        plans = [
            plan for start in range(0, len(wanted), 3) if isinstance(plan := pack(wanted[start : start + 3]), bytes)
        ]
        begin = time.perf_counter()
        failures = port.fill([], plans) if way == "fill" else port.apply([Write(None, item) for item in wanted])
        written = time.perf_counter()
        if failures:
            raise SystemExit(
                f"{len(failures)} of {len(wanted)} writes failed, the first: {next(iter(failures.values()))}"
            )
        found = port.dump(scope, {item.key: item for item in wanted})
        end = time.perf_counter()
        missing = [item for item in wanted if found.get(item.key) != item]
        if missing:
            raise SystemExit(f"{len(missing)} of {len(wanted)} entries are missing, the first: {missing[0]}")
        return written - begin, end - written
    finally:
        port.close()


def with_iproute(name: str, wanted: list[KernelObject], version: int) -> float:
    """Seconds to write everything with the batch modes of ``ip`` and ``bridge``."""
    with tempfile.TemporaryDirectory() as folder:
        ip, bridge = Path(folder, "ip"), Path(folder, "bridge")
        ip.write_text("".join(f"{ip_line(item)}\n" for item in wanted if not isinstance(item, FdbEntry)))
        bridge.write_text(
            "".join(
                f"fdb replace {item.mac} dev {item.link} dst {item.remote} self permanent\n"
                for item in wanted
                if isinstance(item, FdbEntry)
            )
        )
        begin = time.perf_counter()
        run("ip", "-n", name, f"-{version}", "-batch", str(ip))
        run("bridge", "-n", name, "-batch", str(bridge))
        return time.perf_counter() - begin


def ip_line(item: KernelObject) -> str:
    if isinstance(item, Neighbour):
        return f"neighbour replace {item.address} lladdr {item.mac} dev {item.link} nud permanent"
    assert isinstance(item, Route)
    return f"route add {item.destination} via {item.gateway} dev {item.link} onlink proto 241"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=5000, help="three entries each (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turns (default %(default)s)")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4, help="address family (default %(default)s)")
    arguments = parser.parse_args()
    wanted = entries(arguments.peers, arguments.family)
    ours: dict[str, list[float]] = {way: [] for way in TARGETS}
    dumps, theirs = [], []
    for number in range(arguments.rounds):
        with namespace(arguments.family) as name:
            theirs.append(with_iproute(name, wanted, arguments.family))
        for way, took in ours.items():
            with namespace(arguments.family) as name:
                written, dumped = with_port(name, wanted, arguments.family, way)
            took.append(written)
            dumps.append(dumped)
        each = ", ".join(f"{way} {took[-1]:.3f} s" for way, took in ours.items())
        print(f"round {number + 1}: {each}, ip+bridge -batch {theirs[-1]:.3f} s, dump {dumped:.3f} s")
    batch = statistics.median(theirs)
    print(f"{len(wanted)} entries, medians of {arguments.rounds} rounds:")
    print(f"  ip + bridge -batch    {batch:.3f} s")
    met = True
    for way, target in TARGETS.items():
        took_ours = statistics.median(ours[way])
        met &= took_ours <= target * batch
        print(f"  NetlinkPort.{way:<10}{took_ours:.3f} s    ratio {took_ours / batch:.2f} (target: at most {target})")
    print(f"  full dump             {statistics.median(dumps):.3f} s")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
