"""Nodes and leases as pure functions: the sieve, the cluster of holders, the reading of chunks and lists."""

from __future__ import annotations

import json
import tracemalloc
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import StoreDeniedError
from pyflannel.store import Record
from pyflannel_stores._kubernetes_http import ChunkedLines
from pyflannel_stores._kubernetes_listing import split_list
from pyflannel_stores._kubernetes_nodes import Annotations, ClusterNodes, Sieve, read_member

NAMES = Annotations()


def node(name: str = "a", version: int = 1, **changes: Any) -> dict[str, Any]:
    """A Node with its fields in the order in which API servers write them."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": "u",
            "resourceVersion": str(version),
            "labels": changes.get("labels", {"a": "b"}),
            "annotations": changes.get("annotations", {"x": "y"}),
            "managedFields": [{"time": changes.get("time", "t"), "fieldsV1": {"f:spec": {}, "f:status": {}}}],
        },
        "spec": {"podCIDR": changes.get("cidr", "10.244.0.0/24")},
        "status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": changes.get("time", "t")}]},
    }


def event(kind: str = "MODIFIED", **changes: Any) -> bytes:
    return json.dumps({"type": kind, "object": node(**changes)}, separators=(",", ":")).encode()


def test_a_heartbeat_is_sieved_out_and_a_change_is_not() -> None:
    sieve = Sieve()

    def unchanged(**changes: Any) -> str | None:
        found = sieve.unchanged(event(**changes))
        sieve.learn()
        return found

    assert unchanged() is None
    assert unchanged(version=2, time="later") == "2"
    assert unchanged(version=3, annotations={"x": "z"}) is None
    assert unchanged(version=4, annotations={"x": "z"}, time="later still") == "4"
    assert unchanged(version=5, annotations={"x": "z"}, cidr="10.244.9.0/24") is None
    assert unchanged(version=6, name="b") is None
    sieve.forget("a")
    assert unchanged(version=7, annotations={"x": "z"}, cidr="10.244.9.0/24") is None


def test_an_event_that_was_not_taken_in_is_not_known() -> None:
    sieve = Sieve()
    assert sieve.unchanged(event()) is None
    assert sieve.unchanged(event()) is None
    sieve.learn()
    assert sieve.copy().unchanged(event()) == "1"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["x", "managedFields", "spec", '},"spec":{', ',"managedFields":[', ',"status":{']),
            st.text(max_size=20) | st.sampled_from(['},"spec":{', '"', "\\", ',"status":{', ',"managedFields":[']),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_what_the_sieve_keeps_back_differs_in_nothing_of_ours(states: list[dict[str, str]]) -> None:
    """Whatever stands in annotations: the sieve may let too much through, and never too little."""
    sieve, before = Sieve(), None
    for version, state in enumerate(states):
        if sieve.unchanged(event(version=version, annotations=state)) is not None:
            assert state == before
        sieve.learn()
        before = state


@given(
    st.dictionaries(
        st.sampled_from(["PublicIP", "PublicIPv6", "BackendType", "NodeID", "Other"]), st.text(min_size=1), max_size=5
    ),
    st.none() | st.recursive(st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner), max_leaves=5),
)
def test_a_value_comes_back_as_it_was_written(texts: dict[str, str], data: Any) -> None:
    value = {"PublicIP": None, "PublicIPv6": None, **texts, **({} if data is None else {"BackendData": data})}
    wanted = NAMES.wanted(json.dumps(value), {}, texts.get("BackendType", "vxlan"))
    annotations = {name: text for name, text in wanted.items() if text is not None}
    assert json.loads(NAMES.value(annotations)) == {"BackendType": "vxlan", **value}


@pytest.mark.parametrize(
    ("spec", "key", "versions"),
    [
        ({}, "", ()),
        ({"podCIDR": ""}, "", ()),
        ({"podCIDR": "10.244.3.0/24"}, "10.244.3.0-24", (4,)),
        ({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/25"]}, "10.2.0.0-25", (4,)),
        ({"podCIDRs": ["fd00:1::/64", "10.2.0.0/25"]}, "10.2.0.0-25&fd00:1::-64", (4, 6)),
        ({"podCIDRs": ["10.2.0.0/24", "10.3.0.0/24"]}, "10.2.0.0-24", (4,)),
        ({"podCIDRs": ["10.2.0.1/24", "fd00:1::1/64"]}, "10.2.0.0-24&fd00:1::-64", (4, 6)),
    ],
)
def test_pod_cidrs_make_the_key(spec: dict[str, Any], key: str, versions: tuple[int, ...]) -> None:
    member = read_member({"metadata": {"name": "a", "uid": "u"}, "spec": spec}, NAMES)
    assert (member.key, member.versions, member.problem) == (key, versions, "")


def test_a_pod_cidr_that_is_none_is_a_problem_with_a_name() -> None:
    member = read_member({"metadata": {"name": "a", "uid": "u"}, "spec": {"podCIDRs": ["10.2.0.1/33"]}}, NAMES)
    assert member.key == ""
    assert "10.2.0.1/33" in member.problem


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("public-ip-overwrite", "198.51.100.300"),
        ("public-ip-overwrite", "2001:db8::7"),
        ("public-ip-overwrite", "node7.example.com"),
        ("public-ipv6-overwrite", "198.51.100.7"),
        ("public-ipv6-overwrite", "2001:db8::7/64"),
    ],
)
def test_an_overwrite_that_is_no_address_of_its_family_is_not_written(name: str, text: str) -> None:
    """Every peer would skip a node with it."""
    value = '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan"}'
    with pytest.raises(StoreDeniedError, match=f"annotation {NAMES.prefix}{name} of this Node is '{text}'"):
        NAMES.wanted(value, {f"{NAMES.prefix}{name}": text}, "vxlan")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.tuples(st.sampled_from("kl"), st.sampled_from("12")))))
def test_changes_of_a_cluster_lead_from_one_state_to_the_next(steps: list[tuple[str, tuple[str, str] | None]]) -> None:
    cluster, state = ClusterNodes("b"), dict[str, Record]()
    members: dict[str, Record] = {}
    for name, lease in steps:
        record = None if lease is None else Record(lease[0], f"{name}{lease[1]}", lease[1])
        for change in cluster.copy().put(name, record):
            if change.record is None:
                del state[change.key]
            else:
                assert state.get(change.key) != change.record
                state[change.key] = change.record
        cluster.put(name, record)
        members.pop(name, None)
        if record is not None:
            members[name] = record
        best = {}
        for holder in sorted(members, key=lambda each: (each != "b", each), reverse=True):
            best[members[holder].key] = members[holder]
        assert state == best == {each.key: each for each in cluster.records()}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def readable(depth: int) -> bool:
    try:
        return bool(json.loads(nested(depth)) is not None)
    except RecursionError:
        return False


@pytest.mark.parametrize("name", ["backend-data", "extra"])
def test_data_nested_as_deep_as_can_be_read_is_one_nodes_matter(name: str) -> None:
    """It is read and written again, for which Python has not the same limit (3.12)."""
    deepest = bisect_left(range(100_000), True, key=lambda depth: not readable(depth + 1))
    for depth in range(deepest - 12, deepest + 12):
        text = nested(depth) if name == "backend-data" else f'{{"a":{nested(depth)}}}'
        annotations = {NAMES.managed: "true", f"{NAMES.prefix}{name}": text}
        assert read_member(node(annotations=annotations), NAMES).lease is not None


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), st.integers(1, 40), st.integers(1, 40))
def test_chunks_of_any_size_give_the_lines(lines: list[bytes], chunk: int, piece: int) -> None:
    body = b"".join(line + b"\n" for line in lines)
    chunks = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    raw = b"".join(b"%x;x=y\r\n%s\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
    reader, found = ChunkedLines(), []
    for at in range(0, len(raw), piece):
        found += reader.feed(raw[at : at + piece])
    assert found == lines
    assert reader.ended


def test_a_line_in_small_chunks_takes_no_more_memory_than_its_length() -> None:
    reader = ChunkedLines()
    tracemalloc.start()
    try:
        for _ in range(100):
            assert reader.feed(b"2\r\nab\r\n" * 1000) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 200_000


@pytest.mark.parametrize("raw", [b"zz\r\n", b"\r\n\r\n", b"x" * 5000, b"-1\r\n", b"-6\r\n"])
def test_what_is_not_chunked_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|invalid literal"):
        ChunkedLines().feed(raw)


@pytest.mark.parametrize("indent", [None, 1], ids=["as API servers write", "otherwise"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_is_taken_apart_item_by_item(indent: int | None, count: int) -> None:
    items = [node(f"n{number}") for number in range(count)]
    document = {"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items}
    metadata, found = split_list(json.dumps(document, indent=indent, separators=(",", ":")).encode(), Sieve())
    assert metadata == {"resourceVersion": "7"}
    assert [read_member(each, NAMES, keep=True) for each in found] == [
        read_member(each, NAMES, keep=True) for each in items
    ]


@given(st.lists(st.dictionaries(st.sampled_from(["x", "spec", '"}},{"metadata":{"name":"']), st.text()), max_size=4))
def test_a_list_as_api_servers_write_it_is_read_like_any_other(notes: list[dict[str, str]]) -> None:
    items = [node(f"n{number}", annotations=each) for number, each in enumerate(notes)]
    for item in items:
        del item["kind"], item["apiVersion"]  # which API servers leave out in lists
    document = {"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items}
    sieve = Sieve()
    _, listed = split_list(json.dumps(document, separators=(",", ":")).encode(), sieve)
    found = list(listed)
    assert [{**item, "status": 0, "metadata": {**item["metadata"], "managedFields": 0}} for item in found] == [
        {**item, "status": 0, "metadata": {**item["metadata"], "managedFields": 0}} for item in items
    ]
    for number, each in enumerate(notes[:-1]):  # the first event of each is a heartbeat; the last Node is read whole
        assert sieve.unchanged(event(name=f"n{number}", annotations=each, version=2)) == "2"
        assert sieve.unchanged(event(name=f"n{number}", annotations={**each, "y": "z"}, version=3)) is None
