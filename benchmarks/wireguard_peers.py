"""How fast WireGuard's peers are programmed: NetlinkPort against ``wg addconf``, and what reading them costs.

Each round makes a namespace with two WireGuard devices, gives one its peers through the port and the other the same
through wg(8), in turns, and removes the namespace. Printed are CPU seconds of the whole process tree, kernel included:
the kernel computes an X25519 for every peer within the call. Needs root, wg, and a kernel with WireGuard.

    python benchmarks/wireguard_peers.py --peers 5000 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyflannel.backend import has_generic_netlink
from pyflannel.kernel.model import Endpoint, GenericInfo, KernelObject, Link, WireguardDevice, WireguardPeer
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write
from pyflannel.small.secret import Secret

OURS, THEIRS = "flannel-wg", "by-wg"


def peers(count: int) -> list[WireguardPeer]:
    """Peers as a lease each makes them."""
    return [
        WireguardPeer(
            OURS,
            b64encode(os.urandom(32)).decode(),
            (IPv4Network((0x0A000000 + (number << 8), 24)),),
            Endpoint(IPv4Address(0xC6120000 + number), 51820),
        )
        for number in range(count)
    ]


def configuration(wanted: list[WireguardPeer]) -> str:
    """The same for ``wg addconf``."""
    return "".join(
        f"[Peer]\nPublicKey = {peer.public_key}\nAllowedIPs = {peer.allowed_ips[0]}\nEndpoint = {peer.endpoint}\n"
        for peer in wanted
    )


@contextmanager
def namespace() -> Iterator[str]:
    """A namespace without anything."""
    name = f"pyflannel-bench-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        run("ip", "netns", "delete", name)


def run(*words: str) -> None:
    subprocess.run(words, check=True)


def cpu(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds that a call takes, its processes' included, and its wall time."""

    def spent() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    begin, before = time.perf_counter(), spent()
    work()
    return spent() - before, time.perf_counter() - begin


def measure(count: int) -> dict[str, float]:
    """One round."""
    wanted: list[KernelObject] = list(peers(count))
    link = Link(OURS, GenericInfo("wireguard"), 1420)
    device = WireguardDevice(OURS, Secret(os.urandom(32)), 51820)
    scope = Scope.of([link, device])
    with namespace() as name, tempfile.TemporaryDirectory() as directory:
        port = NetlinkPort(Path("/run/netns") / name)
        try:
            port.dump(scope)
            assert not port.apply([Write(None, link)])
            assert not port.apply([Write(None, device)])
            run("ip", "-n", name, "link", "add", THEIRS, "type", "wireguard")
            key, conf = Path(directory, "key"), Path(directory, "conf")
            key.write_text(b64encode(os.urandom(32)).decode())
            conf.write_text(configuration(wanted))  # type: ignore[arg-type]
            run("ip", "netns", "exec", name, "wg", "set", THEIRS, "private-key", str(key))
            failed: list[object] = []
            found = {"port": cpu(lambda: failed.extend(port.apply([Write(None, item) for item in wanted])))[0]}
            assert not failed
            found["wg"] = cpu(lambda: run("ip", "netns", "exec", name, "wg", "addconf", THEIRS, str(conf)))[0]
            known = {item.key: item for item in wanted}
            found["read"], found["read wall"] = cpu(lambda: port.dump(scope, known))
        finally:
            port.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not has_generic_netlink("wireguard"):
        print("left out: this kernel has no WireGuard", file=sys.stderr)
        return
    rounds = [measure(arguments.peers) for _ in range(arguments.rounds)]
    found = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print(f"{arguments.peers} peers, {os.uname().release}, Python {sys.version.split()[0]}, medians of {len(rounds)}")
    print(
        f"port {found['port']:.2f} CPU s, wg addconf {found['wg']:.2f} CPU s, ratio {found['port'] / found['wg']:.2f}"
    )
    print(f"reading them all: {found['read']:.2f} CPU s, {found['read'] / found['wg']:.3f} of wg addconf")


if __name__ == "__main__":
    main()
