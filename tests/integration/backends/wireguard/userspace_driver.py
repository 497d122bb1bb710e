"""A daemon reduced to its data plane: starts the userspace worker in this network namespace and obeys lines of JSON.

``userspace_driver.py STATE_DIR NUMBER OPTIONS LIMITS``; answers every line with one. The node's subnet is
10.5.NUMBER.0/24, its peers are told as rows of the worker's table, so that anything that speaks WireGuard may be one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyflannel.backend import Lease, LeaseAttributes, NetworkConfig, Node, Subnets, Underlay, parse_options
from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind
from pyflannel_backends.wireguard import WireguardBackend, WireguardOptions
from pyflannel_backends.wireguard.dataplane import rows, worker_config

NETWORK = '{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}'


def main() -> None:
    state_dir, number, options, limits = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    backend = WireguardBackend(parse_options(WireguardOptions, json.loads(options))[0])
    address, subnets = ip_address(f"192.0.2.{number}"), Subnets.from_key(f"10.5.{number}.0-24")
    underlay = Underlay("eth0", 1500, address)  # type: ignore[arg-type]
    node = Node("node", NetworkConfig.from_json(NETWORK), underlay, subnets, state_dir)
    published = backend.publish(node).data
    config = dataclasses.replace(worker_config(backend, node, backend.device(4)), limits=limits)
    secrets = {} if backend.psk is None else {"psk": backend.psk.reveal().hex()}
    kind = WorkerKind(
        "wireguard",
        "pyflannel_backends.wireguard.worker",
        config,
        lambda peer: rows(backend, node, peer, backend.device(4)),
        secrets,
    )
    plane = UserspaceDataPlane(kind, state_dir, 1)
    print(json.dumps(published), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(plane, json.loads(line))), flush=True)
    plane.end()


def obey(plane: UserspaceDataPlane, words: list[str]) -> Any:
    match words:
        case ["put", number, address, key]:
            attributes = LeaseAttributes(
                public_ip=ip_address(address),  # type: ignore[arg-type]
                backend_type="wireguard",
                backend_data={"PublicKey": key},
            )
            plane.put(Lease(Subnets.from_key(f"10.5.{number}.0-24"), attributes))
        case ["check"]:
            return dict(plane.check())
        case ["status"]:
            return plane.statuses()[0]
    return None


if __name__ == "__main__":
    main()
