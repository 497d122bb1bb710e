"""What a node's kernel should hold, as frozen values.

Every value has a ``key``: the tuple by which the kernel tells two such objects apart. Two values with one key can't
both be there; a value that differs from the actual one under the same key is a change in place. Links are named, not
numbered: an interface index belongs to one life of a device, a name to what we want. As text, a value reads like the
iproute2 command that would make it. A value that no kernel could hold is refused by its constructor with a
:class:`ValueError` that names the field, so that everything behind it can be encoded.

The order of :class:`Kind` is the order of creation (a route needs its link); deletion runs backwards.
"""

from pyflannel.kernel.model.desired import DesiredState, KernelObject
from pyflannel.kernel.model.encapsulations import (
    Encapsulation,
    ForeignEncapsulation,
    IpEncapsulation,
    MplsEncapsulation,
    Seg6Encapsulation,
)
from pyflannel.kernel.model.entries import (
    QDISC_HANDLE,
    QDISC_OPTIONS,
    Address,
    FdbEntry,
    IPInterface,
    Neighbour,
    Qdisc,
    Sysctl,
)
from pyflannel.kernel.model.keys import MAIN_TABLE, Key, Kind, neighbour_key, route_key
from pyflannel.kernel.model.labels import MplsRoute
from pyflannel.kernel.model.links import (
    OWNER,
    Attributes,
    AttributeValue,
    ForeignInfo,
    GenericInfo,
    Link,
    LinkInfo,
    TunInfo,
    VxlanInfo,
)
from pyflannel.kernel.model.routes import (
    DISCARDING,
    ROUTE_METRICS,
    ROUTE_PROTOCOL,
    ROUTE_TYPES,
    RULE_ACTIONS,
    Route,
    Rule,
)
from pyflannel.kernel.model.tunnels import (
    XFRM_DIRECTIONS,
    XFRM_INTERFACES,
    Endpoint,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)

__all__ = [
    "DISCARDING",
    "MAIN_TABLE",
    "OWNER",
    "QDISC_HANDLE",
    "QDISC_OPTIONS",
    "ROUTE_METRICS",
    "ROUTE_PROTOCOL",
    "ROUTE_TYPES",
    "RULE_ACTIONS",
    "XFRM_DIRECTIONS",
    "XFRM_INTERFACES",
    "Address",
    "AttributeValue",
    "Attributes",
    "DesiredState",
    "Encapsulation",
    "Endpoint",
    "FdbEntry",
    "ForeignEncapsulation",
    "ForeignInfo",
    "GenericInfo",
    "IPInterface",
    "IpEncapsulation",
    "KernelObject",
    "Key",
    "Kind",
    "Link",
    "LinkInfo",
    "MplsEncapsulation",
    "MplsRoute",
    "Neighbour",
    "Qdisc",
    "Route",
    "Rule",
    "Seg6Encapsulation",
    "Sysctl",
    "TunInfo",
    "VxlanInfo",
    "WireguardDevice",
    "WireguardPeer",
    "XfrmPolicy",
    "neighbour_key",
    "route_key",
]
