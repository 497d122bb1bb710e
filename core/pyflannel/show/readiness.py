"""How the daemon stands, in one word and one sentence, and whether containers can use the overlay.

Pure functions of a view and of the time: a lease that has expired and a plugin that does not come back show even while
the loop, which wrote the view, stands still.
"""

from __future__ import annotations

from typing import Final

from pyflannel.show.status import State
from pyflannel.show.view import View
from pyflannel.small.guarded import PATIENCE
from pyflannel.small.text import counted

__all__ = ["diverted", "hanging", "is_rule", "leads_nowhere", "readiness", "removal", "summary", "trouble"]

_NOWHERE: Final = frozenset({"blackhole", "unreachable", "prohibit"})
"""The actions of policy rules that end a packet, as ip(8) has them."""


def summary(view: View, now: float) -> tuple[State, str]:
    """The state, and one sentence about it."""
    if view.stopping:
        return State.STOPPING, "stopping; forwarding goes on"
    if view.lease.conflict:
        return State.CONFLICT, view.lease.trouble
    return _on_the_way(view, now) or _running(view, now)


def _on_the_way(view: View, now: float) -> tuple[State, str] | None:
    """What keeps the node from having an overlay at all."""
    wrong = trouble(view, now)
    if view.backend is None or view.lease.lease is None:  # a backend may be told of a moment before its lease
        return (State.WAITING, wrong) if wrong else (State.STARTING, "looking for underlay, store and lease")
    if not view.lease.valid(now):
        return State.WAITING, f"the lease has expired; {wrong or 'renewing it'}"
    if not view.in_place and not view.refusals:
        return (State.WAITING, wrong) if wrong else (State.STARTING, "setting up the kernel")
    if not view.in_place:
        return State.WAITING, wrong or view.refused
    if view.plane_trouble:
        return State.WAITING, view.plane_trouble
    leaks = view.encrypts and not all(map(leads_nowhere, view.diversions))
    return (State.WAITING, diverted(view)) if leaks else None


def _running(view: View, now: float) -> tuple[State, str]:
    wrong = trouble(view, now) or (view.refused if view.refusals else "")
    if wrong:
        return State.DEGRADED if view.subnet_file else State.WAITING, wrong
    if not view.subnet_file:
        return State.STARTING, "writing subnet.env"
    if view.encrypts and not view.unguarded and not view.guarded:
        return State.STARTING, "writing the rules that let nothing past the encryption"
    backend = view.backend.name if view.backend is not None else ""
    text = f"{view.subnets} on {backend}, {counted(view.peers - view.skipped, 'peer')}"
    return State.READY, text + (f", {counted(view.skipped, 'lease')} skipped" if view.skipped else "") + _changing(view)


def _changing(view: View) -> str:
    change = view.change
    if change is None:
        return ""
    trouble = f": {change.trouble}" if change.trouble else ""
    return f", changing from {change.former} to {change.following} (phase {change.phase}){trouble}"


def readiness(view: View, now: float) -> tuple[bool, str]:
    """Whether containers on this node can use the overlay, and a line that says how things stand.

    That needs a lease that is valid and nobody contests, a kernel that can be read, and all that the node needs for
    itself in place. One peer in trouble, or a store that is away while the lease is valid, does not end it.
    """
    state, message = summary(view, now)
    return state in (State.READY, State.DEGRADED) and view.kernel_readable, f"{state.value}: {message}"


def trouble(view: View, now: float) -> str:
    """What goes wrong at present, other than single kernel objects; empty if nothing does."""
    found = (
        hanging(view, now),
        *view.troubles,
        view.lease.trouble,
        diverted(view),
        view.lease.twin,
        view.firewall.trouble,
    )
    return next(filter(None, found), "")


def diverted(view: View) -> str:
    """Who else diverts the overlay's packets; empty if nobody does."""
    if not view.diversions:
        return ""
    past, first = "", view.diversions[0]
    leaking = [each for each in view.diversions if not leads_nowhere(each)]
    if view.encrypts and leaking:
        first = leaking[0]
        past = f" past the encryption, {'where our rules drop them' if view.guarded else 'in plaintext'}"
    others = f" (and {len(view.diversions) - 1} more)" if len(view.diversions) > 1 else ""
    what = "a route"
    if is_rule(first):
        what = "a policy rule"
    elif first.startswith("xfrm policy "):
        what = "an IPsec policy"
    mend = f"if nobody needs it, '{removal(first)}'"
    if first.endswith(" proto kernel"):  # it comes and goes with an address
        mend = "that device has an address in it; 'pyflannel doctor' says what mends it"
    return f"{what} that is not ours diverts the overlay's packets{past}: {first}{others}; {mend}"


def is_rule(diversion: str) -> bool:
    """Whether it is a policy rule that diverts packets."""
    return diversion.startswith("rule ")


def leads_nowhere(diversion: str) -> bool:
    """Whether it is a policy rule by which packets are lost, rather than sent elsewhere."""
    return is_rule(diversion) and not _NOWHERE.isdisjoint(diversion.split())


def removal(diversion: str) -> str:
    """The command that deletes what diverts packets."""
    if is_rule(diversion):
        words, _, family = diversion.removeprefix("rule ").rpartition(" ")
        return f"ip {'-6 ' if family == '(IPv6)' else ''}rule delete {words}"
    if diversion.startswith("xfrm policy "):
        return f"ip {diversion.replace('policy', 'policy delete', 1)}"
    return f"ip route delete {diversion}"


def hanging(view: View, now: float) -> str:
    """Which plugin the loop waits for, if it does so for long."""
    call = view.call
    if call is None or now - call.since < PATIENCE:
        return ""
    waits = "the start waits" if view.lease.lease is None else "repairs wait"
    return f"{call.hanging(now)}; {waits} for it" + (", the lease is renewed" if view.lease.lease is not None else "")
