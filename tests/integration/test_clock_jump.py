"""The wall clock of a node jumps while its daemon runs: by a day ahead, then two days back.

libfaketime gives one process another wall clock and leaves the monotonic one alone, which is what a clock that is set
looks like. A lease of 12 s must live on, the same one, renewed at its own pace: neither lost to a clock that says it
has long expired, nor renewed in a storm, nor never again because the time to do it lies a day away.

The servers' clock can't be shifted like this: Go asks the kernel for the time without the C library. A whole machine's
is in ``tests/kernels/inside/test_clock_jump.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest
from tests.renewals import OPTIONS, Renewals
from tests.servers import consul, etcd
from tests.waiting import until

from pyflannel.lab import Lab, Node

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: apt-get install faketime"),
]

MISSING = {"etcd": etcd.MISSING, "consul": consul.MISSING}
STORES = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name] is not None, reason=str(MISSING[name])))
    for name in ("etcd", "consul")
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, containers=0) as lab:
        yield lab


def clock_of(node: Node) -> datetime:
    """The wall clock as the node's daemon has it: when it says that it renewed last, in the last seconds."""
    return datetime.fromisoformat(node.daemon.status()["lease"]["renewed"])


def has_jumped(node: Node, by: timedelta) -> bool:
    return abs(clock_of(node) - datetime.now(timezone.utc) - by) < timedelta(hours=1)


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
        daemon = node.start_daemon(url, "vxlan", "10.244.0.0/16", OPTIONS)
    renewals = Renewals(node, observer, url)
    try:
        daemon.wait_ready()
        before, snapshots = renewals.record(), renewals.calls("snapshot")
        for jump, expected in (("+1d", timedelta(days=1)), ("-1d", timedelta(days=-1))):
            lab.outside(shift).write_text(jump)
            until(partial(has_jumped, node, expected), "the daemon's clock does not jump")
            renewals.go_on(before)
        assert renewals.calls("snapshot") == snapshots, "no session began anew"
    finally:
        daemon.stop()
        print(daemon.log())
