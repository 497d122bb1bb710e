"""``subnet.env``: how the rest of the node (a container runtime, a CNI plugin) learns which subnet it got.

The file is flannel's, byte for byte. It is written whole and renamed into place, so that a reader never sees half of
one, and it is our memory too: the subnet it names is the one we ask for when the store has forgotten us.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from pyflannel.errors import ConfigError, KernelError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import IPNetwork, Subnets
from pyflannel.small import files
from pyflannel.small.scarcity import lacking

__all__ = ["DEFAULT_PATH", "Previous", "assignments", "read_previous", "render", "write"]

DEFAULT_PATH: Final = Path("/run/flannel/subnet.env")

_READ_LIMIT: Final = 64 * 1024
"""Bytes. A subnet.env has some two hundred; what is larger is something else."""

N = TypeVar("N", IPv4Network, IPv6Network)


def render(network: NetworkConfig, subnets: Subnets, mtu: int, ip_masq: bool) -> str:
    """The file's text. ``subnets`` must fit ``network``; ``mtu`` in bytes.

    ``FLANNEL_SUBNET`` is the subnet's first usable address and its length: what a bridge in it is configured with.
    """
    lines = []
    if network.ipv4 is not None and subnets.ipv4 is not None:
        lines += [f"FLANNEL_NETWORK={network.ipv4.network}", f"FLANNEL_SUBNET={_first_usable(subnets.ipv4)}"]
    if network.ipv6 is not None and subnets.ipv6 is not None:
        lines += [f"FLANNEL_IPV6_NETWORK={network.ipv6.network}", f"FLANNEL_IPV6_SUBNET={_first_usable(subnets.ipv6)}"]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "".join(f"{line}\n" for line in lines)


def _first_usable(subnet: IPNetwork) -> str:
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"


def write(path: Path, text: str, what: str = "subnet file", option: str = "--subnet-file") -> bool:
    """Make ``path`` hold ``text``; see :func:`pyflannel.small.files.replace`.

    :param what: what the file is, and which ``option`` names it, for the message.
    :returns: whether it was written.
    :raises ConfigError: it can't be written there.
    :raises KernelError: it could not be written now, for want of descriptors or memory.
    """
    try:
        return files.replace(path, text)
    except OSError as error:
        scarce = lacking(error)
        if scarce:
            raise KernelError(f"{what} {path}: can't be written: {scarce}") from error
        raise ConfigError(
            f"{what} {path}: can't be written: {error.strerror}; name another place with {option}, or make this one "
            "writable"
        ) from error


class Previous(NamedTuple):
    """The subnets a file names, or ``None`` and the reason why it names none."""

    subnets: Subnets | None
    reason: str = ""


def read_previous(path: Path) -> Previous:
    """The subnets that an earlier run wrote into ``path``. Never raises: a damaged file is one that says nothing."""
    try:
        text = files.read_own(path, _READ_LIMIT).decode()
    except OSError as error:
        return Previous(None, f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        return Previous(None, f"{path}: not a text file")
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Previous:
    values = dict(assignments(text))
    try:
        ipv4 = _subnet(IPv4Network, values, "FLANNEL_SUBNET")
        ipv6 = _subnet(IPv6Network, values, "FLANNEL_IPV6_SUBNET")
    except ValueError as error:
        return Previous(None, f"{source}: {error}")
    if ipv4 is None and ipv6 is None:
        return Previous(None, f"{source}: names no FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET")
    return Previous(Subnets(ipv4, ipv6))


_ASSIGNMENT: Final = re.compile(r"\s*(?:export\s+)?(?P<key>\w+)\s*[=:]\s*(?P<value>.*)", re.ASCII)


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """The variables of a file that a shell could source, as flanneld reads them: exported or not, with or without
    quotes, with comments; other lines say nothing."""
    for line in text.splitlines():
        match = _ASSIGNMENT.fullmatch(line)
        if match is not None:
            yield match["key"], _unquoted(match["value"])


def _unquoted(value: str) -> str:
    end = value.find(value[0], 1) if value[:1] in ("'", '"') else -1
    return value[1:end] if end > 0 else re.split(r"\s#", value, maxsplit=1)[0].strip()


def _subnet(kind: type[N], values: Mapping[str, str], key: str) -> N | None:
    text = values.get(key)
    if text is None:
        return None
    try:
        if "/" not in text or "%" in text:
            raise ValueError
        return kind(text, strict=False)
    except ValueError:
        raise ValueError(f"{key} is {text!r}, which is no {kind.__name__}") from None
