"""The Consul driver where not everybody may do everything: ACLs, TLS, and what must not be shown."""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers.authority import Authority
from tests.servers.consul import MISSING, consul, put, sessions

from pyflannel.errors import ConfigError, StoreDeniedError
from pyflannel.lab.servers.consul import ConsulCluster, ConsulTLS
from pyflannel.store import Store, StoreLocation
from pyflannel.testing.stores import CONFIG, KEY, OTHER, VALUE, Follower, eventually
from pyflannel_stores.consul import ConsulStore

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

RULES = """
key_prefix "{prefix}/" {{ policy = "{keys}" }}
session "pyflannel" {{ policy = "{sessions}" }}
node "pyflannel" {{ policy = "{nodes}" }}
"""


def open_store(hosts: str, prefix: str, **options: str) -> ConsulStore:
    return ConsulStore(StoreLocation.parse(f"consul://{hosts}/{prefix}", options))


@pytest.fixture(scope="module")
def guarded() -> Iterator[ConsulCluster]:
    with consul(acl=True) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4()}/network"


@pytest.fixture(autouse=True)
def no_token_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYFLANNEL_CONSUL_TOKEN", "CONSUL_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def give_rights(cluster: ConsulCluster, rules: str) -> tuple[str, str, str]:
    """A new token with these rules: its secret, its accessor, and its policy."""
    policy = put(cluster, "/v1/acl/policy", {"Name": uuid.uuid4().hex, "Rules": rules})["ID"]
    token = put(cluster, "/v1/acl/token", {"Policies": [{"ID": policy}]})
    return token["SecretID"], token["AccessorID"], policy


def rules(prefix: str, keys: str = "write", sessions: str = "write", nodes: str = "write") -> str:
    return RULES.format(prefix=prefix, keys=keys, sessions=sessions, nodes=nodes)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_the_documented_rules_are_enough(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    token_file.write_text(give_rights(guarded, rules(prefix))[0] + "\n")
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        config = store.write_config(CONFIG, None)
        with Follower(store, store.snapshot()) as follower:
            record = store.renew(store.update(store.create(KEY, VALUE, 60.0), OTHER, 60.0), 120.0)
            follower.until(lambda: KEY in follower.state, "the lease")
            assert store.time_to_live([record]) == {KEY: 120.0}
            store.delete(record)
            follower.until(lambda: KEY not in follower.state, "its end")
        assert store.read_config() == config
    assert record.handle not in sessions(guarded)


def test_rights_to_the_node_are_needed_but_once(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    name = f"leases-{uuid.uuid4()}"
    policy = rules(prefix, nodes="read").replace('"pyflannel"', f'"{name}"')
    token_file.write_text(give_rights(guarded, policy)[0])
    with open_store(guarded.hosts, prefix, token_file=str(token_file), node=name) as store:
        with pytest.raises(StoreDeniedError):
            store.create(KEY, VALUE, 60.0)
        put(guarded, "/v1/catalog/register", {"Node": name, "Address": "127.0.0.1"})
        session = store.create(KEY, VALUE, 60.0).handle
    assert sessions(guarded)[session]["Node"] == name


def _every_call(store: Store) -> list[Callable[[], object]]:
    return [
        store.read_config,
        store.snapshot,
        lambda: store.write_config(CONFIG, None),
        lambda: store.create(KEY, VALUE, 60.0),
        lambda: store.create(KEY, VALUE, None),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("token", ["", str(uuid.uuid4())], ids=["no token", "an unknown token"])
def test_without_a_good_token_everything_is_denied(
    guarded: ConsulCluster, prefix: str, token: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above all, a listing that shows nothing since nothing may be seen is not taken for an empty store."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", token)
    with open_store(guarded.hosts, prefix) as store, pytest.raises(StoreDeniedError, match=r"token|ACL") as denied:
        _every_call(store)[number]()
    if token:
        assert token not in "".join(traceback.format_exception(denied.value))


def test_who_may_read_may_read_only(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    key = "10.5.77.0-24"
    token_file.write_text(give_rights(guarded, rules(prefix, keys="read"))[0])
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        assert store.snapshot().leases == ()
        for ttl in (60.0, None):
            with pytest.raises(StoreDeniedError):
                store.create(key, VALUE, ttl)
        assert [each for each in sessions(guarded).values() if each["Name"].startswith(f"pyflannel {key} ")] == []
    token_file.write_text(give_rights(guarded, rules(prefix, sessions="read"))[0])
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        with pytest.raises(StoreDeniedError):
            store.create(key, VALUE, 60.0)
        assert store.create(key, VALUE, None).permanent


def test_rights_to_leases_but_not_to_the_config(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    for right in ("subnets", "config"):
        token_file.write_text(give_rights(guarded, f'key_prefix "{prefix}/{right}" {{ policy = "write" }}')[0])
        with (
            open_store(guarded.hosts, prefix, token_file=str(token_file)) as store,
            pytest.raises(StoreDeniedError),
        ):
            store.snapshot()


def test_rights_that_are_withdrawn_end_a_watch(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    secret, _, policy = give_rights(guarded, rules(prefix))
    token_file.write_text(secret)
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        store.create(KEY, VALUE, None)
        store.write_config(CONFIG, None)
        with store.watch(store.snapshot().revision) as watch:
            name = guarded.servers[0].get(f"/v1/acl/policy/{policy}")["Name"]
            put(guarded, f"/v1/acl/policy/{policy}", {"Name": name, "Rules": rules(f"not-{prefix}")})
            put(guarded, f"/v1/kv/{prefix}/subnets/10.5.1.0-24", b"wakes it")
            with pytest.raises(StoreDeniedError):
                for _ in watch:
                    pass


def test_a_token_is_read_again_when_it_was_rotated(guarded: ConsulCluster, prefix: str, token_file: Path) -> None:
    old, accessor, policy = give_rights(guarded, rules(prefix))
    token_file.write_text(old)
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        record = store.create(KEY, VALUE, 60.0)
        new = put(guarded, "/v1/acl/token", {"Policies": [{"ID": policy}]})["SecretID"]
        put(guarded, f"/v1/acl/token/{accessor}", {"AccessorID": accessor, "Policies": []})

        def denied() -> bool:
            try:
                store.renew(record, 60.0)
            except StoreDeniedError:
                return True
            return False

        eventually(denied, "the end of the old token's rights")
        token_file.write_text(new)
        assert store.renew(record, 60.0).version == record.version
        token_file.unlink()
        with pytest.raises(StoreDeniedError, match="token_file"):
            store.read_config()


def test_tokens_are_taken_in_this_order(
    guarded: ConsulCluster, prefix: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = give_rights(guarded, rules(prefix))[0]
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", good)
    with open_store(guarded.hosts, prefix) as store:
        assert store.read_config() is None
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", str(uuid.uuid4()))
    monkeypatch.setenv("PYFLANNEL_CONSUL_TOKEN", good)
    with open_store(guarded.hosts, prefix) as store:
        assert store.read_config() is None
    monkeypatch.setenv("PYFLANNEL_CONSUL_TOKEN", str(uuid.uuid4()))
    token_file.write_text(good)
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        assert store.read_config() is None


def test_a_token_is_never_shown(guarded: ConsulCluster, prefix: str, token_file: Path, tmp_path: Path) -> None:
    secret = give_rights(guarded, rules(prefix))[0]
    token_file.write_text(secret)
    with open_store(guarded.hosts, prefix, token_file=str(token_file)) as store:
        record = store.create(KEY, VALUE, 60.0)
        seen = [repr(store), str(store.location), repr(store.location), repr(record), repr(vars(store))]
        assert [text for text in seen if secret in text] == []
    token_file.write_text(f"{secret}\nand more")
    with pytest.raises(ConfigError, match="token") as refused:
        open_store(guarded.hosts, prefix, token_file=str(token_file))
    assert secret not in "".join(traceback.format_exception(refused.value))


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


ADDRESS = "127.101.31.7"


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[ConsulCluster]:
    server = authority.server("consul", [ADDRESS])
    tls = ConsulTLS(authority.cafile, server.certfile, server.keyfile, verify_clients=True)
    with consul(tls=tls, addresses=[ADDRESS]) as cluster:
        yield cluster


def test_tls_with_a_client_certificate(secured: ConsulCluster, authority: Authority, prefix: str) -> None:
    client = authority.client()
    options = {"cafile": str(authority.cafile), "certfile": str(client.certfile), "keyfile": str(client.keyfile)}
    with open_store(secured.hosts, prefix, **options) as store:
        record = store.create(KEY, VALUE, 60.0)
        with Follower(store, store.snapshot()) as follower:
            store.delete(record)
            follower.until(lambda: follower.of(KEY) == [None], "the deletion")


def test_closing_ends_a_watch_over_tls(secured: ConsulCluster, authority: Authority, prefix: str) -> None:
    client = authority.client()
    options = {"cafile": str(authority.cafile), "certfile": str(client.certfile), "keyfile": str(client.keyfile)}
    with open_store(secured.hosts, prefix, **options) as store:
        follower = Follower(store, store.snapshot())
        store.create(KEY, VALUE, None)
        follower.until(lambda: KEY in follower.state, "the first change")
        follower.close()
        assert follower.error is None


def test_tls_refusals(secured: ConsulCluster, authority: Authority, prefix: str, tmp_path: Path) -> None:
    client = authority.client()
    identity = {"certfile": str(client.certfile), "keyfile": str(client.keyfile)}
    stranger = Authority(tmp_path)
    foreign = stranger.client()
    foreign_identity = {"certfile": str(foreign.certfile), "keyfile": str(foreign.keyfile)}
    cases = [
        (secured.hosts, {"cafile": str(stranger.cafile), **identity}, "certificate verify failed"),
        (secured.hosts, {"tls": "true", **identity}, "certificate verify failed"),
        (secured.hosts, {"cafile": str(authority.cafile)}, "TLS"),
        (secured.hosts, {"cafile": str(authority.cafile), **foreign_identity}, "TLS"),
        (secured.hosts, {}, "tls=true"),
    ]
    for hosts, options, words in cases:
        with open_store(hosts, prefix, **options) as store, pytest.raises(StoreDeniedError, match=words):
            store.snapshot()


def test_tls_to_a_server_without(guarded: ConsulCluster, authority: Authority, prefix: str) -> None:
    with (
        open_store(guarded.hosts, prefix, cafile=str(authority.cafile)) as store,
        pytest.raises(StoreDeniedError, match="TLS"),
    ):
        store.snapshot()


def test_a_certificate_for_another_host(secured: ConsulCluster, authority: Authority, prefix: str) -> None:
    """The server is asked by a name that leads to it, and that its certificate doesn't have."""
    client = authority.client()
    options = {"cafile": str(authority.cafile), "certfile": str(client.certfile), "keyfile": str(client.keyfile)}
    number = ".".join(str(int(part)) for part in ADDRESS.split(".")[:2]) + f".{(31 << 8) + 7}"  # inet_aton(3) takes it
    with (
        open_store(secured.hosts.replace(ADDRESS, number), prefix, **options) as store,
        pytest.raises(StoreDeniedError, match="certificate"),
    ):
        store.snapshot()
