"""``pyflannel cleanup``: leave this node's kernel as if pyflannel had never run.

What carries our mark goes: devices with our alias and everything on them, routes and policy rules with our protocol
number, and firewall rules under the names that flannel has for them, and the CNI network that ``--cni-conf`` names.
Other devices and routes of flanneld's have no mark and stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext

import click

from pyflannel.cli.flags import FlagCommand, flags, settings
from pyflannel.cli.output import say
from pyflannel.daemon import cni
from pyflannel.daemon.runlock import hold
from pyflannel.errors import KernelError, MalformedError
from pyflannel.kernel.model import KernelObject, Link
from pyflannel.kernel.port import Scope, Write
from pyflannel.membership.naming import Myself
from pyflannel.membership.nodeid import known_id, read_marks
from pyflannel.network.lease import Lease
from pyflannel.plugins import open_store
from pyflannel.settings.settings import Settings
from pyflannel.small.text import inert
from pyflannel.store import Record, Store

__all__ = ["cleanup"]


@click.command(cls=FlagCommand, params=flags("store", "node"))
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--lease", "with_lease", is_flag=True, help="Delete this node's lease from the store, too.")
@click.pass_context
def cleanup(ctx: click.Context, dry_run: bool, with_lease: bool) -> None:
    """Remove everything that pyflannel created from this node's kernel.

    Containers on this node lose the overlay. Refused while a daemon runs here, which would put everything back.
    """
    wanted = settings(ctx)
    verb = "would remove" if dry_run else "removed"
    with nullcontext() if dry_run else hold(wanted.run_dir):
        removed = [*_sweep(dry_run), *_sweep_firewall(dry_run), *_sweep_cni(wanted, dry_run)]
        if removed:
            say("\n".join(f"{verb} {item}" for item in removed))
        if with_lease:
            for key in _release(wanted, dry_run):
                say(f"{verb} lease {inert(key)}")
    if not removed:
        say("nothing of ours is here")


def _sweep(dry_run: bool) -> list[KernelObject]:
    """Delete what is ours and return it."""
    from pyflannel.kernel.netlink import NetlinkPort

    port = NetlinkPort()
    try:
        ours = port.dump(Scope())
        if not dry_run:
            failures = port.apply([Write(item, None) for item in _to_delete(ours.values())])
            if failures:
                reasons = "; ".join(f"{ours[key]}: {error}" for key, error in failures.items())
                raise KernelError(f"{len(failures)} of {len(ours)} objects could not be removed: {reasons}")
    finally:
        port.close()
    return list(ours.values())


def _to_delete(ours: Collection[KernelObject]) -> Iterator[KernelObject]:
    """All but what goes with its device: of tens of thousands of objects, that is nearly everything."""
    devices = {item.name for item in ours if isinstance(item, Link)}
    return (item for item in ours if getattr(item, "link", None) not in devices)


def _sweep_firewall(dry_run: bool) -> list[str]:
    """Delete our firewall rules and say where they were."""
    from pyflannel.firewall.sync import Firewall, find_tools

    firewall = Firewall(find_tools())
    leftovers = firewall.missing()
    if not dry_run:
        state = firewall.check()
        if state.errors:
            raise KernelError("; ".join(state.errors))
    return [f"firewall rules in {place}" for place in leftovers]


def _sweep_cni(wanted: Settings, dry_run: bool) -> list[str]:
    """Remove the CNI network that the daemon wrote, and say where it was."""
    path = wanted.cni_conf
    if path is None or not cni.is_ours(path):
        return []
    if not dry_run:
        cni.remove(path)
    return [f"CNI network {path}"]


def _release(wanted: Settings, dry_run: bool) -> Iterator[str]:
    """Delete the leases that are this machine's and give their keys; reservations belong to who made them, and what a
    store has assigned to that."""
    from pyflannel.kernel.inventory import read_cards

    me = Myself(known_id(wanted.state_dir, wanted.node_id), read_marks(read_cards()))
    with open_store(wanted.store, existing=True) as store:
        records = list(_own(store, me))
        if not records:
            say(f"no lease of node {inert(me.node_id)} is in {store.location}")
        for record in records:
            if record.permanent:
                ends = f"it ends when {store.location} no longer assigns it"
                say(f"kept lease {inert(record.key)}: {ends if store.assigns_subnets else 'it is a reservation'}")
                continue
            if not dry_run:
                store.delete(record)
            yield record.key


def _own(store: Store, me: Myself) -> Iterator[Record]:
    for record in store.snapshot().leases:
        try:
            lease = Lease.from_record(record.key, record.value)
        except MalformedError:
            continue  # not a lease, so not ours
        if me.owns(lease.attributes):
            yield record
