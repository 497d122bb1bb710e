"""What the kit does not ask: flannel's annotations to the letter, overwrites, the condition, large clusters."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.opening import VALUE, location, opened
from tests.servers.kubernetes import PREFIX, Kubernetes

from pyflannel.errors import ConfigError, ConflictError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Record, Unassigned
from pyflannel.testing.stores import Follower, contents, eventually
from pyflannel_stores import kubernetes as driver
from pyflannel_stores.kubernetes import KubernetesStore

FLANNELD = {
    f"{PREFIX}backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}',
    f"{PREFIX}backend-type": "vxlan",
    f"{PREFIX}kube-subnet-manager": "true",
    f"{PREFIX}public-ip": "192.0.2.7",
}


@pytest.fixture
def store(kube: Kubernetes, tmp_path: Path) -> Iterator[KubernetesStore]:
    kube.add_node("a", "10.244.0.0/24")
    with opened(kube, tmp_path, "a") as store:
        yield store


def own(store: KubernetesStore, *families: int) -> Record:
    record = store.assigned(families or (4,))
    assert isinstance(record, Record), record
    return record


def test_the_annotations_are_flannels(kube: Kubernetes, store: KubernetesStore) -> None:
    store.update(own(store), VALUE, None)
    assert kube.annotations("a") == {
        "backend-data": '{"VNI":1,"VtepMAC":"82:97:93:af:72:bf"}',  # compact: flanneld searches it for :"
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "node-id": "one",
        "public-ip": "192.0.2.1",
    }


def test_backends_without_data_say_null_and_udp_says_its_name(
    kube: Kubernetes, store: KubernetesStore, tmp_path: Path
) -> None:
    record = store.update(own(store), '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}', None)
    assert kube.annotations("a")["backend-data"] == "null"
    assert json.loads(record.value)["BackendType"] == "host-gw"
    (tmp_path / "net-conf.json").write_text('{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}')
    store.update(record, '{"PublicIP":"192.0.2.1","PublicIPv6":null}', None)
    assert kube.annotations("a")["backend-type"] == "udp"


def test_both_families_have_annotations_of_their_own(kube: Kubernetes, store: KubernetesStore) -> None:
    both = json.loads(VALUE)
    both |= {"PublicIPv6": "2001:db8::1", "BackendV6Data": {"VNI": 1, "VtepMAC": "82:97:93:af:72:c0"}}
    record = store.update(own(store), json.dumps(both), None)
    assert json.loads(record.value) == both
    found = kube.annotations("a")
    assert found["public-ipv6"] == "2001:db8::1"
    assert found["backend-v6-data"] == '{"VNI":1,"VtepMAC":"82:97:93:af:72:c0"}'
    store.update(record, VALUE, None)
    assert not {"public-ipv6", "backend-v6-data"} & kube.annotations("a").keys()


def test_what_flanneld_wrote_is_a_lease_and_what_it_would_skip_is_none(
    kube: Kubernetes, store: KubernetesStore
) -> None:
    kube.add_node("b", "10.244.1.0/24", annotations=FLANNELD)
    kube.add_node("c", "10.244.2.0/24", annotations={**FLANNELD, f"{PREFIX}kube-subnet-manager": "false"})
    kube.add_node("d", annotations=FLANNELD)
    kube.add_node("e", "10.244.4.0/24")
    (lease,) = store.snapshot().leases
    assert lease.key == "10.244.1.0-24"
    assert json.loads(lease.value) == {
        "PublicIP": "192.0.2.7",
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "12:c6:65:89:b4:e3"},
    }


@pytest.mark.parametrize("junk", ["{", "[" * 9000, '"text"', "null", "0", '{"a":{"b":[1]}}', "\u0000x", "ünïcödé 🌐"])
def test_odd_backend_data_stays_one_peers_trouble(kube: Kubernetes, store: KubernetesStore, junk: str) -> None:
    kube.add_node("b", "10.244.1.0/24", annotations={**FLANNELD, f"{PREFIX}backend-data": junk})
    (lease,) = store.snapshot().leases
    assert isinstance(json.loads(lease.value), dict)


def test_a_lease_that_an_earlier_run_has_written_is_seen_to(kube: Kubernetes, tmp_path: Path) -> None:
    """The run that follows finds in it what it would write, and so only renews it."""
    kube.add_node("a", "10.244.0.0/24")
    with opened(kube, tmp_path, "a") as store:
        store.update(own(store), VALUE, None)
    with opened(kube, tmp_path, "a") as store:
        store.renew(own(store), 60.0)
        kube.annotate("a", kube_subnet_manager=None)
        store.renew(own(store), 60.0)
        assert kube.annotations("a")["kube-subnet-manager"] == "true"
        kube.annotate("a", public_ip_overwrite="198.51.100.9")
        store.renew(own(store), 60.0)
        assert kube.annotations("a")["public-ip"] == "198.51.100.9"
        kube.annotate("a", public_ip_overwrite=None)
        assert "192.0.2.1" in store.renew(own(store), 60.0).value
        assert kube.annotations("a")["public-ip"] == "192.0.2.1"


@pytest.mark.parametrize("form", ["{}-overwrite", "node-{}"])
@pytest.mark.parametrize("family", [4, 6])
def test_an_overwrite_is_written_in_place_of_the_address_and_followed(
    kube: Kubernetes, tmp_path: Path, family: int, form: str
) -> None:
    cidr, address, other = {
        4: ("10.244.0.0/24", "192.0.2.1", "198.51.100.9"),
        6: ("fd00:1::/64", "2001:db8::1", "2001:db8:9::9"),
    }[family]
    name = "public-ip" if family == 4 else "public-ipv6"
    kube.add_node("a", cidr)
    value = json.dumps({"PublicIP" if family == 4 else "PublicIPv6": address, "BackendType": "vxlan"})
    with opened(kube, tmp_path, "a") as store, opened(kube, tmp_path, "b") as other_store:
        record = store.update(own(store, family), value, None)
        with Follower(store, store.snapshot()) as follower:
            kube.annotate("a", **{form.format(name): other})
            follower.until(lambda: follower.state[record.key][1] != record.version, "that something is to be done")
            changed = store.renew(own(store, family), 60.0)
            assert kube.annotations("a")[name] == other
            assert changed.value == record.value  # what was asked for: nobody has to write it again and again
            (seen,) = other_store.snapshot().leases
            assert other in seen.value
            kube.annotate("a", **{form.format(name): None})
            follower.until(lambda: follower.state[record.key][1] not in (record.version, changed.version), "that, too")
            assert address in store.renew(own(store, family), 60.0).value
            assert kube.annotations("a")[name] == address


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("example.com", "example.com/public-ip"),
        ("example.com/mine", "example.com/mine-public-ip"),
        ("example.com/x_", "example.com/x_-public-ip"),
    ],
)
def test_another_prefix(kube: Kubernetes, tmp_path: Path, prefix: str, name: str) -> None:
    kube.add_node("a", "10.244.0.0/24")
    with opened(kube, tmp_path, "a", annotation_prefix=prefix) as store:
        store.update(own(store), VALUE, None)
    assert kube.node("a")["metadata"]["annotations"][name] == "192.0.2.1"


@pytest.mark.parametrize("prefix", ["a/b/c", "-x.com", "example.com/ü", "example.com/A"])
def test_a_prefix_that_is_none_is_refused(kube: Kubernetes, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match="annotation prefix"):
        KubernetesStore(location(kube, tmp_path, "a", annotation_prefix=prefix))


def test_the_condition_is_set_right_again_when_somebody_else_sets_it(kube: Kubernetes, store: KubernetesStore) -> None:
    record = store.update(own(store), VALUE, None)
    store.announce(True)
    condition = kube.condition("a")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")
    with Follower(store, store.snapshot()) as follower:
        stuck = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
        kube.patch("a", {"status": {"conditions": [stuck]}}, "/status")
        follower.until(lambda: follower.state[record.key][1] != record.version, "that somebody has to see to it")
        assert store.renew(record, 60.0) == record
        follower.until(lambda: follower.state[record.key][1] == record.version, "that all is well")
    condition = kube.condition("a")
    assert condition is not None
    assert condition["status"] == "False"


def test_the_condition_is_left_alone_if_one_wants_it_so(kube: Kubernetes, tmp_path: Path) -> None:
    kube.add_node("a", "10.244.0.0/24")
    with opened(kube, tmp_path, "a", set_network_unavailable="false") as store:
        store.announce(True)
    assert kube.condition("a") is None


def test_a_write_that_meets_a_heartbeat_is_made_again(kube: Kubernetes, store: KubernetesStore) -> None:
    record = own(store)
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            kube.heartbeat("a")

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        for number in range(20):
            value = VALUE.replace("192.0.2.1", f"192.0.2.{number + 1}")
            record = store.update(record, value, None)
            assert json.loads(record.value) == json.loads(value)
    finally:
        stop.set()
        beating.join()


def test_two_daemons_on_one_node_find_each_other(kube: Kubernetes, store: KubernetesStore, tmp_path: Path) -> None:
    ours = store.update(own(store), VALUE, None)
    with Follower(store, store.snapshot()) as follower, opened(kube, tmp_path, "a") as twin:
        twin.update(own(twin), VALUE.replace('"one"', '"two"'), None)
        follower.until(lambda: '"two"' in follower.state[ours.key][0], "the other's node id")
    with pytest.raises(ConflictError):
        store.update(ours, VALUE.replace("192.0.2.1", "192.0.2.5"), None)


def test_a_node_deleted_and_made_again_with_another_range(kube: Kubernetes, store: KubernetesStore) -> None:
    first = store.update(own(store), VALUE, None)
    with Follower(store, store.snapshot()) as follower:
        kube.remove_node("a")
        kube.add_node("a")
        follower.until(lambda: first.key not in follower.state, "the end of the lease")
        said = store.assigned((4,))
        assert isinstance(said, Unassigned)
        assert "--allocate-node-cidrs" in said.reason
        kube.assign("a", "10.244.77.0/25")
        second = store.update(own(store), VALUE, None)
        assert second.key == "10.244.77.0-25"
        follower.until(lambda: second.key in follower.state, "the new lease")


def test_a_large_cluster_comes_in_pages(
    kube: Kubernetes, store: KubernetesStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_PAGE", 50)
    expected = set()
    for number in range(151):
        third, fourth = divmod(number, 4)
        kube.add_node(f"n{number}", f"10.{100 + third // 256}.{third % 256}.{64 * fourth}/26", annotations=FLANNELD)
        expected.add(f"10.{100 + third // 256}.{third % 256}.{64 * fourth}-26")
    snapshot = store.snapshot()
    assert {lease.key for lease in snapshot.leases} == expected
    taken = []
    take_in = store.take_in

    def noted(node: Any) -> Any:
        taken.append(node)
        return take_in(node)

    monkeypatch.setattr(store, "take_in", noted)
    with Follower(store, snapshot) as follower:
        for number in range(20):
            kube.heartbeat(f"n{number}")
        kube.annotate("n70", public_ip="192.0.2.99")
        follower.until(lambda: len(follower.changes) == 1, "the one change")
        assert "192.0.2.99" in str(follower.changes[0].record)
    assert len(taken) <= 1 + 4, "heartbeats are not read, but for those of the last Node of each page"


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_frozen_server_is_said_in_time_and_survived(kube: Kubernetes, store: KubernetesStore) -> None:
    record = store.update(own(store), VALUE, None)
    kube.server.pause()
    with pytest.raises(StoreUnavailableError):
        store.snapshot()
    with pytest.raises(StoreUnavailableError):
        store.update(record, VALUE.replace("192.0.2.1", "192.0.2.2"), None)
    kube.server.resume()

    def moved() -> bool:
        try:
            return "192.0.2.2" in store.update(record, VALUE.replace("192.0.2.1", "192.0.2.2"), None).value
        except StoreUnavailableError:
            return False

    eventually(moved, "the write")


def test_what_lies_too_far_back_is_gone(kube: Kubernetes, store: KubernetesStore, tmp_path: Path) -> None:
    """A watch whose place the server has forgotten (410) asks for a new snapshot."""
    snapshot = store.snapshot()
    for number in range(20):
        kube.annotate("a", public_ip=f"192.0.2.{number + 1}")
    kube.server.kill()
    _compact(kube)
    kube.start()
    with Follower(store, snapshot) as follower:
        kube.add_node("b", "10.244.1.0/24", annotations=FLANNELD)
        follower.until(lambda: "10.244.1.0-24" in follower.state, "the lease of the new snapshot")
        assert [type(error).__name__ for error in follower.interruptions].count("HistoryGoneError") == 1
        assert follower.state == contents(store.snapshot())


def test_an_etcd_that_knows_less_than_before_is_noticed(kube: Kubernetes, tmp_path: Path) -> None:
    """Restored from a backup: a watch at a resource version to come would wait for that, and then tell what follows."""
    kube.add_node("a", "10.244.0.0/24")
    kube.server.kill()
    kube.etcd.stop()
    data = kube.etcd.members[0].data
    shutil.copytree(data, tmp_path / "backup")
    kube.start()
    kube.add_node("lost", "10.244.1.0/24", annotations=FLANNELD)
    for _ in range(20):
        kube.heartbeat("a")
    with opened(kube, tmp_path, "a") as store:
        store.update(own(store), VALUE, None)
        with Follower(store, store.snapshot()) as follower:
            kube.server.kill()
            kube.etcd.stop()
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "backup", data)
            kube.start()
            kube.add_node("b", "10.244.2.0/24", annotations=FLANNELD)
            follower.until(lambda: set(follower.state) == {CONFIG_KEY, "10.244.2.0-24"}, "what the backup has, and b")
            kube.annotate("a", kube_subnet_manager="true", node_id="of somebody else")
            follower.until(lambda: "10.244.0.0-24" in follower.state, "our own Node, which is not older than our write")


def _compact(kube: Kubernetes) -> None:
    from tests.servers.etcd import etcdctl

    header = json.loads(etcdctl(kube.etcd, "get", "/nothing", "-w", "json"))["header"]
    etcdctl(kube.etcd, "compact", str(header["revision"]))


@pytest.mark.parametrize("verb", ["list", "watch", "patch"])
def test_a_right_that_lacks_is_named(kube: Kubernetes, tmp_path: Path, verb: str) -> None:
    kube.add_node("a", "10.244.0.0/24")
    token = kube.account(f"no-{verb}", [each for each in ("get", "list", "watch", "patch") if each != verb])
    with opened(kube, tmp_path, "a", {"token": token}) as store:
        calls: dict[str, Callable[[], object]] = {
            "list": store.snapshot,
            "watch": lambda: next(store.watch(store.snapshot().revision)),
            "patch": lambda: store.update(own(store), VALUE, None),
        }
        with pytest.raises(StoreDeniedError, match=verb) as caught:
            calls[verb]()
    assert "contrib/kubernetes/base/rbac.yaml" in str(caught.value)


def test_rights_that_are_withdrawn_and_given_back(kube: Kubernetes, tmp_path: Path) -> None:
    kube.add_node("a", "10.244.0.0/24")
    token = kube.account("withdrawn", ["get", "list", "watch", "patch"])
    with opened(kube, tmp_path, "a", {"token": token}) as store:
        record = store.update(own(store), VALUE, None)
        kube.admin("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterroles/withdrawn")
        eventually(lambda: _denied(store), "a refusal")
        kube.allow("withdrawn", ["get", "list", "watch", "patch"])
        eventually(lambda: not _denied(store), "the right again")
        assert store.renew(record, 60.0) == record


def _denied(store: Any) -> bool:
    try:
        store.snapshot()
    except StoreDeniedError:
        return True
    return False


def test_a_node_whose_kubelet_is_not_heard_of_is_away_since_then(kube: Kubernetes, tmp_path: Path) -> None:
    """One that is well, and one of which nobody says anything, are not."""
    since = datetime.now(timezone.utc) - timedelta(minutes=10)
    for number, status in enumerate(("True", "False", "Unknown", None)):
        name = f"n{number}"
        kube.add_node(name, f"10.244.{number}.0/24", annotations=FLANNELD)
        if status is not None:
            ready = {"type": "Ready", "status": status, "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ")}
            kube.patch(name, {"status": {"conditions": [ready]}}, "/status")
    with opened(kube, tmp_path, None) as store:
        leases = store.snapshot().leases
        away = store.away(leases)
        assert set(away) == {"10.244.1.0-24", "10.244.2.0-24"}
        assert all(590 < seconds < 900 for seconds in away.values())
        assert store.away(leases[:0]) == {}
