"""What is learnt has few slots: whoever loses one is Python's again, and nobody gets another's packets."""

from __future__ import annotations

import struct

from tests.unit.backends.userspace.bursts import OURS, THEIRS
from tests.unit.backends.userspace.edges import OTHER, PEER
from tests.unit.backends.userspace.fastpath.bench import MTU, Bench, arriving, leaving


def test_the_hosts_of_a_subnet_do_not_crowd_each_other_out(bench: Bench) -> None:
    hosts = [bytes([10, 5, 2, number]) for number in range(1, 255)]
    for host in hosts:
        bench.learn_route(host, PEER, MTU)
        bench.path.learn_path(PEER, host + OURS)
    assert sum(bench.from_tun(leaving(destination=host)) is not None for host in hosts) > 240
    assert sum(bench.from_udp(arriving(source=host)) is not None for host in hosts) > 240


def test_who_shares_a_slot_loses_it_but_takes_nothing_over(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for number in range(20_000):
        host = struct.pack("!BBH", 10, 6, number)
        bench.learn_route(host, OTHER, MTU)
        bench.path.learn_path(OTHER, host + OURS)
    assert bench.from_tun(leaving()) is None
    assert bench.from_udp(arriving()) is None
    assert bench.from_udp(arriving(), OTHER) is None
    assert bench.from_udp(arriving(source=host), OTHER) == arriving(source=host)


def test_what_is_in_a_slot_is_good_for_its_own_addresses_alone(bench: Bench) -> None:
    bench.learn_route(THEIRS, PEER, MTU)
    bench.path.learn_path(PEER, THEIRS + OURS)
    for number in range(4_000):
        host = struct.pack("!BBH", 10, 6, number)
        assert bench.from_tun(leaving(destination=host)) is None
        assert bench.from_udp(arriving(source=host)) is None
        assert bench.from_udp(arriving(destination=host)) is None
