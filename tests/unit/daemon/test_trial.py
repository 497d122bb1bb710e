"""Which peers are reached by the new settings, from the pings that were answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.daemon.trial import FAILED_AFTER, KEPT_EVERY, MUTE_AFTER, Trials, Way
from pyflannel.errors import KernelError

FOUR: Way = (IPv4Address("10.5.2.0"), "flannel-wg")
SIX: Way = (IPv6Address("fd00:5:0:2::"), "flannel-wg-v6")
OTHER: Way = (IPv4Address("10.5.3.0"), "flannel-wg")


class Network:
    """Answers what it lets through: pings by the new devices to some addresses, pings by the routes to others."""

    def __init__(self) -> None:
        self.new: set[Way] = set()
        self.former: set[Way] = set()
        self.asked: list[tuple[object, str]] = []
        self.is_open = True
        self._answers: list[int] = []

    def ask(self, address: object, number: int, link: str = "") -> None:
        assert self.is_open
        self.asked.append((address, link))
        reached = {way[0] for way in self.former} if not link else {way[0] for way in self.new if way[1] == link}
        if address in reached:
            self._answers.append(number)

    def answers(self) -> Iterator[int]:
        answers, self._answers = self._answers, []
        return iter(answers)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def trials(network: Network) -> Trials:
    return Trials(lambda: network)


def run(
    trials: Trials, seconds: float, began: float = 100.0, then: Callable[[float], None] = lambda now: None
) -> float:
    """Tend to the trials whenever that is due."""
    now = began
    while now <= began + seconds:
        trials.tend(now)
        then(now)
        now = max(now + 0.01, min(trials.due(now), began + seconds + 0.001))
    return now


@pytest.mark.parametrize("way", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_a_peer_that_answers_is_waited_for_no_longer(network: Network, trials: Trials, way: Way) -> None:
    trials.want("n2", [way], 100.0)
    assert list(trials.waiting(100.0)) == ["n2"]
    network.former.add(way)
    now = run(trials, 3)
    assert list(trials.waiting(now)) == ["n2"]
    assert not list(trials.failing(now)), "a handshake may take a while"
    network.new.add(way)
    now = run(trials, 2, now)
    assert not list(trials.waiting(now))


def test_who_answers_by_the_former_way_alone_is_waited_for_and_named(network: Network, trials: Trials) -> None:
    network.new |= {FOUR, OTHER}
    network.former |= {FOUR, SIX, OTHER}
    trials.want("n2", [FOUR, SIX], 100.0)
    trials.want("n3", [OTHER], 100.0)
    now = run(trials, FAILED_AFTER + MUTE_AFTER)
    assert list(trials.waiting(now)) == ["n2"]
    assert list(trials.failing(now)) == [SIX[0]]


def test_who_answers_no_ping_at_all_holds_nothing_up(network: Network, trials: Trials) -> None:
    trials.want("n2", [FOUR], 100.0)
    now = run(trials, MUTE_AFTER - 1)
    assert list(trials.waiting(now)) == ["n2"]
    now = run(trials, 2, now)
    assert not list(trials.waiting(now))
    network.former.add(FOUR)
    now = run(trials, 3, now)
    assert list(trials.waiting(now)) == ["n2"], "it does answer, after all"


def test_what_was_agreed_is_kept(network: Network, trials: Trials) -> None:
    network.new.add(FOUR)
    network.former.add(FOUR)
    trials.want("n2", [FOUR], 100.0)
    now = run(trials, 1)
    network.asked.clear()
    run(trials, 10 * KEPT_EVERY, now)
    assert 9 <= len(network.asked) <= 11
    assert set(network.asked) == {FOUR}


def test_a_peer_that_changes_is_tried_anew_where_it_is_another_way(network: Network, trials: Trials) -> None:
    network.new |= {FOUR, OTHER}
    trials.want("n2", [FOUR], 100.0)
    now = run(trials, 1)
    trials.want("n2", [FOUR], now)
    assert not list(trials.waiting(now))
    trials.want("n2", [SIX], now)
    assert list(trials.waiting(now)) == ["n2"]
    trials.want("n2", [], now)
    assert not list(trials.waiting(now))
    network.asked.clear()
    run(trials, 1, now)
    assert not network.asked


def test_nothing_is_opened_for_nobody_and_what_is_open_is_closed(network: Network) -> None:
    opened: list[Network] = []

    def make() -> Network:
        opened.append(network)
        return network

    trials = Trials(make)
    run(trials, 1)
    assert not opened
    trials.want("n2", [FOUR], 100.0)
    run(trials, 1)
    trials.close()
    assert opened == [network]
    assert not network.is_open
    assert not list(trials.waiting(100.0))


def test_a_daemon_that_may_not_ping_waits_for_nobody() -> None:
    def refuse() -> Network:
        raise KernelError("may not ping")

    trials = Trials(refuse)
    trials.want("n2", [FOUR], 100.0)
    run(trials, 0)
    assert not list(trials.waiting(100.0))
    trials.want("n2", [OTHER], 101.0)
    assert not list(trials.waiting(101.0))
