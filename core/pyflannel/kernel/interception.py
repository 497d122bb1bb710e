"""What somebody has put onto a device, and what sees its packets before the kernel routes them, or as they leave.

An XDP program (``xdp.rst``), filters of ``tc`` and a queueing discipline do their work silently, also where that is to
drop a packet. None of them is ours to remove: they are read, for those who look for a cause.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Final

from pyflannel.kernel.links import encode_link_query, parse_link
from pyflannel.kernel.model import QDISC_HANDLE
from pyflannel.kernel.qdiscs import encode_qdisc_dump
from pyflannel.kernel.rtsocket import RequestSocket
from pyflannel.kernel.wire import NLM_F_DUMP, attributes, message

__all__ = ["read_interception"]

_RTM_GETTFILTER = 46
_TCMSG = Struct("=BxxxiIII")
_TCA_KIND = 1
_IFLA_XDP = 43
_IFLA_XDP_ATTACHED = 2
_ROOT, _CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_NOTHING: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT})
"""What a kernel says that has no such thing."""


def read_interception() -> Mapping[str, tuple[str, ...]]:
    """Each device of this network namespace that has some of these, and what, in words.

    :raises KernelError: the kernel can't be asked.
    """
    requests = RequestSocket()
    try:
        names: dict[int, str] = {}
        found: dict[str, list[str]] = {}
        for answer in requests.dump(encode_link_query(None)):
            row = parse_link(answer.datagram, answer.start, answer.end)
            if row is not None:
                names[row.index] = row.name
                xdp = row.attributes.get(_IFLA_XDP, b"")
                attached = attributes(xdp, 0, len(xdp)).get(_IFLA_XDP_ATTACHED, b"\0")[0]
                found[row.name] = ["an XDP program"] if attached else []
        for link, words in _by_tc(requests):
            if link in names:
                found[names[link]].append(words)
        return {name: tuple(words) for name, words in found.items() if words}
    finally:
        requests.close()


def _by_tc(requests: RequestSocket) -> Iterator[tuple[int, str]]:
    """Index of a device, and what is there."""
    places = []
    for answer in requests.dump(encode_qdisc_dump(), _NOTHING):
        _, link, handle, parent, _ = _TCMSG.unpack_from(answer.datagram, answer.start)
        kind = _kind(answer.datagram, answer.start, answer.end)
        if parent == _CLSACT:
            places += [(link, _INGRESS)] if kind == "ingress" else [(link, _INGRESS), (link, _EGRESS)]
        elif parent == _ROOT and handle not in (0, QDISC_HANDLE):
            yield link, f"a foreign queueing discipline ({kind})"
    for link, place in places:
        request = message(_RTM_GETTFILTER, NLM_F_DUMP, _TCMSG.pack(0, link, 0, place, 0))
        filters = requests.dump(request, _NOTHING)
        kinds = sorted({_kind(each.datagram, each.start, each.end) for each in filters})
        if kinds:
            yield link, f"filters of tc on {'ingress' if place == _INGRESS else 'egress'} ({', '.join(kinds)})"


def _kind(datagram: bytes, start: int, end: int) -> str:
    return attributes(datagram, start + 20, end).get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
