"""Daemons with deliberately bad backends, each from a distribution of its own: named, survived, and still leased."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sites import install
from tests.storing import FREE, write_document

from pyflannel.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PATIENCE = 60.0

HEAD = """\
import time
from ipaddress import ip_interface
from pyflannel.backend import *

class Bad(Backend):
    name = "bad"

    def mtu(self, underlay):
        return underlay.mtu

"""

FAULTS = {
    "planning never ends": (
        "def plan_peer(self, node, peer):\n        time.sleep(3600)",
        "backend 'bad' has not come back from planning for",
    ),
    "the data plane never starts": (
        "def start(self, node):\n        time.sleep(3600)",
        "backend 'bad' has not come back from its data plane for",
    ),
    "planning raises": (
        "def plan_node(self, node):\n        raise ZeroDivisionError('oops')",
        "backend 'bad' failed in plan_node: ZeroDivisionError: oops",
    ),
    "the MTU is nonsense": ("def mtu(self, underlay):\n        return 'large'", "says that the MTU is 'large'"),
    "the data plane raises": (
        "def start(self, node):\n        raise OSError('no such device')",
        "backend 'bad' failed in start: OSError: no such device",
    ),
    "it reaches for the underlay": (
        "def plan_node(self, node):\n        return [Address('eth0', ip_interface('10.244.0.9/32'))]",
        "on a link that is not its own",
    ),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=len(FAULTS), containers=0) as lab:
        yield lab


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=FAULTS.keys())
def test_it_is_named_and_the_lease_is_renewed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    code, reason = list(FAULTS.values())[number]
    (tmp_path / "bad_backend.py").write_text(f"{HEAD}    {code}\n")
    about = tmp_path / "bad_backend-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-backend\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.backends]\nbad = bad_backend:Bad\n")
    install(monkeypatch, tmp_path)
    node = lab.nodes[number]
    store = f"{lab.file_store}-{number}"
    before = node.run(["ip", "address", "show", "eth0"]).stdout
    write_document(lab, "bad", store)
    daemon = node.start_daemon(store, "bad", None, ["--lease-ttl", "3", "--log-level", "debug"])
    daemon.wait_status(lambda status: status["lease"] is not None, "holding a lease", PATIENCE)
    peer = lab.outside(node.directory).parent / f"store-{number}" / "subnets" / f"{FREE}.json"
    peer.write_text(json.dumps({"PublicIP": "192.0.2.77", "BackendType": "bad"}))
    # On a busy machine the short lease may run out for a moment, which then is what the daemon speaks of.
    status = daemon.wait_status(lambda status: reason in status["message"], f"saying {reason!r}", PATIENCE)
    for _ in range(3):
        renewed = status["lease"]["renewed"]
        status = daemon.wait_status(
            lambda status: status["lease"]["renewed"] != renewed,  # noqa: B023
            "renewing",
            PATIENCE,
        )
    status = daemon.wait_status(lambda status: reason in status["message"], f"still saying {reason!r}", PATIENCE)
    assert [status["backend"][name] for name in ("name", "distribution", "version")] == ["bad", "bad-backend", "1"]
    assert [bool(status["store"][name]) for name in ("distribution", "version")] == [True, True]
    log = daemon.log()
    levels = Counter(line.split()[1] for line in log.splitlines() if reason in line)
    # Once, not once a second; a lease that ran out for a moment is told with it, and then it stands alone again.
    often = {"debug": 1, "warning": 1 + 2 * log.count("the lease has expired"), "error": 1}
    assert all(levels[level] <= often[level] for level in often), log
    assert log.count("Traceback (most recent call last)") == levels["debug"] == (" failed in " in reason), log
    assert node.run(["ip", "address", "show", "eth0"]).stdout == before
    daemon.kill()
