"""Tens of thousands of leases come at once to a daemon that runs: it is alive meanwhile, and doctor finds it well.

That long work gives signs of life whatever the machine's speed is shown in ``tests/unit/daemon/test_loop.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import get, until
from tests.integration.examining import Doctor
from tests.storing import write_document
from tests.waiting import LONG

from pyflannel.lab import Lab, Node
from pyflannel.show.status import query

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

COUNT = 20_000


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab(nodes=1) as lab:
        write_document(
            lab, "host-gw", Network="10.0.0.0/8", SubnetLen=24, SubnetMin="10.200.0.0", SubnetMax="10.209.0.0"
        )
        (node,) = lab.nodes
        node.start_daemon(lab.file_store, None, None, ["--healthz-port", "8401"])
        node.daemon.wait_ready(peers=0)
        node.attach_containers()
        yield node
        print(node.daemon.log())


def leases(directory: Path) -> None:
    """Each fits, and none claims what another one has."""
    for number in range(COUNT):
        path = directory / f"10.{number >> 8}.{number & 255}.0-24.json"
        path.write_text(json.dumps({"PublicIP": f"192.0.2.{10 + number % 200}", "BackendType": "host-gw"}))


def test_the_daemon_is_alive_while_it_takes_them_in(node: Node) -> None:
    leases(node.lab.outside(node.directory).parent / "store" / "subnets")
    answers: set[int] = set()

    def status() -> dict[str, Any]:
        return query(node.lab.outside(node.daemon.run_directory), LONG)

    def taken_in() -> bool:
        for _ in range(20):
            answers.add(get(node, "/livez")[0])
            time.sleep(0.1)
        now = status()  # much for a daemon to write while it is busy
        return len(now["peers"]) == COUNT and now["objects"]["counts"]["route"]["done"] >= COUNT

    until(taken_in, lambda: status()["message"])
    assert answers == {200}
    assert status()["state"] == "ready"
    with Doctor(node) as doctor:
        assert set(doctor.trouble()) <= {"store"}, "nothing but that so many files take long to read"
