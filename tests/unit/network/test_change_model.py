"""The rules of a network change, through every order of events: who was connected stays connected.

The model is :mod:`tests.change_model`. Four nodes are in ``tests/changes``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("numpy")

from tests.change_model import ABORTED, DONE, explore

from pyflannel.network import change as rules
from pyflannel.network.change import Phase, Step


@pytest.mark.parametrize(
    ("size", "joiners", "may_abort", "coarse", "worlds"),
    [(2, 0, True, False, 270), (2, 1, True, False, 3_200), (3, 0, True, False, 7_500)],
)
def test_nodes_are_connected_in_every_order_of_events(
    size: int, joiners: int, may_abort: bool, coarse: bool, worlds: int
) -> None:
    found = explore(size, joiners, may_abort, coarse)
    assert not found.fault
    assert found.ends == ({DONE, ABORTED} if may_abort else {DONE}), "to its ends, and nowhere else to a standstill"
    assert found.worlds >= worlds, "none of them was left out"


def sends_when_prepared(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return own is not None


def sends_before_the_peer_receives(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return phase in (Phase.SWITCH, Phase.RETIRE)


def sends_late_ones_by_the_former(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return phase is Phase.RETIRE or (phase is Phase.SWITCH and peer is not None)


def sends_on_when_going_back(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return SENDS_NEW(Phase.SWITCH if phase is Phase.BACK else phase, peer, own)


def sends_by_the_former_to_the_end(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return phase is Phase.RETIRE and own is Step.RETIRED


def receives_until_switched(phase: Phase, graced: bool) -> tuple[bool, bool]:
    return phase is not Phase.SWITCH, True


def receives_the_former_only_when_going_back(phase: Phase, graced: bool) -> tuple[bool, bool]:
    return RECEIVES(phase, graced)[0], phase is not Phase.BACK


def retires_early(phase: Phase, graced: bool) -> tuple[bool, bool]:
    return phase is not Phase.RETIRE, True


def switched_at_once(phase: Phase, *, in_place: bool, all_new: bool, graced: bool, now: Step | None) -> Step | None:
    if phase is Phase.SWITCH:
        return Step.SWITCHED
    return DUE_STEP(phase, in_place=in_place, all_new=all_new, graced=graced, now=now)


def back_at_once(phase: Phase, *, in_place: bool, all_new: bool, graced: bool, now: Step | None) -> Step | None:
    return DUE_STEP(phase, in_place=in_place, all_new=all_new, graced=graced or phase is Phase.BACK, now=now)


def never_retired(phase: Phase, *, in_place: bool, all_new: bool, graced: bool, now: Step | None) -> Step | None:
    return DUE_STEP(phase, in_place=in_place, all_new=all_new, graced=False, now=now)


def nobody_is_waited_for(phase: Phase) -> Callable[..., tuple[str, ...]]:
    return lambda change, steps: () if change.phase is phase else FINISHED(change, steps)


DUE_STEP, SENDS_NEW, RECEIVES, FINISHED = rules.due_step, rules.sends_new, rules.receives, rules.finished

WRONG: dict[str, dict[str, Callable[..., object]]] = {
    "it sends by the new settings when it is prepared itself": {"sends_new": sends_when_prepared},
    "it sends to who comes late by the former ones": {"sends_new": sends_late_ones_by_the_former},
    "it goes on by the new settings when the others go back": {"sends_new": sends_on_when_going_back},
    "it sends by the former settings to the end": {"sends_new": sends_by_the_former_to_the_end},
    "it receives by the former settings until the switch": {"receives": receives_until_switched},
    "it receives by the former settings alone when it goes back": {
        "receives": receives_the_former_only_when_going_back
    },
    "it retires without a grace": {"receives": retires_early},
    "it says that it has switched at once": {"due_step": switched_at_once},
    "it says that it is back without a grace": {"due_step": back_at_once},
    "it never says that it has retired": {"due_step": never_retired},
    "it retires while another one may still send": {
        "finished": nobody_is_waited_for(Phase.SWITCH),
        "all_switched": lambda steps: True,
    },
    "nobody has to switch": {"finished": nobody_is_waited_for(Phase.SWITCH)},
    "nobody has to retire": {"finished": nobody_is_waited_for(Phase.RETIRE)},
    "nobody has to come back": {"finished": nobody_is_waited_for(Phase.BACK)},
    "it sends by the new settings before the peer says that it receives, and nobody has waited for that": {
        "finished": nobody_is_waited_for(Phase.PREPARE),
        "sends_new": sends_before_the_peer_receives,
    },
}
"""What is wrong, and the rules that make it so. Where there are two, one alone does no harm: each makes up for the
other."""


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_found_out(wrong: dict[str, Callable[..., object]], monkeypatch: pytest.MonkeyPatch) -> None:
    for rule, instead in wrong.items():
        monkeypatch.setattr(rules, rule, instead)
    assert any(_is_wrong(size, joiners) for size, joiners in ((2, 0), (2, 1), (3, 0)))


def _is_wrong(size: int, joiners: int) -> bool:
    """Whether something is lost, or the change does not come to both of its ends."""
    found = explore(size, joiners, coarse=size > 2)
    return bool(found.fault) or found.ends != {DONE, ABORTED}
