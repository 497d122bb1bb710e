"""What ``pyflannel network change`` says, before it begins and while it waits."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from tests.sites import install
from tests.unit.cli.conftest import CommandLine

from pyflannel.cli.change_planned import Plan, Wanted, planned
from pyflannel.cli.change_shown import Shown
from pyflannel.cli.network import _abort, _go_through, _named
from pyflannel.errors import ConfigError, ExitCode, PyflannelError
from pyflannel.network.change import Ending, NetworkChange, Phase, Written, read
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import LeaseAttributes
from pyflannel.network.marks import Marks
from pyflannel.store import Record, Store, StoreLocation
from pyflannel.storetools.change import Drive, NodeStanding, Progress, begin, standings
from pyflannel_stores.file import FileStore

DOCUMENT = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}})


def add(store: Store, number: int, node: str | None, marks: Marks, ttl: float) -> None:
    four, six = IPv4Address(f"192.0.2.{number}"), IPv6Address(f"2001:db8::{number}")
    attributes = LeaseAttributes(four, six, "vxlan", {"VNI": 1}, node_id=node, marks=marks)
    store.create(f"10.1.{number}.0-24", attributes.to_json(), ttl)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_names_who_can_not_take_part(pyflannel: CommandLine, as_json: bool) -> None:
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    with FileStore(StoreLocation.parse(pyflannel.store)) as store:
        add(store, 1, "well", Marks("run"), 86400)
        add(store, 2, None, Marks(), 86400)
        add(store, 3, "old", Marks(), 86400)
        add(store, 4, "down", Marks("run"), 1800)
        add(store, 5, "renews", Marks("run"), 3550)
    words = ["--json"] if as_json else []
    told = pyflannel("network", "change", "--backend", "wireguard", "--dry-run", *words)
    assert told.code == 0
    if as_json:
        unable: dict[str, Any] = json.loads(told.out)["unable"]
        assert sorted(unable) == ["192.0.2.2", "down", "old"]
    assert "flanneld runs there" in told.out
    assert "older pyflannel" in told.out
    assert "down, for 30 min or longer" in told.out
    assert "1450 -> 1420" in told.out
    assert "larger UDP packets with DF" in told.out
    assert "192.0.2.2: flanneld runs there, which can't take part; run pyflannel there first" in told.out
    refused = pyflannel("network", "change", "--backend", "wireguard")
    assert "flanneld runs there" in refused.err
    assert json.loads(pyflannel("config", "get").out) == json.loads(DOCUMENT)


@pytest.mark.parametrize(
    ("backend", "words", "first"),
    [
        ("vxlan", ["--backend", "host-gw", "--network", "10.0.0.0/15"], "network 10.1.0.0/16"),
        ("udp", ["--backend", "vxlan", "--enable-ipv6", "true", "--ipv6-network", "fd00::/48"], "backend udp"),
    ],
)
def test_ranges_and_backend_go_one_after_the_other(
    pyflannel: CommandLine, backend: str, words: list[str], first: str
) -> None:
    """Ranges first, unless the present backend can't carry a family that is new."""
    document = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": backend}})
    assert pyflannel("config", "set", "-", stdin=document).code == 0
    told = pyflannel("network", "change", *words, "--dry-run")
    assert (told.code, told.err) == (0, "")
    one, two = told.out.split("then:")
    assert one.startswith(first)
    assert "network" in two if first.startswith("backend") else "backend" in two


@pytest.mark.parametrize(
    ("backend", "option", "along"),
    [
        ("vxlan", "Port=4789", ["VNI=2"]),
        ("vxlan", "GBP=true", ["VNI=2", "Port=4789"]),
        ("wireguard", "Mode=ipv4", ["ListenPort=51900"]),
        ("udp", "Workers=2", ["Port=9000"]),
        ("gre", "Key=7", []),
    ],
)
def test_an_option_that_one_device_can_have_in_one_way_alone_takes_others_along(
    pyflannel: CommandLine, backend: str, option: str, along: list[str]
) -> None:
    """As docs/network-change.md says."""
    document = {**json.loads(DOCUMENT), "Backend": {"Type": backend}}
    assert pyflannel("config", "set", "-", stdin=json.dumps(document)).code == 0

    def refusal(*options: str) -> object:
        words = [word for each in options for word in ("--backend-option", each)]
        return json.loads(pyflannel("network", "change", "--dry-run", "--json", *words).out)["refused"]

    for number in range(len(along)):
        assert refusal(option, *along[:number])
    assert bool(refusal(option, *along)) == (not along)


def test_no_change_is_begun_or_gone_on_with_by_an_empty_name(pyflannel: CommandLine) -> None:
    """As a variable of a script is that was not set."""
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    told = pyflannel("network", "change", "--backend", "")
    assert told.code == ExitCode.USAGE
    assert "--backend names none" in told.err


def test_what_becomes_of_subnets_is_said(pyflannel: CommandLine) -> None:
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    words = ["--subnet-len", "26", "--subnet-max", "10.1.9.0"]
    told = pyflannel("network", "change", *words, "--dry-run", "--json")
    assert json.loads(told.out)["changes"] == [
        "subnets that are leased from now on: /24 -> /26",
        "subnets may be leased from 10.1.1.0 to 10.1.255.0 -> 10.1.0.64 to 10.1.9.0",
    ]


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_end_of_encryption_is_confirmed_or_refused(pyflannel: CommandLine, words: list[str]) -> None:
    """And the other way round nobody is asked: with no nodes, the change is over at once."""
    document = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard"}})
    assert pyflannel("config", "set", "-", stdin=document).code == 0
    told = pyflannel("network", "change", "--backend", "vxlan", "--dry-run", *words)
    assert "vxlan does not encrypt: from then on packets can be read" in told.out
    refused = pyflannel("network", "change", "--backend", "vxlan", *words)
    assert refused.code == ExitCode.CONFIG
    assert "--yes says that this is wanted" in refused.err
    assert json.loads(pyflannel("config", "get").out) == json.loads(document)
    for backend, yes in (("vxlan", ["--yes"]), ("wireguard", [])):
        assert pyflannel("network", "change", "--backend", backend, *yes, *words).code == ExitCode.OK
        assert json.loads(pyflannel("config", "get").out)["Backend"] == {"Type": backend}


def test_a_third_party_s_backend_that_needs_what_ours_needs_is_refused_beforehand(
    pyflannel: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a dry run as well. What else they may both need: tests/unit/planning/test_clashes.py."""
    install(monkeypatch, Path(__file__).parents[2] / "plugins" / "site")
    document = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "taking", "Takes": "device"}})
    assert pyflannel("config", "set", "--force", "-", stdin=document).code == 0
    words = ["network", "change", "--json", "--backend", "wireguard", "--backend-option", "Implementation=kernel"]
    told = pyflannel(*words, "--dry-run")
    assert (told.code, told.err) == (0, "")
    says = "both settings make a device flannel-wg"
    assert says in json.loads(told.out)["refused"]
    assert json.loads(told.out)["untried"] is None
    done = pyflannel(*words, "--yes")
    assert done.code == ExitCode.CONFIG
    assert says in done.err


def test_a_network_that_would_cover_a_node_s_own_address_is_refused(pyflannel: CommandLine) -> None:
    """Each node that follows would skip that one, whose lease nobody would wait for either."""
    document = json.dumps({"Network": "192.0.128.0/17", "Backend": {"Type": "vxlan"}})
    assert pyflannel("config", "set", "-", stdin=document).code == 0
    with FileStore(StoreLocation.parse(pyflannel.store)) as store:
        attributes = LeaseAttributes(IPv4Address("192.0.2.7"), backend_type="vxlan", node_id="n7", marks=Marks("run"))
        store.create("192.0.130.0-24", attributes.to_json(), 3600)
    words = ["network", "change", "--network", "192.0.0.0/16"]
    says = "n7: PublicIP 192.0.2.7 lies inside the overlay 192.0.0.0/16"
    assert says in json.loads(pyflannel(*words, "--dry-run", "--json").out)["refused"]
    refused = pyflannel(*words)
    assert refused.code == ExitCode.CONFIG
    assert says in refused.err
    assert json.loads(pyflannel("config", "get").out) == json.loads(document)
    for possible in (["--subnet-min", "192.0.3.0"], ["--without", "n7"]):
        told = json.loads(pyflannel(*words, *possible, "--dry-run", "--json").out)
        assert told["refused"] is None


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.BACK])
def test_a_dry_run_in_the_middle_of_a_change_does_not_go_on_with_it(pyflannel: CommandLine, phase: Phase) -> None:
    under_way = read(DOCUMENT).with_change(CHANGING.at(phase))
    assert pyflannel("config", "set", "-", stdin=under_way).code == 0
    told = json.loads(pyflannel("network", "change", "--dry-run", "--json").out)
    way = ["vxlan", "host-gw"] if phase is Phase.PREPARE else ["host-gw", "vxlan"]
    assert told["changes"][0].startswith(f"change {CHANGING.id} is under way")
    assert told["changes"][1] == f"backend {' -> '.join(way)}"
    assert json.loads(pyflannel("config", "get").out) == json.loads(under_way)


def test_a_document_without_a_backend_is_changed_from_what_the_nodes_run(pyflannel: CommandLine) -> None:
    """That of flanneld: udp, which its leases do not even name."""
    bare = '{"Network": "10.1.0.0/16"}'
    with FileStore(StoreLocation.parse(pyflannel.store)) as store:
        store.write_config(bare, None)
        attributes = LeaseAttributes(IPv4Address("192.0.2.1"), node_id="n1", marks=Marks("run"))
        store.create("10.1.1.0-24", attributes.to_json(), 3600)
    for backend, option in (("vxlan", "VNI=1"), ("udp", "Port=9000")):
        words = ["network", "change", "--backend", backend, "--backend-option", option, "--dry-run", "--json"]
        told = json.loads(pyflannel(*words).out)
        assert told["together"]
        assert told["changes"][0] == ("backend udp -> vxlan" if backend == "vxlan" else "udp: another Port")
    assert "as you want it already" in pyflannel("network", "change", "--backend", "udp").err


@pytest.mark.parametrize(("phase", "words"), [(Phase.PREPARE, ["--dry-run"]), (Phase.RETIRE, ["--abort", "--yes"])])
def test_what_nodes_have_already_need_not_be_where_the_command_is(
    pyflannel: CommandLine, phase: Phase, words: list[str]
) -> None:
    """A file that an option names is theirs."""
    target = {**json.loads(DOCUMENT), "Backend": {"Type": "wireguard", "PSKFile": "/nonexistent/psk"}}
    under_way = read(DOCUMENT).with_change(replace(CHANGING, phase=phase, target=target))
    assert pyflannel("config", "set", "-", stdin=under_way).code == 0
    told = pyflannel("network", "change", *words)
    assert (told.code, told.err) == (0, "")
    way = "vxlan -> wireguard" if phase is Phase.PREPARE else "wireguard -> vxlan"
    assert way in told.out
    assert ("can be read on the underlay" in told.out) == (phase is Phase.RETIRE)


class Overtaken(FileStore):
    """A store in which somebody else is quicker, once."""

    quicker = ""

    def write_config(self, text: str, expected: Record | None) -> Record:
        if self.quicker:
            quicker, self.quicker = self.quicker, ""
            super().write_config(quicker, expected)
        return super().write_config(text, expected)


CHANGING = NetworkChange("00000000000000a1", Phase.PREPARE, {"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}})


def test_who_goes_back_and_who_drives_on_write_at_the_same_time(tmp_path: Path) -> None:
    store = Overtaken(StoreLocation.parse(f"file://{tmp_path}/store"))
    with store:
        store.write_config(read(DOCUMENT).with_change(CHANGING), None)
        store.quicker = read(DOCUMENT).with_change(CHANGING.at(Phase.SWITCH))
        _abort(store, (), Shown(as_json=True), yes=True)
        record = store.read_config()
    assert record is not None
    assert (read(record.value).settings, read(record.value).outcome) == (json.loads(DOCUMENT), Ending.BACK)


def test_of_two_changes_that_begin_at_once_the_second_is_refused(tmp_path: Path) -> None:
    store = Overtaken(StoreLocation.parse(f"file://{tmp_path}/store"))
    with store:
        written = store.write_config(DOCUMENT, None)
        store.quicker = read(DOCUMENT).with_change(CHANGING)
        plan = Plan(json.loads(DOCUMENT), {"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}, True, ())
        with pytest.raises(ConfigError, match="somebody else has changed the network config meanwhile"):
            _go_through(store, (plan,), (), Shown(as_json=True), written)
        record = store.read_config()
    assert record is not None
    assert read(record.value).change == CHANGING


class Meddled(FileStore):
    """A store in which others write before the command does: what ``others`` make of the document, one each time."""

    others: Sequence[Callable[[Written], str]] = ()

    def write_config(self, text: str, expected: Record | None) -> Record:
        found = self.read_config()
        if self.others and found is not None:
            make, *self.others = self.others
            other = make(read(found.value))
            if other:
                super().write_config(other, found)
        return super().write_config(text, expected)


def nothing(written: Written) -> str:
    return ""


def turned(written: Written) -> str:
    assert written.change is not None
    return written.with_change(written.change.at(Phase.BACK))


def ended_and_another_begun(written: Written) -> str:
    assert written.change is not None
    return read(written.ended(written.change, "")).with_change(CHANGING)


def ended_and_written_over(written: Written) -> str:
    assert written.change is not None
    after = read(written.ended(written.change, ""))
    return read(json.dumps({**after.settings, "SubnetLen": 26})).noting(after)


@pytest.mark.parametrize(
    ("others", "error", "says", "backend"),
    [
        ([nothing, turned], PyflannelError, "given this change up", "udp"),
        ([nothing, nothing, nothing, ended_and_another_begun], ConfigError, "somebody else", "vxlan"),
        ([nothing, nothing, nothing, ended_and_written_over], ConfigError, "somebody else", "vxlan"),
    ],
    ids=["it was given up", "another change was begun", "another document was written"],
)
def test_the_second_of_two_changes_begins_only_where_the_first_has_led(
    tmp_path: Path, others: Sequence[Callable[[Written], str]], error: type[PyflannelError], says: str, backend: str
) -> None:
    """Else nodes would be led to the backend of the second without phases, or out of another change."""
    ranges = {"EnableIPv6": True, "IPv6Network": "fd00::/48"}
    document = {"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}
    plans = planned(document, NetworkConfig.from_json(json.dumps(document)), Wanted("vxlan", (), ranges))
    assert [plan.together for plan in plans] == [True, False]
    store = Meddled(StoreLocation.parse(f"file://{tmp_path}/store"))
    with store:
        written = store.write_config(json.dumps(document), None)
        store.others = others
        with pytest.raises(error, match=says):
            _go_through(store, plans, (), Shown(as_json=True), written)
        assert not store.others
        record = store.read_config()
    assert record is not None
    after = read(record.value)
    assert after.settings["Backend"] == {"Type": backend}
    assert "IPv6Network" not in after.settings
    assert after.change == (CHANGING if others[-1] is ended_and_another_begun else None)


def test_what_is_left_to_do_after_the_change_that_is_under_way_is_refused_as_it_would_be_alone(
    pyflannel: CommandLine,
) -> None:
    """Before anything goes on: here nodes would lose their subnets by it."""
    under_way = read(DOCUMENT).with_change(CHANGING)
    assert pyflannel("config", "set", "-", stdin=under_way).code == 0
    told = pyflannel("network", "change", "--backend", "host-gw", "--network", "10.9.0.0/16")
    assert told.code == ExitCode.CONFIG
    assert "does not contain the present one" in told.err
    assert json.loads(pyflannel("config", "get").out) == json.loads(under_way)


def test_a_change_that_is_being_given_up_is_not_made_by_asking_for_it_again(pyflannel: CommandLine) -> None:
    going_back = read(DOCUMENT).with_change(CHANGING.at(Phase.BACK))
    assert pyflannel("config", "set", "-", stdin=going_back).code == 0
    told = pyflannel("network", "change", "--backend", "host-gw")
    assert told.code == ExitCode.CONFIG
    assert "is being given up" in told.err
    assert pyflannel("network", "change").code == ExitCode.OK, "without options, whatever is under way comes to its end"
    assert read(pyflannel("config", "get").out).outcome is Ending.BACK


@pytest.mark.parametrize("name", ["gone", "192.0.2.2", "2001:db8::2", "10.1.2.0-24", "10.1.2.0/24"])
def test_who_comes_new_to_the_subnet_of_one_that_is_left_behind_is_waited_for(tmp_path: Path, name: str) -> None:
    with FileStore(StoreLocation.parse(f"file://{tmp_path}/store")) as store:
        record = store.write_config(DOCUMENT, None)
        add(store, 1, "here", Marks("run"), 3600)
        add(store, 2, "gone", Marks("run"), 3600)
        network = NetworkConfig.from_json(DOCUMENT)
        behind = _named([name], standings(network, store.snapshot().leases, ""))
        identity = begin(store, record, CHANGING.target, True, behind, "")
        drive = Drive(store, identity, lambda: datetime.now(timezone.utc))
        assert drive.look().waiting == ("10.1.1.0-24",)
        store.delete(next(lease for lease in store.snapshot().leases if lease.key == "10.1.2.0-24"))
        add(store, 2, "new", Marks("run"), 3600)
        assert drive.look().waiting == ("10.1.1.0-24", "10.1.2.0-24")


def test_a_lease_is_left_behind_by_its_key_where_its_node_id_says_too_little() -> None:
    """flanneld's has none; and a copy of a machine may have left a lease that names the original."""
    nodes = [
        NodeStanding("10.1.1.0-24", "original", "192.0.2.1", True, None, "", False),
        NodeStanding("10.1.2.0-24", "original", "192.0.2.2", False, None, "", False),
        NodeStanding("10.1.3.0-24", "", "192.0.2.3", False, None, "", True),
    ]
    assert _named(["192.0.2.2", "192.0.2.3"], nodes) == ("10.1.2.0-24", "10.1.3.0-24")
    assert _named(["original"], nodes) == ("original",)
    with pytest.raises(ConfigError, match="--without : no node"):  # as a variable of a script is that was not set
        _named([""], nodes)


def test_the_same_command_goes_on_although_the_lease_of_whom_it_leaves_behind_has_ended(pyflannel: CommandLine) -> None:
    assert pyflannel("config", "set", "-", stdin=read(DOCUMENT).with_change(CHANGING)).code == 0
    words = ["network", "change", "--backend", "host-gw", "--without", "gone"]
    told = pyflannel(*words)
    assert told.code == ExitCode.OK
    assert "--without gone: no node has this id" in told.err
    refused = pyflannel("network", "change", "--backend", "udp", "--without", "gone")
    assert refused.code == ExitCode.CONFIG
    assert "--without gone: no node has this id" in refused.err


STANDING = [
    NodeStanding("10.1.1.0-24", "well", "192.0.2.1", True, None, "", False),
    NodeStanding("10.1.2.0-24", "late\x1b[31m", "192.0.2.2", False, None, "", False),
    NodeStanding("10.1.3.0-24", "ill", "192.0.2.3", True, None, "no module wireguard", False),
]
PROGRESS = Progress("a1", "prepare", "2026-01-01T12:00:00Z", tuple(STANDING), ("10.1.2.0-24", "10.1.3.0-24"))
GONE = replace(PROGRESS, away={"10.1.2.0-24": "2026-01-01T11:00:00Z"})


def test_lines_tell_who_is_missing_and_since_when_and_the_same_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown(as_json=False) as shown:
        for _ in range(2):
            shown.progress(PROGRESS)
    told = capsys.readouterr().out
    assert told.count("preparing: 1 of 3 nodes (since 2026-01-01T12:00:00Z)") == 1
    assert "has not answered" in told
    assert "no module wireguard" in told
    assert "\x1b" not in told
    assert "well" not in told


def test_lines_tell_since_when_a_node_has_been_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown(as_json=False) as shown:
        shown.progress(GONE)
    assert ": has not answered, and has been gone since 2026-01-01T11:00:00Z" in capsys.readouterr().out


def test_the_pages_name_what_programs_are_told(pyflannel: CommandLine) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/command-line.md").read_text(encoding="utf-8")
    named = {*re.findall(r"`(\w+)(?:\[\])?`", page.partition("## network")[2].partition("## store")[0])}
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    plan = json.loads(pyflannel("network", "change", "--backend", "host-gw", "--dry-run", "--json").out)
    progress = PROGRESS.to_json()
    assert {*plan, *progress, *progress["nodes"][0]} <= named


def test_whoever_interrupts_is_told_how_to_go_on(pyflannel: CommandLine) -> None:
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    with FileStore(StoreLocation.parse(pyflannel.store)) as store:
        add(store, 1, "still", Marks("run"), 86400)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pyflannel.popen(["network", "change", "--backend", "host-gw"]) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            next(line for line in process.stdout if "preparing" in line)
            process.send_signal(number)
            assert "'pyflannel network change' goes on, with --abort it goes back" in process.stderr.read()
            assert process.wait() == 130


def test_programs_are_told_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown(as_json=True) as shown:
        shown.progress(PROGRESS)
    told = json.loads(capsys.readouterr().out)
    assert [node["waited_for_since"] for node in told["nodes"]] == [None, *["2026-01-01T12:00:00Z"] * 2]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody has the other end open
        return b""


def test_a_terminal_has_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with Shown(as_json=False) as shown:
            shown.progress(PROGRESS)
        monkeypatch.undo()
    told = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    assert "preparing: 1 of 3 nodes" in told
    assert all(name in told for name in ("well", "late", "ill", "no module wireguard", "has not answered"))
    assert "late\x1b" not in told
