"""What the kit can't know: the keys and values themselves, other clients beside us, and broken servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyflannel_etcd_v2 import EtcdV2Store
from pyflannel_etcd_v2.lab import Etcd
from pyflannel_etcd_v2.text import UPDATES, decode, encode, key_of, name_of, version_of

from pyflannel.errors import ConfigError, ConflictError, HistoryGoneError, StoreError, StoreUnavailableError
from pyflannel.store import StoreLocation

LEASE = '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}'


class Place:
    """An empty directory in etcd, seen by etcdctl."""

    def __init__(self, cluster: Etcd) -> None:
        self.cluster = cluster
        self.path = f"/test/{uuid.uuid4()}"

    def open(self) -> EtcdV2Store:
        return EtcdV2Store(StoreLocation.parse(f"etcd-v2://{self.cluster.hosts}{self.path}"))

    def ctl(self, *words: str) -> str:
        if shutil.which("etcdctl") is None:
            pytest.skip("etcdctl is not installed: apt-get install etcd-client")
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self.cluster.members[0].client_url}", *words],
            env={**os.environ, "ETCDCTL_API": "2"},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()


@pytest.fixture
def place(cluster: Etcd) -> Place:
    return Place(cluster)


@pytest.fixture
def store(place: Place) -> Iterator[EtcdV2Store]:
    with place.open() as store:
        yield store


# Names and texts

KEYS = st.text(min_size=1).filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text))


@given(KEYS)
def test_every_key_has_one_name_and_comes_back(key: str) -> None:
    name = name_of(key)
    assert key_of(name) == key
    assert "/" not in name
    assert name[0] not in "._"


@given(st.text(), st.integers(0, 5))
def test_every_text_comes_back(text: str, updates: int) -> None:
    assert decode(encode(text, updates)) == (text, updates)


@given(st.dictionaries(st.sampled_from(["PublicIP", UPDATES, "pyflannel:text", "x"]), st.integers() | st.text()))
def test_every_document_comes_back(document: dict[str, object]) -> None:
    text = json.dumps(document)
    for updates in (0, 1):
        value, counted = decode(encode(text, updates))
        assert json.loads(value) == document
        assert counted == updates


def test_a_new_lease_is_stored_as_flannel_writes_it(store: EtcdV2Store, place: Place) -> None:
    store.create("10.5.34.0-24&fd00:10::-64", LEASE, 3600)
    assert place.ctl("ls", f"{place.path}/subnets") == f"{place.path}/subnets/10.5.34.0-24&fd00:10::-64"
    assert place.ctl("get", f"{place.path}/subnets/10.5.34.0-24&fd00:10::-64") == LEASE


def test_an_updated_lease_is_still_flannel_s_with_one_field_more(store: EtcdV2Store, place: Place) -> None:
    record = store.create("10.5.34.0-24", LEASE, 3600)
    store.update(store.update(record, LEASE, 3600), LEASE, 3600)
    assert json.loads(place.ctl("get", f"{place.path}/subnets/10.5.34.0-24")) == {**json.loads(LEASE), UPDATES: 2}


def test_versions_tell_what_an_index_would() -> None:
    texts = [encode(LEASE, number) for number in range(3)]
    assert len({version_of(7, text) for text in texts}) == 3
    assert version_of(7, LEASE) != version_of(8, LEASE)


# Others beside us


def test_the_original_tutorial(store: EtcdV2Store, place: Place) -> None:
    document = '{ "Network": "10.5.0.0/16" }'
    place.ctl("set", f"{place.path}/config", document)
    place.ctl("set", "--ttl", "3600", f"{place.path}/subnets/10.5.34.0-24", LEASE)
    snapshot = store.snapshot()
    assert snapshot.config is not None
    assert snapshot.config.value == document
    (lease,) = snapshot.leases
    assert (lease.key, lease.value, lease.permanent) == ("10.5.34.0-24", LEASE, False)
    assert lease.ttl is not None
    assert 3500 < lease.ttl <= 3600


def test_a_renewal_by_another_client_is_no_conflict(store: EtcdV2Store, place: Place) -> None:
    record = store.create("10.5.34.0-24", LEASE, 3600)
    with place.open() as other:
        other.renew(next(iter(other.snapshot().leases)), 7200)
    store.update(record, LEASE, 3600)


def test_what_somebody_set_by_hand_is_a_change(store: EtcdV2Store, place: Place) -> None:
    record = store.create("10.5.34.0-24", LEASE, 3600)
    place.ctl("set", "--ttl", "3600", f"{place.path}/subnets/10.5.34.0-24", LEASE)
    with pytest.raises(ConflictError):
        store.renew(record, 3600)


def test_keys_that_are_none_of_ours_are_left_out(store: EtcdV2Store, place: Place) -> None:
    for name in ("other", "subnets/a/b", "subnets/%2f"):
        place.ctl("set", f"{place.path}/{name}", "x")
    assert store.snapshot().leases == ()


def test_a_directory_that_goes_takes_a_new_snapshot(store: EtcdV2Store, place: Place) -> None:
    store.create("10.5.34.0-24", LEASE, None)
    watch = store.watch(store.snapshot().revision)
    place.ctl("rm", "--recursive", f"{place.path}/subnets")
    with watch, pytest.raises(HistoryGoneError, match="as a whole"):
        next(watch)
    assert store.snapshot().leases == ()


# Servers that are none, and members that are gone


def location(*hosts: str) -> StoreLocation:
    return StoreLocation.parse(f"etcd-v2://{','.join(hosts)}/test/{uuid.uuid4()}")


def test_a_member_that_is_down_is_passed_by(cluster: Etcd) -> None:
    with socket.socket() as closed, EtcdV2Store(location("127.0.0.1:1", cluster.hosts)) as store:
        closed.bind(("127.0.0.1", 0))
        store.create("10.5.34.0-24", LEASE, 3600)
        assert len(store.snapshot().leases) == 1


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", StoreError, "--enable-v2"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", StoreUnavailableError, "not etcd's"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", StoreUnavailableError, "HTTP 503"),
        (b"SSH-2.0-OpenSSH\r\n", StoreUnavailableError, "does not answer"),
        (b"", StoreUnavailableError, "does not answer"),
    ],
)
def test_what_is_no_etcd_is_said(answer: bytes, error: type[StoreError], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            EtcdV2Store(location(f"127.0.0.1:{server.getsockname()[1]}")) as store,
            pytest.raises(error, match=message),
        ):
            store.snapshot()
        thread.join()


@pytest.mark.parametrize("url", ["etcd-v2://h:70000", "etcd-v2:///a//b", "etcd-v2://h?tls=yes"])
def test_a_location_that_can_t_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        EtcdV2Store(StoreLocation.parse(url))


def test_nonsense_is_no_revision(store: EtcdV2Store) -> None:
    with store.watch("nonsense") as watch, pytest.raises(HistoryGoneError):
        next(watch)
