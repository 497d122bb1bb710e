"""``pyflannel leases``: who holds which subnet."""

from __future__ import annotations

from collections.abc import Mapping

import click

from pyflannel.cli.flags import FlagCommand, flags, settings
from pyflannel.cli.output import duration, say, show_json, show_table
from pyflannel.errors import MalformedError
from pyflannel.network.lease import JSON, Lease
from pyflannel.plugins import open_store
from pyflannel.small.text import cut, inert
from pyflannel.store import Record

__all__ = ["leases"]


@click.command(cls=FlagCommand, params=flags("store"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def leases(ctx: click.Context, as_json: bool) -> None:
    """List the subnets that nodes hold.

    A record that can't be read as a lease is listed below the others with the reason; the daemon skips it.
    """
    location = settings(ctx).store
    with open_store(location, existing=True) as store:
        snapshot = store.snapshot()
        expiries = store.time_to_live(snapshot.leases)
    read, malformed = _read(snapshot.leases)
    if as_json:
        show_json(
            {
                "store": str(location),
                "leases": [_document(record, lease, expiries) for record, lease in read],
                "malformed": [{"key": cut(record.key), "reason": reason} for record, reason in malformed],
            }
        )
        return
    show_table(
        ("SUBNET", "PUBLIC IP", "BACKEND", "NODE", "EXPIRES"),
        [_row(record, lease, expiries) for record, lease in read],
    )
    if malformed:
        say("\nNot leases:")
        for record, reason in malformed:
            say(f"  {inert(cut(record.key))}: {inert(reason)}")


def _read(records: tuple[Record, ...]) -> tuple[list[tuple[Record, Lease]], list[tuple[Record, str]]]:
    read, malformed = [], []
    for record in records:
        try:
            read.append((record, Lease.from_record(record.key, record.value)))
        except MalformedError as error:
            malformed.append((record, str(error)))
    read.sort(key=lambda item: [(subnet.version, int(subnet.network_address)) for subnet in item[1].subnets.each])
    malformed.sort(key=lambda item: item[0].key)
    return read, malformed


def _document(record: Record, lease: Lease, expiries: Mapping[str, float | None]) -> JSON:
    attributes = lease.attributes
    return {
        "key": record.key,
        "subnets": [str(subnet) for subnet in lease.subnets.each],
        "public_ip": str(attributes.public_ip) if attributes.public_ip else None,
        "public_ipv6": str(attributes.public_ipv6) if attributes.public_ipv6 else None,
        "backend": attributes.backend_type,
        "node_id": attributes.node_id,
        "reserved": record.permanent,
        "expires_in": expiries.get(record.key),
    }


def _row(record: Record, lease: Lease, expiries: Mapping[str, float | None]) -> tuple[str, ...]:
    attributes = lease.attributes
    expires_in = expiries.get(record.key)
    if record.permanent:
        expires = "reservation"
    else:
        expires = f"in {duration(expires_in)}" if expires_in is not None else "unknown"
    addresses = [str(address) for address in (attributes.public_ip, attributes.public_ipv6) if address is not None]
    return str(lease.subnets), " ".join(addresses), attributes.backend_type or "", attributes.node_id or "", expires
