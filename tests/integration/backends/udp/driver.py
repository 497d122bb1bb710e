"""A daemon reduced to its data plane: starts the udp backend in this network namespace and obeys lines of JSON.

``driver.py STATE_DIR NUMBER OPTIONS``; answers every line with one. Killed, it leaves the worker as a daemon would.
With the option ``dual_stack`` the worker carries IPv6 inside, too. The udp backend never asks for that, but what it
runs on can do it. With the option ``observed`` the worker is one that tells what Python does; see observed_worker.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyflannel.backend import Lease, LeaseAttributes, NetworkConfig, Node, Subnets, Underlay, parse_options
from pyflannel_backends.udp import UdpBackend, UdpOptions, _rows
from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind


def main() -> None:
    state_dir, number, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    underlay_mtu, dual_stack = options.pop("underlay_mtu", 1500), options.pop("dual_stack", False)
    observed = options.pop("observed", False)
    backend = UdpBackend(parse_options(UdpOptions, options)[0])
    underlay = Underlay("under", underlay_mtu, ip_address(f"192.0.2.{number}"))  # type: ignore[arg-type]
    network = NetworkConfig.from_json('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}')
    node = Node("node", network, underlay, Subnets.from_key(f"10.5.{number}.0-24"), state_dir)
    start = start_dual_stack if dual_stack else start_observed if observed else UdpBackend.start
    plane = start(backend, node)
    assert isinstance(plane, UserspaceDataPlane)
    print(json.dumps("started"), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(plane, json.loads(line))), flush=True)


def start_dual_stack(backend: UdpBackend, node: Node) -> UserspaceDataPlane:
    """As the backend does it, but with an IPv6 subnet for each node: fd00:5:NUMBER::/64 beside 10.5.NUMBER.0/24."""

    def both(subnet: str) -> list[str]:
        return [subnet, f"fd00:5:{subnet.split('.')[2]}::/64"]

    def rows(lease: Lease) -> list[tuple[str, str]]:
        return [(subnet, str(lease.attributes.public_ip)) for subnet in both(str(lease.subnets.ipv4))]

    config = backend.worker_config(node)
    config = replace(config, own=both(config.own[0]))
    return UserspaceDataPlane(WorkerKind("udp", "pyflannel_backends.udp.worker", config, rows), node.state_dir, 1)


def start_observed(backend: UdpBackend, node: Node) -> UserspaceDataPlane:
    """As the backend does it, but with another module for the worker."""
    module = "tests.integration.backends.udp.observed_worker"
    return UserspaceDataPlane(WorkerKind("udp", module, backend.worker_config(node), _rows), node.state_dir, 1)


def obey(plane: UserspaceDataPlane, words: list[str]) -> Any:
    match words:
        case ["put", key, address]:
            plane.put(Lease(Subnets.from_key(key), LeaseAttributes(public_ip=ip_address(address))))  # type: ignore[arg-type]
        case ["remove", key]:
            plane.remove(Subnets.from_key(key))
        case ["check"]:
            return dict(plane.check())
        case ["kernel_path"]:
            return [status["kernel_path"] for status in plane.statuses() if "kernel_path" in status]
        case ["counters"]:
            return dict(plane.counters())
        case ["stop"]:
            plane.stop()
        case ["end"]:
            plane.end()
    return None


if __name__ == "__main__":
    main()
