"""The extension backend with real shells: what commands are given, in which order, and what a failure leads to."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from tests import recordings
from tests.waiting import until

from pyflannel.backend import (
    LARGEST_PUBLISHED,
    DesiredState,
    Lease,
    LeaseAttributes,
    NetworkConfig,
    Node,
    PeerRejected,
    Published,
    Subnets,
    Underlay,
    parse_options,
)
from pyflannel.errors import KernelError
from pyflannel_backends import extension
from pyflannel_backends.extension import (
    CommandFailed,
    ExtensionBackend,
    ExtensionDataPlane,
    ExtensionOptions,
    run_command,
)

PATIENCE = 30.0
UNDERLAY = Underlay(
    "eth0",
    1500,
    ipv4=IPv4Address("192.0.2.1"),
    ipv6=IPv6Address("2001:db8::1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
)
NODE = Node(
    "node-1", NetworkConfig.from_json('{"Network": "10.50.0.0/16"}'), UNDERLAY, Subnets(IPv4Network("10.50.20.0/24"))
)
DUAL = replace(
    NODE,
    network=NetworkConfig.from_json('{"Network": "10.50.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:50::/48"}'),
    subnets=Subnets(IPv4Network("10.50.20.0/24"), IPv6Network("fd00:50:0:20::/64")),
)
SHOW = "NETWORK IPV6NETWORK SUBNET IPV6SUBNET PUBLIC_IP PUBLIC_IPV6"


def peer(number: int, data: Any = None, public: str = "") -> Lease:
    return Lease(
        Subnets(IPv4Network(f"10.50.{number}.0/24")),
        LeaseAttributes(IPv4Address(public or f"192.0.2.{number}"), backend_type="extension", backend_data=data),
    )


class Journal:
    """A file that commands add their lines to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, words: str) -> str:
        """A command that adds a line."""
        return f'echo "{words}" >>{shlex.quote(str(self.path))}'

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ExtensionDataPlane]]:
    monkeypatch.setattr(ExtensionDataPlane, "_earlier", None)
    planes: list[ExtensionDataPlane] = []

    def begin(node: Node = NODE, timeout: float = PATIENCE, **commands: str) -> ExtensionDataPlane:
        planes.append(ExtensionDataPlane(node, ExtensionOptions(**commands), timeout=timeout, first_pause=0.01))
        return planes[-1]

    yield begin
    for plane in planes:
        plane.stop()
    for plane in planes:
        for thread in plane._threads:
            thread.join(PATIENCE)


# The document


def test_the_options_are_flannel_s() -> None:
    network = recordings.network("extension-hostgw")
    options, unknown = parse_options(ExtensionOptions, network.backend_options)
    assert not unknown
    assert options == ExtensionOptions(
        pre_startup="echo hello",
        post_startup="echo $SUBNET > /dev/null",
        subnet_add='ip route replace "$SUBNET" via "$PUBLIC_IP"',
        subnet_remove='ip route del "$SUBNET" via "$PUBLIC_IP"',
    )


def test_the_lease_is_flanneld_s() -> None:
    options, _ = parse_options(ExtensionOptions, recordings.network("extension-hostgw").backend_options)
    backend = ExtensionBackend(options)
    (own,) = [one for one in recordings.leases("extension-hostgw") if str(one.attributes.public_ip) == "192.0.2.1"]
    assert backend.publish(NODE) == Published(own.attributes.backend_data)
    assert own.attributes.backend_type == backend.name
    assert f"FLANNEL_MTU={backend.mtu(UNDERLAY)}" in (recordings.GOLDEN / "extension-hostgw" / "subnet.env").read_text()


def test_the_plan_is_empty_and_refuses_what_is_no_string() -> None:
    backend = ExtensionBackend(ExtensionOptions())
    assert backend.plan_node(NODE) == DesiredState()
    assert backend.plan_peer(NODE, peer(2, "hello")) == backend.plan_peer(NODE, peer(2)) == DesiredState()
    for odd in ({"VtepMAC": "x"}, ["hello"], 7, True):
        with pytest.raises(PeerRejected, match="BackendData"):
            backend.plan_peer(NODE, peer(2, odd))


# PreStartupCommand


def test_without_a_command_there_is_no_lease_data() -> None:
    assert ExtensionBackend(ExtensionOptions()).publish(NODE) == Published()


def test_the_lease_data_are_asked_for_once(journal: Journal) -> None:
    options = ExtensionOptions(pre_startup=f"{journal.note('ran')}; echo; echo ' a b '; echo noise >&2")
    for _ in range(3):
        assert ExtensionBackend(options).publish(NODE) == Published("a b")
    assert journal.lines == ["ran"]


def test_a_failed_start_is_said_and_tried_again(journal: Journal) -> None:
    there = journal.path.with_name("there")
    backend = ExtensionBackend(ExtensionOptions(pre_startup=f"echo no luck >&2; cat {shlex.quote(str(there))}"))
    with pytest.raises(KernelError, match=r"PreStartupCommand ended with status 1.*No such file"):
        backend.publish(NODE)
    there.write_text("data")
    assert backend.publish(NODE) == Published("data")


def test_too_much_lease_data_are_refused() -> None:
    def publish(characters: int) -> Published:
        return ExtensionBackend(ExtensionOptions(pre_startup=f"head -c {characters} /dev/zero | tr '\\0' x")).publish(
            NODE
        )

    around = len(json.dumps(["", None]))
    assert publish(LARGEST_PUBLISHED - around) == Published("x" * (LARGEST_PUBLISHED - around))
    with pytest.raises(KernelError, match="lease data of 6145 characters as JSON: a lease has room for 6144"):
        publish(LARGEST_PUBLISHED - around + 1)


# How a command is run


def test_a_command_gets_data_by_environment_and_standard_input_only() -> None:
    hostile = "$(touch /tmp/no); `id` \"'\\ ; exit 3"
    shown = run_command("X", 'cat; echo "[$SUBNET]"', {"SUBNET": hostile}, hostile)
    assert shown == f"{hostile}\n[{hostile}]"


def test_a_command_does_not_get_the_daemons_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "hunter2")
    monkeypatch.setenv("PYFLANNEL_STORE_PASSWORD", "hunter2")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "hunter2")
    monkeypatch.setenv("CONSUL_HTTP_AUTH", "user:hunter2")
    monkeypatch.setenv("PUBLIC_IPV6", "from the daemon's own environment")
    monkeypatch.setenv("HARMLESS", "kept")
    shown = run_command("X", "env", {"SUBNET": "10.0.0.0/24"}, "")
    assert "HARMLESS=kept" in shown
    assert "SUBNET=10.0.0.0/24" in shown
    assert "hunter2" not in shown
    assert "from the daemon" not in shown


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(CommandFailed, match="did not end within 2 s"):
        run_command("X", f"sleep 600 & echo $! >{shlex.quote(str(pid))}; wait", {}, "", timeout=2.0)
    until(lambda: not _alive(int(pid.read_text())), "its child has ended")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_need_not_read_what_it_is_given() -> None:
    assert run_command("X", "exec <&-; echo done", {}, "x" * 1_000_000) == "done"


# Serving peers


def test_commands_get_what_flannel_gives(start: Callable[..., ExtensionDataPlane], journal: Journal) -> None:
    show = " ".join(f"${name}" for name in SHOW.split())
    plane = start(
        post_startup=journal.note(f"up {show}"),
        subnet_add=f"read data; {journal.note(f'add $data {show}')}",
        subnet_remove=f"read data; {journal.note(f'remove $data {show}')}",
    )
    plane.put(peer(7, "02:00:00:00:00:07"))
    until(lambda: plane.check() == {} and len(journal.lines) == 2)
    plane.remove(peer(7).subnets)
    until(lambda: len(journal.lines) == 3)
    assert [" ".join(line.split()) for line in journal.lines] == [
        "up 10.50.0.0/16 10.50.20.0/24 192.0.2.1",
        "add 02:00:00:00:00:07 10.50.0.0/16 10.50.7.0/24 192.0.2.7",
        "remove 02:00:00:00:00:07 10.50.0.0/16 10.50.7.0/24 192.0.2.7",
    ]


def test_both_families_are_given(start: Callable[..., ExtensionDataPlane], journal: Journal) -> None:
    plane = start(DUAL, subnet_add=journal.note(" ".join(f"${name}" for name in SHOW.split())))
    subnets = Subnets(IPv4Network("10.50.7.0/24"), IPv6Network("fd00:50:0:7::/64"))
    plane.put(Lease(subnets, LeaseAttributes(IPv4Address("192.0.2.7"), IPv6Address("2001:db8::7"))))
    until(lambda: bool(journal.lines))
    assert journal.lines == ["10.50.0.0/16 fd00:50::/48 10.50.7.0/24 fd00:50:0:7::/64 192.0.2.7 2001:db8::7"]


def test_nothing_is_done_for_peers_before_the_node_is_up(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    gate = journal.path.with_name("gate")
    plane = start(post_startup=f"test -e {shlex.quote(str(gate))}", subnet_add=journal.note("add"))
    plane.put(peer(7))
    until(lambda: "PostStartupCommand ended with status 1" in plane.check().get(peer(7).key, ""))
    assert journal.lines == []
    gate.touch()
    until(lambda: plane.check() == {})
    assert journal.lines == ["add"]


def test_a_peer_that_fails_is_named_and_tried_again_and_the_others_go_on(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    there = journal.path.with_name("there")
    there.touch()
    script = (
        f'test $SUBNET != 10.50.7.0/24 || test ! -e {shlex.quote(str(there))} || {{ echo "no route" >&2; exit 2; }}'
    )
    plane = start(subnet_add=script, subnet_remove=journal.note("remove $SUBNET"))
    for number in (6, 7, 8):
        plane.put(peer(number))
    expected = {peer(7).key: "SubnetAddCommand ended with status 2: no route"}
    until(lambda: plane.check() == expected, plane.check)
    until(lambda: len(journal.lines) > 2)
    assert set(journal.lines) == {"remove 10.50.7.0/24"}
    there.unlink()
    until(lambda: plane.check() == {})
    counters = plane.counters()
    assert counters["commands_run"] > counters["commands_failed"] >= 2


def test_a_peer_that_hangs_holds_up_nobody(start: Callable[..., ExtensionDataPlane], journal: Journal) -> None:
    hold = journal.path.with_name("hold")
    hold.touch()
    wait = f"while test -e {shlex.quote(str(hold))}; do sleep 0.01; done"
    plane = start(timeout=3600.0, subnet_add=f"test $SUBNET != 10.50.7.0/24 || {wait}")
    for number in range(2, 12):
        plane.put(peer(number))  # were one of these to wait for the command, the next line would not be reached
    until(lambda: list(plane.check()) == [peer(7).key], plane.check)
    assert plane.check()[peer(7).key] == "SubnetAddCommand has not run yet"
    hold.unlink()
    until(lambda: plane.check() == {}, plane.check)


def test_a_command_that_does_not_end_is_killed(start: Callable[..., ExtensionDataPlane]) -> None:
    plane = start(timeout=0.5, subnet_add="test $SUBNET != 10.50.7.0/24 || sleep 600")
    for number in range(6, 9):
        plane.put(peer(number))
    until(lambda: "did not end" in plane.check().get(peer(7).key, ""), plane.check)


def test_what_an_earlier_life_left_is_cleared_away(start: Callable[..., ExtensionDataPlane], tmp_path: Path) -> None:
    """As with ``ip route add``, which fails where the route is there already."""
    directory = shlex.quote(str(tmp_path))
    (tmp_path / "10.50.7.0").mkdir()
    plane = start(subnet_add=f"mkdir {directory}/${{SUBNET%/*}}", subnet_remove=f"rmdir {directory}/${{SUBNET%/*}}")
    plane.put(peer(7))
    until(lambda: plane.check() == {})
    assert (tmp_path / "10.50.7.0").is_dir()
    plane.remove(peer(7).subnets)
    until(lambda: not (tmp_path / "10.50.7.0").exists())


def test_a_changed_peer_is_removed_with_its_old_data_and_added_with_its_new(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    plane = start(
        subnet_add=f"read data; {journal.note('add $data $PUBLIC_IP')}",
        subnet_remove=f"read data; {journal.note('remove $data $PUBLIC_IP')}",
    )
    plane.put(peer(7, "one"))
    until(lambda: plane.check() == {})
    plane.put(peer(7, "one"))
    plane.put(peer(7, "two", "192.0.2.70"))
    until(lambda: len(journal.lines) == 3 and plane.check() == {})
    assert journal.lines == ["add one 192.0.2.7", "remove one 192.0.2.7", "add two 192.0.2.70"]


def test_one_peer_s_commands_run_one_after_the_other_and_the_last_word_counts(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    lock = shlex.quote(str(journal.path.with_name("lock")))
    once = f"read data; mkdir {lock} || {journal.note('overlap')}; {journal.note('$data')}; rmdir {lock}"
    plane = start(subnet_add=once, subnet_remove=once)
    for number in range(40):
        plane.put(peer(7, str(number)))
        if number % 3 == 0:
            plane.remove(peer(7).subnets)
    plane.put(peer(7, "last"))
    until(lambda: plane.check() == {} and journal.lines[-1:] == ["last"])
    assert "overlap" not in journal.lines


def test_a_removal_that_never_succeeds_is_given_up(start: Callable[..., ExtensionDataPlane], journal: Journal) -> None:
    plane = start(subnet_remove=f"{journal.note('remove')}; exit 1")
    plane.put(peer(7))
    until(lambda: plane.check() == {})
    plane.remove(peer(7).subnets)
    until(lambda: not plane._peers)
    assert journal.lines == ["remove"] * extension.REMOVAL_ATTEMPTS


def test_a_peer_that_was_never_there_costs_nothing(start: Callable[..., ExtensionDataPlane], journal: Journal) -> None:
    plane = start(subnet_add=journal.note("add"), subnet_remove=journal.note("remove"))
    plane.remove(peer(7).subnets)
    plane.put(peer(8))
    until(lambda: plane.check() == {} and bool(journal.lines))
    assert journal.lines == ["add"]


def test_stopping_leaves_everything_and_ends_the_threads(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    plane = start(subnet_add=journal.note("add"), subnet_remove=journal.note("remove"))
    plane.put(peer(7))
    until(lambda: plane.check() == {})
    plane.stop()
    plane.stop()
    for thread in plane._threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in plane._threads)
    assert journal.lines == ["add"]


def test_a_command_in_flight_ends_before_the_next_data_plane_s_begin(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    gate = journal.path.with_name("gate")
    os.mkfifo(gate)
    first = start(subnet_add=f"{journal.note('begin')}; cat {shlex.quote(str(gate))}; {journal.note('end')}")
    first.put(peer(7))
    until(lambda: journal.lines == ["begin"])
    first.stop()
    second = start(post_startup=journal.note("next"))
    opened = threading.Thread(target=gate.write_text, args=("",))
    opened.start()
    until(lambda: len(journal.lines) == 3)
    opened.join()
    assert journal.lines == ["begin", "end", "next"]
    second.stop()


def test_a_data_plane_for_the_same_node_goes_on_where_the_last_one_ended(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    """Only what differs is done: the underlay's routes are not among what commands are told."""
    commands = {name: journal.note(f"{name} $SUBNET") for name in ("post_startup", "subnet_add", "subnet_remove")}
    first = start(**commands)
    for number in (6, 7):
        first.put(peer(number))
    until(lambda: first.check() == {})
    first.stop()
    before = journal.lines
    second = start(replace(NODE, underlay=replace(UNDERLAY, mtu=1400)), **commands)
    for number in (7, 8):
        second.put(peer(number))
    until(lambda: second.check() == {} and len(journal.lines) == len(before) + 2)
    assert sorted(journal.lines[len(before) :]) == ["subnet_add 10.50.8.0/24", "subnet_remove 10.50.6.0/24"]


def test_a_data_plane_for_a_node_that_moved_begins_anew(
    start: Callable[..., ExtensionDataPlane], journal: Journal
) -> None:
    commands = {name: journal.note(f"{name} $PUBLIC_IP") for name in ("post_startup", "subnet_add")}
    for public in ("192.0.2.1", "192.0.2.2"):
        plane = start(replace(NODE, underlay=replace(UNDERLAY, public_ipv4=IPv4Address(public))), **commands)
        plane.put(peer(7))
        until(lambda plane=plane: plane.check() == {})  # type: ignore[misc]
        plane.stop()
    assert journal.lines == [
        "post_startup 192.0.2.1",
        "subnet_add 192.0.2.7",
        "post_startup 192.0.2.2",
        "subnet_add 192.0.2.7",
    ]
