"""The stores' wall clocks, asked of real servers behind TLS and users, and what doctor makes of one that is off.

A server's clock can't be set apart from this machine's, so the command's is: the whole command line runs in a process
in which doctor reads a shifted clock. (gRPC, which counts deadlines on the clock, keeps the true one.)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.servers import consul as consul_servers
from tests.servers import etcd as etcd_servers
from tests.servers.authority import Authority
from tests.servers.consul import consul
from tests.servers.etcd import add_user, ctl_arguments, enable_auth, etcd, tls_arguments
from tests.waiting import until

from pyflannel.errors import StoreUnavailableError
from pyflannel.lab.servers.consul import ConsulCluster, ConsulTLS
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.plugins import load_store
from pyflannel.store import Store, StoreLocation

ADDRESS = "127.77.31.9"  # a server's own, for its certificate

needs_etcd = pytest.mark.skipif(etcd_servers.MISSING is not None, reason=str(etcd_servers.MISSING))
needs_consul = pytest.mark.skipif(consul_servers.MISSING is not None, reason=str(consul_servers.MISSING))


def open_store(url: str, **options: object) -> Store:
    location = StoreLocation.parse(url, {name: str(value) for name, value in options.items()})
    return load_store(location.scheme)(location)


def answers(store: Store) -> bool:
    try:
        return store.read_config() is None
    except StoreUnavailableError:
        return False


def tells_the_time(store: Store, source: str) -> None:
    before = time.time()
    said = store.clock()
    after = time.time()
    assert said is not None
    assert said.latest is not None
    assert said.earliest <= after
    assert said.latest >= before
    assert said.latest - said.earliest == 1
    assert source in said.source


@pytest.fixture(scope="module")
def plain() -> Iterator[EtcdCluster]:
    with etcd() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulCluster]:
    with consul() as cluster:
        yield cluster


@needs_etcd
def test_etcd_without_tls_and_a_member_that_is_down(plain: EtcdCluster) -> None:
    for hosts in (plain.hosts, f"127.0.0.1:1,{plain.hosts}", f"{plain.hosts},127.0.0.1:1"):
        with closing(open_store(f"etcd://{hosts}/x")) as store:
            tells_the_time(store, plain.hosts)


@needs_etcd
def test_etcd_with_client_certificates_and_users(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.client()
    files = {"cafile": authority.cafile, "certfile": client.certfile, "keyfile": client.keyfile}
    with etcd(tls=True, arguments=tls_arguments(authority)) as cluster:
        words = ctl_arguments(authority, client)
        add_user(cluster, "node", "secret", "/x/", *words)
        enable_auth(cluster, *words)
        with closing(open_store(f"etcd://{cluster.hosts}/x", **files, username="node", password="secret")) as store:
            until(lambda: answers(store))  # gRPC and the user's hash may be slow, the first time
            tells_the_time(store, cluster.hosts)
        with (
            closing(open_store(f"etcd://{cluster.hosts}/x", cafile=authority.cafile)) as store,
            pytest.raises(StoreUnavailableError, match=cluster.hosts),
        ):
            store.clock()


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Something else at an address: it says ``answer`` and nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            kept = []
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    break
                connection.sendall(answer)
                kept.append(connection)
                if answer:
                    connection.recv(4096)
                    connection.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "answer", [SETTINGS, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nDate: soon\r\n\r\n", b""]
)
def test_what_has_no_clock_is_told_from_what_has(answer: bytes) -> None:
    """A proxy that speaks gRPC alone, undated answers, and one that never answers, for which nobody waits for ever."""
    with (
        server(answer) as host,
        closing(open_store(f"etcd://{host}/x")) as store,
        pytest.raises(StoreUnavailableError, match=f"no member of etcd tells the time over HTTP .{host}: "),
    ):
        store.clock()


@needs_consul
def test_consul(agent: ConsulCluster) -> None:
    with closing(open_store(f"consul://127.0.0.1:1,{agent.hosts}/x")) as store:
        tells_the_time(store, agent.hosts)


@needs_consul
def test_consul_with_tls_and_acls_needs_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYFLANNEL_CONSUL_TOKEN", "CONSUL_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    authority = Authority(tmp_path)
    server, client = authority.server("consul", [ADDRESS]), authority.client()
    tls = ConsulTLS(authority.cafile, server.certfile, server.keyfile, verify_clients=True)
    files = {"cafile": authority.cafile, "certfile": client.certfile, "keyfile": client.keyfile}
    with (
        consul(acl=True, tls=tls, addresses=[ADDRESS]) as cluster,
        closing(open_store(f"consul://{cluster.hosts}/x", **files)) as store,
    ):
        tells_the_time(store, cluster.hosts)


def test_files_tell_that_it_is_not_earlier_than_the_last_write(tmp_path: Path) -> None:
    with closing(open_store(f"file://{tmp_path}/store")) as store:
        before = time.time()
        store.write_config("{}", None)
        store.create("10.244.1.0-24", "x", 60)
        said = store.clock()
        assert said is not None
        assert said.latest is None
        assert before - 1 <= said.earliest <= time.time(), "a file's times are coarse"
        path = tmp_path / "store" / "subnets" / "10.244.1.0-24.json"
        os.utime(path, (5e9, 5e9))
        later = store.clock()
        assert later is not None
        assert later.earliest == 5e9


SHIFTED = """
import sys, time
from types import SimpleNamespace
from pyflannel.cli import main
from pyflannel.doctor import facts

shift = float(sys.argv.pop(1))
facts.time = SimpleNamespace(time=lambda: time.time() + shift, monotonic=time.monotonic)
main()
"""


def clock_finding(tmp_path: Path, store: str, shift: float) -> dict[str, str]:
    flags = ["--store", store, "--run-dir", str(tmp_path), "--state-dir", str(tmp_path), "--node-id", "n"]
    done = subprocess.run(
        [sys.executable, "-c", SHIFTED, str(shift), "doctor", "--json", "--no-probes", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "clock"]
    return dict(finding)


@pytest.mark.parametrize(
    ("shift", "verdict", "said"),
    [(0, "pass", "agrees with"), (3600, "warn", "s ahead of"), (-3600, "warn", "s behind")],
)
@pytest.mark.parametrize("kind", [pytest.param("etcd", marks=needs_etcd), pytest.param("consul", marks=needs_consul)])
def test_doctor_compares(
    kind: str, shift: float, verdict: str, said: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    hosts = request.getfixturevalue({"etcd": "plain", "consul": "agent"}[kind]).hosts
    finding = clock_finding(tmp_path, f"{kind}://{hosts}/x", shift)
    assert finding["verdict"] == verdict, finding
    assert said in finding["message"]
    assert hosts in finding["message"]


@pytest.mark.parametrize(("shift", "verdict"), [(0, "pass"), (3600, "pass"), (-3600, "fail")])
def test_doctor_on_files_finds_a_clock_that_is_behind(tmp_path: Path, shift: float, verdict: str) -> None:
    with closing(open_store(f"file://{tmp_path}/store")) as store:
        store.write_config("{}", None)
    assert clock_finding(tmp_path, f"file://{tmp_path}/store", shift)["verdict"] == verdict


def test_doctor_skips_with_the_reason_what_has_no_clock(tmp_path: Path) -> None:
    finding = clock_finding(tmp_path, "etcd://127.0.0.1:1/x", 0)
    assert finding["verdict"] == "skip"
    assert "127.0.0.1:1" in finding["message"]
