"""The wall clock of a node jumps while its daemon runs: by a day ahead, then two days back.

libfaketime gives one process another wall clock and leaves the monotonic one alone, which is what a clock that is set
looks like. A lease of 12 s must live on, the same one, renewed at its own pace: neither lost to a clock that says it
has long expired, nor renewed in a storm, nor never again because the time to do it lies a day away.

The servers' side can't be shown like this: Go asks the kernel for the time without the C library. They count a lease's
time on the monotonic clock that every ``time.Now`` of Go's carries along (see docs/stores).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tests.servers import consul, etcd

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: apt-get install faketime"),
]

PATIENCE = 60.0
TTL = 12.0
EARLIEST = TTL - TTL / 3 * 1.1
"""Seconds between two renewals at least: the margin is a third of the time, stretched by a tenth at most."""

MISSING = {"etcd": etcd.MISSING, "consul": consul.MISSING}
STORES = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name] is not None, reason=str(MISSING[name])))
    for name in ("etcd", "consul")
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, containers=0) as lab:
        yield lab


def calls(node: Node, name: str) -> int:
    """How often the daemon has called its store so."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8401/metrics', timeout=10).read().decode())"
    text = node.run([pyflannel_command()[0], "-c", code]).stdout
    label = f'pyflannel_store_call_duration_seconds_count{{call="{name}"}}'
    return next(int(float(line.rpartition(" ")[2])) for line in text.splitlines() if line.startswith(label))


def record(node: Node, url: str) -> list[str]:
    """Version and handle of the node's lease in the store: they change if it was lost and taken again."""
    code = (
        "import json, sys; from pyflannel.plugins import load_store; from pyflannel.store import StoreLocation\n"
        "where = StoreLocation.parse(sys.argv[1])\n"
        "with load_store(where.scheme)(where) as store:\n"
        "    print(json.dumps([(r.key, r.version, r.handle) for r in store.snapshot().leases]))\n"
    )
    (found,) = json.loads(node.run([pyflannel_command()[0], "-c", code, url]).stdout)
    return list(map(str, found))


def clock_of(node: Node) -> datetime:
    """The wall clock as the node's daemon has it: when it says that it renewed last, in the last seconds."""
    return datetime.fromisoformat(node.daemon.status()["lease"]["renewed"])


@pytest.mark.parametrize("store", STORES)
def test_a_lease_outlives_jumps_of_the_wall_clock(lab: Lab, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node, observer = lab.nodes
    url = lab.start_store(store)
    shift = node.directory / f"shift-{store}"
    lab.outside(shift).write_text("+0")
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(LIBRARY))
        patched.setenv("FAKETIME_TIMESTAMP_FILE", str(shift))
        patched.setenv("FAKETIME_CACHE_DURATION", "1")
        patched.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        patched.setenv("FAKETIME_DISABLE_SHM", "1")
        options = ["--lease-ttl", f"{TTL:g}", "--healthz-ip", "127.0.0.1", "--healthz-port", "8401"]
        daemon = node.start_daemon(url, "vxlan", "10.244.0.0/16", options)
    try:
        daemon.wait_ready()
        before, snapshots = record(observer, url), calls(node, "snapshot")
        for jump, expected in (("+1d", timedelta(days=1)), ("-1d", timedelta(days=-1))):
            lab.outside(shift).write_text(jump)
            deadline = time.monotonic() + PATIENCE
            while abs(clock_of(node) - datetime.now(timezone.utc) - expected) > timedelta(hours=1):
                assert time.monotonic() < deadline, "the daemon's clock does not jump"
                time.sleep(0.2)
            first, begin = calls(node, "renew"), time.monotonic()
            while (renewals := calls(node, "renew") - first) < 2 or time.monotonic() - begin < 1.5 * TTL:
                assert time.monotonic() < begin + PATIENCE, "it is not renewed any more"
                time.sleep(0.5)
            assert renewals <= (time.monotonic() - begin) / EARLIEST + 1, "a storm of renewals"
            status = daemon.status()
            assert (status["ready"], status["store"]["connected"]) == (True, True), status["message"]
            assert record(observer, url) == before
        assert calls(node, "snapshot") == snapshots, "no session began anew"
    finally:
        daemon.stop()
        print(daemon.log())
