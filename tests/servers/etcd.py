"""etcd servers for tests: with TLS, users and roles, and a look at the keys from outside the driver.

The servers themselves are :mod:`pyflannel.lab.servers.etcd`'s. What is here is asked through etcdctl wherever that
can do it, so that tests don't check the driver with the driver's own client.
"""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.servers.authority import Authority, Certificate
from tests.servers.memory import in_memory

from pyflannel.lab.servers.etcd import EtcdCluster, find_etcd
from pyflannel_stores._etcd_loader import load_etcd3

MISSING = None if find_etcd() else "etcd is not installed: apt-get install etcd-server etcd-client"
"""Why there are no etcd tests here, or ``None``."""


@contextmanager
def etcd(members: int = 1, **options: Any) -> Iterator[EtcdCluster]:
    """A healthy cluster on data in memory, gone without a trace afterwards."""
    with (
        TemporaryDirectory(prefix="pyflannel-etcd-", dir=in_memory()) as data,
        EtcdCluster(Path(data), members, **options) as it,
    ):
        yield it


def etcdctl(cluster: EtcdCluster, *words: str, text: str | bytes | None = None, check: bool = True) -> str:
    """Run etcdctl against all members and return what it prints."""
    urls = ",".join(member.client_url for member in cluster.members)
    done = subprocess.run(
        ["etcdctl", f"--endpoints={urls}", "--command-timeout=5s", *words],
        env={**os.environ, "ETCDCTL_API": "3"},
        input=text.encode() if isinstance(text, str) else text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        timeout=20,
    )
    if check and done.returncode:
        raise AssertionError(f"etcdctl {' '.join(words)}: {done.stderr.decode()}")
    return done.stdout.decode(errors="surrogateescape")


def stored(cluster: EtcdCluster, prefix: str, *words: str) -> dict[str, dict[str, Any]]:
    """All keys below a prefix: key to ``{"value": bytes, "lease": int, "mod_revision": int, ...}``."""
    answer = json.loads(etcdctl(cluster, "get", "--prefix", prefix, "-w", "json", *words))
    return {
        b64decode(entry["key"]).decode(): {
            **entry,
            "value": b64decode(entry.get("value", "")),
            "lease": entry.get("lease", 0),
        }
        for entry in answer.get("kvs", [])
    }


def leases(cluster: EtcdCluster, *words: str) -> set[int]:
    """The ids of all etcd leases that exist."""
    answer = json.loads(etcdctl(cluster, "lease", "list", "-w", "json", *words))
    return {entry["id"] for entry in answer.get("leases") or ()}


def fill(cluster: EtcdCluster, prefix: str, items: Sequence[tuple[str, str]], leased: bool = False) -> None:
    """Put many leases, 64 in a transaction: reservations, or each on an etcd lease of its own."""
    etcd3 = load_etcd3()
    rpc = etcd3.etcdrpc
    host, _, port = cluster.members[0].endpoint.rpartition(":")
    client = etcd3.client(host=host, port=int(port), timeout=20)
    grants = [client.leasestub.LeaseGrant.future(rpc.LeaseGrantRequest(TTL=86400)) for _ in items] if leased else []
    ids = [grant.result().ID for grant in grants] or [0] * len(items)
    puts = [
        rpc.RequestOp(
            request_put=rpc.PutRequest(key=f"{prefix}/subnets/{key}".encode(), value=value.encode(), lease=id_)
        )
        for (key, value), id_ in zip(items, ids, strict=True)
    ]
    for start in range(0, len(puts), 64):
        client.kvstub.Txn(rpc.TxnRequest(success=puts[start : start + 64]), timeout=20)
    client.close()


def enable_auth(cluster: EtcdCluster, *words: str) -> None:
    """Switch authentication on, with user root (password ``root``)."""
    etcdctl(cluster, *words, "user", "add", "root:root")
    etcdctl(cluster, *words, "auth", "enable")


def add_user(cluster: EtcdCluster, name: str, password: str, prefix: str, *words: str) -> None:
    """Add a user whose one role may read and write below ``prefix`` and nowhere else."""
    etcdctl(cluster, *words, "role", "add", name)
    etcdctl(cluster, *words, "role", "grant-permission", name, "--prefix=true", "readwrite", prefix)
    etcdctl(cluster, *words, "user", "add", f"{name}:{password}")
    etcdctl(cluster, *words, "user", "grant-role", name, name)


def tls_arguments(authority: Authority, *, client_certificates: bool = True) -> list[str]:
    """The flags that make etcd speak TLS with a certificate of this authority."""
    server = authority.server()
    arguments = [f"--cert-file={server.certfile}", f"--key-file={server.keyfile}"]
    if client_certificates:
        arguments += ["--client-cert-auth", f"--trusted-ca-file={authority.cafile}"]
    return arguments


def ctl_arguments(authority: Authority, client: Certificate) -> list[str]:
    """The flags that make etcdctl speak TLS with it."""
    return [f"--cacert={authority.cafile}", f"--cert={client.certfile}", f"--key={client.keyfile}"]
