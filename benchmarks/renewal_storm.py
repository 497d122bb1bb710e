"""A thousand nodes after an outage: how their renewals are spread, on a real etcd, with the daemon's own pauses.

Each simulated node holds an etcd lease that became due for renewal while etcd was away. All find etcd missing at the
same moment, then wait as the lease keeper does (its ``Backoff``), fail again while the outage lasts, and renew when
etcd is back. The renewals are real calls. Beside it runs the same without jitter: pauses that only grow.

Printed is, for both: how long until the last node has renewed, the most renewals begun in one tenth of a second, and
how long a renewal took.

    python benchmarks/renewal_storm.py --nodes 1000 --outage 20
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.small.retry import Backoff
from pyflannel.store import Record, StoreLocation
from pyflannel_stores.etcd import EtcdStore

TTL = 86400.0
WORKERS = 16
BIN = 0.1


class Even(random.Random):
    """No chance at all: every pause is as long as it may be."""

    def random(self) -> float:
        return 1.0


def come_back(nodes: int, outage: float, make: Callable[[int], Backoff]) -> list[float]:
    """When each node tries again for the first time after the outage, in seconds after its end, in order.

    The outage hits all at once, as when a renewal fails that an earlier outage had put off for everybody.
    """
    due = [(0.0, node) for node in range(nodes)]
    backoffs = [make(node) for node in range(nodes)]
    heapq.heapify(due)
    found = []
    while due:
        at, node = heapq.heappop(due)
        if at >= outage:
            found.append(at - outage)
        else:
            heapq.heappush(due, (at + backoffs[node].next(), node))
    return found


def storm(hosts: str, records: list[Record], times: list[float]) -> tuple[list[float], float]:
    """Renew each record at its time; returns what each took, from the time it was due, and when the last was done."""
    local = threading.local()

    def renew(record: Record, at: float) -> float:
        if not hasattr(local, "store"):
            local.store = EtcdStore(StoreLocation.parse(f"etcd://{hosts}/coreos.com/network"))
            local.store.read_config()
        time.sleep(max(0.0, begin + at - time.perf_counter()))
        local.store.renew(record, TTL)
        return time.perf_counter() - begin - at

    with ThreadPoolExecutor(WORKERS) as pool:
        begin = time.perf_counter() + 0.5
        took = list(pool.map(renew, records, times))
        return took, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--outage", type=float, default=20.0, help="seconds")
    options = parser.parse_args()
    kinds: dict[str, Callable[[int], Backoff]] = {
        "with jitter": lambda node: Backoff(random.Random(node)),
        "without": lambda node: Backoff(Even()),
    }
    with tempfile.TemporaryDirectory(prefix="pyflannel-") as directory, EtcdCluster(Path(directory)) as cluster:
        with EtcdStore(StoreLocation.parse(f"etcd://{cluster.hosts}/coreos.com/network")) as store:
            records = [store.create(f"10.{n >> 8}.{n & 255}.0-24", "{}", TTL) for n in range(options.nodes)]
        print(f"{options.nodes} nodes, an outage of {options.outage:g} s, {WORKERS} of them renew at a time")
        for name, make in kinds.items():
            times = come_back(options.nodes, options.outage, make)
            most = max(Counter(int(at / BIN) for at in times).values())
            took, last = storm(cluster.hosts, records, times)
            print(
                f"  {name:12}  tries spread over {max(times) - min(times):6.2f} s, at most {most:5d} in {BIN:g} s; a "
                f"renewal took {statistics.median(took) * 1000:8.1f} ms (median), {max(took) * 1000:8.1f} ms (most); "
                f"all done after {last:5.2f} s"
            )


if __name__ == "__main__":
    main()
