"""What a value of the model may hold: the limits of the kernel's fields, and the refusal that names the field."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Final

from pyflannel.small.secret import Secret

__all__ = [
    "ADDRESS_RULE",
    "INTERFACES",
    "LINK_LAYER_RULE",
    "LINK_RULE",
    "MAC_RULE",
    "NETWORKS",
    "U8",
    "U16",
    "U24",
    "U32",
    "U64",
    "check_flags",
    "check_link",
    "check_number",
    "check_secret",
    "check_type",
    "fits_a_link",
    "is_address",
    "is_hardware_address",
    "is_mac",
    "is_pairs",
    "is_public_key",
    "refuse",
]

U8: Final = 0xFF
U16: Final = 0xFFFF
U24: Final = 0xFFFFFF
U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF

_MOST_ATTRIBUTES: Final = 1 << 14
"""Two of the 16 bits of an attribute's number are flags."""

INTERFACES: Final = frozenset({IPv4Interface, IPv6Interface})
NETWORKS: Final = frozenset({IPv4Network, IPv6Network})

is_mac = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){5}").fullmatch
is_hardware_address = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){0,31}").fullmatch
_is_name = re.compile(r"(?!\.{1,2}$)[^/:\s\0]+", re.ASCII).fullmatch
is_public_key = re.compile("[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=").fullmatch

MAC_RULE: Final = "must be a MAC address as xx:xx:xx:xx:xx:xx in lower case"
LINK_LAYER_RULE: Final = f"{MAC_RULE}, or an IPv4Address or IPv6Address without a scope"
ADDRESS_RULE: Final = "must be an IPv4Address or IPv6Address without a scope"
LINK_RULE: Final = "must be the name of a link"


def refuse(item: object, name: str, rule: str) -> ValueError:
    """The refusal of what a field holds; a secret is not shown."""
    value = getattr(item, name)
    shown = "hidden" if isinstance(value, bytes | Secret) else repr(value)
    return ValueError(f"{type(item).__name__}: {name} is {shown if len(shown) <= 100 else shown[:100] + '...'}: {rule}")


def is_address(value: object) -> bool:
    """Whether something is an address without a scope."""
    return type(value) is IPv4Address or (type(value) is IPv6Address and value.scope_id is None)


def check_number(item: object, name: str, most: int, least: int = 0) -> None:
    """Refuse a field that is not a whole number, or out of bounds."""
    value = getattr(item, name)
    if type(value) is not int or not least <= value <= most:
        raise refuse(item, name, f"must be a whole number between {least} and {most}")


def check_type(item: object, name: str, kind: type, rule: str) -> None:
    """Refuse a field that is not of just this type."""
    if type(getattr(item, name)) is not kind:
        raise refuse(item, name, rule)


def check_flags(item: object, *names: str) -> None:
    """Refuse fields that are neither True nor False."""
    for name in names:
        check_type(item, name, bool, "must be True or False")


def check_link(item: object, name: str) -> None:
    """Refuse a field that can name no link."""
    value = getattr(item, name)
    if type(value) is not str or not value:
        raise refuse(item, name, LINK_RULE)


def fits_a_link(name: str) -> bool:
    """Whether the kernel can give a link this name."""
    return _is_name(name) is not None and len(name.encode(errors="surrogateescape")) <= 15


def check_secret(item: object, name: str) -> None:
    """Refuse a field that is neither a secret of 32 bytes nor ``None``."""
    value = getattr(item, name)
    if value is not None and (type(value) is not Secret or len(value.reveal()) != 32):
        raise refuse(item, name, "must be a Secret of 32 bytes, or None")


def is_pairs(value: Any) -> bool:
    """Whether a value is made of attributes' names and values, at any depth."""
    if type(value) is not tuple or not all(type(pair) is tuple and len(pair) == 2 for pair in value):
        return False
    return all(_is_attribute(name, item) for name, item in value)


def _is_attribute(name: object, value: object) -> bool:
    if type(name) is int:
        return 0 < name < _MOST_ATTRIBUTES and type(value) is bytes
    return type(name) is str and (type(value) is not tuple or is_pairs(value))
