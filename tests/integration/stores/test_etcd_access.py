"""Getting into an etcd: TLS, certificates that are replaced, users, rights, and tokens that expire."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from tests.servers.authority import Authority
from tests.servers.etcd import MISSING, add_user, enable_auth, etcd, etcdctl, stored, tls_arguments
from tests.servers.following import Follower
from tests.waiting import until

from pyflannel.errors import StoreDeniedError, StoreUnavailableError
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.store import StoreLocation
from pyflannel_stores.etcd import EtcdStore

pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(60)]

KEY = "172.16.68.0-24"
PASSWORD = "correct horse: battery/staple?"

_numbers = count()


def open_store(cluster: EtcdCluster, prefix: str, **options: object) -> EtcdStore:
    texts = {name: str(value) for name, value in options.items()}
    return EtcdStore(StoreLocation.parse(f"etcd://{cluster.hosts}{prefix}", texts))


def works(store: EtcdStore) -> None:
    """Write, read, follow and delete."""
    with Follower(store) as follower:
        record = store.create(KEY, "x", 60)
        follower.until(bool)
        store.delete(store.renew(record, 60))


# --- TLS ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secure:
    cluster: EtcdCluster
    authority: Authority
    options: dict[str, Path]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A member that wants certificates of its clients."""
    authority = Authority(tmp_path_factory.mktemp("ca"))
    client = authority.client()
    options = {"cafile": authority.cafile, "certfile": client.certfile, "keyfile": client.keyfile}
    with etcd(tls=True, arguments=tls_arguments(authority)) as cluster:
        yield Secure(cluster, authority, options)


@pytest.fixture
def prefix() -> str:
    return f"/access/{next(_numbers)}"


def test_client_certificate(secure: Secure, prefix: str) -> None:
    with closing(open_store(secure.cluster, prefix, **secure.options)) as store:
        works(store)


def test_ipv6_with_tls_and_no_client_certificate(tmp_path: Path, prefix: str) -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 loopback here")
    authority = Authority(tmp_path)
    arguments = tls_arguments(authority, client_certificates=False)
    with etcd(tls=True, host="::1", arguments=arguments) as cluster:
        assert cluster.hosts.startswith("[::1]:")
        with closing(open_store(cluster, prefix, cafile=authority.cafile)) as store:
            works(store)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_cas_of_the_system(secure: Secure, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: path for name, path in secure.options.items() if name != "cafile"}
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.authority.cafile))
    with closing(open_store(secure.cluster, prefix, tls="true", **own)) as store:
        works(store)


def _refusals(secure: Secure, directory: Path) -> dict[str, tuple[dict[str, object], str]]:
    other = Authority(directory, "other")
    foreign, garbage = other.client("foreign"), directory / "garbage.pem"
    garbage.write_text("no certificate")
    ours = secure.options
    return {
        "no TLS": ({}, "it speaks TLS and we don't; add cafile"),
        "no client certificate": ({"cafile": ours["cafile"]}, "wants a client certificate; add certfile and keyfile"),
        "another CA": ({**ours, "cafile": other.cafile}, "its certificate is not good"),
        "certificate of another CA": (
            {**ours, "certfile": foreign.certfile, "keyfile": foreign.keyfile},
            r"does not accept our certificate .*; has it expired, or is it of a CA that etcd doesn't trust\?",
        ),
        "garbage": ({**ours, "certfile": garbage}, "can't use the certificates"),
        "key of another certificate": ({**ours, "keyfile": foreign.keyfile}, "can't use the certificates"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no TLS",
        "no client certificate",
        "another CA",
        "certificate of another CA",
        "garbage",
        "key of another certificate",
    ],
)
def test_tls_refusal_says_what_is_wrong(secure: Secure, prefix: str, tmp_path: Path, case: str) -> None:
    options, message = _refusals(secure, tmp_path)[case]
    with closing(open_store(secure.cluster, prefix, **options)) as store:
        with pytest.raises(StoreDeniedError, match=message):
            store.snapshot()
        with closing(store.watch("1")) as watch, pytest.raises(StoreDeniedError, match=message):
            next(watch)


def test_tls_to_a_server_without(secure: Secure, prefix: str) -> None:
    with (
        etcd() as plain,
        closing(open_store(plain, prefix, **secure.options)) as store,
        pytest.raises(StoreDeniedError, match="does not speak TLS"),
    ):
        store.snapshot()


@pytest.mark.parametrize("tls", [True, False])
def test_something_that_just_hangs_up_is_an_outage_and_no_refusal(secure: Secure, prefix: str, tls: bool) -> None:
    """As a load balancer does while no member is up behind it."""
    options = {name: str(path) for name, path in secure.options.items()} if tls else {}
    with (
        answering(lambda connection: None) as port,
        closing(EtcdStore(StoreLocation.parse(f"etcd://127.0.0.1:{port}{prefix}", options))) as store,
        pytest.raises(StoreUnavailableError, match="no member answered"),
    ):
        store.snapshot()


def test_a_reset_from_a_server_without_tls_is_still_a_refusal(secure: Secure, prefix: str) -> None:
    """What etcd does with a TLS greeting now and then: its answer is overtaken by the reset."""
    options = {name: str(path) for name, path in secure.options.items()}
    with (
        answering(_reset_unless_http2) as port,
        closing(EtcdStore(StoreLocation.parse(f"etcd://127.0.0.1:{port}{prefix}", options))) as store,
        pytest.raises(StoreDeniedError, match="does not speak TLS"),
    ):
        store.snapshot()


def _reset_unless_http2(connection: socket.socket) -> None:
    if connection.recv(3) == b"PRI":
        connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    else:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server's port, where each connection is given to ``answer`` and then closed."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_name_that_is_not_in_the_certificate(secure: Secure, prefix: str) -> None:
    port = secure.cluster.hosts.rpartition(":")[2]
    texts = {name: str(path) for name, path in secure.options.items()}
    with (
        closing(EtcdStore(StoreLocation.parse(f"etcd://localhost:{port}{prefix}", texts))) as store,
        pytest.raises(StoreDeniedError, match=r"its certificate is not good .*localhost"),
    ):
        store.snapshot()


def test_replaced_certificates_are_used_without_a_restart(secure: Secure, prefix: str, tmp_path: Path) -> None:
    foreign = Authority(tmp_path, "foreign-ca").client("foreign")
    certfile, keyfile = tmp_path / "ours.pem", tmp_path / "ours.key"

    def install(certificate: Path, key: Path) -> None:
        for source, target in ((certificate, certfile), (key, keyfile)):
            fresh = shutil.copy(source, tmp_path / "fresh")
            os.replace(fresh, target)

    install(foreign.certfile, foreign.keyfile)
    with closing(
        open_store(secure.cluster, prefix, cafile=secure.authority.cafile, certfile=certfile, keyfile=keyfile)
    ) as store:
        with pytest.raises(StoreDeniedError, match="does not accept our certificate"):
            store.snapshot()
        install(secure.options["certfile"], secure.options["keyfile"])
        works(store)
        install(foreign.certfile, foreign.keyfile)
        with pytest.raises(StoreDeniedError, match="does not accept our certificate"):
            store.snapshot()
        keyfile.unlink()
        with pytest.raises(StoreDeniedError, match=str(keyfile)):
            store.snapshot()


@pytest.mark.parametrize("name", ["cafile", "certfile", "keyfile"])
def test_empty_file_while_one_is_replaced(secure: Secure, prefix: str, tmp_path: Path, name: str) -> None:
    """As ``cp`` leaves it for a moment, and a full disk for good. gRPC aborts the process for a key without a text."""
    options = {key: Path(shutil.copy(path, tmp_path / key)) for key, path in secure.options.items()}
    text = options[name].read_bytes()
    with closing(open_store(secure.cluster, prefix, **options)) as store:
        store.snapshot()
        options[name].write_bytes(b"")
        store.snapshot()  # by the connection that there is
        with (
            closing(open_store(secure.cluster, prefix, **options)) as another,
            pytest.raises(StoreDeniedError, match=f"{options[name]} is empty"),
        ):
            another.snapshot()
        options[name].write_bytes(text)
        works(store)


# --- users ----------------------------------------------------------------------------------------------------------

ROOT = ("--user=root:root",)


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdCluster]:
    """A member with authentication, tokens that live two seconds, and a user who may use one prefix."""
    # etcd 3.5 and later say only in debug mode that they forget a token.
    with etcd(arguments=["--auth-token-ttl=2", "--log-level=debug"]) as cluster:
        add_user(cluster, "node", PASSWORD, "/allowed/")
        enable_auth(cluster)
        yield cluster


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


def test_user_with_one_prefix(guarded: EtcdCluster, password_file: Path) -> None:
    with closing(open_store(guarded, "/allowed", username="node", password_file=password_file)) as store:
        works(store)
        record = store.create(KEY, "x", 60)
        store.update(record, "y", 90)
        store.write_config("{}", None)
        assert store.time_to_live(store.snapshot().leases)[KEY] is not None
    assert set(stored(guarded, "/allowed/", *ROOT)) == {"/allowed/config", f"/allowed/subnets/{KEY}"}


@pytest.mark.parametrize("variable", ["PYFLANNEL_ETCD_PASSWORD", "FLANNELD_ETCD_PASSWORD"])
def test_password_from_the_environment(guarded: EtcdCluster, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, PASSWORD)
    with closing(open_store(guarded, "/allowed/env", username="node")) as store:
        monkeypatch.delenv(variable)
        works(store)


def test_rights_end_at_the_prefix(guarded: EtcdCluster, password_file: Path) -> None:
    with closing(open_store(guarded, "/forbidden", username="node", password_file=password_file)) as store:
        calls: list[Callable[[], object]] = [
            store.snapshot,
            store.read_config,
            lambda: store.write_config("{}", None),
            lambda: store.create(KEY, "x", 60),
        ]
        for call in calls:
            with pytest.raises(StoreDeniedError, match=r"permission denied: user 'node' needs the right .*/forbidden/"):
                call()
        with closing(store.watch("1")) as watch, pytest.raises(StoreDeniedError, match="may not watch"):
            next(watch)


def test_rights_that_are_taken_away_and_given_back(guarded: EtcdCluster, password_file: Path) -> None:
    with closing(open_store(guarded, "/allowed/role", username="node", password_file=password_file)) as store:
        works(store)
        etcdctl(guarded, *ROOT, "user", "revoke-role", "node", "node")
        with pytest.raises(StoreDeniedError, match="permission denied"):
            store.snapshot()
        etcdctl(guarded, *ROOT, "user", "grant-role", "node", "node")
        works(store)


@pytest.mark.parametrize("name", ["node", "nobody"])
def test_wrong_password_or_user(guarded: EtcdCluster, password_file: Path, name: str) -> None:
    wrong = "Tr0ub4dor&3"
    password_file.write_text(wrong)
    with closing(open_store(guarded, "/allowed/wrong", username=name, password_file=password_file)) as store:
        for call in (store.snapshot, lambda: next(store.watch("1"))):
            with pytest.raises(StoreDeniedError, match=f"user '{name}' can't log in") as caught:
                call()
            assert wrong not in "".join(traceback.format_exception(caught.value))
            assert wrong not in repr(caught.value) + repr(store) + repr(store._cluster.access) + str(store.location)
        password_file.write_text(PASSWORD)
        if name == "node":
            works(store)


def test_no_user_where_one_is_wanted(guarded: EtcdCluster) -> None:
    with closing(open_store(guarded, "/allowed")) as store, pytest.raises(StoreDeniedError, match="add username"):
        store.snapshot()


def test_user_where_none_is_wanted(password_file: Path) -> None:
    """A user may be configured before authentication is switched on, and the daemon sees it through."""
    with (
        etcd() as cluster,
        closing(open_store(cluster, "/allowed", username="node", password_file=password_file)) as store,
    ):
        works(store)
        add_user(cluster, "node", PASSWORD, "/allowed/")
        enable_auth(cluster)
        works(store)


@pytest.mark.parametrize("first", ["call", "watch"])
def test_expired_token_is_renewed(guarded: EtcdCluster, password_file: Path, first: str) -> None:
    with closing(open_store(guarded, "/allowed/token", username="node", password_file=password_file)) as store:
        revision = store.snapshot().revision
        token = store._cluster._token
        assert token
        _wait_until_forgotten(guarded, token)
        if first == "call":
            works(store)
        else:
            with closing(open_store(guarded, "/allowed/token", username="root", password_file=password_file)) as root:
                password_file.write_text("root")
                root.create(first, "x", 60)
                password_file.write_text(PASSWORD)
            with Follower(store, revision) as follower:
                assert [change.key for change in follower.until(bool)][-1] == first
        assert store._cluster._token != token


def _wait_until_forgotten(cluster: EtcdCluster, token: str) -> None:
    def told() -> bool:
        lines = cluster.members[0].log.read_text().splitlines()
        return any("deleted a simple token" in line and token in line for line in lines)

    until(told, "etcd keeps the token")


def test_a_token_that_another_call_has_forgotten_already_is_replaced(
    guarded: EtcdCluster, password_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(guarded, "/allowed/two", username="node", password_file=password_file)) as store:
        store.create("before", "x", 60)
        real, refused = store._cluster.metadata, [(("hasleader", "true"), ("token", "old.1"))]
        store._cluster.forget_token()
        monkeypatch.setattr(store._cluster, "metadata", lambda *asked: refused.pop() if refused else real(*asked))
        store.create("after", "x", 60)
        assert not refused


def test_restarted_server_has_forgotten_all_tokens(guarded: EtcdCluster, password_file: Path) -> None:
    with closing(open_store(guarded, "/allowed/restart", username="node", password_file=password_file)) as store:
        with Follower(store) as follower:
            store.create("before", "x", 60)
            follower.until(bool)
            guarded.members[0].kill()
            with pytest.raises(StoreUnavailableError):
                store.snapshot()
            guarded.start()
            store.create("after", "x", 60)
            changes = follower.until(lambda changes: len(changes) == 2)
        assert [change.key for change in changes] == ["before", "after"]
