"""Nodes of Kubernetes as leases: annotations and pod CIDRs on one side, the texts that the core knows on the other.

The idea: a Node is a lease if flannel's annotations say so (``kube-subnet-manager: "true"``) and it has a pod CIDR.
The pod CIDRs make the lease's key, the annotations its value, and both directions are pure functions here. Whatever
else a Node carries, and the kubelet changes it all the time, is not looked at: :class:`Sieve` tells from an event's
bytes, without reading it as JSON, that nothing of ours is different.

Flannel's annotations are described in ``docs/stores/kubernetes.md``. Two are ours: ``node-id``, which tells two daemons
on one Node apart, and ``extra``, what else a lease says. flanneld ignores both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final

from pyflannel.errors import ConfigError, StoreDeniedError
from pyflannel.store import Change, Record

__all__ = [
    "CONDITION",
    "DEFAULT_PREFIX",
    "Annotations",
    "ClusterNodes",
    "Member",
    "Sieve",
    "condition_of",
    "not_ready_since",
    "read_member",
]

DEFAULT_PREFIX: Final = "flannel.alpha.coreos.com"

CONDITION: Final = "NetworkUnavailable"
"""The condition of a Node that keeps ordinary pods away from it (a taint follows) while it is true."""

_DATA: Final = {"BackendData": "backend-data", "BackendV6Data": "backend-v6-data"}
_PUBLIC: Final = {"PublicIP": "public-ip", "PublicIPv6": "public-ipv6"}
_TEXT: Final = {"BackendType": "backend-type", "NodeID": "node-id"}
_KNOWN: Final = {*_DATA, *_PUBLIC, *_TEXT}


class Annotations:
    """The names of flannel's annotations below a prefix.

    :raises ConfigError: the prefix is none that an annotation's name can begin with.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        domain, slash, name = prefix.partition("/")
        if not slash:
            prefix += "/"
        elif name and name[-1] not in "-/":
            prefix += "-"
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", domain) or not re.fullmatch(r"[a-z0-9_-]*", name):
            raise ConfigError(
                f"annotation prefix {prefix!r}: expected a domain with an optional name behind one slash, "
                f"such as {DEFAULT_PREFIX}"
            )
        self.prefix = prefix
        self._names = {name: prefix + name for name in (*_DATA.values(), *_PUBLIC.values(), *_TEXT.values())}
        self.managed = f"{prefix}kube-subnet-manager"
        self.extra = f"{prefix}extra"
        self._operators = {key: (f"{prefix}{name}-overwrite", f"{prefix}node-{name}") for key, name in _PUBLIC.items()}

    def value(self, annotations: Mapping[str, str]) -> str:
        """A lease's value as the core reads it. What can't be read is passed on as text: the core says so."""
        try:
            return self._value(annotations, _parsed)
        except RecursionError:  # Python reads brackets that are nested a little deeper than those it writes
            return self._value(annotations, lambda text: text)

    def _value(self, annotations: Mapping[str, str], read: Callable[[str | None], Any]) -> str:
        names = self._names
        document: dict[str, Any] = {key: annotations.get(names[name]) or None for key, name in _PUBLIC.items()}
        for key, name in _TEXT.items():
            if text := annotations.get(names[name]):
                document[key] = text
        for key, name in _DATA.items():
            data = read(annotations.get(names[name]))
            if data is not None:
                document[key] = data
        extra = read(annotations.get(self.extra))
        if isinstance(extra, dict):
            document.update((key, item) for key, item in extra.items() if key not in document)
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False)

    def wanted(self, value: str, annotations: Mapping[str, str], backend_type: str) -> dict[str, str | None]:
        """What the annotations must be for a lease to say ``value``; ``None``: absent.

        An operator's overwrite stands for the address that the node has found. ``backend_type`` is written where the
        value has none, as flannel does.

        :raises StoreDeniedError: an overwrite is no address of its family, with which no peer could do anything.
        """
        document = json.loads(value)
        wanted: dict[str, str | None] = {self.managed: "true"}
        for key, name in _PUBLIC.items():
            address = document.get(key)
            wanted[self._names[name]] = (self._overwritten(key, annotations) or address) if address else None
        for key, name in _TEXT.items():
            wanted[self._names[name]] = document.get(key)
        wanted[self._names["backend-type"]] = document.get("BackendType") or backend_type
        for (key, name), public in zip(_DATA.items(), _PUBLIC, strict=True):
            data = document.get(key)
            wanted[self._names[name]] = _compact(data) if data is not None or document.get(public) else None
        extra = {key: item for key, item in document.items() if key not in _KNOWN}
        wanted[self.extra] = _compact(extra) if extra else None
        return wanted

    def public(self, annotations: Mapping[str, str | None]) -> dict[str, str | None]:
        """The addresses among these annotations, by the keys of a lease's value."""
        return {key: annotations.get(self._names[name]) for key, name in _PUBLIC.items()}

    @property
    def addresses(self) -> tuple[str, ...]:
        """The keys of a lease's value that an operator may overwrite."""
        return tuple(self._operators)

    def overwrite(self, key: str, annotations: Mapping[str, str]) -> str:
        """What an operator wants in place of the address that the node has found; empty if nothing."""
        return next((text for name in self._operators[key] if (text := annotations.get(name))), "")

    def _overwritten(self, key: str, annotations: Mapping[str, str]) -> str:
        text = self.overwrite(key, annotations)
        version = 4 if key == "PublicIP" else 6
        kind: type[IPv4Address | IPv6Address] = IPv4Address if version == 4 else IPv6Address
        try:
            if text:
                kind(text)
            return text
        except ValueError:
            name = next(name for name in self._operators[key] if annotations.get(name))
            raise StoreDeniedError(
                f"annotation {name} of this Node is {text!r}, which is no IPv{version} address: correct it, or "
                f"'kubectl annotate node NAME {name}-'"
            ) from None

    def chosen(self, annotations: Mapping[str, str]) -> tuple[str, ...]:
        """The addresses that an operator has chosen among this node's own."""
        return tuple(text for _, name in self._operators.values() if (text := annotations.get(name)))

    def concerning(self, annotations: Mapping[str, str]) -> dict[str, str]:
        """Those of a Node's annotations that are read here."""
        read = {
            *self._names.values(),
            self.managed,
            self.extra,
            *(each for both in self._operators.values() for each in both),
        }
        return {name: text for name, text in annotations.items() if name in read}


def _parsed(text: str | None) -> Any:
    """Backend data as JSON; a text that is none stays a text, for the backend to refuse."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _compact(data: Any) -> str:
    # flanneld takes its MAC back from this text with a search that a space would break.
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Member:
    """What concerns us of one Node.

    :param key: the lease's key, from the pod CIDRs; empty while there are none.
    :param managed: the Node says that a flannel runs there, or a pyflannel.
    :param problem: why its pod CIDRs make no key.
    :param annotations: of a Node that was read whole, those that concern us; empty where nobody will ask.
    """

    name: str
    uid: str
    key: str
    managed: bool
    record: Record
    versions: tuple[int, ...] = ()
    problem: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def lease(self) -> Record | None:
        """The record that other nodes may know."""
        return self.record if self.managed and self.key else None


def read_member(node: Mapping[str, Any], names: Annotations, *, keep: bool = False) -> Member:
    """What concerns us of a Node as the API server sends it.

    :param keep: keep its annotations too.
    :raises KeyError, TypeError, AttributeError: it is no Node.
    """
    metadata, spec = node["metadata"], node.get("spec") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    name, uid = str(metadata["name"]), str(metadata["uid"])
    cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    key, versions, problem = _key(cidrs)
    managed = annotations.get(names.managed) == "true"
    value = names.value(annotations)
    # An operator's overwrite changes what must be written, though not yet what is.
    overwrites = [names.overwrite(key, annotations) for key in names.addresses]
    digest = blake2b(repr((key, managed, value, overwrites)).encode(), digest_size=8).hexdigest()
    created = int("".join(filter(str.isdigit, str(metadata.get("creationTimestamp") or ""))) or 0)  # seconds, in digits
    record = Record(key, value, f"{uid}.{digest}", permanent=True, handle=name, created=created)
    kept = names.concerning(annotations) if keep else {}
    return Member(name, uid, key, managed, record, versions, problem, kept)


def _key(cidrs: list[str]) -> tuple[str, tuple[int, ...], str]:
    """The key that pod CIDRs make, the families in it, and what is wrong with them. The first of each family counts.

    Bits behind the prefix, which the API server takes in what somebody writes by hand, are dropped as flanneld does.
    """
    found: dict[int, IPv4Network | IPv6Network] = {}
    for text in cidrs:
        try:
            network = ip_network(text, strict=False)
        except ValueError as error:
            return "", (), f"pod CIDR {text!r}: {error}"
        found.setdefault(network.version, network)
    versions = tuple(sorted(found))
    parts = (f"{found[version].network_address}-{found[version].prefixlen}" for version in versions)
    return "&".join(parts), versions, ""


def condition_of(node: Mapping[str, Any]) -> tuple[str, str]:
    """Status and reason of a Node's condition :data:`CONDITION`; empty if it has none."""
    condition = _condition(node, CONDITION)
    return condition.get("status") or "", condition.get("reason") or ""


def not_ready_since(node: Mapping[str, Any]) -> datetime | None:
    """Since when a Node's condition ``Ready`` has not been true; ``None`` if it is, or nobody says."""
    condition = _condition(node, "Ready")
    if condition.get("status") in (None, "True"):
        return None
    try:
        return datetime.fromisoformat(str(condition.get("lastTransitionTime")).replace("Z", "+00:00"))
    except ValueError:
        return None


def _condition(node: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind), {})


class ClusterNodes:
    """All leases by the Node that has them. Two Nodes with one pod CIDR: the first by name counts, our own before all.

    :param own: our own Node's name, if there is one.
    """

    def __init__(self, own: str | None, members: Mapping[str, Record] | None = None) -> None:
        self.own = own
        self._members: dict[str, Record] = {}
        self._holders: dict[str, list[str]] = {}
        for name, record in (members or {}).items():
            self._enter(name, record)

    def copy(self) -> ClusterNodes:
        """The same, to change without changing this one."""
        twin = ClusterNodes(self.own)
        twin._members = dict(self._members)
        twin._holders = {key: list(names) for key, names in self._holders.items()}
        return twin

    def records(self) -> Iterator[Record]:
        """One record per key."""
        return (self._members[names[0]] for names in self._holders.values())

    def holders(self, key: str) -> tuple[str, ...]:
        """The names of the Nodes that have this key, the one that counts first."""
        return tuple(self._holders.get(key, ()))

    def put(self, name: str, record: Record | None) -> tuple[Change, ...]:
        """A Node's lease is this now, or none; what that changes."""
        before = self._members.get(name)
        if before == record:
            return ()
        concerned = [each.key for each in (before, record) if each is not None]
        seen = {key: self._shown(key) for key in concerned}
        if before is not None:
            del self._members[name]
            names = self._holders[before.key]
            names.remove(name)
            if not names:
                del self._holders[before.key]
        if record is not None:
            self._enter(name, record)
        now = {key: self._shown(key) for key in seen}
        return tuple(Change(key, now[key]) for key in seen if now[key] != seen[key])

    def _enter(self, name: str, record: Record) -> None:
        self._members[name] = record
        names = self._holders.setdefault(record.key, [])
        names.append(name)
        if len(names) > 1:
            names.sort(key=lambda each: (each != self.own, each))

    def _shown(self, key: str) -> Record | None:
        names = self._holders.get(key)
        return self._members[names[0]] if names else None


_HEAD: Final = re.compile(
    rb'\{"type":"MODIFIED","object":\{"kind":"Node","apiVersion":"v1","metadata":\{"name":"([^"\\]+)",'
    rb'"uid":"[^"\\]*","resourceVersion":"([0-9]+)"'
)


_ITEM: Final = b'{"metadata":{"name":"'
_ITEM_HEAD: Final = re.compile(rb'\{"metadata":\{"name":"([^"\\]+)","uid":"[^"\\]*","resourceVersion":"[0-9]+"')


class Sieve:
    """Knows the bytes of each Node that matter, and so which events change nothing of ours.

    API servers write a Node's fields in one order, in lists and in events: name, labels, annotations, then who manages
    which field, then the spec, then the status. Inside a JSON string every quote is escaped, so the marks searched for
    here are never part of one. Should a server write in another order, nothing is found, and every event is read as
    JSON.
    """

    def __init__(self, seen: Mapping[bytes, int] | None = None) -> None:
        self._seen = dict(seen or {})
        self._new: tuple[bytes, int] | None = None

    def copy(self) -> Sieve:
        """The same, to go on from."""
        return Sieve(self._seen)

    def unchanged(self, line: bytes) -> str | None:
        """The resource version of an event that changes nothing that concerns us; ``None`` if it may."""
        self._new = None
        head = _HEAD.match(line)
        if head is None:
            return None
        fields = line.find(b',"managedFields":[', head.end())
        spec = line.find(b'},"spec":{', max(fields, head.end()))
        status = line.find(b',"status":{', spec)
        if spec < 0 or status < 0:
            return None
        essence = hash((line[head.end() : fields if fields >= 0 else spec], line[spec:status]))
        if self._seen.get(head[1]) == essence:
            return head[2].decode()
        self._new = head[1], essence
        return None

    def learn(self) -> None:
        """The event that was asked about last is known now."""
        if self._new is not None:
            self._seen[self._new[0]] = self._new[1]
            self._new = None

    def forget(self, name: str) -> None:
        """A Node is gone."""
        self._seen.pop(name.encode(), None)

    def cut_out(self, text: bytes, at: int) -> tuple[bytes, int] | None:
        """What matters of the Node that begins at ``at`` in a list, as JSON of its own, and where the next one begins.

        Four fifths of a Node are who manages which field, and its status; not to read them takes a third of the time.
        ``None`` where the marks are not found, or no other Node follows. What is cut out is known from then on.
        """
        head = _ITEM_HEAD.match(text, at)
        if head is None:
            return None
        spec = text.find(b'},"spec":{', at)
        status = text.find(b',"status":{', spec)
        following = text.find(b"}," + _ITEM, status)
        if spec < 0 or status < 0 or following < 0:
            return None
        fields = text.find(b',"managedFields":[', at, spec)
        end, said = fields if fields >= 0 else spec, text[spec:status]
        self._seen[head[1]] = hash((text[head.end() : end], said))
        return text[at:end] + said + b"}", following + 2
