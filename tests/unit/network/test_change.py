"""What a change writes into the document and into leases, and what is read from there."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from typing import Any

import pytest

from pyflannel.errors import ConfigError
from pyflannel.network.agreement import options_apart, ranges_apart
from pyflannel.network.change import (
    LEASE_KEY,
    MOST_EARLIER,
    NetworkChange,
    NodeProgress,
    Phase,
    Step,
    all_switched,
    due_step,
    in_force,
    read,
    sends_new,
    sides,
)
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease, LeaseAttributes, Subnets
from pyflannel.network.parsing import MAX_DOCUMENT
from pyflannel_backends.vxlan import VxlanOptions

ID = "00000000000000a1"
SETTINGS = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}, "Comment": "kept"}
TARGET = {"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}
CHANGE = NetworkChange(ID, Phase.SWITCH, TARGET, "2026-01-01T00:00:00Z", ("10.5.9.0-24",), "2026-01-01T00:00:05Z")


def test_a_change_stands_beside_the_settings_and_is_nothing_that_is_unknown() -> None:
    text = read(json.dumps(SETTINGS)).with_change(CHANGE)
    written = read(text)
    assert (written.settings, written.change, written.last) == (SETTINGS, CHANGE, "")
    assert NetworkConfig.from_json(text).unknown_keys == ("Comment",)
    assert NetworkConfig.from_json(text).backend_type == "vxlan", "flanneld goes on by the former settings"


@pytest.mark.parametrize(("phase", "settings", "moved"), [(Phase.RETIRE, TARGET, True), (Phase.BACK, SETTINGS, False)])
def test_the_end_leaves_one_document_and_a_note(phase: Phase, settings: dict[str, Any], moved: bool) -> None:
    after = read(read(json.dumps(SETTINGS)).ended(CHANGE.at(phase), "2026-01-01T00:01:00Z"))
    assert (after.settings, after.change, after.last, after.moved) == (settings, None, ID, moved)
    again = read(after.with_change(CHANGE))
    assert (again.last, again.moved) == (ID, moved), "the next change leaves the note of the last one"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (7, "must be an object"),
        ({**CHANGE.to_json(), "Id": "x"}, "16 hexadecimal digits"),
        ({**CHANGE.to_json(), "Phase": "on"}, "must be one of prepare"),
        ({**CHANGE.to_json(), "To": None}, "the network document that is to hold"),
        ({**CHANGE.to_json(), "Without": "n1"}, "list of node ids"),
    ],
)
def test_a_change_that_can_not_be_read_is_named(change: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(json.dumps({**SETTINGS, "Change": change}))


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_what_is_no_document_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="network config: "):
        read(text)


@pytest.mark.parametrize("note", [7, {}, {"Id": "x"}, {"Id": 7}])
def test_a_note_that_can_not_be_read_says_nothing(note: object) -> None:
    written = read(json.dumps({**SETTINGS, "LastChange": note}))
    assert (written.last, written.moved) == ("", False)


def lease(progress: object) -> Lease:
    extra = {} if progress is None else {LEASE_KEY: progress}
    attributes = LeaseAttributes(IPv4Address("192.0.2.2"), None, "vxlan", {"VNI": 1}, None, "you", extra=extra)
    return Lease(Subnets(IPv4Network("10.5.2.0/24")), attributes)


TOLD = NodeProgress(ID, Step.PREPARED, "wireguard", {"PublicKey": "x"}, {"PublicKey": "y"})


def test_a_lease_says_how_its_node_is_reached_by_both() -> None:
    said = sides(lease(TOLD.to_json()), ID)
    assert said.old == lease(TOLD.to_json())
    assert said.new is not None
    new = said.new.attributes
    assert (new.backend_type, new.backend_data, new.backend_v6_data) == ("wireguard", TOLD.data, TOLD.v6_data)
    assert said.step is Step.PREPARED
    assert NodeProgress.from_json(TOLD.to_json()) == TOLD


@pytest.mark.parametrize(
    "progress", [None, 7, {}, {"Id": 7}, {"Id": "00000000000000b2"}, NodeProgress(ID, trouble="no").to_json()]
)
def test_a_lease_that_does_not_say_so_has_the_former_side_alone(progress: object) -> None:
    said = sides(lease(progress), ID)
    assert (said.old, said.new, said.step) == (lease(progress), None, None)


def test_after_the_end_a_lease_that_lags_is_read_as_it_will_be() -> None:
    late, done = lease(TOLD.to_json()), lease(NodeProgress(ID, Step.DONE).to_json())
    assert in_force(late, ID).attributes.backend_type == "wireguard"
    assert in_force(late, "") == late
    assert in_force(done, ID) == done
    assert sides(done, ID).old is None


def network(text: str) -> NetworkConfig:
    return NetworkConfig.from_json(text)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ('{"Network": "10.5.0.0/16", "SubnetLen": 26}', ""),
        ('{"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0", "SubnetMax": "10.5.120.0"}', ""),
        ('{"Network": "10.4.0.0/15"}', ""),
        ('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}', ""),
        ('{"Network": "10.5.0.0/17"}', "does not contain"),
        ('{"Network": "10.6.0.0/16"}', "does not contain"),
        ('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}', "IPv4 off"),
        (
            '{"Network": "10.5.0.0/16", "SubnetLen": 26, "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}',
            "at the same time",
        ),
    ],
)
def test_which_ranges_leave_nodes_their_subnets(new: str, says: str) -> None:
    found = ranges_apart(network('{"Network": "10.5.0.0/16"}'), network(new))
    assert says in found
    assert bool(says) == bool(found)


def test_options_that_concern_a_node_alone_need_no_agreement() -> None:
    assert options_apart(VxlanOptions(), VxlanOptions(mtu=1400, learning=True)) == ()
    assert options_apart(VxlanOptions(), VxlanOptions(vni=2, port=1, mtu=1400)) == ("VNI", "Port")


@pytest.mark.parametrize(
    "text", ['{"Network": NaN}', "[]", "{", " " * MAX_DOCUMENT + "{}"], ids=["NaN", "list", "torn", "long"]
)
def test_a_document_that_can_t_be_taken_apart_is_refused_as_one_that_can_t_be_followed(text: str) -> None:
    with pytest.raises(ConfigError) as apart:
        read(text, "the store")
    with pytest.raises(ConfigError) as followed:
        NetworkConfig.from_json(text, "the store")
    assert str(apart.value) == str(followed.value)


@pytest.mark.parametrize(("said", "read"), [("x" * 500, f"{'x' * 397}..."), (None, ""), (7, ""), (["x"], "")])
def test_what_keeps_a_node_is_a_text_that_ends(said: object, read: str) -> None:
    progress = NodeProgress.from_json({"Id": ID, "Trouble": said})
    assert progress is not None
    assert progress.trouble == read


def test_when_a_change_was_begun_is_shown_as_it_is() -> None:
    """Whoever wrote it."""
    change = NetworkChange.from_json({"Id": ID, "Phase": "back", "To": {}, "Began": "\x1b[31m", "Since": {}}, "it")
    assert (change.began, change.since) == ("\\x1b[31m", "")


def test_a_node_says_that_it_has_switched_only_where_it_sends_by_the_new_settings() -> None:
    """Also when PREPARE comes back, as with a store that was restored: the next phases must not pass in a moment."""
    for own, peer in product(Step, (None, *Step)):
        new = sends_new(Phase.PREPARE, peer, own)
        says = due_step(Phase.PREPARE, in_place=True, all_new=new, graced=False, now=own)
        assert says in ((Step.PREPARED, Step.SWITCHED) if new else (Step.PREPARED,))
    for own in (Step.SWITCHED, Step.RETIRED):
        assert sends_new(Phase.PREPARE, Step.RETIRED, own), "that one may not receive by the former settings any more"
        assert not sends_new(Phase.PREPARE, None, own)


@pytest.mark.parametrize("now", [None, *Step])
def test_who_retires_keeps_nobody_waiting_whatever_it_has_said_before(now: Step | None) -> None:
    """As one does whose lease expired in the middle and came back: two such would wait for each other for ever."""
    says = due_step(Phase.RETIRE, in_place=True, all_new=True, graced=False, now=now)
    assert all_switched([says])


def test_the_document_names_the_changes_before_the_last_one_and_so_tells_which_of_two_is_older() -> None:
    documents = [read(json.dumps(SETTINGS))]
    for number in range(MOST_EARLIER + 5):
        change = NetworkChange(f"{number:016x}", Phase.RETIRE, SETTINGS)
        documents += [read(documents[-1].with_change(change)), read(documents[-1].ended(change, ""))]
    newest = documents[-1]
    assert len(newest.earlier) == MOST_EARLIER
    assert [document.precedes(newest) for document in documents[-10:]] == [True] * 9 + [False]
    assert not any(newest.precedes(document) for document in documents)
    assert not documents[0].precedes(newest), "who has never seen a change can't tell"
    assert read(documents[0].noting(newest)).earlier == newest.earlier
    forced = read(newest.forced("f" * 16, ""))
    assert newest.precedes(forced)


@pytest.mark.parametrize("before", [7, "x", [7, None, "x", {}], {"0": 1}])
def test_what_is_no_list_of_changes_names_none(before: object) -> None:
    written = read(json.dumps({**SETTINGS, "LastChange": {"Id": ID, "Outcome": "done", "Before": before}}))
    assert (written.last, written.earlier) == (ID, ())
