"""The rules of a network change, through every order of events: who was connected stays connected.

The model is :mod:`tests.change_model`. Four nodes take minutes, and are in ``tests/changes``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.change_model import ABORTED, DONE, explore, node_moves

from pyflannel.network import change as rules
from pyflannel.network.change import Phase, Step


@pytest.mark.parametrize(
    ("size", "joiners", "may_abort", "coarse"),
    [(2, 0, True, False), (2, 1, True, False), (3, 0, True, True)],
)
def test_nodes_are_connected_in_every_order_of_events(size: int, joiners: int, may_abort: bool, coarse: bool) -> None:
    count, ends, found = explore(size, joiners, may_abort, coarse)
    assert not found
    assert ends == ({DONE, ABORTED} if may_abort else {DONE}), "it came to its ends, and nowhere else to a standstill"
    assert count > 400


def sends_when_prepared(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return own is not None


def sends_as_before(phase: Phase, peer: Step | None, own: Step | None) -> bool:
    return phase is Phase.RETIRE or (phase is Phase.SWITCH and peer is not None)


def receives_until_switched(phase: Phase, graced: bool) -> tuple[bool, bool]:
    return phase is not Phase.SWITCH, True


def switched_at_once(phase: Phase, *, in_place: bool, all_new: bool, graced: bool, now: Step | None) -> Step | None:
    if phase is Phase.SWITCH:
        return Step.SWITCHED
    return DUE_STEP(phase, in_place=in_place, all_new=all_new, graced=graced, now=now)


DUE_STEP = rules.due_step


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("sends_new", sends_when_prepared),
        ("sends_new", sends_as_before),
        ("finished", lambda change, steps: ()),
        ("receives", receives_until_switched),
        ("due_step", switched_at_once),
    ],
)
def test_a_wrong_rule_is_found_out(rule: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    node_moves.cache_clear()
    monkeypatch.setattr(rules, rule, wrong)
    found = explore(2, 0)[2] or explore(2, 1)[2] or explore(3, 1, may_abort=False)[2]
    node_moves.cache_clear()
    assert found
