"""Root queueing disciplines between the model and netlink (``linux/pkt_sched.h``, ``net/sched/sch_api.c``).

Ours have a handle of their own, which is all that tells them from others' on a device of ours. The kernel changes some
kinds in place and others not at all, and what a change leaves out stays as it was; so one that differs in what is
wanted of it is always taken away and made anew.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from pyflannel.kernel.model import QDISC_HANDLE, QDISC_OPTIONS, Qdisc
from pyflannel.kernel.wire import NLA_F_NESTED, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attribute, attributes, message

__all__ = [
    "FOREIGN",
    "RTM_DELQDISC",
    "RTM_NEWQDISC",
    "QdiscRow",
    "creation",
    "deletion",
    "encode_qdisc_dump",
    "parse_qdisc",
]

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38

_ROOT = 0xFFFFFFFF
_TCA_KIND = 1
_TCA_OPTIONS = 2
_QDISC = Struct("=BxxxiIII")
_U32 = Struct("=I")


class QdiscRow(NamedTuple):
    """A root queueing discipline as the kernel has it. ``handle`` is 0 for the one that a device has by itself."""

    link: int
    handle: int
    kind: str
    options: bytes

    def seen(self, link: str, wanted: Qdisc | None) -> Qdisc | None:
        """It as a value, with the options that the wanted one names; ``None`` if it is the kernel's own choice, or
        somebody's while nobody wants another."""
        if not self.handle:
            return None
        if self.handle != QDISC_HANDLE:
            return Qdisc(link, FOREIGN) if wanted is not None else None
        if wanted is None or wanted.kind != self.kind:
            return Qdisc(link, self.kind)
        return Qdisc(link, self.kind, tuple((name, self._option(name)) for name, _ in wanted.options))

    def _option(self, name: str) -> int:
        number = QDISC_OPTIONS[self.kind][name]
        raw = attributes(self.options, 0, len(self.options)).get(number, b"") if number else self.options[:4]
        return int(_U32.unpack(raw)[0]) if len(raw) == 4 else 0


FOREIGN = "foreign"
"""Stands for a kind where it is not ours: it differs from every one that can be wanted."""


def encode_qdisc_dump() -> bytes:
    """``RTM_GETQDISC``: those of all devices, which is the only question there is."""
    return message(RTM_GETQDISC, NLM_F_DUMP, _QDISC.pack(0, 0, 0, 0, 0))


def parse_qdisc(datagram: bytes, start: int, end: int) -> QdiscRow | None:
    """A root from the payload of ``RTM_NEWQDISC`` or ``RTM_DELQDISC``; ``None`` for any other."""
    _, link, handle, parent, _ = _QDISC.unpack_from(datagram, start)
    if parent != _ROOT:
        return None
    found = attributes(datagram, start + 20, end)
    kind = found.get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return QdiscRow(link, handle, kind, found.get(_TCA_OPTIONS, b""))


def creation(qdisc: Qdisc, link: int) -> bytes:
    """The request for one in the place of the kernel's own choice."""
    body = _QDISC.pack(0, link, QDISC_HANDLE, _ROOT, 0) + attribute(_TCA_KIND, qdisc.kind.encode() + b"\0")
    numbers = QDISC_OPTIONS.get(qdisc.kind, {})
    said = [(numbers[name], _U32.pack(value)) for name, value in qdisc.options]
    if said and not said[0][0]:
        body += attribute(_TCA_OPTIONS, said[0][1])
    elif said:
        body += attribute(_TCA_OPTIONS | NLA_F_NESTED, b"".join(attribute(*option) for option in said))
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def deletion(row: QdiscRow) -> bytes:
    """The request after which a device has the kernel's choice again."""
    return message(RTM_DELQDISC, 0, _QDISC.pack(0, row.link, row.handle, _ROOT, 0))
