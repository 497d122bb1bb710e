"""The judge of a run: what docs/reliability.md promises, held against what was seen. Pure, over a recorded history.

What it forgives is what nobody could keep. A packet may be lost while something is done to the underlay, the kernel or
the lease of either end, and while that is mended. Everything else, in the store or in daemons, takes
no connection away.
"""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from tests.chaos.plan import DAEMON, PATH, PROMISE, STORE
from tests.chaos.record import ALL, Change, Claim, Hindrance, History, Outage, Sample

from pyflannel.errors import ExitCode, MalformedError
from pyflannel.network.lease import Subnets

__all__ = ["PROMISES", "Violation", "judge", "unhindered"]

PROMISES: Final[Mapping[str, str]] = {
    "shared": "no two living nodes hold one subnet, or overlapping ones",
    "held": "a lease that a node takes for its own is its own in the store",
    "expired": "a lease that its node can renew never expires",
    "cut": "two nodes that nothing hinders are connected within the promised time",
    "forwarding": "what goes on in the store or in daemons takes no connection away",
    "drift": "a node that nothing has befallen for long holds its plan in its kernel, and nothing else of ours",
    "quiet": "a node that nothing has befallen for long tells of no trouble, and knows all others",
    "foreign": "what somebody else has in a kernel stays",
    "hostile": "nothing is programmed for a lease that nobody can have",
    "alive": "no daemon ends by itself",
    "busy": "memory, descriptors, threads and the store don't grow",
}
"""What is checked, by the name under which a violation is reported."""

FEW: Final = 3
"""Packets in a row that may get lost on a machine that does more than this."""

RENEWED: Final = 45.0
"""Seconds within which a node renews its lease that could not before."""

MENDED: Final = 60.0
"""Seconds after which mending takes no packets away any more: the longest pause between two tries."""

LAG: Final = 10.0
"""Seconds by which the record of the store may be late, or a status out of date."""

MORE_MEMORY: Final = 1.3, 16 << 20
"""Growth of a daemon's memory that is no leak: a factor, and bytes besides."""

MORE_DISK: Final = 32 << 20
"""Bytes by which a store's disk may fill: it keeps a log."""

MORE: Final = 6
"""Descriptors, threads that are open at one time and not at another."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    at: float
    node: str
    what: str

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.promise}: {PROMISES[self.promise]}; but {self.node}: {self.what}"


def judge(history: History) -> list[Violation]:
    """What is wrong in a history, in the order of time."""
    found = [
        *(Violation(look.promise, look.at, look.node, look.what) for look in history.looks),
        *_shared(history),
        *_held(history),
        *_expired(history),
        *_lost(history),
        *_ended(history),
        *_grown(history),
        *_stored(history),
    ]
    return sorted(found, key=lambda violation: violation.at)


def unhindered(history: History, nodes: Iterable[str], begin: float, end: float) -> list[tuple[float, float]]:
    """The stretches between two times in which nothing hinders any of these nodes."""
    names = {ALL, *nodes}
    there = sorted(
        (h.begin, h.end) for h in history.hindrances if h.node in names and h.end >= begin and h.begin <= end
    )
    free: list[tuple[float, float]] = []
    at = begin
    for since, until in there:
        if since > at:
            free.append((at, min(since, end)))
        at = max(at, until)
    if at < end:
        free.append((at, end))
    return free


def _befell(history: History, nodes: Iterable[str], kinds: Iterable[str], begin: float, end: float) -> bool:
    """Whether anything of some kinds hindered one of the nodes at any time between two times."""
    names, what = set(nodes), set(kinds)
    return any(h.node in names and h.what in what and h.begin <= end and h.end >= begin for h in history.hindrances)


# Leases


class _Table:
    """The store's keys over time."""

    def __init__(self, changes: Iterable[Change]) -> None:
        self._times: dict[str, list[float]] = {}
        self._values: dict[str, list[str | None]] = {}
        for change in changes:
            self._times.setdefault(change.key, []).append(change.at)
            self._values.setdefault(change.key, []).append(change.value)

    def named(self, key: str, name: str, begin: float, end: float) -> bool:
        """Whether the key's value named somebody at any time between two times."""
        times, values = self._times.get(key, []), self._values.get(key, [])
        first = max(0, bisect_right(times, begin) - 1)
        text = f'"{name}"'
        return any(
            value is not None and text in value
            for at, value in zip(times[first:], values[first:], strict=True)
            if at <= end
        )


def _overlapping(one: str, other: str) -> bool:
    try:
        return Subnets.from_key(one).overlaps(Subnets.from_key(other))
    except MalformedError:
        return False


def _shared(history: History) -> Iterator[Violation]:
    """Two claims of overlapping subnets, both confirmed by a later one while the other stood."""
    spans: dict[tuple[str, str, str], list[float]] = {}
    for claim in history.claims:
        spans.setdefault((claim.node, claim.node_id, claim.key), []).append(claim.at)
    for (one, ours), (other, theirs) in combinations(spans.items(), 2):
        if one[:2] == other[:2] or not _overlapping(one[2], other[2]):
            continue
        begin, end = max(ours[0], theirs[0]), min(ours[-1], theirs[-1])
        robbed = _befell(history, (one[0], other[0]), (PATH,), begin - PROMISE, begin)
        if end > begin and not robbed:
            yield Violation("shared", begin, one[0], f"holds {one[2]}, and {other[0]} {other[2]}, until {end:.0f} s")


def _held(history: History) -> Iterator[Violation]:
    """A claim that the store knows nothing of, and that is made again after that."""
    table = _Table(history.changes)
    wrong: dict[str, Claim] = {}
    for claim in history.claims:
        known = table.named(claim.key, claim.node_id, claim.at - LAG, claim.at + LAG)
        if known or _befell(history, (claim.node,), (PATH,), claim.at - PROMISE, claim.at):
            wrong.pop(claim.node, None)
            continue
        before = wrong.setdefault(claim.node, claim)
        if before is not claim and before.key == claim.key:
            yield Violation("held", claim.at, claim.node, f"takes {claim.key} for its own since {before.at:.0f} s")
            wrong.pop(claim.node)


def _expired(history: History) -> Iterator[Violation]:
    last: dict[str, str] = {}
    for change in history.changes:
        before = last.pop(change.key, "")
        if change.value is not None:
            last[change.key] = change.value
            continue
        owner = next((claim for claim in _claims_before(history, change) if f'"{claim.node_id}"' in before), None)
        kinds = (PATH, DAEMON, STORE)
        if owner is not None and not _befell(history, (owner.node, ALL), kinds, change.at - RENEWED, change.at + LAG):
            yield Violation("expired", change.at, owner.node, f"{change.key} of {owner.node_id} is gone")


def _claims_before(history: History, change: Change) -> Iterator[Claim]:
    return (claim for claim in history.claims if claim.key == change.key and 0 <= change.at - claim.at <= LAG)


# Packets


def _lost(history: History) -> Iterator[Violation]:
    lapses = list(_lapses(history.changes))
    for outage in history.outages:
        if outage.lost <= FEW:
            continue
        ends = (outage.source, outage.target)
        name = f"{outage.source} does not reach {outage.target} (IPv{outage.version})"
        if not _may_break(history, outage, lapses):
            what = f"{name} for {outage.end - outage.begin:.1f} s, {outage.lost} packets"
            yield Violation("forwarding", outage.begin, outage.source, what)
        longest = max((end - begin for begin, end in unhindered(history, ends, outage.begin, outage.end)), default=0.0)
        if longest > PROMISE:
            yield Violation("cut", outage.begin, outage.source, f"{name}, hindered by nothing for {longest:.0f} s")


def _lapses(changes: Iterable[Change]) -> Iterator[tuple[float, str]]:
    """When a key went, and what it was."""
    last: dict[str, str] = {}
    for change in changes:
        before = last.pop(change.key, "")
        if change.value is None:
            yield change.at, before
        else:
            last[change.key] = change.value


def _may_break(history: History, outage: Outage, lapses: Iterable[tuple[float, str]]) -> bool:
    """Whether something was done to the packets' way, or a lease of one end lapsed while it could not renew it."""
    ends = (outage.source, outage.target)
    since = outage.begin - PROMISE
    done = [h for h in _done_to(history, ends) if h.begin <= outage.begin + 1.0]
    if any(outage.begin <= h.end + MENDED for h in done) or any(
        outage.begin <= _mended(history, h, ends) for h in done
    ):
        return True
    gone = any(since <= at <= outage.begin and any(_is_of(value, name) for name in ends) for at, value in lapses)
    return gone and _befell(history, (*ends, ALL), (DAEMON, STORE), since, outage.begin)


def _done_to(history: History, ends: Iterable[str]) -> list[Hindrance]:
    names = set(ends)
    return [hindrance for hindrance in history.hindrances if hindrance.what == PATH and hindrance.node in names]


def _mended(history: History, hindrance: Hindrance, ends: Iterable[str]) -> float:
    """Until when packets may get lost by what was done: as long as who has to mend it is hindered, and a while."""
    free = unhindered(history, ends, hindrance.end, max(history.ended, hindrance.end))
    return (free[0][0] if free else history.ended) + MENDED


def _is_of(value: str, node: str) -> bool:
    """Whether a lease is a node's, or that of a machine that was there before."""
    return f'"{node}"' in value or f'"{node}-' in value


# Daemons


def _ended(history: History) -> Iterator[Violation]:
    for death in history.deaths:
        there = [
            h.kind for h in history.hindrances if h.begin <= death.at <= h.end + LAG and h.node in (death.node, ALL)
        ]
        aborted = "descriptors" in there and death.status == -signal.SIGABRT  # gRPC does that
        killed = "cgroup" in there and death.status == -signal.SIGKILL  # the kernel does that
        starved = "memory" in there or aborted or killed
        unread = "document" in there and death.status == ExitCode.CONFIG  # who starts then has nothing to go by
        if not starved and not unread:
            yield Violation("alive", death.at, death.node, f"the daemon ended with status {death.status}")


def _grown(history: History) -> Iterator[Violation]:
    """The last sample against the first one that was taken when all was at rest."""
    at_rest = sorted(at for at, _ in history.looked)
    if not at_rest:
        return
    lives: dict[tuple[str, int], list[Sample]] = {}
    for sample in history.samples:
        lives.setdefault((sample.node, sample.life), []).append(sample)
    first = [samples[0] for samples in lives.values()]
    last = [samples[-1] for samples in lives.values() if samples[-1].at >= at_rest[-1] - LAG]
    if not last:
        return
    limits = {
        "memory": max(sample.memory for sample in first) * MORE_MEMORY[0] + MORE_MEMORY[1],
        "descriptors": max(sample.descriptors for sample in first) + MORE,
        "threads": max(sample.threads for sample in first) + MORE,
    }
    for sample in last:
        for name, limit in limits.items():
            value = getattr(sample, name)
            if value > limit:
                yield Violation("busy", sample.at, sample.node, f"{value} of {name}, where {limit:.0f} are enough")


def _stored(history: History) -> Iterator[Violation]:
    """Of a machine that is gone, or a lease that was taken away, a key may be left until its lease expires."""
    left = sum(hindrance.kind in ("replace", "rob", "scribble") for hindrance in history.hindrances)
    for at, keys, used in history.stored:
        if keys > 1 + history.plan.nodes + left:
            yield Violation("busy", at, ALL, f"the store has {keys} keys")
        if used > history.stored[0][2] + MORE_DISK:
            yield Violation("busy", at, ALL, f"the store's disk has {used} bytes, {history.stored[0][2]} at first")
