"""Kubernetes as a store: every Node is a lease, its pod CIDRs the subnets, flannel's annotations the rest.

The idea: Kubernetes decides which subnets a node has (``Node.spec.podCIDRs``), so this driver creates and deletes
nothing. It reads all Nodes, follows them, and writes to one of them, our own: flannel's annotations, and the condition
that lets pods come. Both are written by one step that compares what should be there with what is
(:meth:`KubernetesStore._settle`), so that it does not matter what happened to the Node in between.

* A lease lives as long as its Node: there is no TTL, and every record is permanent.
* The network document is a file, a mounted ConfigMap, which nodes follow. Who changes it, goes to the ConfigMap
  (:mod:`pyflannel_stores._kubernetes_document`).
* A record's version names the Node's uid and what of it concerns us, so that heartbeats of a kubelet are no changes. A
  write still carries the Node's resource version: nothing that changed meanwhile is overwritten unseen.
* Nodes are listed in pages, each Node read by itself, and followed by a watch with bookmarks. A revision is a
  resource version; which leases there were then is known of the latest ones alone.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn
from weakref import WeakSet

from pyflannel.errors import (
    ConfigError,
    ConflictError,
    StoreDeniedError,
    StoreUnavailableError,
)
from pyflannel.store import (
    CALL_TIMEOUT,
    Record,
    Snapshot,
    Store,
    StoreLocation,
    StoreTime,
    Unassigned,
    Watch,
)
from pyflannel_stores import _kubernetes_document as documents
from pyflannel_stores._bounds import parsed
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._kubernetes_listing import Listing, split_list
from pyflannel_stores._kubernetes_location import find_access
from pyflannel_stores._kubernetes_watch import History, KubernetesWatch, State
from pyflannel_stores._options import flag

if TYPE_CHECKING:
    from pyflannel_stores._kubernetes_http import Stream
    from pyflannel_stores._kubernetes_nodes import Member

__all__ = ["KubernetesStore"]

_NODES: Final = "/api/v1/nodes"
_PAGE: Final = 500
_BUDGET: Final = CALL_TIMEOUT - 0.5
_WATCH_LONGEST: Final = 600
_WATCH_IDLE: Final = 150.0
"""Seconds: bookmarks come about once a minute."""

_UP, _DOWN = "FlannelIsUp", "PyflannelIsNotReady"


class KubernetesStore(Store):
    """The driver for ``kubernetes://``, with the API server's address (``kubernetes://192.0.2.1:6443``) or without."""

    scheme = "kubernetes"
    assigns_subnets = True
    options: ClassVar[Mapping[str, str]] = {
        "kubeconfig": "a kubeconfig; default: the pod's service account, else the environment's KUBECONFIG",
        "context": "which context of the kubeconfig; default: its current one",
        "node": "the name of this node's Node; default: the environment's NODE_NAME, else that of pod "
        "POD_NAMESPACE/POD_NAME",
        "net_config": f"the file with the network document; default: {documents.DEFAULT_FILE}",
        "config_map": "NAMESPACE/NAME of the ConfigMap with the network document, to read and write that instead of a "
        f"file; default, where no node is named: {documents.DEFAULT_CONFIG_MAP}",
        "annotation_prefix": "what flannel's annotations begin with; default: flannel.alpha.coreos.com",
        "set_network_unavailable": "say in the Node's condition NetworkUnavailable whether the overlay works here "
        "(true or false); default: true",
        "tls": "speak HTTPS to the address in the URL (true or false); default: true",
        "token_file": "file with a bearer token, for the address in the URL",
        "cafile": "certificates of the authorities to trust; default: the system's",
        "certfile": "client certificate, with keyfile",
        "keyfile": "the client certificate's key",
    }

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        from pyflannel_stores import _kubernetes_http as http  # and ssl with it: for those alone who use it
        from pyflannel_stores import _kubernetes_nodes as nodes

        self.http, self._nodes = http, nodes
        self._access = find_access(location)
        self._names = nodes.Annotations(location.options.get("annotation_prefix") or nodes.DEFAULT_PREFIX)
        self._condition_wanted = flag(location, "set_network_unavailable", True)
        self._own = location.options.get("node") or os.environ.get("NODE_NAME") or None
        self._pod = (os.environ.get("POD_NAMESPACE"), os.environ.get("POD_NAME"))
        self._document = self._place_of_document(location)
        self._api = http.Api(self._access)
        self._history = History()
        self._listing: Listing | None = None
        self._announced: bool | None = None
        self._asked: dict[str, str] = {}
        """The addresses that our lease is to say, and what was written for them: an operator's overwrite, or they."""
        self._put: dict[str, str | None] = {}
        self._written = 0
        self._listed = ""
        """The resource version of a snapshot that no watch has begun at yet: the server has come as far as that."""
        self._watches: WeakSet[KubernetesWatch] = WeakSet()

    def _place_of_document(self, location: StoreLocation) -> documents.Document:
        """What the options say; else the file on a node, and the ConfigMap for a command on some other machine."""
        file, name = (location.options.get(option) for option in ("net_config", "config_map"))
        if file and name:
            raise ConfigError(
                f"store {location}: net_config and config_map name two network documents; keep one of them"
            )
        if not name and not file and self._own is None and not all(self._pod):
            name = documents.DEFAULT_CONFIG_MAP
        if name:
            return documents.ConfigMap(name, self._access, str(location))
        return documents.File(Path(file or documents.DEFAULT_FILE), str(location))

    # What all nodes may ask

    def read_config(self) -> Record | None:
        """See :class:`~pyflannel.store.Store`.

        The file answers whether the API server does or not, and so it is asked too: for something that costs nothing.
        """
        deadline = Deadline(_BUDGET)
        try:
            self._answer(deadline, "GET", "/version")
        except self.http.NotFound:
            raise self._garbage() from None
        return self._document.known(deadline)

    def write_config(self, value: str, expected: Record | None) -> Record:
        """See :class:`~pyflannel.store.Store`. The ConfigMap is written; refused where the document is a file."""
        return self._document.write(value, expected, Deadline(_BUDGET))

    def snapshot(self) -> Snapshot:
        """See :class:`~pyflannel.store.Store`. A listing that takes longer than a call is gone on with by the next."""
        deadline = Deadline(_BUDGET)
        config = self._document.known(deadline)
        own = self._find_own(deadline)
        listing = self._listing
        if listing is None or listing.stale or listing.cluster.own != own:
            listing = self._listing = self._new_listing(own)
        while not listing.complete:
            try:
                self._read_pages(listing, deadline)
            except self.http.Gone:  # pages took too long: the list they belong to is not kept any more
                listing = self._listing = self._new_listing(own)
        self._listing = None
        self._listed = listing.version
        state = State(listing.version, listing.cluster, config, listing.sieve)
        return Snapshot(self._history.add(state), config, tuple(listing.cluster.records()))

    def watch(self, revision: str) -> Watch:
        """See :class:`~pyflannel.store.Store`. Only revisions of this object are known, and of those the latest."""
        watch = KubernetesWatch(self, revision)
        self._watches.add(watch)
        return watch

    def away(self, records: Iterable[Record]) -> Mapping[str, float]:
        """See :class:`~pyflannel.store.Store`: since when a Node has not been ``Ready``, as its kubelet says, or as
        Kubernetes does for a kubelet that says nothing."""
        keys = {record.handle: record.key for record in records}
        deadline, found, rest = Deadline(_BUDGET), {}, ""
        now = datetime.now(timezone.utc)
        while True:
            try:
                page = parsed(self._page(rest, deadline))
                for node in page.get("items") or ():
                    name, since = node["metadata"]["name"], self._nodes.not_ready_since(node)
                    if name in keys and since is not None:
                        found[keys[name]] = max(0.0, (now - since).total_seconds())
                rest = str(page["metadata"].get("continue") or "")
            except self.http.Gone as error:
                raise StoreUnavailableError(str(error)) from None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._garbage() from None
            if not rest:
                return found

    def clock(self) -> StoreTime | None:
        """See :class:`~pyflannel.store.Store`. Leases have no end, so no clock matters."""
        return None

    def close(self) -> None:
        for watch in list(self._watches):
            watch.close()
        self._document.close()
        self._api.close()

    # What our own node writes

    def assigned(self, families: Sequence[int]) -> Record | Unassigned:
        deadline = Deadline(_BUDGET)
        try:
            member = self._member(self._read_own(deadline))
        except self.http.NotFound:
            return Unassigned(
                f"Kubernetes has no Node {self._own!r}: has the kubelet registered it, and is NODE_NAME its name?"
            )
        if member.problem:
            return Unassigned(f"Node {member.name}: {member.problem}")
        missing = [version for version in families if version not in member.versions]
        if not member.key or missing:
            return Unassigned(_missing_reason(member, missing))
        return self._own_record(member)

    def chosen_addresses(self) -> Sequence[str]:
        """See :class:`~pyflannel.store.Store`: the annotations ``node-public-ip`` and ``node-public-ipv6``."""
        return self._names.chosen(self._member(self._read_own_or_conflict(Deadline(_BUDGET))).annotations)

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """See :class:`~pyflannel.store.Store`. Of all records our own Node's alone."""
        return self._settle(record, value)

    def renew(self, record: Record, ttl: float) -> Record:
        """See :class:`~pyflannel.store.Store`. Nothing ends; but the mark of a member, overwrites and the condition are
        seen to, also where an earlier run has written the lease."""
        if not self._asked:
            self._note_addresses(record.value)
        return self._settle(record, None)

    def announce(self, ready: bool) -> None:
        """See :class:`~pyflannel.store.Store`: the condition ``NetworkUnavailable`` of our Node."""
        self._announced = ready
        if not self._condition_wanted:
            return
        deadline = Deadline(_BUDGET)
        while True:
            node = self._read_own_or_conflict(deadline)
            patch = self._condition_patch(node)
            if not patch or self._patch(node, patch, deadline) is not None:
                return

    def announced(self) -> bool | None:
        try:
            found, _ = self._nodes.condition_of(self._read_own(Deadline(_BUDGET)))
        except self.http.NotFound:
            return None
        return {"True": False, "False": True}.get(found)

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """Refused: Kubernetes assigns pod CIDRs."""
        self._refuse("Kubernetes itself gives each Node its pod CIDRs: nobody can make or reserve a lease there")

    def delete(self, record: Record) -> None:
        """Refused: a lease is its Node."""
        self._refuse(f"the lease {record.key} is Node {record.handle} itself: kubectl delete node {record.handle}")

    # For watches

    def open_stream(self, version: str) -> Stream:
        """Follow all Nodes from a resource version on.

        :raises Gone: the server has not come that far. It would wait until it has, and never tell what happened before.
        """
        deadline = Deadline(_BUDGET)
        if version != self._listed:
            self._compare(version, deadline)
        self._listed = ""
        longest = random.randint(_WATCH_LONGEST // 2, _WATCH_LONGEST)  # noqa: S311 - load, not secrets
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(longest),
        }
        return self.http.Stream(self._access, _NODES, query, _WATCH_IDLE, deadline)

    def _compare(self, version: str, deadline: Deadline) -> None:
        """See that the server's present is not before ``version``: its etcd may be a new one, or one from a backup."""
        try:
            present = str(self._answer(deadline, "GET", _NODES, query={"limit": "1"})["metadata"]["resourceVersion"])
        except (self.http.NotFound, KeyError, TypeError):
            raise self._garbage() from None
        if present.isdigit() and version.isdigit() and int(present) < int(version):
            self._written = 0
            raise self.http.Gone(
                f"{self.location}: the API server has not come as far as resource version {version}: its etcd was "
                "begun anew, or restored from a backup"
            )

    def state(self, revision: str) -> State | None:
        """What was known at a revision."""
        return self._history.get(revision)

    def advance(self, revision: str, state: State) -> str:
        """A watch knows more now; returns the revision that stands for it."""
        return self._history.advance(revision, state)

    def read_document(self) -> Record:
        """The network document as it is now."""
        return self._document.read(Deadline(_BUDGET))

    @property
    def document_interval(self) -> float:
        """Seconds between two looks at the network document."""
        return self._document.interval

    def take_in(self, node: Mapping[str, Any]) -> tuple[str, Record | None]:
        """A Node of an event: its name, and the lease it stands for now."""
        own = node["metadata"]["name"] == self._own
        member = self._nodes.read_member(node, self._names, keep=own)
        if member.lease is None or not own:
            return member.name, member.lease
        record = self._own_record(member)
        if "status" in node and self._condition_patch(
            node
        ):  # somebody else has set it: whoever keeps the lease is to look after it
            record = replace(record, version=f"{record.version}.condition")
        return member.name, record

    def outdated(self, name: str, version: str) -> bool:
        """Whether an event of our own Node is older than what we have written meanwhile."""
        return name == self._own and version.isdigit() and int(version) < self._written

    @property
    def own(self) -> str | None:
        """Our own Node's name, once it is known."""
        return self._own

    # Reading

    def _answer(self, deadline: Deadline, method: str, path: str, **keywords: Any) -> Any:
        """A JSON object of the API server's."""
        body = self._api.call(method, path, deadline, **keywords)
        try:
            answer = parsed(body)
            if isinstance(answer, dict):
                return answer
        except ValueError:
            pass
        raise self._garbage()

    def _garbage(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.location}: {self._access.endpoint} does not answer as Kubernetes does")

    def _find_own(self, deadline: Deadline) -> str | None:
        """Our Node's name, ``None`` where nothing tells: a command on some other machine."""
        namespace, pod = self._pod
        if self._own is None and namespace and pod:
            try:
                answer = self._answer(deadline, "GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")
            except self.http.NotFound:
                raise StoreDeniedError(
                    f"{self.location}: there is no pod {namespace}/{pod}; do POD_NAMESPACE and POD_NAME name this pod? "
                    "Or set NODE_NAME"
                ) from None
            self._own = (answer.get("spec") or {}).get("nodeName") or None
        return self._own

    def _read_own(self, deadline: Deadline) -> Mapping[str, Any]:
        """:raises NotFound: there is no such Node."""
        if self._find_own(deadline) is None:
            raise StoreDeniedError(
                f"{self.location}: which Node is this one? Set NODE_NAME (in a pod: from spec.nodeName), or the "
                "store's option node"
            )
        answer: Mapping[str, Any] = self._answer(deadline, "GET", f"{_NODES}/{self._own}")
        return answer

    def _read_own_or_conflict(self, deadline: Deadline) -> Mapping[str, Any]:
        try:
            return self._read_own(deadline)
        except self.http.NotFound:
            raise ConflictError(f"{self.location}: Node {self._own} was deleted") from None

    def _member(self, node: Mapping[str, Any]) -> Member:
        try:
            return self._nodes.read_member(node, self._names, keep=True)
        except (KeyError, TypeError, AttributeError):
            raise self._garbage() from None

    def _new_listing(self, own: str | None) -> Listing:
        return Listing(self._nodes.ClusterNodes(own), self._nodes.Sieve())

    def _read_pages(self, listing: Listing, deadline: Deadline) -> None:
        """Go on with a list to its end. The API server makes the next page while one is read as JSON."""
        with ThreadPoolExecutor(1) as ahead:
            page = self._page(listing.rest, deadline)
            while not listing.complete:
                try:
                    metadata, items = split_list(page, listing.sieve)
                    version, rest = str(metadata["resourceVersion"]), str(metadata.get("continue") or "")
                    following = ahead.submit(self._page, rest, deadline) if rest else None
                    for node in items:
                        listing.put(*self.take_in(node))
                except (ValueError, KeyError, TypeError, AttributeError):
                    self._listing = None
                    raise self._garbage() from None
                listing.version = listing.version or version
                listing.rest, listing.complete = rest, not rest
                if following is not None:
                    page = following.result()

    def _page(self, rest: str, deadline: Deadline) -> bytes:
        query = {"limit": str(_PAGE), **({"continue": rest} if rest else {})}
        try:
            return self._api.get(_NODES, deadline, **query)
        except self.http.NotFound:  # there always are some in Kubernetes
            raise self._garbage() from None

    # Writing

    def _own_record(self, member: Member) -> Record:
        """Our lease as whoever wrote it knows it: with the addresses it asked for where we have written an overwrite.

        So an overwrite is nobody's change but the operator's.
        """
        hidden = {key: asked for key, asked in self._asked.items() if self._put.get(key) not in (None, asked)}
        if not hidden:
            return member.record
        document = json.loads(member.record.value)
        shown = {key: asked for key, asked in hidden.items() if document.get(key) == self._put[key]}
        document.update(shown)
        return replace(member.record, value=json.dumps(document, separators=(",", ":"), ensure_ascii=False))

    def _settle(self, record: Record, value: str | None) -> Record:
        """Make our Node say ``value`` (``None``: what it says) and what was announced, if it is still ``record``."""
        deadline = Deadline(_BUDGET)
        if value is not None:
            self._note_addresses(value)
        while True:
            node = self._read_own_or_conflict(deadline)
            member = self._member(node)
            if record.handle != member.name:
                self._refuse(f"the lease {record.key} is Node {record.handle}'s, and only that node may change it")
            if not self._unchanged(member, record, value, deadline):
                raise ConflictError(f"{self.location}: Node {member.name} was changed, or deleted and made again")
            patch = self._condition_patch(node)
            changes: dict[str, str | None] = {}
            if value is not None or self._asked:
                changes = self._annotation_changes(member, value or self._own_record(member).value, deadline)
            if changes:
                patch["metadata"] = {"annotations": changes}
            self._put = self._names.public({**member.annotations, **changes})  # before the watch can tell of it
            written = self._patch(node, patch, deadline) if patch else node
            if written is not None:
                return self._own_record(self._member(written))

    def _note_addresses(self, value: str) -> None:
        document = json.loads(value)
        self._asked = {key: document[key] for key in self._names.addresses if document.get(key)}

    def _unchanged(self, member: Member, record: Record, value: str | None, deadline: Deadline) -> bool:
        """Whether the Node is still ``record``, or says what is wanted: our own write, whose answer got lost."""
        if member.key != record.key or member.uid != record.version.partition(".")[0]:
            return False
        if _same_version(member.record.version, record.version):
            return True
        return value is not None and not self._annotation_changes(member, value, deadline)

    def _annotation_changes(self, member: Member, value: str, deadline: Deadline) -> dict[str, str | None]:
        wanted = self._names.wanted(value, member.annotations, self._backend_type(deadline))
        return {name: text for name, text in wanted.items() if member.annotations.get(name) != text}

    def _backend_type(self, deadline: Deadline) -> str:
        """The backend that the network document names, as far as it can be read; flannel's default is udp."""
        try:
            text = self._document.latest(deadline).value
            backend = {key.lower(): value for key, value in json.loads(text).items()}.get("backend") or {}
            return str({key.lower(): value for key, value in backend.items()}.get("type") or "udp")
        except (ValueError, AttributeError, RecursionError, StoreDeniedError):
            return "udp"

    def _condition_patch(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """What makes the condition say what was announced; empty if it does."""
        if self._announced is None or not self._condition_wanted:
            return {}
        wanted = ("False", _UP) if self._announced else ("True", _DOWN)
        found, _ = self._nodes.condition_of(node)
        if found == wanted[0]:
            return {}
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        says = "is running on this node" if self._announced else "can't carry packets of this node at present"
        condition = {
            "type": self._nodes.CONDITION,
            "status": wanted[0],
            "reason": wanted[1],
            "message": f"pyflannel {says}",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        return {"status": {"conditions": [condition]}}

    def _patch(self, node: Mapping[str, Any], patch: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any] | None:
        """Write to our Node unless it has changed since; ``None``: it has."""
        metadata = {**patch.get("metadata", {}), "resourceVersion": node["metadata"]["resourceVersion"]}
        try:
            written: Mapping[str, Any] = self._answer(
                deadline,
                "PATCH",
                f"{_NODES}/{self._own}/status",
                body={**patch, "metadata": metadata},
                kind="application/strategic-merge-patch+json",
            )
        except self.http.Overtaken:
            return None
        except self.http.NotFound:
            raise ConflictError(f"{self.location}: Node {self._own} was deleted") from None
        version = str((written.get("metadata") or {}).get("resourceVersion", ""))
        if version.isdigit():
            self._written = int(version)
        return written

    def _refuse(self, reason: str) -> NoReturn:
        raise StoreDeniedError(f"{self.location}: {reason}")


def _missing_reason(member: Member, missing: Sequence[int]) -> str:
    """Why a Node has not (all of) its pod CIDRs, as far as one can tell from here."""
    if not member.key:
        return (
            f"Node {member.name} has no pod CIDR (yet): start kube-controller-manager with --allocate-node-cidrs=true "
            "and --cluster-cidr (kubeadm: networking.podSubnet), or let the cloud set spec.podCIDRs"
        )
    families = " and ".join(f"IPv{version}" for version in missing)
    return (
        f"Node {member.name} has no pod CIDR of {families}, which the network document switches on: give "
        "kube-controller-manager a --cluster-cidr of each family, then delete the Node object and let the kubelet "
        "register it again, since Kubernetes never adds a pod CIDR to a Node that has one"
    )


def _same_version(one: str, other: str) -> bool:
    return one.split(".")[:2] == other.split(".")[:2]
