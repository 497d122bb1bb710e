"""What one file store object remembers of its directory: which changes came since a revision, and when leases end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel_stores._file_directory import Signature, StoredFile
from pyflannel_stores._file_watch import History

NOW = 1000.0
KEYS = st.sampled_from([f"10.5.{number}.0-24" for number in range(6)])


def stored(key: str, number: int, expires: float | None = None, settled: bool = True) -> StoredFile:
    return StoredFile(key, "{}", f"v{number}", expires, signature(number), settled)


def signature(number: int) -> Signature:
    return (number, number, number, 2)


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(0, 3)), max_size=60), st.data())
def test_changes_since_any_revision_lead_to_the_present(
    steps: list[tuple[str, int | None]], data: st.DataObject
) -> None:
    history = History()
    states: list[dict[str, int]] = [{}]
    revisions = [history.revision()]
    for key, number in steps:
        history.apply(key, None if number is None else stored(key, number), NOW)
        state = {**states[-1], key: number if number is not None else -1}
        states.append({key: number for key, number in state.items() if number >= 0})
        revisions.append(history.revision())
    start = data.draw(st.integers(0, len(steps)))
    number = history.number(revisions[start])
    assert number is not None
    changed = history.since(number)
    assert len(changed) == len(set(changed))
    present = states[-1]
    differing = {key for key in {*states[start], *present} if states[start].get(key) != present.get(key)}
    assert differing <= set(changed)
    assert history.alive() == set(present)


@pytest.mark.parametrize("revision", ["", "0", "x.1", "nonsense.0", "{}.99", "{}.-1", "{}."])
def test_a_revision_that_was_never_given_is_unknown(revision: str) -> None:
    history = History()
    assert history.number(revision.format(history.revision().partition(".")[0])) is None
    assert History().number(history.revision()) is None


def test_what_must_be_read_again() -> None:
    history = History()
    for number, key in enumerate(("same", "written", "fresh", "gone")):
        history.apply(key, stored(key, number, settled=key != "fresh"), NOW)
    on_disk = {"same": signature(0), "written": signature(9), "fresh": signature(2), "new": signature(5)}
    # "fresh" was read so soon after its change that a second one may not show in its times
    assert history.differing(on_disk) == ["gone", "fresh", "new", "written"]


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(1, 20)), max_size=60), st.integers(0, 21))
def test_each_expiry_is_told_until_applied_and_renewals_count(steps: list[tuple[str, int | None]], when: int) -> None:
    history = History()
    ends: dict[str, float] = {}
    for key, ttl in steps:
        history.apply(key, None if ttl is None else stored(key, 1, NOW + ttl), NOW)
        ends.pop(key, None)
        if ttl is not None:
            ends[key] = NOW + ttl
    assert history.next_expiry() == min(ends.values(), default=None)
    due = history.due(NOW + when)
    assert sorted(due) == sorted(key for key, end in ends.items() if end <= NOW + when)
    assert history.due(NOW + when) == due
    for key in due:
        history.apply(key, stored(key, 1, ends[key]), NOW + when)
    assert history.due(NOW + when) == []
    assert history.next_expiry() == min((end for end in ends.values() if end > NOW + when), default=None)
