"""Networks to plan for: a backend with options, and nodes that hold subnets, as hypothesis draws them.

A :class:`Scene` is what a planner is asked about. Its nodes publish what they would, their leases go through the text
that a store holds, and a hostile one of them says whatever JSON can say.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from pyflannel.backend import Backend, Node, parse_options
from pyflannel.errors import ConfigError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, Lease, LeaseAttributes, Subnets
from pyflannel.network.underlay import Underlay, UnderlayRoute
from pyflannel.testing._planner import Planner

__all__ = [
    "Scene",
    "accepted_type",
    "build",
    "document",
    "example",
    "hostile",
    "lease_of",
    "make_node",
    "option_fields",
    "scenes",
]

ROUTES = (
    UnderlayRoute(ip_network("192.0.2.0/24")),
    UnderlayRoute(ip_network("0.0.0.0/0"), IPv4Address("192.0.2.254")),
    UnderlayRoute(ip_network("2001:db8::/64")),
    UnderlayRoute(ip_network("::/0"), IPv6Address("2001:db8::ffff")),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A backend and the nodes that use it; the leases are what the nodes' stores would say."""

    backend: Planner
    nodes: tuple[Node, ...]
    leases: tuple[Lease, ...]


def option_fields(kind: type[Backend[Any]]) -> dict[str, Any]:
    """Key in the ``Backend`` dictionary to field, for all options of a backend."""
    return {str(item.metadata["key"]): item for item in fields(kind.Options) if "key" in item.metadata}


def accepted_type(kind: type[Backend[Any]], name: str) -> tuple[Any, bool]:
    """The type of an option's field, and whether it may be ``None``."""
    hint = typing.get_type_hints(kind.Options)[name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        return next(part for part in parts if part is not type(None)), type(None) in parts
    return hint, False


def document(kind: type[Backend[Any]], options: Mapping[str, JSON], versions: Sequence[int]) -> dict[str, JSON]:
    """A network document for families ``versions``."""
    network: dict[str, JSON] = {"Backend": {"Type": kind.name, **options}}
    if 4 in versions:
        network["Network"] = "10.244.0.0/16"
    else:
        network["EnableIPv4"] = False
    if 6 in versions:
        network |= {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
    return network


def build(kind: type[Backend[Any]], network: NetworkConfig) -> Planner:
    """The backend for a network, as the daemon makes it."""
    options, unknown = parse_options(kind.Options, network.backend_options)
    assert not unknown, f"unknown options: {unknown}"
    return Planner(kind, options)


def example(
    kind: type[Backend[Any]], state: Path, versions: Sequence[int], options: Mapping[str, JSON], mtu: int = 1500
) -> Scene:
    """A network of three nodes, the same every time."""
    network = NetworkConfig.from_json(json.dumps(document(kind, options, versions)))
    backend = build(kind, network)
    nodes = tuple(make_node(network, number, state, mtu) for number in (1, 2, 3))
    for node in nodes:
        node.state_dir.mkdir(parents=True, exist_ok=True)
    return Scene(backend, nodes, tuple(lease_of(backend, node) for node in nodes))


def make_node(network: NetworkConfig, number: int, state: Path, mtu: int = 1500) -> Node:
    """Node ``number`` (1 to 200): its addresses and subnets follow from the number."""
    ipv4, ipv6 = IPv4Address(f"192.0.2.{number}"), IPv6Address(f"2001:db8::{number:x}")
    underlay = Underlay("eth0", mtu, ipv4, ipv6, ipv4, ipv6, ROUTES)
    subnets = Subnets(
        IPv4Network(f"10.244.{number}.0/24") if network.ipv4 else None,
        IPv6Network(f"fd00:10:0:{number:x}::/64") if network.ipv6 else None,
    )
    return Node(f"node-{number}", network, underlay, subnets, state / f"node-{number}")


def lease_of(backend: Planner, node: Node, **changes: Any) -> Lease:
    """What other nodes read about ``node``: written by it, stored as text, read back."""
    published = backend.publish(node)
    attributes = LeaseAttributes(
        public_ip=node.underlay.public_ipv4 if node.network.ipv4 else None,
        public_ipv6=node.underlay.public_ipv6 if node.network.ipv6 else None,
        backend_type=None if backend.capabilities.untyped_leases else backend.name,
        backend_data=published.data,
        backend_v6_data=published.v6_data,
        node_id=node.node_id,
    )
    return Lease.from_record(node.subnets.key, replace(attributes, **changes).to_json())


def _values(kind: type[Backend[Any]], item: Any) -> st.SearchStrategy[JSON] | None:
    """Values of one option that the table allows; ``None`` where only an author knows some (texts)."""
    accepted, _ = accepted_type(kind, item.name)
    if accepted is bool:
        return st.booleans()
    if accepted is int:
        minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
        return st.integers(0 if minimum is None else minimum, 65535 if maximum is None else maximum)
    return None


def _options(kind: type[Backend[Any]], variants: Sequence[Mapping[str, JSON]]) -> st.SearchStrategy[dict[str, JSON]]:
    drawn = {key: values for key, item in option_fields(kind).items() if (values := _values(kind, item)) is not None}
    any_values = st.fixed_dictionaries({}, optional=drawn)
    return st.tuples(st.sampled_from(list(variants)), any_values).map(lambda pair: {**pair[1], **pair[0]})


@st.composite
def scenes(
    draw: st.DrawFn, kind: type[Backend[Any]], variants: Sequence[Mapping[str, JSON]], state: Path, nodes: int = 3
) -> Scene:
    """Networks that ``kind`` says it can serve, with up to ``nodes`` nodes.

    :param variants: ``Backend`` dictionaries to try; other options are drawn within the bounds of the table.
    :param state: where the nodes' state directories are.
    """
    able = [version for version, can in ((4, kind.capabilities.ipv4), (6, kind.capabilities.ipv6)) if can]
    versions = draw(st.lists(st.sampled_from(able), min_size=1, unique=True))
    text = json.dumps(document(kind, draw(_options(kind, variants)), versions))
    network = NetworkConfig.from_json(text)
    try:
        backend = build(kind, network)
    except ConfigError:
        assume(False)  # options that don't go together
    numbers = draw(st.lists(st.integers(1, 200), min_size=2, max_size=nodes, unique=True))
    mtu = draw(st.sampled_from([1280, 1400, 1500, 9000, 65535]))
    members = []
    for number in numbers:
        node = make_node(network, number, state, mtu)
        node.state_dir.mkdir(parents=True, exist_ok=True)
        members.append(node)
    return Scene(backend, tuple(members), tuple(lease_of(backend, node) for node in members))


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_TEXTS = st.sampled_from(
    [
        "",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "::",
        "127.0.0.1",
        "255.255.255.255",
        "A" * 5000,
    ]
)
_ANY = st.recursive(
    _SCALARS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _mutations(good: JSON) -> st.SearchStrategy[JSON]:
    """Anything at all, or what a good node publishes with one part of it exchanged, dropped or spelt otherwise."""
    if not isinstance(good, dict) or not good:
        return _ANY
    keys = st.sampled_from(sorted(good))
    exchanged = st.tuples(keys, _ANY).map(lambda pair: {**good, pair[0]: pair[1]})
    dropped = keys.map(lambda key: {name: value for name, value in good.items() if name != key})
    respelt = st.just({name.upper(): value for name, value in good.items()})
    return _ANY | exchanged | dropped | respelt


def hostile(lease: Lease) -> st.SearchStrategy[Lease]:
    """Leases like ``lease`` whose backend data are not what the backend wrote.

    Subnets and addresses stay good: what is wrong with those, the core finds before a backend is asked.
    """
    attributes = lease.attributes
    return st.builds(
        lambda data, v6_data, extra: lease.with_attributes(
            LeaseAttributes.from_json(
                replace(attributes, backend_data=data, backend_v6_data=v6_data, extra=extra).to_json()
            )
        ),
        _mutations(attributes.backend_data),
        _mutations(attributes.backend_v6_data),
        st.dictionaries(st.sampled_from(["extra", "Future"]), _SCALARS, max_size=1),
    )
