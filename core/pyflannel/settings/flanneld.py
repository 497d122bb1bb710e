"""flanneld's own flags, to the letter: what each of 0.28.10 means there, and how it is met here.

flanneld is a Go program. Its whole numbers may be written ``0x1f90`` or ``1_000``, but for ``v``, which klog reads; an
empty text counts as not given, but in a flag that wants a number or a boolean; a ``FLANNELD_`` variable that is no
number, or neither true nor false, is logged and passed over. What flanneld ignores must not end a node that is moved to
pyflannel: it is ignored here too, with a warning that names it. What flanneld passes over although it changes how the
node works is refused instead.

:data:`FLAGS` is the one list of these flags: it drives :func:`meaning`, and the table in the documentation is made of
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["FLAGS", "IN_KUBERNETES", "NOT_IN_KUBERNETES", "FlanneldFlag", "Meaning", "go_integer", "meaning", "table"]

SAME: Final = "Works as there."


class Meaning(NamedTuple):
    """What given texts come to: the texts to read instead, none if the flag counts as not given."""

    texts: tuple[str, ...]
    warning: str = ""


@dataclass(frozen=True, slots=True)
class FlanneldFlag:
    """One flag of flanneld 0.28.10.

    :param here: what it does here, in a sentence or two for the documentation.
    :param number: a whole number of Go's: what to read instead of it.
    :param boolean: true or false.
    :param ignored: why nothing is done with it: a text that is wrong matters only in a flag.
    :param empty: the text that an empty one stands for; ``None``: an empty one counts as not given.
    """

    name: str
    here: str = SAME
    number: Callable[[int], Meaning] | None = None
    boolean: bool = False
    ignored: str = ""
    empty: str | None = None


_NUMBER: Final = re.compile(r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])*|[1-9](?:_?[0-9])*)")


def go_integer(text: str) -> int | None:
    """A whole number as Go's ``flag`` package reads it (``strconv.ParseInt`` with base 0), else ``None``."""
    if len(text) > 32 or not _NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-").replace("_", "").lower()
    octal = re.fullmatch(r"0[0-7]+", digits)  # 017 is octal there, and refused by Python
    value = int(digits, 8) if octal else int(digits, 0)
    value = -value if text.startswith("-") else value
    return value if -(2**63) <= value < 2**63 else None


def _klog_integer(text: str) -> int | None:
    """The same as klog reads it (base 10, 32 bits)."""
    number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,32}", text) else None
    return number if number is not None and -(2**31) <= number < 2**31 else None


def _as_it_is(number: int) -> Meaning:
    return Meaning((str(number),))


def _never_negative(number: int) -> Meaning:
    return Meaning((str(max(number, 0)),))


def _resync(seconds: int) -> Meaning:
    if seconds >= 1:
        return _as_it_is(seconds)
    return Meaning(("1",), f"{seconds} would be without a pause; 1 second is taken")


NO_LEVELS: Final = "log lines are chosen by --log-level alone"

_WITH_TLS = "Works as there; with endpoints of `http://` ignored with a warning, as flanneld speaks no TLS then."
_WITH_KUBERNETES = "Works as there; without `--kube-subnet-mgr` (or `--store kubernetes://`) ignored with a warning."

FLAGS: Final[tuple[FlanneldFlag, ...]] = (
    FlanneldFlag(
        "etcd-endpoints",
        "Works as there. Refused: `http` and `https` in one list, of which flanneld uses one for all; a path.",
    ),
    FlanneldFlag(
        "etcd-prefix",
        "Works as there: keys are made as Go's `path.Join` makes them, so `flannel/network` has no slash in front, and "
        "`/` puts the document at `/config`. An empty one is refused.",
        empty="",
    ),
    FlanneldFlag(
        "etcd-keyfile",
        _WITH_TLS + " Refused without `--etcd-certfile`: flanneld would drop both without a word.",
    ),
    FlanneldFlag(
        "etcd-certfile",
        _WITH_TLS + " Refused without `--etcd-keyfile`: flanneld would drop both without a word.",
    ),
    FlanneldFlag(
        "etcd-cafile",
        _WITH_TLS + " It also counts without a certificate of our own, where flanneld drops it.",
    ),
    FlanneldFlag("etcd-username", "Works as there; without a password ignored with a warning."),
    FlanneldFlag("etcd-password", "Works as there; without `--etcd-username` ignored with a warning."),
    FlanneldFlag(
        "iface",
        "Works as there. If none of those named exists, the node waits for one, and says so, where flanneld ends.",
    ),
    FlanneldFlag(
        "iface-regex",
        "Works as there: IPv4 addresses of all interfaces are looked at before names; then here IPv6 addresses, too. "
        "Where it matches one address of several, that one is taken. Go's bracket classes such as `[[:digit:]]` are "
        "known; `\\p`, `\\Q` and `(?U)` are refused.",
    ),
    FlanneldFlag("iface-can-reach"),
    FlanneldFlag("subnet-file", "Works as there. An empty one is refused.", empty=""),
    FlanneldFlag("public-ip"),
    FlanneldFlag("public-ipv6"),
    FlanneldFlag(
        "subnet-lease-renew-margin",
        "Works as there: 1 to 1439, with the 24 hours of flanneld's leases. In Kubernetes leases don't expire.",
        number=_as_it_is,
    ),
    FlanneldFlag("ip-masq", boolean=True),
    FlanneldFlag("ip-masq-fully-random-disable", boolean=True),
    FlanneldFlag(
        "kube-subnet-mgr",
        "Works as there: the store `kubernetes://`. All `--etcd-` flags are then ignored with a warning.",
        boolean=True,
    ),
    FlanneldFlag("kube-api-url", _WITH_KUBERNETES),
    FlanneldFlag("kube-annotation-prefix", _WITH_KUBERNETES + " An empty one is refused.", empty=""),
    FlanneldFlag("kubeconfig-file", _WITH_KUBERNETES),
    FlanneldFlag("version", "Works as there, on standard output. `FLANNELD_VERSION` is ignored with a warning."),
    FlanneldFlag(
        "healthz-ip",
        "Works as there: an empty one, or 0.0.0.0, means every address, of both families. Refused: a host name other "
        "than `localhost`.",
        empty="::",
    ),
    FlanneldFlag("healthz-port", "Works as there: less than 1 is off.", number=_never_negative),
    FlanneldFlag(
        "iptables-resync",
        "Works as there; less than 1, with which flanneld never pauses, is taken as 1 with a warning. `2.5` is taken, "
        "too, which flanneld refuses.",
        number=_resync,
    ),
    FlanneldFlag("iptables-forward-rules", boolean=True),
    FlanneldFlag("ip-blackhole-route", boolean=True),
    FlanneldFlag(
        "net-config-path",
        "In Kubernetes works as there. Elsewhere flanneld ignores it; here the file creates the network config in a "
        "store that has none, and a store that says something else is refused. flanneld's default, "
        "`/etc/kube-flannel/net-conf.json`, is ignored with a warning there if it does not exist.",
    ),
    FlanneldFlag("set-node-network-unavailable", _WITH_KUBERNETES, boolean=True),
    FlanneldFlag("v", "Works as there: 1 or more is `--log-level debug`, any less is none.", number=_never_negative),
    FlanneldFlag(
        "vmodule",
        "Ignored with a warning: there are no levels by file. What flanneld refuses is refused.",
        ignored=NO_LEVELS,
    ),
    FlanneldFlag("log_backtrace_at", "Ignored with a warning. What flanneld refuses is refused.", ignored=NO_LEVELS),
)
"""In the order of flanneld's main.go."""

_BY_NAME: Final = {flag.name: flag for flag in FLAGS}

IN_KUBERNETES: Final = ("kube-api-url", "kube-annotation-prefix", "kubeconfig-file", "set-node-network-unavailable")
"""What flanneld looks at only with ``--kube-subnet-mgr``."""

NOT_IN_KUBERNETES: Final = tuple(flag.name for flag in FLAGS if flag.name.startswith("etcd-"))
"""What flanneld does not look at with ``--kube-subnet-mgr``."""

_BOOLEANS: Final = frozenset(["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"])


def meaning(name: str, texts: Sequence[str], variable: bool) -> Meaning:
    """What ``texts``, given for the setting ``name``, mean to flanneld, in texts that the settings read.

    :param variable: they come from a ``FLANNELD_`` variable, where flanneld passes over what it can't read.
    """
    flag = _BY_NAME.get(name)
    if flag is None:
        return Meaning(tuple(texts))
    if any(not text for text in texts) and (variable or not (flag.boolean or flag.number)):
        texts = [text or flag.empty for text in texts if text or flag.empty is not None]  # type: ignore[misc]
    if variable and flag.ignored and texts:  # flanneld passes over what is wrong in it
        return Meaning((), f"ignored: {flag.ignored}")
    if variable and flag.boolean and texts and texts[-1] not in _BOOLEANS:
        return Meaning((), f"{texts[-1]!r} is neither true nor false; it is ignored, as flanneld does")
    if flag.number is None or not texts:
        return Meaning(tuple(texts))
    number = (_klog_integer if name == "v" else go_integer)(texts[-1])
    if number is not None:
        return flag.number(number)
    if variable and name != "subnet-lease-renew-margin":  # of which flanneld makes 0, and ends
        return Meaning((), f"{texts[-1]!r} is not a whole number; it is ignored, as flanneld does")
    return Meaning(tuple(texts))


def table() -> list[str]:
    """The documentation's table, line by line."""
    rows = [
        f"| `--{flag.name}` | `FLANNELD_{flag.name.upper().replace('-', '_')}` | {flag.here} |"
        for flag in sorted(FLAGS, key=lambda flag: flag.name)
    ]
    return ["| flag | variable | here |", "|---|---|---|", *rows]
