"""``pyflannel network``: change a network while its nodes run and packets flow.

The command looks at the store and writes the network document there, nothing else, so that it can run anywhere and be
interrupted and run again. What it refuses, it refuses before it writes anything.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

import click

from pyflannel.cli.change_planned import Plan, Wanted, between, planned, refusal, with_room
from pyflannel.cli.change_shown import Shown, outlook
from pyflannel.cli.flags import FlagGroup, flags, settings
from pyflannel.errors import ConfigError, ConflictError, ExitCode, PyflannelError, StoreUnavailableError
from pyflannel.network.change import NetworkChange, Phase, Written
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.plugins import open_store
from pyflannel.small.retry import Backoff
from pyflannel.small.streams import asking, given
from pyflannel.small.text import counted, inert

if TYPE_CHECKING:
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

    wanted = Wanted(
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
            left = with_room(_left(under_way, wanted), snapshot.leases, nodes, behind)
            if dry_run:
                _show_plans(shown, (_under_way(under_way, written, present), *left), nodes, behind, {})
                return ExitCode.OK
            return _go_on(store, under_way, left, nodes, behind, shown, yes)
        if not wanted:
            raise click.UsageError("no change is under way: say what is to change, such as --backend wireguard", ctx)
        plans = with_room(planned(written.settings, present, wanted), snapshot.leases, nodes, behind)
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
    left: Sequence[Plan],
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


def _left(under_way: NetworkChange, wanted: Wanted) -> Sequence[Plan]:
    """What is still to do when the change that is under way has ended: of one that takes two, the second."""
    if len(wanted.parts) < 2:
        return ()
    return planned(under_way.target, NetworkConfig.from_json(json.dumps(under_way.target)), wanted)


def _under_way(change: NetworkChange, written: Written, present: NetworkConfig) -> Plan:
    """The change that is under way, or the way back from it, as whoever goes on with it would make it."""
    if change.phase is Phase.BACK:
        plan = _back(change, written, present)
    else:
        ahead = NetworkConfig.from_json(json.dumps(change.target), "the new network config")
        plan = between(present, ahead, written.settings, change.target)
    told = f"change {change.id} is under way since {change.began} (phase {change.phase.value}), and would be continued"
    return replace(plan, differs=(told, *plan.differs), refusal="", uncovers="", untried="")


def _back(under_way: NetworkChange, written: Written, present: NetworkConfig) -> Plan:
    """The change that leads back from one that is under way, once it is at its end."""
    ahead = NetworkConfig.from_json(json.dumps(under_way.target), "the new network config")
    return between(ahead, present, under_way.target, written.settings)


def _go_through(
    store: Store, plans: Sequence[Plan], without: Sequence[str], shown: Shown, record: Record | None = None
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


def _check_same(under_way: NetworkChange, written: Written, present: NetworkConfig, wanted: Wanted) -> None:
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


def _refuse(plan: Plan, nodes: Sequence[NodeStanding], without: Sequence[str]) -> None:
    why = refusal(plan, nodes, without)
    if why:
        raise ConfigError(why)


def _confirm(plan: Plan, yes: bool, as_json: bool) -> None:
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
    plans: Sequence[Plan],
    nodes: Sequence[NodeStanding],
    without: Sequence[str],
    unable: Mapping[str, str],
) -> None:
    together = any(plan.together for plan in plans)
    unable = unable if together else {}
    refused = next(filter(None, (refusal(plan, nodes, without) for plan in plans)), "")
    uncovers = next(filter(None, (plan.uncovers for plan in plans)), "")
    untried = next(filter(None, (plan.untried for plan in plans)), "")
    document = {
        "changes": [text for plan in plans for text in plan.differs],
        "together": together,
        "nodes": [node.name for node in nodes],
        "unable": dict(unable),
        "without": [node.key for node in nodes if node.named(without)],
        "refused": refused or None,
        "uncovers": uncovers or None,
        "untried": untried or None,
    }
    lines = []
    for number, plan in enumerate(plans):
        lines += ["then:"] if number else []
        lines += plan.differs
        lines += [] if plan.together else ["each node follows by itself, at once"]
    lines.append(f"{counted(len(nodes), 'node')}: {', '.join(inert(node.name) for node in nodes) or 'none'}")
    lines += [f"  {inert(name)}: {reason}" for name, reason in unable.items()]
    if untried:
        lines.append(f"whether a node can have both at a time shows when they prepare, not here: {inert(untried)}")
    lines += [uncovers] if uncovers else []
    lines += [f"refused: {inert(refused)}"] if refused else []
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
