"""The clock of a whole machine is set, with a store's server and a node's daemon on it: a day ahead, then two back.

No lease may end for it, nor live for a day: servers count on the monotonic clock that every ``time.Now`` of Go's
carries along. Beside the node's own lease there is one each time that nobody renews, granted before the jump; that it
ends in its time shows the count, and the watch tells of it.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from tests.renewals import OPTIONS, TTL, Renewals
from tests.storing import create, delete

from pyflannel.lab import Lab
from pyflannel.lab.daemon import peers_in

pytestmark = pytest.mark.root

PATIENCE = 120.0
DAY = 86400.0
FOREIGN = '{"PublicIP": "192.0.2.2", "PublicIPv6": null, "BackendType": "host-gw"}'
"""A lease of somebody who is never heard of again."""


@pytest.fixture(autouse=True)
def _open_files() -> None:
    """As many as an init system allows; Consul wants 4020, and the kernel by itself gives 1024."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))


@pytest.fixture
def set_clock() -> Iterator[Callable[[float], None]]:
    """Sets the machine's clock to so many seconds after the right time, which it has again afterwards."""
    begin = time.time() - time.monotonic()

    def set_to(seconds: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, begin + time.monotonic() + seconds)

    yield set_to
    set_to(0)


def etcd_lets_leases_live() -> bool:
    """Whether it ends them by the wall clock, once that was set back: before 3.5 (etcd's issue 12291)."""
    said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor, *_ = said.split()[2].split(".")
    return (int(major), int(minor)) < (3, 5)


def beside(key: str, number: int) -> str:
    """The key of another subnet than the node's own, which it drew at random."""
    first, second, own, _ = key.split(".", 3)
    return f"{first}.{second}.{(int(own) + number) % 250 + 2}.0-24"


@pytest.mark.parametrize("store", ["etcd", "consul"])
def test_leases_outlive_it_and_end_in_their_time(store: str, set_clock: Callable[[float], None]) -> None:
    with Lab(nodes=2, containers=0) as lab:
        node, observer = lab.nodes
        url = lab.start_store(store)
        daemon = node.start_daemon(url, "host-gw", "10.244.0.0/16", OPTIONS)
        daemon.wait_ready(timeout=PATIENCE)
        renewals = Renewals(node, observer, url)
        before, snapshots = renewals.record(), renewals.calls("snapshot")
        for number, seconds in enumerate((DAY, -DAY)):
            subnet = beside(daemon.status()["lease"]["key"], number)
            create(observer, url, subnet, FOREIGN, TTL)
            daemon.wait_ready(peers=1, timeout=PATIENCE)
            set_clock(seconds)
            renewals.go_on(before)
            if store == "etcd" and seconds < 0 and etcd_lets_leases_live():
                delete(observer, url, subnet)
            daemon.wait_status(lambda status: not peers_in(status, "ok"), "without a peer", PATIENCE)
        assert renewals.calls("snapshot") == snapshots, "no session began anew"
