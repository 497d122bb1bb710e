"""The status page: this node's picture of the overlay, for a person with a browser or a phone.

One self-contained document: no script, no font, no image from elsewhere, so that it works where the network does not.
It is a pure function of the status document and reloads itself. Everything that came from outside (lease keys, node
ids, reasons) is escaped; state is always a word, never a colour alone.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from pyflannel.show.reachability import RoundTrips
from pyflannel.show.status import ObjectStatus, PeerState, PeerStatus, State, Status
from pyflannel.small.text import counted, inert

__all__ = ["RELOAD_SECONDS", "render"]

RELOAD_SECONDS: Final = 10
"""How often the page loads itself again."""

FIRST_RELOAD_SECONDS: Final = 2
"""The same while it is not known yet which peers answer."""

NOTHING_ASKED: Final[Mapping[str, RoundTrips]] = {}

_ROWS: Final = 200
_SQUARES: Final = 2000
_TROUBLES: Final = 50

_ORDER: Final = (PeerState.FAILED, PeerState.SKIPPED, PeerState.PENDING, PeerState.OK)

_TONES: Final = {
    State.READY: "ok",
    State.DEGRADED: "warn",
    State.STARTING: "warn",
    State.WAITING: "warn",
    State.CONFLICT: "bad",
    State.STOPPING: "warn",
    PeerState.OK: "ok",
    PeerState.PENDING: "warn",
    PeerState.SKIPPED: "bad",
    PeerState.FAILED: "bad",
}

_Stand = tuple[str, str]
_OK: Final = PeerState.OK
_SILENT: Final[_Stand] = ("silent", "bad")

_STYLE: Final = """
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--line:#dfe3e8;--text:#1c2430;--soft:#5b6675;
--ok:#12805c;--okbg:#e0f4ec;--warn:#8a5a00;--warnbg:#fdf0d5;--bad:#b3261e;--badbg:#fbe4e2}
@media(prefers-color-scheme:dark){:root{--page:#11151b;--card:#1a2029;--line:#2d3643;--text:#e7ebf0;--soft:#9aa7b6;
--ok:#5fd3a6;--okbg:#123528;--warn:#f0c060;--warnbg:#3a2c0e;--bad:#ff8f86;--badbg:#43191a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.45 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
header{display:flex;flex-wrap:wrap;gap:.3rem .8rem;align-items:center;margin:.2rem 0 1rem}
h1{font-size:1.35rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1rem;margin:0 0 .6rem}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:0 0 1rem}
.tag{display:inline-block;border-radius:1rem;padding:.05rem .65rem;font-size:.85rem;font-weight:600;white-space:nowrap}
.ok{color:var(--ok);background:var(--okbg)}.warn{color:var(--warn);background:var(--warnbg)}
.bad{color:var(--bad);background:var(--badbg)}
.says{width:100%;margin:0;color:var(--soft);overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.8rem 1rem;margin:0}
dt{color:var(--soft);font-size:.82rem}dd{margin:0;overflow-wrap:anywhere}
.trouble{border-left:.3rem solid var(--bad)}.trouble ul{margin:0;padding-left:1.1rem}
.trouble li{margin:.25rem 0;overflow-wrap:anywhere}
.map{display:flex;flex-wrap:wrap;gap:3px;margin:0 0 .8rem}
.map i{width:.8rem;height:.8rem;border-radius:.2rem;border:1px solid currentColor}
.map .bad{background:currentColor}.map .self{border-radius:50%;background:currentColor}
table{border-collapse:collapse;width:100%}
th{text-align:left;font-size:.82rem;font-weight:400;color:var(--soft)}
th,td{padding:.45rem .5rem .45rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
tr:last-child td{border-bottom:0}small{color:var(--soft)}
footer{color:var(--soft);font-size:.82rem}
@media(max-width:36rem){thead{display:none}td{border:0;padding:0}
tr{display:grid;grid-template-columns:1fr auto;gap:.1rem .8rem;padding:.6rem 0;border-bottom:1px solid var(--line)}
tr:last-child{border-bottom:0}td:nth-child(1){grid-row:1}td:nth-child(4){grid-row:1;grid-column:2;justify-self:end}
td:nth-child(2){grid-row:2;color:var(--soft)}td:nth-child(3){grid-row:2;grid-column:2;color:var(--soft);text-align:right}
td:nth-child(5){grid-row:3;grid-column:1/3}}
"""


def escape(text: str) -> str:
    """A text that somebody else may have written, for HTML."""
    return html.escape(inert(text))


def render(
    status: Status, readiness: tuple[bool, str], now: float, answers: Mapping[str, RoundTrips] = NOTHING_ASKED
) -> str:
    """The page.

    :param readiness: as /readyz says it: whether, and how things stand.
    :param now: Unix time in seconds.
    :param answers: what peers that were asked have answered, by their keys.
    """
    name = status.node_id or "this node"
    seconds = RELOAD_SECONDS if answers or not status.peers else FIRST_RELOAD_SECONDS
    parts = (
        f"<header><h1>{escape(name)}</h1>{_state(status, readiness[0])}",
        f'<p class="says">{escape(status.message)}</p></header>',
        *_troubles(status, readiness, now, answers),
        *_node(status, now),
        *_peers(status, answers),
        *_counters(status),
        _footer(status, now),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{seconds}">'
        f"<title>{escape(status.state.value)}: {escape(name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _state(status: Status, ready: bool) -> str:
    tags = _tag(status.state.value, _TONES[status.state])
    if ready and status.state is State.READY:
        return tags
    return tags + (_tag("ready", "ok") if ready else _tag("not ready", "bad"))


def _footer(status: Status, now: float) -> str:
    daemon = f"pyflannel {escape(status.version)}, pid {status.pid}, up {_since(status.started, now)}"
    return f"<footer>{daemon} &middot; reloads every {RELOAD_SECONDS} s</footer>"


def _tag(text: str, tone: str) -> str:
    return f'<span class="tag {tone}">{escape(text)}</span>'


def _since(moment: str, now: float) -> str:
    """How long ago an RFC 3339 time was."""
    return _duration(now - datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp())


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {name}"
    return f"{whole} s"


# What is wrong -------------------------------------------------------------------------------------------------------


def _troubles(
    status: Status, readiness: tuple[bool, str], now: float, answers: Mapping[str, RoundTrips]
) -> Iterator[str]:
    found = [*_wrong(status, readiness, now), *_silent(status.peers, answers)]
    if not found:
        return
    more = f"<li>and {len(found) - _TROUBLES} more: pyflannel status --all</li>" if len(found) > _TROUBLES else ""
    items = "".join(f"<li>{text}</li>" for text in found[:_TROUBLES])
    yield f'<section class="trouble"><h2>What is wrong</h2><ul>{items}{more}</ul></section>'


def _wrong(status: Status, readiness: tuple[bool, str], now: float) -> Iterator[str]:
    if not readiness[0] or status.state is not State.READY:
        yield escape(readiness[1])
    if status.store is not None and not status.store.connected:
        yield f"the store does not answer: {escape(status.store.location)}"
    for item in status.objects.list:
        if item.state == "failed":
            yield _object(item, now)
    for peer in status.peers:
        if peer.state in (PeerState.FAILED, PeerState.SKIPPED):
            yield f"{escape(_subnets(peer))} is {peer.state.value}: {escape(peer.reason)}"


def _silent(peers: Sequence[PeerStatus], answers: Mapping[str, RoundTrips]) -> Iterator[str]:
    for peer in peers:
        answer = answers.get(peer.key)
        if answer is not None and not answer.good:
            where = " ".join(filter(None, (peer.public_ip, peer.public_ipv6)))
            yield f"{escape(_subnets(peer))} at {escape(where)}: {escape(str(answer))}"


def _object(item: ObjectStatus, now: float) -> str:
    return f"the kernel refuses {escape(item.object)} (for {_since(item.since, now)}): {escape(item.error)}"


# The node and its peers ----------------------------------------------------------------------------------------------


def _node(status: Status, now: float) -> Iterator[str]:
    rows = [(title, text) for title, text in _facts(status, now) if text]
    items = "".join(f"<div><dt>{title}</dt><dd>{escape(text)}</dd></div>" for title, text in rows)
    yield f"<section><h2>This node</h2><dl>{items}</dl></section>"


def _facts(status: Status, now: float) -> Iterator[tuple[str, str]]:
    lease, underlay = status.lease, status.underlay
    yield "Subnet", " ".join(lease.subnets) if lease is not None else "none yet"
    if lease is not None:
        yield "Lease", _expiry(lease.expires_in, lease.reserved)
    yield "Network", " ".join(filter(None, (status.network, status.ipv6_network)))
    if status.backend is not None:
        details = (f"{name.replace('_', ' ')} {text}" for name, text in status.backend.details.items())
        yield "Backend", ", ".join((status.backend.name, *details))
    if underlay is not None:
        addresses = filter(None, (underlay.public_ipv4 or underlay.ipv4, underlay.public_ipv6 or underlay.ipv6))
        why = f" ({underlay.why})" if underlay.why else ""
        yield "Underlay", f"{underlay.interface}, MTU {underlay.mtu}{why}"
        yield "Public address", " ".join(addresses)
    if status.store is not None:
        yield "Store", status.store.location
    yield "Repaired", counted(status.repaired, "object") if status.repaired else ""
    if status.last_error is not None:
        yield f"Last trouble, {_since(status.last_error.when, now)} ago", status.last_error.what


def _expiry(expires_in: float | None, reserved: bool) -> str:
    if reserved or expires_in is None:
        return "a reservation"
    return f"{_duration(expires_in)} left" if expires_in > 0 else "has expired"


def _peers(status: Status, answers: Mapping[str, RoundTrips]) -> Iterator[str]:
    stands = {peer.key: _stand(peer, answers.get(peer.key)) for peer in status.peers}
    counts = Counter(stands.values())
    order = [*((state.value, _TONES[state]) for state in _ORDER[:-1]), _SILENT, (_OK.value, _TONES[_OK])]
    tags = " ".join(_tag(f"{counts[stand]} {stand[0]}", stand[1]) for stand in order if counts[stand])
    peers = sorted(status.peers, key=lambda peer: order.index(stands[peer.key]))
    yield f"<section><h2>{counted(len(peers) + 1, 'node')} {tags}</h2>"
    if len(peers) > 8:
        yield _map(status.peers, stands)
    yield "<table><thead><tr><th>Subnet</th><th>Node</th><th>Reached by</th><th>State</th><th></th></tr></thead><tbody>"
    yield _own_row(status)
    for peer in peers[:_ROWS]:
        yield _row(peer, stands[peer.key], answers.get(peer.key))
    yield "</tbody></table>"
    if len(peers) > _ROWS:
        yield f"<p><small>and {len(peers) - _ROWS} more: pyflannel status --all</small></p>"
    yield "</section>"


def _stand(peer: PeerStatus, answer: RoundTrips | None) -> _Stand:
    """How a peer stands in a word, and the word's tone: what the kernel holds for it, and whether it answers."""
    if peer.state is _OK and answer is not None and not answer.good:
        return _SILENT
    return peer.state.value, _TONES[peer.state]


def _map(peers: Sequence[PeerStatus], stands: Mapping[str, _Stand]) -> str:
    squares = (
        f'<i class="{tone}" title="{escape(f"{_subnets(peer)} {word}")}"></i>'
        for peer in peers[:_SQUARES]
        for word, tone in (stands[peer.key],)
    )
    return f'<div class="map" aria-hidden="true"><i class="self" title="this node"></i>{"".join(squares)}</div>'


def _own_row(status: Status) -> str:
    subnets = " ".join(status.lease.subnets) if status.lease is not None else "no subnet yet"
    underlay = status.underlay
    addresses = () if underlay is None else (underlay.public_ipv4, underlay.public_ipv6)
    own = status.state.value, _TONES[status.state]
    return _cells(subnets, f"{status.node_id} (this node)", addresses, own)


def _row(peer: PeerStatus, stand: _Stand, answer: RoundTrips | None) -> str:
    says = peer.reason or (str(answer) if answer is not None else "")
    return _cells(_subnets(peer), peer.node_id or "", (peer.public_ip, peer.public_ipv6), stand, says)


def _cells(subnets: str, node: str, addresses: Iterable[str | None], stand: _Stand, says: str = "") -> str:
    texts = "".join(f"<td>{escape(text)}</td>" for text in (subnets, node, " ".join(filter(None, addresses))))
    return f"<tr>{texts}<td>{_tag(*stand)}</td><td><small>{escape(says)}</small></td></tr>"


def _subnets(peer: PeerStatus) -> str:
    return " ".join(peer.subnets) or peer.key


def _counters(status: Status) -> Iterator[str]:
    rows = [(f"{kind} objects in place", str(counts.done)) for kind, counts in sorted(status.objects.counts.items())]
    rows += [(name, str(count)) for name, count in sorted(status.data_plane.items())]
    if rows:
        items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(count)}</dd></div>" for name, count in rows)
        yield f"<section><h2>Kernel and data plane</h2><dl>{items}</dl></section>"
