"""What the probes' results mean, and the packets they are made of."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.waiting import until

from pyflannel.doctor.examination import spread
from pyflannel.doctor.finding import Finding, Judgement, failed, passed, skipped, warned, worst
from pyflannel.doctor.probes import Reach, Target, checksum_errors, judge
from pyflannel.errors import KernelError
from pyflannel.network.lease import IPAddress
from pyflannel.small import ping as echo

DEVICE, GATEWAY = ip_address("10.1.2.0"), ip_address("10.1.2.1")
TARGET = Target("10.1.2.0/24 at 192.0.2.2", ip_address("192.0.2.2"), DEVICE, GATEWAY, 1450, 1500, "flannel.1")
WELL = Reach("ping", 0.001, DEVICE, True, 1450, 1500, True, True)


def verdicts(reach: Reach, target: Target = TARGET) -> dict[str, Judgement]:
    return {finding.check: finding.outcome for finding in judge(target, reach, "eth0", 8472)}


def finding(reach: Reach, check: str, target: Target = TARGET) -> Finding:
    return next(item for item in judge(target, reach, "eth0", 8472) if item.check == check)


def test_all_is_well() -> None:
    assert set(verdicts(WELL).values()) == {Judgement.PASS}
    assert len(verdicts(WELL)) == 4


@pytest.mark.parametrize(
    ("change", "check", "verdict"),
    [
        ({"underlay": "knock"}, "peer underlay", Judgement.PASS),
        ({"underlay": ""}, "peer underlay", Judgement.PASS),
        ({"gateway": False}, "peer overlay", Judgement.PASS),
        ({"largest": 1449}, "peer packet size", Judgement.FAIL),
        ({"largest": 0}, "peer packet size", Judgement.FAIL),
        ({"underlay_largest": 1400}, "peer packet size", Judgement.WARN),
        ({"underlay_largest": 0}, "peer packet size", Judgement.PASS),
        ({"underlay_largest": None}, "peer packet size", Judgement.PASS),
        ({"checksummed": False}, "peer UDP checksum", Judgement.FAIL),
        ({"checksummed": False, "unchecked": False}, "peer UDP checksum", Judgement.SKIP),
        ({"checksummed": False, "unchecked": None}, "peer UDP checksum", Judgement.SKIP),
    ],
)
def test_one_thing_that_differs(change: dict[str, object], check: str, verdict: Judgement) -> None:
    reach = replace(WELL, **change)  # type: ignore[arg-type]
    assert verdicts(reach) == {**verdicts(WELL), check: verdict}


def test_a_dead_node_and_a_blocked_overlay_are_two_things() -> None:
    dead, blocked = Reach(), Reach("ping", underlay_largest=1500, checksummed=True, unchecked=True)
    assert verdicts(dead) == {"peer underlay": Judgement.FAIL, "peer overlay": Judgement.FAIL}
    assert verdicts(blocked) == {"peer underlay": Judgement.PASS, "peer overlay": Judgement.FAIL}
    assert "UDP port 8472" in finding(blocked, "peer overlay").meaning
    assert "udp port 8472" in finding(blocked, "peer overlay").fix


def test_a_path_that_carries_less_than_any_must_is_no_reason_for_an_mtu_of_next_to_nothing() -> None:
    size = finding(replace(WELL, largest=0), "peer packet size")
    assert "not even 576 bytes get through whole, 1450 should" in size.message
    assert "Backend.MTU" not in size.fix


def test_a_device_that_leaves_checksums_unfinished_is_named() -> None:
    assert finding(replace(WELL, checksummed=False), "peer UDP checksum").fix.startswith("ethtool -K flannel.1 ")
    below = Reach("ping", checksummed=False, unchecked=True)
    assert finding(below, "peer UDP checksum").fix.startswith("ethtool -K eth0 ")


def test_where_the_device_has_no_address_silence_is_a_warning() -> None:
    """As with host-gw: a node without containers has nothing that could answer."""
    assert verdicts(Reach("ping"), replace(TARGET, device=None))["peer overlay"] is Judgement.WARN


@given(
    st.builds(
        Reach,
        st.sampled_from(["", "ping", "knock"]),
        st.none() | st.just(0.001),
        st.sampled_from([DEVICE, GATEWAY]),
        st.booleans(),
        st.none() | st.integers(0, 1450),
        st.none() | st.integers(0, 1500),
        st.none() | st.booleans(),
        st.none() | st.booleans(),
    )
)
def test_every_answer_has_an_outcome_and_trouble_has_a_way_out(reach: Reach) -> None:
    found = list(judge(TARGET, reach, "eth0", None))
    assert {"peer underlay", "peer overlay"} <= {item.check for item in found}
    for item in found:
        assert bool(item.meaning and item.fix) == (item.outcome in (Judgement.WARN, Judgement.FAIL))


def test_the_worst_counts() -> None:
    well, skip = passed("a", ""), skipped("a", "")
    assert [
        worst(items)
        for items in ([], [well], [well, skip], [skip, warned("a", "", "m")], [failed("a", "", "m"), well, skip])
    ] == [Judgement.PASS, Judgement.PASS, Judgement.SKIP, Judgement.WARN, Judgement.FAIL]


@given(st.binary(max_size=64))
def test_a_checksum_checks_out(data: bytes) -> None:
    """A receiver that adds up the packet with its checksum gets all ones, so the checksum of that is zero."""
    even = data + b"\0" * (len(data) % 2)
    assert echo._checksum(even + struct.pack("!H", echo._checksum(even))) == 0


def test_the_counter_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "snmp"
    path.write_text(
        "Tcp: RtoAlgorithm InCsumErrors\nTcp: 1 99\n"
        "Udp: InDatagrams NoPorts InErrors OutDatagrams InCsumErrors IgnoredMulti\nUdp: 1 2 3 4 5 6\n"
        "UdpLite: InDatagrams InCsumErrors\nUdpLite: 7 8\n"
    )
    assert checksum_errors(path) == 5
    path.write_text("Tcp: RtoAlgorithm\nTcp: 1\n")
    assert checksum_errors(path) is None


def test_this_host_answers_itself() -> None:
    address = ip_address("127.0.0.1")
    assert echo.knock_udp(address)
    assert echo.knock_udp(address, checksum=False)
    assert echo.knock_tcp(address, port=1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_answers_are_fetched_later_and_pings_sent_by_a_device(address: str) -> None:
    """By one that is there, and not by one that is not."""
    try:
        pinger = echo.Echoes()
    except KernelError as error:
        pytest.skip(str(error))
    try:
        for number, link in ((7, "lo"), (8, ""), (9, "pyfl-none")):
            pinger.ask(ip_address(address), number, link)
        answered: set[int] = set()

        def both() -> bool:
            answered.update(pinger.answers())
            return {7, 8} <= answered

        until(both, lambda: answered)
        assert answered == {7, 8}
    finally:
        pinger.close()


@given(st.integers(1, 50).flatmap(lambda count: st.tuples(st.just(count), st.integers(count, 500))))
def test_a_choice_of_peers_is_spread_evenly(numbers: tuple[int, int]) -> None:
    count, total = numbers
    chosen = spread(range(total), count)
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], total], strict=True)}
    assert len(chosen) == count
    assert chosen[0] == 0
    assert gaps <= {total // count, -(-total // count)}


@pytest.mark.parametrize("ask", [echo.echo_all, echo.knock_all])
def test_many_are_asked_at_once_and_told_apart(ask: Callable[..., dict[IPAddress, float]]) -> None:
    addresses = [ip_address(f"127.0.1.{number}") for number in range(100)]
    try:
        answers = ask(addresses, timeout=60.0)  # it ends when all have answered
    except KernelError as error:
        pytest.skip(str(error))
    assert answers.keys() == set(addresses)
    assert min(answers.values()) > 0
    assert ask([ip_address("127.255.255.255")], timeout=0.3) == {}, "nobody answers to a broadcast address"
    assert ask([]) == {}
