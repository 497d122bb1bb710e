"""What the etcd store costs: reading all leases, hearing of one, sitting idle, and sitting out an outage.

Starts an etcd of its own with many leases, each on its own etcd lease as in a real cluster, and measures in a fresh
process beside it: the import of the client, the snapshot down to parsed leases (etcdctl's bare read beside it), from a
write to the change in the watch, and the processor time of an idle watch and of one whose server is gone.

    python benchmarks/etcd_snapshot.py --leases 5000 --rounds 9 --idle 10
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyflannel.errors import StoreUnavailableError
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.network.lease import Lease
from pyflannel.store import Store, StoreLocation
from pyflannel_stores.etcd import EtcdStore

PREFIX = "/coreos.com/network"
TARGET = 0.15


def lease(number: int) -> tuple[str, str]:
    """A key and a value as flanneld's vxlan backend writes them."""
    value = {
        "PublicIP": f"198.51.{number >> 8}.{number & 255}",
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"},
    }
    return f"10.{number >> 8}.{number & 255}.0-24", json.dumps(value, separators=(",", ":"))


def fill(hosts: str, number: int) -> None:
    """Grant an etcd lease for each lease, and put them 100 in a transaction."""
    from pyflannel_stores._etcd_loader import load_etcd3

    etcd3 = load_etcd3()
    rpc = etcd3.etcdrpc
    host, _, port = hosts.rpartition(":")
    client = etcd3.client(host=host, port=int(port), timeout=30)
    grants = [client.leasestub.LeaseGrant.future(rpc.LeaseGrantRequest(TTL=86400)) for _ in range(number)]
    puts = []
    for index, grant in enumerate(grants):
        key, value = lease(index)
        put = rpc.PutRequest(key=f"{PREFIX}/subnets/{key}".encode(), value=value.encode(), lease=grant.result().ID)
        puts.append(rpc.RequestOp(request_put=put))
    for start in range(0, number, 100):
        client.kvstub.Txn(rpc.TxnRequest(success=puts[start : start + 100]), timeout=30)
    client.close()


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median of ``rounds`` runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def resident() -> float:
    """Megabytes of memory in use by this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def processor_share(seconds: float) -> float:
    """Percent of one processor that this process uses over ``seconds``."""
    start = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - start) / seconds * 100


class Follower(threading.Thread):
    """Follows the store as the daemon does, opening a broken watch again after a second."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.revision = store.snapshot().revision
        self.heard = threading.Semaphore(0)
        self.watch = store.watch(self.revision)
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                for batch in self.watch:
                    self.revision = batch.revision
                    for _ in batch.changes:
                        self.heard.release()
            except StoreUnavailableError:
                self.over.wait(1)
                self.watch.close()
                self.watch = self.store.watch(self.revision)

    def close(self) -> None:
        self.over.set()
        self.watch.close()
        self.join()


def measure(hosts: str, rounds: int, idle: float, server: int) -> None:
    """The figures of one process that is a client."""
    before, start = resident(), time.perf_counter()
    store = EtcdStore(StoreLocation.parse(f"etcd://{hosts}{PREFIX}"))
    store.read_config()
    print(f"first call, with the client's import        {(time.perf_counter() - start) * 1000:8.1f} ms")
    print(f"memory: before, and with the client         {before:8.1f} MB {resident():8.1f} MB")

    def parsed() -> list[Lease]:
        return [Lease.from_record(record.key, record.value) for record in store.snapshot().leases]

    number = len(parsed())
    read = milliseconds(store.snapshot, rounds)
    total = milliseconds(parsed, rounds)
    start = time.process_time()
    parsed()
    used = (time.process_time() - start) * 1000
    words = ["etcdctl", f"--endpoints={hosts}", "get", "--prefix", PREFIX]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    beside = milliseconds(lambda: subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True), rounds)
    print(f"snapshot of {number} leases as records         {read:8.1f} ms")
    print(f"snapshot of {number} leases, parsed            {total:8.1f} ms, {used:.1f} of processor time")
    print(f"etcdctl get --prefix of the same             {beside:8.1f} ms ({total / beside:.2f} of it)")
    records = store.snapshot().leases
    each = milliseconds(lambda: store.time_to_live(records), 1)
    print(f"time to live of {number} leases, asked for     {each:8.1f} ms")

    follower = Follower(store)
    record = store.create("10.255.255.0-24", "{}", 86400)
    follower.heard.acquire()

    def change() -> None:
        nonlocal record
        record = store.update(record, "{}", None if record.permanent else 86400)
        follower.heard.acquire()

    print(f"write to change in the watch, median         {milliseconds(change, 200):8.2f} ms")
    store.delete(record)
    print(f"memory with all of it                        {resident():8.1f} MB")
    print(f"idle with an open watch                      {processor_share(idle):8.3f} % of a processor")
    os.kill(server, 9)
    print(f"while the server is gone                     {processor_share(idle):8.3f} % of a processor")
    follower.close()
    store.close()
    print(f"target: {number} parsed below {TARGET * 1000:g} ms: {'met' if total < TARGET * 1000 else 'missed'}")
    sys.exit(total >= TARGET * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to sit idle, and to sit out the outage")
    parser.add_argument("--measure", nargs=2, metavar=("HOSTS", "PID"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], options.rounds, options.idle, int(options.measure[1]))
    with tempfile.TemporaryDirectory(prefix="pyflannel-") as directory, EtcdCluster(Path(directory)) as cluster:
        fill(cluster.hosts, options.leases)
        words = [__file__, f"--rounds={options.rounds}", f"--idle={options.idle}", "--measure"]
        done = subprocess.run([sys.executable, *words, cluster.hosts, str(cluster.members[0].pid)], check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
