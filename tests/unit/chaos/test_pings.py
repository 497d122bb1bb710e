"""The board of a ping's rounds tells every gap once, and which go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.chaos.pings import OPEN, Board, Gap


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_what_is_missing_between_two_arrivals_is_a_gap(arrives: list[bool]) -> None:
    board = Board()
    board.begin(0, 1, 4, 0)
    gaps = [gap for number, there in enumerate(arrives) if there and (gap := board.arrived(0, 1, 4, number))]
    missing = {number for gap in gaps for number in range(gap.first, gap.until)}
    last = max((number for number, there in enumerate(arrives) if there), default=0)
    assert missing == {number for number, there in enumerate(arrives[:last]) if not there}
    assert len(missing) == sum(gap.until - gap.first for gap in gaps)


def test_a_gap_goes_on_until_something_comes() -> None:
    board = Board()
    board.begin(0, 1, 6, 10)
    assert not list(board.going_on(10 + OPEN))
    assert list(board.going_on(11 + OPEN)) == [Gap(0, 1, 6, 10, 11 + OPEN)]
    assert board.arrived(0, 1, 6, 30) == Gap(0, 1, 6, 10, 30)
    assert not list(board.going_on(31))


def test_what_comes_out_of_order_or_unasked_is_no_gap() -> None:
    board = Board()
    assert board.arrived(0, 1, 4, 7) is None
    board.begin(0, 1, 4, 0)
    board.arrived(0, 1, 4, 3)
    assert board.arrived(0, 1, 4, 1) is None
    assert board.arrived(0, 1, 4, 4) is None
