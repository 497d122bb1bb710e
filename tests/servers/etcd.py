"""etcd servers for tests: certificates of our own, users and roles, and a look at the keys from outside the driver.

The servers themselves are :mod:`pyflannel.lab.servers.etcd`'s. What is here is asked through etcdctl wherever that
can do it, so that tests don't check the driver with the driver's own client.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pyflannel.lab.servers.etcd import EtcdCluster, find_etcd
from pyflannel_stores._etcd_loader import load_etcd3

MISSING = None if find_etcd() else "etcd is not installed: apt-get install etcd-server etcd-client"
"""Why there are no etcd tests here, or ``None``."""


@contextmanager
def etcd(members: int = 1, **options: Any) -> Iterator[EtcdCluster]:
    """A healthy cluster on data in memory, gone without a trace afterwards."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        TemporaryDirectory(prefix="pyflannel-etcd-", dir=memory) as data,
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


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, and the files they are in (PEM)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    certfile: Path
    keyfile: Path


class Authority:
    """A certificate authority in a directory: no extension that Go doesn't ask for, so the least that users have."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.ca = self._issue(name, None, usages=(), addresses=())
        self.cafile = self.ca.certfile

    def server(self, name: str = "server", addresses: Sequence[str] = ("127.0.0.1", "::1")) -> Certificate:
        """A certificate for a server at these addresses (also good as a client's: etcd's own gateway needs that)."""
        both = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        return self._issue(name, self.ca, usages=both, addresses=addresses)

    def client(self, name: str = "client") -> Certificate:
        """A certificate for a client; ``name`` is its common name."""
        return self._issue(name, self.ca, usages=(ExtendedKeyUsageOID.CLIENT_AUTH,), addresses=())

    def server_arguments(self, *, client_certificates: bool = True) -> list[str]:
        """The flags that make etcd speak TLS with a certificate of this authority."""
        server = self.server()
        arguments = [f"--cert-file={server.certfile}", f"--key-file={server.keyfile}"]
        if client_certificates:
            arguments += ["--client-cert-auth", f"--trusted-ca-file={self.cafile}"]
        return arguments

    def ctl_arguments(self, client: Certificate) -> list[str]:
        """The flags that make etcdctl speak TLS with it."""
        return [f"--cacert={self.cafile}", f"--cert={client.certfile}", f"--key={client.keyfile}"]

    def _issue(
        self,
        name: str,
        issuer: Certificate | None,
        *,
        usages: Sequence[x509.ObjectIdentifier],
        addresses: Sequence[str],
    ) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if addresses:
            names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
        certfile, keyfile = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certfile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        keyfile.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Certificate(certificate, key, certfile, keyfile)
