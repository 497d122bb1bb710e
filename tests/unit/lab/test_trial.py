"""The lab's report: the document it starts from, and what people and programs read at the end."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from pyflannel.errors import ConfigError
from pyflannel.lab.measure import Matrix, Pair, Throughput
from pyflannel.lab.picture import render
from pyflannel.lab.trial import NodeReport, Report, Shortfall, TrialNetwork
from pyflannel.network.document import NetworkConfig


def node(number: int, *, up: bool = True) -> NodeReport:
    return NodeReport(
        name=f"n{number}",
        segment="br1",
        underlay=(f"192.0.2.{number}", f"2001:db8::{number:x}"),
        state="ready" if up else "ended with status 7",
        subnets=(f"10.244.{number}.0/24",) if up else (),
        mtu=1450 if up else None,
        containers={f"n{number}-c1": (f"10.244.{number}.2",) if up else ()},
        shell=f"nsenter n{number}",
    )


def report(count: int, lost: tuple[tuple[int, int], ...] = (), down: tuple[int, ...] = ()) -> Report:
    up = [number for number in range(1, count + 1) if number not in down]
    pairs = tuple(
        Pair(f"n{one}-c1", f"n{two}-c1", f"10.244.{two}.2", None if (one, two) in lost else one + two / 100)
        for one in up
        for two in up
        if one != two
    )
    failures = (Shortfall("something is wrong", tuple(f"n{number}" for number in down)),) if lost or down else ()
    return Report(
        overlay=TrialNetwork(),
        rootless=False,
        nodes=tuple(node(number, up=number not in down) for number in range(1, count + 1)),
        reachability=Matrix(tuple(f"n{number}-c1" for number in range(1, count + 1)), pairs),
        throughput=Throughput("n1-c1", "n2-c1", 125_000_000, 1.0),
        failures=failures,
        seconds={"store": 0.1234},
        logs={f"n{number}": f"last words of n{number} [bold]" for number in down},
    )


def shown(what: Report, width: int = 200) -> str:
    output = StringIO()
    console = Console(file=output, width=width, emoji=False, highlight=False)
    for part in render(what):
        console.print(part)
    return output.getvalue()


def row_of(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("│") and line.split()[1] == name]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_working_network_is_shown_with_every_answer_and_passes() -> None:
    text = shown(report(3))
    for number in (1, 2, 3):
        assert f"n{number} 192.0.2.{number} 2001:db8::{number}: subnet 10.244.{number}.0/24, MTU 1450, ready" in text
    assert row_of(text, "n2-c1") == ["n2-c1", "2.01", ".", "2.03"]
    assert "1.00 Gbit/s" in text
    assert text.splitlines()[-1] == "PASSED: 3 nodes on vxlan, 6 of 6 container pairs reached"


def test_a_lost_pair_is_shown_in_its_cell_and_fails() -> None:
    text = shown(report(3, lost=((2, 3),)))
    assert row_of(text, "n2-c1") == ["n2-c1", "2.01", ".", "lost"]
    assert "failed: something is wrong" in text
    assert text.splitlines()[-1].startswith("FAILED: 3 nodes on vxlan, 5 of 6 container pairs reached")


def test_a_node_that_is_down_is_shown_with_the_end_of_its_log() -> None:
    text = shown(report(3, down=(3,)))
    assert "n3 192.0.2.3 2001:db8::3: no subnet, ended with status 7" in text
    assert "the end of n3's log:\nlast words of n3 [bold]" in text


def test_a_large_network_is_shown_row_by_row() -> None:
    text = shown(report(13, lost=((2, 3), (2, 4))))
    assert row_of(text, "n2-c1") == ["n2-c1", "10/12", "2.13", "n3-c1 n4-c1"]
    assert row_of(text, "n3-c1")[1] == "12/12"
    assert "nodes more" not in text
    assert "5 nodes more" in shown(report(25))


def test_addresses_are_not_taken_for_emoji_and_lines_are_no_wider_than_needed() -> None:
    text = shown(report(10))
    assert "2001:db8::a: subnet" in text
    assert max(map(len, shown(report(3)).splitlines())) < 80


def test_the_json_document_says_the_same() -> None:
    document = json.loads(json.dumps(report(2, lost=((1, 2),)).to_json()))
    assert document["ok"] is False
    assert document["verdict"].startswith("FAILED: 2 nodes")
    assert document["reachability"] == [
        {"from": "n1-c1", "to": "n2-c1", "address": "10.244.2.2", "milliseconds": None},
        {"from": "n2-c1", "to": "n1-c1", "address": "10.244.1.2", "milliseconds": 2.01},
    ]
    assert document["throughput"] == {"from": "n1-c1", "to": "n2-c1", "bits_per_second": 1_000_000_000}
    assert document["nodes"][0]["containers"] == {"n1-c1": ["10.244.1.2"]}
    assert document["seconds"] == {"store": 0.123}


@pytest.mark.parametrize(
    ("overlay", "families"),
    [
        (TrialNetwork(), ["10.244.0.0/16"]),
        (TrialNetwork(ipv6_network="fd00:10::/48"), ["10.244.0.0/16", "fd00:10::/48"]),
        (TrialNetwork(network=None, ipv6_network="fd00:10::/48"), ["fd00:10::/48"]),
    ],
)
def test_the_network_document_is_valid(overlay: TrialNetwork, families: list[str]) -> None:
    network = NetworkConfig.from_json(json.dumps(overlay.document))
    assert [str(family.network) for family in network.families] == families
    assert network.backend_type == "vxlan"


def test_backend_options_get_into_the_document() -> None:
    assert TrialNetwork(backend="udp", options={"Port": 7}).document["Backend"] == {"Type": "udp", "Port": 7}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"store": "etcd://192.0.2.1:2379"}, "shut off"),
        ({"store": "etcd://192.0.2.1:2379"}, "say --store etcd, and a server is started inside"),
        ({"store": "redis"}, "no such store is installed"),
        ({"store": "redis://192.0.2.1:6379"}, r"no distribution here brings a server of 'redis'"),
        ({"store_members": 3}, "members"),
        ({"store": "etcd", "store_members": 8}, "members"),
        ({"network": None}, "network"),
    ],
)
def test_what_a_lab_cannot_offer_is_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TrialNetwork(**changes)  # type: ignore[arg-type]
