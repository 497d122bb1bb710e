"""``pyflannel status``: how this node's daemon is doing, trouble first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final

import click

from pyflannel.cli.flags import FlagCommand, flags, settings
from pyflannel.cli.output import duration, say, show_json
from pyflannel.network.lease import JSON
from pyflannel.show.status import query
from pyflannel.small.text import inert

__all__ = ["status"]

_ORDER: Final = {"failed": 0, "skipped": 1, "pending": 2}
_PEERS_SHOWN: Final = 20


@click.command(cls=FlagCommand, params=flags("node"))
@click.option("--json", "as_json", is_flag=True, help="The whole document, as the daemon gives it.")
@click.option("--all", "everything", is_flag=True, help="Every peer and every object, not only those with trouble.")
@click.pass_context
def status(ctx: click.Context, as_json: bool, everything: bool) -> None:
    """Show how this node's daemon is doing.

    Peers and kernel objects that have problems come first, with the reason and since when.
    """
    document = query(settings(ctx).run_dir)
    if as_json:
        show_json(document)
        return
    now = datetime.now(timezone.utc)
    for lines in (_summary(document, now), _peers(document, everything), _objects(document, now, everything)):
        for line in lines:
            say(inert(line))


def _summary(document: JSON, now: datetime) -> Iterator[str]:
    message = document["message"]
    yield f"State:     {document['state']}" + (f" ({message})" if message else "")
    yield f"Daemon:    pyflannel {document['version']}, pid {document['pid']}, up {_since(document['started'], now)}"
    yield f"Node:      {document['node_id']}"
    if document["network"] or document["ipv6_network"]:
        networks = " ".join(filter(None, (document["network"], document["ipv6_network"])))
        yield f"Network:   {networks}"
    if document["backend"]:
        told = document["backend"].get("details", {})
        details = "".join(f", {name.replace('_', ' ')} {text}" for name, text in told.items())
        details += "".join(f" ({text})" for text in (document["backend"].get("assumed"),) if text)
        yield f"Backend:   {_plugin(document['backend']['name'], document['backend'])}{details}"
    yield from _change(document.get("change"))
    if document["store"]:
        connected = "" if document["store"]["connected"] else ", not connected"
        yield f"Store:     {_plugin(document['store']['location'], document['store'])}{connected}"
    if document["underlay"]:
        yield from _underlay(document["underlay"])
    yield f"Lease:     {_lease(document['lease'], now)}"
    if document["repaired"]:
        yield f"Repaired:  {document['repaired']} objects that something else had changed"
    for route in document.get("diversions", ()):
        yield f"Diverted:  {route} diverts the overlay's packets"
    if document["firewall"]["port"] or document["firewall"]["errors"]:
        yield f"Firewall:  {_firewall(document['firewall'])}"
    for name, count in sorted(document["data_plane"].items()):
        yield f"Data plane: {name} {count}"
    if document["last_error"]:
        error = document["last_error"]
        yield f"Last error: {_since(error['when'], now)} ago: {error['what']}"


def _change(change: JSON) -> Iterator[str]:
    if not change:
        return
    text = f"Change:    from {change['former']} to {change['following']}, phase {change['phase']}"
    text += f", this node {change['step']}" if change["step"] else ", this node on its way"
    if change["waiting"]:
        text += f", waiting for {', '.join(change['waiting'])}"
    yield text + (f": {change['trouble']}" if change["trouble"] else "")


def _plugin(name: str, about: JSON) -> str:
    return f"{name} ({about['distribution']} {about['version']})" if about["distribution"] else name


def _underlay(underlay: JSON) -> Iterator[str]:
    text = f"{underlay['interface']}, MTU {underlay['mtu']}"
    for family in ("ipv4", "ipv6"):
        own, public = underlay[family], underlay[f"public_{family}"]
        if own or public:
            text += f", {own or 'no address'}" + (f" (public {public})" if public and public != own else "")
    yield f"Underlay:  {text}" + (f" ({underlay['why']})" if underlay.get("why") else "")
    for other in underlay.get("others", ()):
        yield f"           would have been next: {other}"


def _lease(lease: JSON, now: datetime) -> str:
    if lease is None:
        return "none"
    text = " ".join(lease["subnets"])
    if lease["reserved"]:
        text += ", a reservation"
    elif lease["expires_in"] is not None:
        text += f", expires in {duration(lease['expires_in'])}"
    return text + (f", renewed {_since(lease['renewed'], now)} ago" if lease["renewed"] else "")


def _firewall(firewall: JSON) -> str:
    text = (firewall["port"] or "none") + (", rules in place" if firewall["in_place"] else ", rules not in place")
    for drop in firewall["drops"]:
        passed = "lets us pass" if drop["passed"] else "drops the overlay's packets"
        text += f"; {drop['table']} {drop['chain']} ({drop['reason']}) {passed}"
    if firewall.get("exits"):
        text += f"; packets to the overlay that would leave unencrypted are {firewall['exits']}"
    return "; ".join([text, *firewall["errors"]])


def _peers(document: JSON, everything: bool) -> Iterator[str]:
    peers = document["peers"]
    trouble = [peer for peer in peers if peer["state"] != "ok"]
    yield ""
    yield f"Peers:     {len(peers)}" + (f", {len(trouble)} in trouble" if trouble else "")
    shown = sorted(peers if everything else trouble, key=lambda peer: (_ORDER.get(peer["state"], 9), peer["key"]))
    limit = len(shown) if everything else _PEERS_SHOWN
    for peer in shown[:limit]:
        addresses = " ".join(filter(None, (peer["public_ip"], peer["public_ipv6"])))
        reason = f": {peer['reason']}" if peer["reason"] else ""
        note = f" ({peer['note']})" if peer.get("note") else ""
        subnets = " ".join(peer["subnets"]) or peer["key"]
        yield f"  {peer['state']:<8} {subnets} via {addresses or 'nothing'}{reason}{note}"
    if len(shown) > limit:
        yield f"  and {len(shown) - limit} more (--all)"


def _objects(document: JSON, now: datetime, everything: bool) -> Iterator[str]:
    objects = document["objects"]
    yield ""
    yield "Kernel:    " + (", ".join(map(_count, sorted(objects["counts"].items()))) or "no objects yet")
    shown = [item for item in objects["list"] if everything or item["state"] != "done"]
    shown.sort(key=lambda item: _ORDER.get(item["state"], 9))
    limit = len(shown) if everything else _PEERS_SHOWN
    for item in shown[:limit]:
        error = f": {item['error']}" if item["error"] else ""
        yield f"  {item['state']:<8} {item['object']}, for {_since(item['since'], now)}{error}"
    if len(shown) > limit:
        yield f"  and {len(shown) - limit} more (--all)"


def _count(item: tuple[str, Any]) -> str:
    kind, counts = item
    trouble = "".join(f", {counts[state]} {state}" for state in ("pending", "failed") if counts[state])
    return f"{kind} {counts['done']}" + (f" ({trouble[2:]})" if trouble else "")


def _since(moment: str, now: datetime) -> str:
    """How long ago an RFC 3339 time was."""
    return duration((now - datetime.fromisoformat(moment.replace("Z", "+00:00"))).total_seconds())
