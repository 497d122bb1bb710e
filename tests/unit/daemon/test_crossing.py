"""How far a node is in a change, from what its overlay has seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.unit.membership.modelled import made, underlay

from pyflannel.backend import LeaseAttributes, Node, Subnets
from pyflannel.daemon.crossing import GRACE, Crossing
from pyflannel.daemon.trial import Trials
from pyflannel.network.change import LEASE_KEY, NetworkChange, NodeProgress, Phase, Step
from pyflannel.network.document import NetworkConfig
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import Side, Transition

ID = "00000000000000a1"


def side(**backend: object) -> Side:
    network = NetworkConfig.from_json(json.dumps({"Network": "10.5.0.0/16", "Backend": backend}))
    return Side(made(network), network)


FORMER, FOLLOWING = side(Type="vxlan"), side(Type="vxlan", VNI=2)


UDP = side(Type="udp")


def lease(number: int, step: Step | None, told: bool = True, mac: str | None = None) -> tuple[str, str]:
    data = {"VNI": 2, "VtepMAC": mac or f"02:00:00:00:02:{number:02x}"}
    progress = NodeProgress(ID, step, "vxlan" if told else None, data if told else None)
    attributes = LeaseAttributes(
        IPv4Address(f"192.0.2.{number}"),
        backend_type="vxlan",
        backend_data={"VNI": 1, "VtepMAC": f"02:00:00:00:01:{number:02x}"},
        node_id=f"n{number}",
        extra={LEASE_KEY: progress.to_json()},
    )
    return f"10.5.{number}.0-24", attributes.to_json()


def crossing(
    phase: Phase,
    *peers: tuple[str, str],
    own: Step | None = None,
    graced: bool = False,
    without: tuple[str, ...] = (),
    following: Side = FOLLOWING,
) -> Crossing:
    change = NetworkChange(ID, phase, {}, without=without)
    transition = Transition(FORMER, following, change, own, graced)
    node = Node("n1", FORMER.network, underlay(1), Subnets(IPv4Network("10.5.1.0/24")), Path("/nonexistent"))
    overlay = Overlay(transition, node)
    for key, value in peers:
        overlay.put(key, value)
    return looked(Crossing(overlay, transition))


def looked(made: Crossing) -> Crossing:
    while not made.complete:
        made.look(0.0)
    return made


def step(made: Crossing, now: Step | None = None, in_place: bool = True, trouble: str = "") -> Step | None:
    return made.progress(now, lambda: in_place, trouble).step


def test_prepared_is_who_knows_how_everybody_is_reached() -> None:
    assert step(crossing(Phase.PREPARE)) is Step.PREPARED
    assert step(crossing(Phase.PREPARE, lease(2, None), lease(3, None))) is Step.PREPARED
    assert step(crossing(Phase.PREPARE, lease(2, None), lease(3, None, told=False))) is None
    assert step(crossing(Phase.PREPARE, lease(2, None)), in_place=False) is None
    assert step(crossing(Phase.PREPARE, lease(2, None)), trouble="no") is None


@pytest.mark.parametrize("name", ["n3", "10.5.3.0-24"])
def test_who_is_left_behind_is_not_waited_for(name: str) -> None:
    behind = lease(3, None, told=False)
    assert step(crossing(Phase.PREPARE, lease(2, None), behind, without=(name,))) is Step.PREPARED
    switched = crossing(Phase.SWITCH, lease(2, Step.PREPARED), behind, without=(name,))
    assert step(switched, Step.PREPARED) is Step.SWITCHED


def test_a_peer_that_can_not_be_reached_by_the_new_settings_is_named() -> None:
    made = crossing(Phase.PREPARE, lease(2, None, mac="ff:ff:ff:ff:ff:ff"))
    said = made.progress(None, lambda: True, "")
    assert said.step is None
    assert "10.5.2.0/24 can't be reached by vxlan" in said.trouble
    assert "not a unicast address" in said.trouble


class Pings:
    """Peers answer by the former way; by the new one those in ``reached``."""

    def __init__(self) -> None:
        self.reached: set[str] = set()
        self._answers: list[int] = []

    def ask(self, address: object, number: int, link: str = "") -> None:
        if not link or str(address) in self.reached:
            self._answers.append(number)

    def answers(self) -> Iterator[int]:
        answers, self._answers = self._answers, []
        return iter(answers)

    def close(self) -> None:
        self.reached.clear()


def test_prepared_is_who_reaches_everybody_by_the_new_settings() -> None:
    """One that is not reached is waited for, named after a while, and left behind if the operator says so."""
    pings = Pings()
    pings.reached.add("10.5.2.0")
    peers = [bare(2), bare(3)]
    made = tried(pings, *peers)

    def at(now: float) -> NodeProgress:
        made.look(now)
        made.look(now)
        return made.progress(None, lambda: True, "", now)

    assert at(0.0) == NodeProgress(ID)
    assert made.status(NodeProgress(ID)).waiting == ("10.5.3.0-24",)
    assert "10.5.3.0 answers pings by vxlan, and not by udp" in at(60.0).trouble
    pings.reached.add("10.5.3.0")
    assert at(120.0) == NodeProgress(ID, Step.PREPARED)
    made.close()
    without = tried(Pings(), *peers, without=("10.5.3.0-24", "10.5.2.0-24"))
    without.look(0.0)
    assert without.progress(None, lambda: True, "", 0.0).step is Step.PREPARED


def bare(number: int) -> tuple[str, str]:
    """A lease that says how its node is reached by udp."""
    key, value = lease(number, None)
    document = json.loads(value)
    document[LEASE_KEY] = NodeProgress(ID, None, "udp").to_json()
    return key, json.dumps(document)


def tried(pings: Pings, *peers: tuple[str, str], without: tuple[str, ...] = ()) -> Crossing:
    made = crossing(Phase.PREPARE, *peers, without=without, following=UDP)
    return Crossing(made._overlay, made.transition, Trials(lambda: pings))


def test_switched_is_who_sends_to_all_by_the_new_settings() -> None:
    ready, late = lease(2, Step.PREPARED), lease(3, None)
    assert step(crossing(Phase.SWITCH, ready, lease(3, Step.SWITCHED)), Step.PREPARED) is Step.SWITCHED
    assert step(crossing(Phase.SWITCH, ready, late), Step.PREPARED) is Step.PREPARED
    assert crossing(Phase.SWITCH, ready, late).status(NodeProgress(ID)).waiting == ("10.5.3.0-24",)


def test_the_former_settings_go_a_while_after_everybody_has_switched() -> None:
    made = crossing(Phase.RETIRE, lease(2, Step.SWITCHED), own=Step.SWITCHED)
    assert not made.graced(100.0)
    assert made.due(0.0) == 100.0 + GRACE
    assert made.graced(100.0 + GRACE)
    assert step(made, Step.SWITCHED) is Step.SWITCHED, "not before they are gone"
    assert step(crossing(Phase.RETIRE, lease(2, Step.RETIRED), graced=True), Step.SWITCHED) is Step.RETIRED
    waiting = crossing(Phase.RETIRE, lease(2, Step.PREPARED), own=Step.SWITCHED)
    assert not waiting.graced(100.0)
    assert not waiting.graced(1000.0)
    assert waiting.due(0.0) == math.inf


def test_two_that_come_back_when_the_former_settings_go_don_t_wait_for_each_other() -> None:
    made = crossing(Phase.RETIRE, lease(2, Step.PREPARED), own=Step.PREPARED)
    assert not made.graced(100.0)
    assert step(made, Step.PREPARED) is Step.SWITCHED


def test_who_has_switched_goes_on_where_an_earlier_phase_comes_back() -> None:
    made = crossing(Phase.PREPARE, lease(2, Step.RETIRED), own=Step.SWITCHED)
    assert step(made, Step.SWITCHED) is Step.SWITCHED
    assert step(crossing(Phase.PREPARE, lease(2, None), own=Step.SWITCHED), Step.SWITCHED) is Step.PREPARED


def test_a_peer_that_changes_comes_and_goes_is_seen() -> None:
    made = crossing(Phase.PREPARE, lease(2, None, told=False))
    assert step(made) is None
    overlay = made._overlay
    overlay.put(*lease(2, None))
    made.see(overlay.drain_touched())
    assert step(made, Step.RETIRED) is Step.RETIRED, "nothing new before all that has changed was looked at"
    assert step(looked(made)) is Step.PREPARED
    overlay.put(*lease(3, None, told=False))
    made.see(overlay.drain_touched())
    assert step(made, Step.RETIRED) is Step.RETIRED, "nothing new before all that has changed was looked at"
    assert step(looked(made)) is None
    overlay.remove("10.5.3.0-24")
    made.see(overlay.drain_touched())
    assert step(made, Step.RETIRED) is Step.RETIRED, "nothing new before all that has changed was looked at"
    assert step(looked(made)) is Step.PREPARED


def test_back_is_who_sends_by_the_former_settings_again() -> None:
    """And nothing that it sent by the new ones can be on its way any more, which the peers receive until then."""
    made = crossing(Phase.BACK, lease(2, Step.SWITCHED))

    def said(at: float, in_place: bool = True) -> Step | None:
        return made.progress(Step.SWITCHED, lambda: in_place, "", at).step

    assert said(50.0, in_place=False) is Step.SWITCHED
    assert made.due(50.0) == math.inf
    assert said(100.0) is Step.SWITCHED
    assert made.due(100.0) == 100.0 + GRACE
    assert said(100.0 + GRACE / 2) is Step.SWITCHED
    assert said(100.0 + GRACE, in_place=False) is Step.SWITCHED
    assert said(100.0 + GRACE) is Step.REVERTED
    assert made.due(100.0 + GRACE) == math.inf


def test_what_is_said_is_kept_where_nothing_new_is_due() -> None:
    said = crossing(Phase.PREPARE, lease(2, None)).progress(Step.PREPARED, lambda: False, "")
    assert said == replace(NodeProgress(ID), step=Step.PREPARED)


def test_thousands_of_peers_are_looked_at_some_at_a_time() -> None:
    peers = [lease(number, None, told=number != 250) for number in range(2, 252)]
    made = crossing(Phase.PREPARE)
    for key, value in peers:
        made._overlay.put(key, value)
    made.see(made._overlay.drain_touched())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyflannel.daemon.crossing.AT_ONCE", 100)
        for _ in range(2):
            made.look(0.0)
            assert not made.complete
            assert step(made) is None
        made.look(0.0)
    assert made.complete
    assert made.status(NodeProgress(ID)).waiting == ("10.5.250.0-24",)
