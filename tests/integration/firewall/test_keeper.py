"""The thread that keeps the rules: how it gives way to somebody who won't have them, and what a reload does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

import pytest
from tests.integration.firewall.conftest import Host
from tests.waiting import until

from pyflannel.firewall import keeper as keeping
from pyflannel.firewall import programs
from pyflannel.firewall.keeper import HANGING, FirewallKeeper
from pyflannel.firewall.model import Mode, plan
from pyflannel.firewall.state import FirewallState
from pyflannel.firewall.sync import Firewall, find_tools
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NETWORK = NetworkConfig.from_json('{"Network": "10.244.0.0/16"}')
RULES = plan(NETWORK, Subnets(IPv4Network("10.244.3.0/24"), None), forward=True, masquerade=True)
NEVER = 3600.0
BURST = 5


@pytest.fixture
def keeper(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[FirewallKeeper]:
    """A keeper in the host's namespace that answers five times, however long that takes, and whose resync period never
    ends."""
    monkeypatch.setattr(keeping, "BURST", BURST)
    monkeypatch.setattr(keeping, "BURST_TIME", NEVER)
    made = FirewallKeeper(lambda: Firewall(find_tools(), Mode.AUTO), NEVER, lambda: None)
    host.do(made.start)
    yield made
    made.stop(10)


def test_the_longest_period_is_waited_for(host: Host) -> None:
    """It is longer than what epoll can wait at a time: nothing was written, not even at first."""
    made = FirewallKeeper(lambda: Firewall(find_tools(), Mode.AUTO), 9e9, lambda: None)
    host.do(made.start)
    try:
        made.want(RULES)
        until(lambda: made.state.in_place or made.state.errors, "the rules are written")
        assert not made.state.errors
    finally:
        made.stop(10)


class Poor(Firewall):
    """One that gets no descriptor, two times."""

    refused: ClassVar[int] = 0

    @classmethod
    def refuse(cls) -> None:
        if cls.refused < 2:
            cls.refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "foreign.py")

    def check(self) -> FirewallState:
        self.refuse()
        return super().check()


@pytest.mark.parametrize("where", ["making", "checking"])
def test_a_thread_that_gets_no_descriptor_begins_anew(host: Host, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a module that it needs to have imported."""
    monkeypatch.setattr(keeping, "STUMBLE_PAUSE", 0.1)
    monkeypatch.setattr(Poor, "refused", 0)

    def make() -> Firewall:
        if where == "making":
            Poor.refuse()
        return Poor(find_tools(), Mode.AUTO)

    made = FirewallKeeper(make, NEVER, lambda: None)
    host.do(made.start)
    try:
        made.want(RULES)
        until(lambda: made.state.in_place)
        assert (made.state.errors, Poor.refused) == ((), 2)
        assert there(host)
    finally:
        assert made.stop(10)


def there(host: Host) -> bool:
    return "flannel-ipv4" in host.sh("nft list tables")


def fight(host: Host, keeper: FirewallKeeper) -> int:
    """Remove the rules whenever they are there, until the keeper gives way; how often that was."""
    removed = 0

    def remove() -> bool:
        nonlocal removed
        if there(host):
            host.sh("nft delete table ip flannel-ipv4")
            removed += 1
        return bool(keeper.state.errors)

    until(remove)
    return removed


def test_who_removes_the_rules_again_and_again_is_given_way_to(host: Host, keeper: FirewallKeeper) -> None:
    keeper.want(RULES)
    until(lambda: keeper.state.in_place)
    assert fight(host, keeper) > BURST, "each removal was answered but the last one"
    assert not there(host)
    assert not keeper.state.in_place
    assert keeper.state.trouble == (
        "firewall: something else removes our rules again and again; the next try is in 3600 s"
    )
    assert keeper.state.repaired == BURST


def test_the_next_period_tries_again(host: Host, keeper: FirewallKeeper) -> None:
    keeper.want(RULES)
    until(lambda: keeper.state.in_place)
    fight(host, keeper)
    keeper.reload(0.05)
    until(lambda: keeper.state.in_place and there(host))


def test_other_rules_are_written_at_once_all_the_same(host: Host, keeper: FirewallKeeper) -> None:
    keeper.want(RULES)
    until(lambda: keeper.state.in_place)
    fight(host, keeper)
    keeper.want(plan(NETWORK, Subnets(IPv4Network("10.244.9.0/24"), None), forward=True, masquerade=True))
    until(lambda: keeper.state.in_place and "10.244.9.0/24" in host.sh("nft list ruleset"))


def test_a_reload_moves_the_rules_to_where_the_host_s_are_now(host: Host, keeper: FirewallKeeper) -> None:
    host.sh("iptables-legacy -P FORWARD DROP")
    keeper.want(RULES)
    until(lambda: keeper.state.port == "iptables-legacy" and keeper.state.in_place)
    host.sh("iptables-legacy -P FORWARD ACCEPT")
    keeper.reload(NEVER)
    until(lambda: keeper.state.port == "nftables" and keeper.state.in_place)
    assert "FLANNEL" not in host.sh("iptables-legacy-save")
    assert keeper.state.repaired == 0, "nobody had changed our rules"


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that makes nft, and what it starts, hang for as long as it is there."""
    switch, real = tmp_path / "hang", programs.find("nft")
    fake = tmp_path / "nft"
    fake.write_text(f'#!/bin/sh\n[ -e {switch} ] && {{ echo $$ >>{tmp_path}/pids; sleep 3600; }}\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return switch


def test_a_program_that_hangs_is_told_of_and_ends_with_the_keeper(
    host: Host, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It, and what it has started; nobody has to wait for it."""
    monkeypatch.setattr(keeping, "SLOW", 0.2)
    hanging.touch()
    made = FirewallKeeper(lambda: Firewall(find_tools(), Mode.AUTO), NEVER, lambda: None)
    host.do(made.start)
    made.want(RULES)
    until(lambda: HANGING in made.state.errors)
    assert (made.state.in_place, made.settled) == (False, False)
    assert made.stop(60)
    hung = set((hanging.parent / "pids").read_text().split())
    until(lambda: not hung & sessions())


def sessions() -> set[str]:
    """Those of all processes that live: a program of ours has one of its own."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has gone
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                found.add(session)
    return found


def test_a_program_that_hung_once_is_run_again(host: Host, hanging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SLOW", 0.2)
    hanging.touch()
    made = FirewallKeeper(lambda: Firewall(find_tools(), Mode.AUTO), 0.1, lambda: None)
    host.do(made.start)
    try:
        made.want(RULES)
        until(lambda: HANGING in made.state.errors)
        hanging.unlink()
        programs.interrupt()  # as after 30 s
        until(lambda: made.state.in_place)
        assert made.state.errors == ()
        assert there(host)
    finally:
        assert made.stop(10)
