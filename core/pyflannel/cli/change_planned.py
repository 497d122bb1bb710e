"""What a change of the network is to be, and what it means: read from the command line, and judged before it is begun.

A change of ranges and a change of backend are two plans, one after the other. Nothing here writes to a store.
"""

from __future__ import annotations

import difflib
import json
import tempfile
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyflannel.errors import ConfigError, PluginError, PyflannelError
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.plugins import load_backend
from pyflannel.small.guarded import named_if_it_hangs

if TYPE_CHECKING:
    from pyflannel.planning.transition import Side
    from pyflannel.store import Record
    from pyflannel.storetools.change import NodeStanding

__all__ = ["Plan", "Wanted", "between", "planned", "refusal", "with_room"]

_NAMED: Final = 5
"""Nodes that a refusal names."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    backend: str | None
    options: tuple[str, ...]
    ranges: Mapping[str, JSON]

    def __bool__(self) -> bool:
        return bool(self.backend or self.options or self.ranges)

    @property
    def parts(self) -> tuple[Wanted, ...]:
        """Ranges and backend each for itself: they are changed one after the other."""
        if not self.ranges or not (self.backend or self.options):
            return (self,)
        return Wanted(None, (), self.ranges), Wanted(self.backend, self.options, {})

    def target(self, settings: Mapping[str, JSON], present: NetworkConfig) -> dict[str, JSON]:
        """The document that is to hold.

        :raises ConfigError: an option is no ``KEY=VALUE``, or the backend has none of that name.
        """
        changed = {key.lower() for key in self.ranges}
        document = {name: value for name, value in settings.items() if name.lower() not in changed}
        document.update(self.ranges)
        name = (self.backend or present.backend_type).lower()
        kept = present.backend_options if name == present.backend_type else {}
        given = dict(_option(name, text) for text in self.options)
        kept = {key: value for key, value in kept.items() if key.lower() not in {each.lower() for each in given}}
        document = {key: value for key, value in document.items() if key.lower() != "backend"}
        document["Backend"] = {"Type": name, **kept, **given}
        return document


def _option(backend: str, text: str) -> tuple[str, JSON]:
    """``KEY=VALUE`` with the key as the backend spells it, and the value of its type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--backend-option is {text!r}: must be KEY=VALUE, such as VNI=2")
    kind = load_backend(backend).Options
    hints = typing.get_type_hints(kind)
    known = {str(item.metadata["key"]): hints[item.name] for item in fields(kind) if "key" in item.metadata}
    name = next((each for each in known if each.lower() == key.lower()), None)
    if name is None:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known)) or 'none'}"
        raise ConfigError(f"--backend-option {key}: backend {backend} has no such option; {hint}")
    return name, _typed(name, value, known[name])


def _typed(key: str, value: str, hint: Any) -> JSON:
    kinds = typing.get_args(hint) or (hint,)
    try:
        if bool in kinds:
            return {"true": True, "false": False}[value.lower()]
        return int(value) if int in kinds else value
    except (KeyError, ValueError):
        wanted = "true or false" if bool in kinds else "a whole number"
        raise ConfigError(f"--backend-option {key} is {value!r}: must be {wanted}") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """A change, judged.

    :param settings: the document by which it was judged, and which it leads away from.
    :param together: nodes have to go through it together, in phases.
    :param differs: what changes, in words. ``refusal``: why it can't be done; ``uncovers``: that it ends encryption.
    :param untried: why nodes alone can tell whether they can have both settings at a time.
    """

    settings: Mapping[str, JSON]
    target: Mapping[str, JSON]
    together: bool
    differs: tuple[str, ...]
    refusal: str = ""
    uncovers: str = ""
    untried: str = ""


def planned(settings: Mapping[str, JSON], present: NetworkConfig, wanted: Wanted) -> tuple[Plan, ...]:
    """The changes that lead there, one after the other; none if the network is like that.

    Ranges come first, unless the present backend can't carry a family that is new.
    """
    try:
        return _in_order(settings, present, wanted.parts)
    except PluginError:
        if len(wanted.parts) < 2:
            raise
        return _in_order(settings, present, wanted.parts[::-1])


def _in_order(settings: Mapping[str, JSON], present: NetworkConfig, parts: Sequence[Wanted]) -> tuple[Plan, ...]:
    plans = []
    for part in parts:
        target = part.target(settings, present)
        new = NetworkConfig.from_json(json.dumps(target), "the new network config")
        if not new.means(present):
            plans.append(_judged(present, new, settings, target))
        settings, present = target, new
    return tuple(plans)


def _judged(
    present: NetworkConfig, new: NetworkConfig, settings: Mapping[str, JSON], target: Mapping[str, JSON]
) -> Plan:
    from pyflannel.daemon.wiring import make_backend
    from pyflannel.network.agreement import options_apart, ranges_apart
    from pyflannel.planning.transition import Side

    def made(network: NetworkConfig) -> Side:
        with named_if_it_hangs(network.backend_type, "its constructor"):
            return Side(make_backend(network), network)

    former, following = made(present), made(new)
    apart = () if former.name != following.name else options_apart(former.backend.options, following.backend.options)
    together = former.name != following.name or bool(apart)
    ranges = [text for version in (4, 6) for text in _laid_out(present.family(version), new.family(version))]
    differs = [f"backend {former.name} -> {following.name}"] if former.name != following.name else []
    differs += [f"{former.name}: another {', '.join(apart)}"] if apart else []
    renumbers = ranges_apart(present, new)
    refusal = untried = ""
    if renumbers:
        refusal = (
            f"{renumbers}: nodes would lose their subnets and containers their addresses. Add what is new, or move "
            "node by node: drain it, stop its daemon, write the new document with 'pyflannel config set --force', "
            "start the daemon, and restart its containers"
        )
    elif together:
        refusal, untried = _tried_out(former, following)
    was, will = (side.backend.capabilities.encrypts for side in (former, following))
    return Plan(
        settings,
        target,
        together,
        (*differs, *ranges, *(_mtu(former, following) if together else ())),
        refusal,
        _uncovering(was, will, following.name),
        untried,
    )


def with_room(
    plans: Sequence[Plan], leases: Sequence[Record], nodes: Sequence[NodeStanding], without: Sequence[str]
) -> tuple[Plan, ...]:
    """The same, refused where a network would cover addresses by which nodes are reached now."""
    from pyflannel.planning.judging import displaced

    behind = {node.key for node in nodes if node.named(without)}
    ahead = [(lease.key, lease.value) for lease in leases if lease.key not in behind]

    def judged(plan: Plan) -> Plan:
        present, new = (NetworkConfig.from_json(json.dumps(each)) for each in (plan.settings, plan.target))
        if plan.refusal or present.families == new.families:
            return plan
        found = [why for _, why in displaced(present, new, ahead)]
        return replace(plan, refusal=f"nodes would be cut off. {'; '.join(found[:_NAMED])}") if found else plan

    return tuple(map(judged, plans))


def _laid_out(before: FamilyConfig[Any] | None, after: FamilyConfig[Any] | None) -> Iterator[str]:
    """What becomes of the subnets of one address family."""
    if before is None or after is None:
        if before is not after:
            yield f"network {before.network if before else 'none'} -> {after.network if after else 'none'}"
        return
    if before.network != after.network:
        yield f"network {before.network} -> {after.network}"
    if before.subnet_len != after.subnet_len:
        yield f"subnets that are leased from now on: /{before.subnet_len} -> /{after.subnet_len}"
    bounds = [f"{each.subnet_min.network_address} to {each.subnet_max.network_address}" for each in (before, after)]
    if bounds[0] != bounds[1]:
        yield f"subnets may be leased from {bounds[0]} -> {bounds[1]}"


def _mtu(former: Side, following: Side) -> Iterator[str]:
    from pyflannel.planning.rehearsal import sample_underlay

    before, after = (side.mtu(sample_underlay()) for side in (former, following))
    if before == after:
        return
    yield f"MTU of containers, with an underlay of 1500 bytes: {before} -> {after}"
    if after < before:
        yield (
            f"containers that exist keep theirs: TCP and what else discovers the path's MTU learns {after} at the "
            "first packet that is too large; what sends larger UDP packets with DF set fails until it is restarted"
        )
    else:
        yield "containers that exist keep theirs, which is smaller than need be, until they are restarted"


def _tried_out(former: Side, following: Side) -> tuple[str, str]:
    """Why no node could go from one setting to the other, and why that can't be told here; both empty if it could."""
    from pyflannel.planning.rehearsal import obstacle

    with tempfile.TemporaryDirectory() as directory:
        try:
            return obstacle(former, following, Path(directory)), ""
        except PyflannelError as error:
            return "", str(error)


def refusal(plan: Plan, nodes: Sequence[NodeStanding], without: Sequence[str]) -> str:
    """Why a change is not begun; empty if it may be."""
    foreign = [node for node in nodes if node.flanneld and not node.named(without)]
    if plan.refusal or not plan.together or not foreign:
        return plan.refusal
    names = ", ".join(node.name for node in foreign)
    return (
        f"{names}: flanneld runs there, which can't take part; run pyflannel there first, or leave it behind "
        "with --without: it is cut off then"
    )


def between(
    present: NetworkConfig, new: NetworkConfig, settings: Mapping[str, JSON], target: Mapping[str, JSON]
) -> Plan:
    """A change between settings that nodes have side by side. What they take, such as a file, need not be here."""
    try:
        return _judged(present, new, settings, target)
    except PyflannelError:
        names = (present.backend_type, new.backend_type)
        uncovers = _uncovering(_encrypts(names[0], True), _encrypts(names[1], False), names[1])
        return Plan(settings, target, True, (f"backend {' -> '.join(names)}",), uncovers=uncovers)


def _encrypts(backend: str, otherwise: bool) -> bool:
    """Whether a backend does, as far as that can be told here."""
    try:
        return load_backend(backend).capabilities.encrypts
    except PluginError:
        return otherwise


def _uncovering(was: bool, will: bool, backend: str) -> str:
    """What to say of an end of encryption."""
    return f"{backend} does not encrypt: from then on packets can be read on the underlay" if was and not will else ""
