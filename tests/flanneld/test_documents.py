"""Network documents as flanneld reads them and as we do: accepted by both or by neither, and the same for containers.

Each document is put under a prefix of its own. A real flanneld starts on a node, and when it has ended a daemon of ours
on the same node, which takes its lease over unless the document is refused: what they make of it has to agree, byte for
byte.
"""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.recordings import BETTER_DOCUMENTS, GOLDEN
from tests.servers.flanneld import Etcd, Flanneld
from tests.waiting import until

from pyflannel.backend import parse_options
from pyflannel.errors import DaemonError, PyflannelError
from pyflannel.lab import Lab, Node
from pyflannel.network.document import NetworkConfig
from pyflannel.plugins import load_backend

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

VECTORS: list[dict[str, Any]] = json.loads((GOLDEN / "config-0.28.10.json").read_text())
WORKERS = 3
REFUSED = "Couldn't fetch network config"
UNREADABLE = "cannot unmarshal"
"""What it says of the backend's own keys, when it has found its type."""

FOUND = re.compile(r"Found network config - Backend type: (.*)$", re.MULTILINE)
RANGE = re.compile(r"Picking subnet in range (\S+) \.\.\. (\S+)")
CLEAN = """
for device in $(ip -o link show | sed -n 's/^[0-9]*: \\(flannel[^:@]*\\)[:@].*/\\1/p'); do ip link delete $device; done
ip route flush proto 241; ip route show | grep -v -e default -e 192.0.2.0/24 | while read -r route; do
    ip route delete $route; done; rm -rf "$0/subnet.env" "$0/run" "$0/state"
"""


@dataclass(frozen=True)
class Made:
    """What one daemon made of a document: why it was refused, or its subnet.env, empty if it could not run on it."""

    refused: str = ""
    type: str = ""
    range: tuple[str, str] | None = None
    environment: bytes = b""
    log: str = ""


def theirs(node: Node, etcd: Etcd, prefix: str) -> Made:
    with Flanneld(node, etcd, prefix) as flanneld:
        flanneld.start()
        until(lambda: FOUND.search(flanneld.log()) or REFUSED in flanneld.log() or not flanneld.running, flanneld.log)
        found = FOUND.search(flanneld.log())
        if found is None:
            return Made(refused=flanneld.log(), log=flanneld.log())
        until(lambda: flanneld.ready() or not flanneld.running, flanneld.log)
        if UNREADABLE in flanneld.log():
            return Made(refused=flanneld.log(), log=flanneld.log())
        said = RANGE.search(flanneld.log())
        return Made(
            type=found[1],
            range=(said[1], said[2]) if said is not None else None,
            environment=flanneld.environment() if flanneld.ready() else b"",
            log=flanneld.log(),
        )


def ours(node: Node, etcd: Etcd, prefix: str, document: str) -> Made:
    """What is refused before anything else is looked at needs no daemon: nodes read documents by these functions."""
    try:
        network = NetworkConfig.from_json(document)
        parse_options(load_backend(network.backend_type).Options, network.backend_options)
    except PyflannelError as error:
        return Made(refused=str(error))
    daemon = node.start_daemon(etcd.store(prefix), None)

    def settled() -> Made | None:
        try:
            status = daemon.status()
        except DaemonError as error:
            return None if daemon.running else Made(refused=f"{error}", log=daemon.log())
        if status["ready"]:
            text = node.lab.outside(node.subnet_file).read_bytes()
            return Made(type=status["backend"]["name"], environment=text, log=daemon.log())
        return Made(refused=status["message"]) if "network config" in status["message"] else None

    try:
        return until(settled, daemon.log)  # type: ignore[return-value]
    except pytest.fail.Exception as error:  # that document's test fails, and the others go on
        return Made(refused=f"nothing comes of it: {error}")
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, tuple[Made, Made]]]:
    """What both make of every document, several at a time."""
    with Lab(nodes=WORKERS, containers=0) as lab:
        etcd = Etcd(lab)
        nodes: queue.SimpleQueue[Node] = queue.SimpleQueue()
        for node in lab.nodes:
            nodes.put(node)

        def both(vector: dict[str, Any]) -> tuple[Made, Made]:
            prefix = f"/documents/{vector['name']}"
            etcd.put(f"{prefix}/config", vector["document"])
            with borrowed(nodes) as node:
                first = theirs(node, etcd, prefix)
                second = ours(node, etcd, prefix, vector["document"])
                node.run(["sh", "-c", CLEAN, str(node.directory)])
                return first, second

        with ThreadPoolExecutor(WORKERS) as pool:
            yield dict(zip((vector["name"] for vector in VECTORS), pool.map(both, VECTORS), strict=True))


@contextmanager
def borrowed(nodes: queue.SimpleQueue[Node]) -> Iterator[Node]:
    node = nodes.get()
    try:
        yield node
    finally:
        nodes.put(node)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_document_is_taken_as_flanneld_takes_it(
    vector: dict[str, Any], outcomes: dict[str, tuple[Made, Made]]
) -> None:
    recorded, (real, own) = vector["flanneld"], outcomes[vector["name"]]
    if vector["name"] in BETTER_DOCUMENTS:  # most of them flanneld takes, and ends on
        return
    assert bool(real.refused) == recorded.get("refused", False), real.log
    assert bool(own.refused) == bool(real.refused), own.refused or real.log
    if real.refused:
        return
    assert own.type == real.type.lower() == recorded["type"].lower()
    if real.environment:
        assert own.environment == real.environment
    if real.range is not None and "ipv4" in recorded:
        first, _, last = recorded["ipv4"].rpartition(" ")[2].partition("..")
        assert real.range == (first, last)


def test_most_documents_were_compared_to_the_byte(outcomes: dict[str, tuple[Made, Made]]) -> None:
    """What flanneld can't run on here is wireguard, and IPv6 alone, which it has not on etcd."""
    compared = [
        name for name, (real, own) in outcomes.items() if real.environment and real.environment == own.environment
    ]
    assert len(compared) > 30
