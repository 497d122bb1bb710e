"""A node's place: the network document that it follows, the backend made for that, and the underlay. Pure.

The place *in force* stays until another one can be had as a whole. Not every document that is written may be followed:
one that parts this node from the others is refused, unless a change has led all of them there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyflannel.backend import Backend
from pyflannel.errors import ConfigError, UnderlayError
from pyflannel.network.agreement import options_apart, ranges_apart
from pyflannel.network.change import DOCUMENT_KEY, Ending, Phase, Written
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.network.underlay import Underlay
from pyflannel.planning.judging import displaced, own_public_problem
from pyflannel.planning.transition import Side, Transition
from pyflannel.small.text import cut, inert

__all__ = ["Place", "backends_apart", "check_agreed", "check_underlay"]

_SHOWN: Final = 5
"""Keys of a document that a message names."""


@dataclass(frozen=True, slots=True)
class Place:
    """What we follow: a network document, the backend for it, and the underlay.

    While a change is under way, ``following`` is what is to hold after it, or ``trouble`` says why this node can't have
    that. ``overruled`` names a setting of this node that says otherwise, and why it does not count.
    """

    document: str
    network: NetworkConfig
    backend: Backend[Any]
    underlay: Underlay
    written: Written
    following: Side | None = None
    trouble: str = ""
    overruled: str = ""

    @property
    def side(self) -> Side:
        """What holds now."""
        return Side(self.backend, self.network)

    @property
    def planner(self) -> Backend[Any]:
        """What plans for this place."""
        change = self.written.change
        if change is None or self.following is None:
            return self.backend
        return Transition(self.side, self.following, change)

    @property
    def last(self) -> str:
        """The change that has led here, if one has."""
        return self.written.last if self.written.moved else ""


def backends_apart(old: Side, new: Side) -> str:
    """How two settings differ in what all nodes have to agree on; empty if they don't."""
    if old.name != new.name:
        return f"its backend is {new.name}, the one in force {old.name}"
    keys = options_apart(old.backend.options, new.backend.options)
    return f"its Backend has another {', '.join(keys)}" if keys else ""


def check_underlay(network: NetworkConfig, underlay: Underlay, backend: Backend[Any]) -> None:
    """See whether a network can run over an underlay.

    :raises UnderlayError: it lacks an address of one of the network's families, or has one that no peer would use.
    :raises ConfigError: the backend can't do with the public address that it has.
    """
    for version in network.versions:
        public, local = underlay.public(version), underlay.local(version)
        if public is None or local is None:
            raise UnderlayError(
                f"the network uses IPv{version}, but interface {underlay.interface} has no usable IPv{version} "
                f"address; add one, choose another interface with --iface, or set EnableIPv{version} to false"
            )
        problem = own_public_problem(network, underlay, version)
        if problem:
            raise UnderlayError(
                f"{problem}, so other nodes would skip this one; set --public-ip{'' if version == 4 else 'v6'} to an "
                "address by which they reach it, choose another interface with --iface, or another network"
            )
        if public != local and backend.capabilities.interface_public_ip:
            raise ConfigError(
                f"backend {backend.name} needs the public address on the interface itself, but --public-ip is "
                f"{public} and {underlay.interface} has {local}; drop --public-ip, or use a backend such as vxlan"
            )


def check_agreed(place: Place, written: Written, new: Side, store: str, leases: Mapping[str, str], kept: Path) -> None:
    """Refuse what a node must not follow for itself.

    :param place: what is in force. ``written`` and ``new`` are what the document in ``store`` asks for.
    :param leases: of the other nodes, key to text.
    :param kept: where the document in force is.
    :raises ConfigError: says what differs, and what to do.
    """
    older, amended = written.precedes(place.written), _amended(place.written, written)
    same = written.settings == place.written.settings and not amended
    if same and not older and not _cut_short(place.written, written):
        return
    if written.agreed and written.last not in ("", place.written.last) and not older:
        return  # a change has led there: all are to follow
    differs = ranges_apart(place.network, new.network) or backends_apart(place.side, new)
    differs = differs or _covered(place.network, new.network, leases)
    if not differs and older and written.change is not None:
        differs = f"the change {written.change.id} is under way in it, which has come to its end long ago"
    elif not differs and amended:
        differs = f"{amended} is not what it was, and nodes are in the middle of a change that can't take that along"
    elif not differs and place.written.change is not None:
        differs = f"the change {place.written.change.id} that was under way has been taken out of it"
    if differs:
        # One with a change under way is no document to be forced on those who are in it.
        by = f", by 'pyflannel config set --force {kept}'," if place.written.change is None else ","
        raise ConfigError(
            f"the network config in {store} was changed behind the nodes' back: {differs}. This node keeps "
            f"the one in force, with which the other nodes reach it; put that back{by} and use 'pyflannel network "
            "change', which loses no packet; or write the other one with 'pyflannel config set --force', and restart "
            "all daemons"
        )


def _covered(old: NetworkConfig, new: NetworkConfig, leases: Mapping[str, str]) -> str:
    """Which node is reached under ``old`` alone; empty if there is none."""
    if old.families == new.families:
        return ""
    why = next((why for _, why in displaced(old, new, leases.items())), "")
    return f"by it this node would skip the lease of {why}" if why else ""


def _amended(before: Written, written: Written) -> str:
    """What somebody has changed in the document of a change that goes on; empty if it is as it was begun."""
    one, other = before.change, written.change
    if one is None or other is None or one.id != other.id:
        return ""
    whole, target = _keys_apart(before.settings, written.settings), _keys_apart(one.target, other.target)
    return ", ".join([*whole, *(f"{DOCUMENT_KEY}.To.{key}" for key in target)][:_SHOWN])


def _keys_apart(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> Iterator[str]:
    """The keys under which two documents differ; of the backend's options each by itself."""
    for key in sorted({*one, *other}):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from (f"{key}.{name}" for name in _keys_apart(mine, theirs))
        elif (key in one, mine) != (key in other, theirs):
            yield cut(inert(key))


def _cut_short(before: Written, written: Written) -> bool:
    """Whether the change that is under way is so no longer, and has not come to its end: with it goes what peers send
    by, unless this one can still be gone back from.
    """
    if before.change is None or (written.change is not None and written.change.id == before.change.id):
        return False
    ended = before.change.id in (written.last, *written.earlier)
    ended = ended or (written.outcome is not Ending.FORCED and written.last not in ("", before.last))
    return not ended and (written.change is None or before.change.phase is Phase.RETIRE)
