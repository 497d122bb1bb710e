"""``pyflannel network``: change a network while its nodes run and packets flow.

The command looks at the store and writes the network document there, nothing else, so that it can run anywhere and be
interrupted and run again. What it refuses, it refuses before it writes anything.
"""

from __future__ import annotations

import difflib
import json
import logging
import random
import signal
import tempfile
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pyflannel.cli.change_shown import Shown, outlook
from pyflannel.cli.flags import FlagGroup, flags, settings
from pyflannel.errors import ConfigError, ConflictError, ExitCode, PluginError, PyflannelError, StoreUnavailableError
from pyflannel.network.change import NetworkChange, Phase, Written
from pyflannel.network.document import FamilyConfig, NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.plugins import load_backend, open_store
from pyflannel.small.guarded import named_if_it_hangs
from pyflannel.small.retry import Backoff
from pyflannel.small.streams import asking, given
from pyflannel.small.text import inert

if TYPE_CHECKING:
    from pyflannel.planning.transition import Side
    from pyflannel.store import Record, Store
    from pyflannel.storetools.change import Drive, NodeStanding, Progress

__all__ = ["network"]

log = logging.getLogger(__name__)

_LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks at the store while nodes are on their way."""

_FOLLOW_PATIENCE: Final = 150.0
"""Seconds to wait for the last nodes to say that they have followed, when the change itself is over: a kubelet takes a
minute and more to mount another ConfigMap."""

_TROUBLED_PATIENCE: Final = 15.0
"""The same where all of them have said what keeps them."""

_RANGES: Final = {
    "network": "Network",
    "subnet_len": "SubnetLen",
    "subnet_min": "SubnetMin",
    "subnet_max": "SubnetMax",
    "enable_ipv4": "EnableIPv4",
    "enable_ipv6": "EnableIPv6",
    "ipv6_network": "IPv6Network",
    "ipv6_subnet_len": "IPv6SubnetLen",
    "ipv6_subnet_min": "IPv6SubnetMin",
    "ipv6_subnet_max": "IPv6SubnetMax",
}
"""Option to key of the document."""


_NAMED: Final = 5
"""Nodes that a refusal names."""


@click.group(cls=FlagGroup, params=flags("store"))
def network() -> None:
    """Change the network while its nodes run and packets flow."""


@network.command(params=flags("store"))
@click.option("--backend", metavar="NAME", help="The new backend.")
@click.option(
    "--backend-option", multiple=True, metavar="KEY=VALUE", help="An option of the backend, as in the network config."
)
@click.option("--network", metavar="CIDR", help="A larger IPv4 network, which contains the present one.")
@click.option("--subnet-len", type=int, metavar="BITS", help="Length of the IPv4 subnets that nodes lease from now on.")
@click.option("--subnet-min", metavar="IP", help="The first IPv4 subnet that may be leased.")
@click.option("--subnet-max", metavar="IP", help="The last IPv4 subnet that may be leased.")
@click.option("--enable-ipv4", type=bool, metavar="BOOL", help="Add IPv4 to the network.")
@click.option("--enable-ipv6", type=bool, metavar="BOOL", help="Add IPv6 to the network.")
@click.option("--ipv6-network", metavar="CIDR", help="The IPv6 network, or a larger one.")
@click.option("--ipv6-subnet-len", type=int, metavar="BITS", help="Length of the IPv6 subnets to lease from now on.")
@click.option("--ipv6-subnet-min", metavar="IP", help="The first IPv6 subnet that may be leased.")
@click.option("--ipv6-subnet-max", metavar="IP", help="The last IPv6 subnet that may be leased.")
@click.option(
    "--without", multiple=True, metavar="NODE", help="Don't wait for this node: it is cut off until it follows."
)
@click.option("--abort", is_flag=True, help="Go back to the former settings, with no packet lost either.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and write nothing.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line, whenever something has changed.")
@click.pass_context
def change(
    ctx: click.Context,
    /,
    backend: str | None,
    backend_option: tuple[str, ...],
    without: tuple[str, ...],
    abort: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **ranges: JSON,
) -> int:
    """Change the backend, its options or the network's ranges on all nodes, without losing a packet.

    Every node prepares the new settings, then all send by them, then the former ones go. Interrupt it at any time: the
    nodes stay where they are, and it goes on when it is run again, from any machine that reaches the store; with no
    options, or with the same. --abort goes back; once the former settings are being taken away, it goes to the end
    first and then changes back.
    """
    from pyflannel.storetools import change as driving

    wanted = _Wanted(
        backend, backend_option, {_RANGES[name]: value for name, value in ranges.items() if value is not None}
    )
    location = settings(ctx).store
    if backend is not None and not backend.strip():
        raise click.UsageError("--backend names none: say which one, such as --backend wireguard", ctx)
    if abort and (wanted or dry_run):
        raise click.UsageError("--abort goes with no change and no --dry-run", ctx)
    with open_store(location, existing=True) as store:
        snapshot = store.snapshot()
        record, written, present = driving.reading(snapshot, store.location)
        under_way = written.change
        nodes = driving.standings(present, snapshot.leases, under_way.id if under_way else "")
        behind = _named(without, nodes, begun=under_way is not None)
        shown = Shown(as_json)
        if abort:
            return _abort(store, behind, shown, yes)
        if under_way is not None:
            _check_same(under_way, written, present, wanted)
            left = _with_room(_left(under_way, wanted), snapshot.leases, nodes, behind)
            if dry_run:
                _show_plans(shown, (_under_way(under_way, written, present), *left), nodes, behind, {})
                return ExitCode.OK
            return _go_on(store, under_way, left, nodes, behind, shown, yes)
        if not wanted:
            raise click.UsageError("no change is under way: say what is to change, such as --backend wireguard", ctx)
        plans = _with_room(_planned(written.settings, present, wanted), snapshot.leases, nodes, behind)
        if not plans:
            raise ConfigError("the network is as you want it already; nothing was written")
        margin = settings(ctx).renew_margin
        unable = outlook(nodes, driving.away(store, snapshot.leases, margin), behind)
        _show_plans(shown, plans, nodes, behind, unable)
        if dry_run:
            return ExitCode.OK
        for plan in plans:
            _refuse(plan, nodes, behind)
            _confirm(plan, yes, as_json)
        return _go_through(store, plans, behind, shown, record)


def _go_on(
    store: Store,
    under_way: NetworkChange,
    left: Sequence[_Plan],
    nodes: Sequence[NodeStanding],
    without: Sequence[str],
    shown: Shown,
    yes: bool,
) -> int:
    """Go on with the change that is under way, then with what is left of what is wanted."""
    from pyflannel.storetools import change as driving

    for plan in left:
        _refuse(plan, nodes, without)
        _confirm(plan, yes, shown.as_json)
    _drive(driving.Drive(store, under_way.id, _now, without), shown, under_way.phase is Phase.BACK)
    return _go_through(store, left, without, shown)


def _abort(store: Store, without: Sequence[str], shown: Shown, yes: bool) -> int:
    """Turn round the change that is under way, or come to its end and change back."""
    from pyflannel.storetools import change as driving

    while True:
        record, written, present = _reading(store)
        under_way = written.change
        if under_way is not None and under_way.phase is Phase.RETIRE:
            break
        try:
            identity = driving.abandon(store, record, _at())
        except ConflictError:  # whoever drives it has just moved it on
            continue
        return _drive(driving.Drive(store, identity, _now, without), shown, back=True)
    nodes = driving.standings(present, store.snapshot().leases, under_way.id)
    back = _back(under_way, written, present)
    _show_plans(shown, (back,), nodes, without, {})
    _refuse(back, nodes, without)
    _confirm(back, yes, shown.as_json)
    _drive(driving.Drive(store, under_way.id, _now, without), shown)
    return _go_through(store, (back,), without, shown)


def _left(under_way: NetworkChange, wanted: _Wanted) -> Sequence[_Plan]:
    """What is still to do when the change that is under way has ended: of one that takes two, the second."""
    if len(wanted.parts) < 2:
        return ()
    return _planned(under_way.target, NetworkConfig.from_json(json.dumps(under_way.target)), wanted)


def _under_way(change: NetworkChange, written: Written, present: NetworkConfig) -> _Plan:
    """The change that is under way, or the way back from it, as whoever goes on with it would make it."""
    if change.phase is Phase.BACK:
        plan = _back(change, written, present)
    else:
        ahead = NetworkConfig.from_json(json.dumps(change.target), "the new network config")
        plan = _between(present, ahead, written.settings, change.target)
    told = f"change {change.id} is under way since {change.began} (phase {change.phase.value}), and would be continued"
    return replace(plan, differs=(told, *plan.differs), refusal="", uncovers="", untried="")


def _back(under_way: NetworkChange, written: Written, present: NetworkConfig) -> _Plan:
    """The change that leads back from one that is under way, once it is at its end."""
    ahead = NetworkConfig.from_json(json.dumps(under_way.target), "the new network config")
    return _between(ahead, present, under_way.target, written.settings)


def _between(
    present: NetworkConfig, new: NetworkConfig, settings: Mapping[str, JSON], target: Mapping[str, JSON]
) -> _Plan:
    """A change between settings that nodes have side by side. What they take, such as a file, need not be here."""
    try:
        return _judged(present, new, settings, target)
    except PyflannelError:
        names = (present.backend_type, new.backend_type)
        uncovers = _uncovering(_encrypts(names[0], True), _encrypts(names[1], False), names[1])
        return _Plan(settings, target, True, (f"backend {' -> '.join(names)}",), uncovers=uncovers)


def _encrypts(backend: str, otherwise: bool) -> bool:
    """Whether a backend does, as far as that can be told here."""
    try:
        return load_backend(backend).capabilities.encrypts
    except PluginError:
        return otherwise


def _uncovering(was: bool, will: bool, backend: str) -> str:
    """What to say of an end of encryption."""
    return f"{backend} does not encrypt: from then on packets can be read on the underlay" if was and not will else ""


def _go_through(
    store: Store, plans: Sequence[_Plan], without: Sequence[str], shown: Shown, record: Record | None = None
) -> int:
    """One change after the other, as long as the document is what each of them was judged by.

    :param record: that document, if it has been read.
    """
    from pyflannel.storetools import change as driving

    for plan in plans:
        if record is None:
            record, written, _ = _reading(store)
            if written.settings != plan.settings:
                raise _overtaken()
        try:
            identity = driving.begin(store, record, plan.target, plan.together, without, _at())
        except ConflictError:
            raise _overtaken() from None
        _drive(driving.Drive(store, identity, _now, without), shown)
        record = None
    return ExitCode.OK


def _overtaken() -> ConfigError:
    return ConfigError(
        "somebody else has changed the network config meanwhile, perhaps by another 'pyflannel network change': this "
        "change was not begun; look at 'pyflannel config get', and try again"
    )


def _reading(store: Store) -> tuple[Record, Written, NetworkConfig]:
    from pyflannel.storetools import change as driving

    return driving.reading(store.snapshot(), store.location)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _at() -> str:
    from pyflannel.storetools.change import note

    return note(_now())


# What is wanted


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the command line asks for."""

    backend: str | None
    options: tuple[str, ...]
    ranges: Mapping[str, JSON]

    def __bool__(self) -> bool:
        return bool(self.backend or self.options or self.ranges)

    @property
    def parts(self) -> tuple[_Wanted, ...]:
        """Ranges and backend each for itself: they are changed one after the other."""
        if not self.ranges or not (self.backend or self.options):
            return (self,)
        return _Wanted(None, (), self.ranges), _Wanted(self.backend, self.options, {})

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


def _named(names: Sequence[str], nodes: Sequence[NodeStanding], begun: bool = False) -> tuple[str, ...]:
    """What the change is to say of nodes that are named by id, address or subnet.

    That is a node's id: its subnet may be another node's before the change is over. A lease that has none, or one that
    a node has which is not named, is told by its key.

    :param begun: the change is under way, and the same command is perhaps run again: nodes may be gone since.
    :raises ConfigError: nobody is called that.
    """
    for name in names:
        if not any(node.named([name]) for node in nodes):
            known = ", ".join(inert(node.name) for node in nodes)
            told = f"--without {name}: no node has this id, address or subnet; there are: {known or 'none'}"
            if not begun:
                raise ConfigError(told)
            log.warning("%s", told)
    others = {node.node_id for node in nodes if not node.named(names)}
    found = (node.key if node.node_id in {"", *others} else node.node_id for node in nodes if node.named(names))
    return tuple(dict.fromkeys(found))


def _check_same(under_way: NetworkChange, written: Written, present: NetworkConfig, wanted: _Wanted) -> None:
    """Refuse to begin a change while another one is under way."""
    if not wanted:
        return
    going = NetworkConfig.from_json(json.dumps(under_way.target))
    asked = (part.target(written.settings, present) for part in (wanted, *wanted.parts))
    if not any(NetworkConfig.from_json(json.dumps(each)).means(going) for each in asked):
        raise ConfigError(
            f"another change is under way since {under_way.began}, to another document: go on with "
            "it by 'pyflannel network change', or give it up with --abort, before the next one"
        )
    if under_way.phase is Phase.BACK:
        raise ConfigError(
            "this change is being given up (--abort): go on with that by 'pyflannel network change' without options, "
            "then begin again"
        )


# What it means


@dataclass(frozen=True, slots=True)
class _Plan:
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


def _planned(settings: Mapping[str, JSON], present: NetworkConfig, wanted: _Wanted) -> tuple[_Plan, ...]:
    """The changes that lead there, one after the other; none if the network is like that.

    Ranges come first, unless the present backend can't carry a family that is new.
    """
    try:
        return _in_order(settings, present, wanted.parts)
    except PluginError:
        if len(wanted.parts) < 2:
            raise
        return _in_order(settings, present, wanted.parts[::-1])


def _in_order(settings: Mapping[str, JSON], present: NetworkConfig, parts: Sequence[_Wanted]) -> tuple[_Plan, ...]:
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
) -> _Plan:
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
            "start the daemon, and start its containers anew"
        )
    elif together:
        refusal, untried = _tried_out(former, following)
    was, will = (side.backend.capabilities.encrypts for side in (former, following))
    return _Plan(
        settings,
        target,
        together,
        (*differs, *ranges, *(_mtu(former, following) if together else ())),
        refusal,
        _uncovering(was, will, following.name),
        untried,
    )


def _with_room(
    plans: Sequence[_Plan], leases: Sequence[Record], nodes: Sequence[NodeStanding], without: Sequence[str]
) -> tuple[_Plan, ...]:
    """The same, refused where a network would cover addresses by which nodes are reached now."""
    from pyflannel.planning.judging import displaced

    behind = {node.key for node in nodes if node.named(without)}
    ahead = [(lease.key, lease.value) for lease in leases if lease.key not in behind]

    def judged(plan: _Plan) -> _Plan:
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


def _refusal(plan: _Plan, nodes: Sequence[NodeStanding], without: Sequence[str]) -> str:
    """Why a change is not begun; empty if it may be."""
    foreign = [node for node in nodes if node.flanneld and not node.named(without)]
    if plan.refusal or not plan.together or not foreign:
        return plan.refusal
    names = ", ".join(node.name for node in foreign)
    return (
        f"{names}: flanneld runs there, which can't take part; run pyflannel there first, or leave it behind "
        "with --without: it is cut off then"
    )


def _refuse(plan: _Plan, nodes: Sequence[NodeStanding], without: Sequence[str]) -> None:
    refusal = _refusal(plan, nodes, without)
    if refusal:
        raise ConfigError(refusal)


def _confirm(plan: _Plan, yes: bool, as_json: bool) -> None:
    """Have an end of encryption confirmed.

    :raises ConfigError: nobody can be asked.
    """
    if not plan.uncovers or yes:
        return
    if as_json or not given().isatty():
        raise ConfigError(f"{plan.uncovers}; --yes says that this is wanted")
    with asking():
        click.confirm(f"{plan.uncovers}. Go on?", abort=True, err=True)


def _show_plans(
    shown: Shown,
    plans: Sequence[_Plan],
    nodes: Sequence[NodeStanding],
    without: Sequence[str],
    unable: Mapping[str, str],
) -> None:
    together = any(plan.together for plan in plans)
    unable = unable if together else {}
    refusal = next(filter(None, (_refusal(plan, nodes, without) for plan in plans)), "")
    uncovers = next(filter(None, (plan.uncovers for plan in plans)), "")
    untried = next(filter(None, (plan.untried for plan in plans)), "")
    document = {
        "changes": [text for plan in plans for text in plan.differs],
        "together": together,
        "nodes": [node.name for node in nodes],
        "unable": dict(unable),
        "without": [node.key for node in nodes if node.named(without)],
        "refused": refusal or None,
        "uncovers": uncovers or None,
        "untried": untried or None,
    }
    lines = []
    for number, plan in enumerate(plans):
        lines += ["then:"] if number else []
        lines += plan.differs
        lines += [] if plan.together else ["each node follows by itself, at once"]
    lines.append(f"{len(nodes)} nodes: {', '.join(inert(node.name) for node in nodes) or 'none'}")
    lines += [f"  {inert(name)}: {reason}" for name, reason in unable.items()]
    if untried:
        lines.append(f"whether a node can have both at a time shows when they prepare, not here: {inert(untried)}")
    lines += [uncovers] if uncovers else []
    lines += [f"refused: {inert(refusal)}"] if refusal else []
    shown.plan(document, lines)


class _NotFollowedError(PyflannelError):
    """The change is over, and some nodes have not followed."""

    exit_code = ExitCode.CHECK_FAILED


def _told_late(progress: Progress) -> str:
    names = ", ".join(f"{node.name} ({node.trouble or 'it says nothing of it'})" for node in progress.late)
    return (
        f"the network config has changed, but not all nodes have followed yet: {names}. Each follows as soon as it "
        "can: 'pyflannel status' there says what keeps it"
    )


class _GivenUpError(PyflannelError):
    """The change is over, and has led back."""

    exit_code = ExitCode.CHECK_FAILED


def _drive(drive: Drive, shown: Shown, back: bool = False) -> int:
    """Go on until the change is over, or until somebody interrupts this.

    :param back: that it leads back is what is wanted.
    :raises PyflannelError: it is, and there are nodes that have not followed in time; or somebody has turned it round.
    """
    try:
        with shown:
            end = _drive_on(drive, shown)
    except KeyboardInterrupt:
        shown.interrupted()
        raise
    if end.phase == Phase.BACK.value and not back:
        raise _GivenUpError("somebody else has given this change up (--abort): the network has its former settings")
    return ExitCode.OK


def _drive_on(drive: Drive, shown: Shown) -> Progress:
    over_since: float | None = None
    backoff = Backoff(random.Random(), _LOOK_INTERVAL)  # noqa: S311 - pauses need no secrecy
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nodes stay where they are
    while True:
        try:
            progress = drive.look()
        except StoreUnavailableError as error:
            shown.trouble(error)
            time.sleep(backoff.next())
            continue
        backoff.reset()
        shown.progress(progress)
        if progress.over:
            over_since = over_since or time.monotonic()
            if not progress.waiting:
                return progress
            stuck = all(node.trouble for node in progress.late)
            if time.monotonic() - over_since > (_TROUBLED_PATIENCE if stuck else _FOLLOW_PATIENCE):
                raise _NotFollowedError(_told_late(progress))
        time.sleep(_LOOK_INTERVAL)
