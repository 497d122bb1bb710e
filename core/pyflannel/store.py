"""The contract for stores (public API).

A store keeps two things for a whole cluster: the *network document* and one *record* per lease. Records are a key, a
text and an expiry; their meaning (JSON, subnets, backends) is the core's business, so a driver is a thin, honest
adapter to its server:

* it never parses a value, and never drops a record because its key or text looks odd;
* it changes a record only if nobody else has (compare-and-swap on ``Record.version``);
* it says exactly which of "refused", "unreachable" and "somebody else was first" happened.

It returns frozen values, whose constructors refuse fields of another type (``TypeError``), so that a mistake shows in
the driver and not later.

Some systems, such as Kubernetes, decide themselves which subnet a node has. A driver for one says so with
``assigns_subnets`` and implements :meth:`Store.assigned`; the core then uses the subnets it is given. Records are
permanent there, and ``create`` and ``delete`` raise ``StoreDeniedError``, as does ``write_config`` of any driver whose
document is read-only.

Threads: the core calls every method from one thread at a time, except that an open :class:`Watch` is iterated in a
thread of its own, and that ``close()`` of a store or a watch may come from any thread and must end a blocked iteration.
Every call must return within :data:`CALL_TIMEOUT` seconds or raise
:class:`~pyflannel.errors.StoreUnavailableError`; the core does all waiting and retrying. A driver whose call does not
return is named in ``status``, and after three times that long the daemon gives it up: it calls ``close()`` from
another thread, abandons the call, and creates a new driver for the same location. Any other exception, even
``SystemExit``, counts as a failure of that call alone.

To write one: subclass :class:`Store`, register it in the entry point group ``pyflannel.stores`` under its URL scheme,
and run the conformance kit in :mod:`pyflannel.testing`.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Final
from urllib.parse import parse_qsl, unquote

from pyflannel.errors import ConfigError

__all__ = [
    "API_VERSION",
    "CALL_TIMEOUT",
    "CONFIG_KEY",
    "Batch",
    "Change",
    "Record",
    "Snapshot",
    "Store",
    "StoreLocation",
    "StoreTime",
    "Unassigned",
    "Watch",
    "hide_credentials",
]

API_VERSION: Final = 1
"""The version of this contract. A plugin states the one it was built for as ``api_version``."""

CALL_TIMEOUT: Final = 5.0
"""Seconds within which every call of a driver must have an answer or raise."""

CONFIG_KEY: Final = "config"
"""The key of the network document in a :class:`Change`; no lease has it."""


def _check(item: object, name: str, kinds: tuple[type, ...]) -> None:
    """Refuse a field of another type. What it holds may be a secret, and is not shown."""
    value = getattr(item, name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{type(item).__name__}: {name} is of type {type(value).__name__}: must be {allowed}")


def _check_all(item: object, name: str, kind: type) -> None:
    """Refuse a tuple that holds something else."""
    for each in getattr(item, name):
        if not isinstance(each, kind):
            raise TypeError(f"{type(item).__name__}: {name} hold a {type(each).__name__}: must be {kind.__name__}")


_TIMES: Final = (float, type(None), int)
_USUAL: Final = (str, str, str, str, bool, int)

_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "key": (str,),
    "value": (str,),
    "version": (str,),
    "permanent": (bool,),
    "ttl": _TIMES,
    "handle": (str,),
    "created": (int,),
}
"""Those of a record, and their types."""


@dataclass(frozen=True, slots=True)
class Record:
    """A key, its text, and what the driver needs to change it safely.

    :param key: the lease's key (``172.16.68.0-24``), or :data:`CONFIG_KEY`; no path, no prefix.
    :param value: the text, exactly as stored.
    :param version: an opaque token that differs after every change of the value; compared, never ordered.
    :param permanent: the record has no expiry: the network document, or a reservation.
    :param ttl: seconds until it expires, if the driver knows them without asking for each record; else ``None``.
    :param handle: the driver's own name for the expiry (an etcd lease, a Consul session); opaque to the core.
    :param created: its place in the order in which all records were created: an older record has a smaller number, the
        same for every client, and keeps it through changes and renewals; 0 if the store can't say. Of two leases that
        claim the same thing the older one wins, so that no newcomer takes a living node's subnet.
    """

    key: str
    value: str
    version: str
    permanent: bool = False
    ttl: float | None = None
    handle: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        # There may be tens of thousands: one comparison for a record that is right.
        texts = type(self.key), type(self.value), type(self.version), type(self.handle)
        if (*texts, type(self.permanent), type(self.created)) != _USUAL or type(self.ttl) not in _TIMES:
            for name, kinds in _FIELDS.items():
                _check(self, name, kinds)


@dataclass(frozen=True, slots=True)
class Unassigned:
    """The store has no subnets for this node yet. ``reason`` says what is missing, and which setting gives it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a store holds, as of one moment: ``watch(revision)`` continues without a gap."""

    revision: str
    config: Record | None
    leases: tuple[Record, ...]

    def __post_init__(self) -> None:
        _check(self, "revision", (str,))
        _check(self, "config", (Record, type(None)))
        _check(self, "leases", (tuple,))
        _check_all(self, "leases", Record)


@dataclass(frozen=True, slots=True)
class Change:
    """One key's new state; ``record`` is ``None`` when it was deleted or has expired."""

    key: str
    record: Record | None

    def __post_init__(self) -> None:
        _check(self, "key", (str,))
        _check(self, "record", (Record, type(None)))
        if self.record is not None and self.record.key != self.key:
            raise ValueError(f"Change: key is {self.key!r} and the record's is {self.record.key!r}: must be equal")


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in the order they happened. May be empty, when only the revision moved on.

    Several changes of one key may be folded into the last one. A driver that compares two states can't know at which
    point among the other changes a key was deleted. A renewal (:meth:`Store.renew`) is not a change.
    """

    revision: str
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        _check(self, "revision", (str,))
        _check(self, "changes", (tuple,))
        _check_all(self, "changes", Change)


@dataclass(frozen=True, slots=True)
class StoreTime:
    """A store's wall clock when it was asked: between ``earliest`` and ``latest``, in seconds since 1970 (UTC).

    ``latest`` is ``None`` if the store only provides a lower bound. ``source`` says where the time comes from.
    """

    earliest: float
    latest: float | None
    source: str


class Watch(ABC):
    """An open stream of changes. Iterating blocks until there is a batch; ``close()`` ends it from any thread."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abstractmethod
    def __next__(self) -> Batch:
        """Wait for the next batch.

        If nothing changes there may be no batch for days, and the core can't tell that from a server that is gone,
        stuck or cut off. The driver must notice that within a minute or two, and raise or continue with another server.

        :raises StopIteration: the watch was closed.
        :raises HistoryGoneError: changes were missed; take a new snapshot.
        :raises StoreUnavailableError: the stream broke; opening a watch at the last revision may go on without a gap.
        """

    @abstractmethod
    def close(self) -> None:
        """End the stream. Idempotent, callable from any thread."""

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(ABC):
    """A driver for one kind of store.

    Class attributes a driver sets:

    * ``api_version``: the :data:`API_VERSION` it was built for;
    * ``scheme``: the URL scheme it answers to, in lower case, equal to its entry point's name;
    * ``options``: option name to one line of help, for ``?name=value`` in the URL and keys of the ``[store]`` table;
    * ``secret_options``: those that must never be shown;
    * ``exact_ttl``: whether :meth:`time_to_live` tells the remaining time, rather than a limit to it;
    * ``node_clocks``: whether the nodes' own wall clocks decide when a lease ends, rather than a server's;
    * ``assigns_subnets``: whether the store, and not the core, says which subnets a node has; see :meth:`assigned`.

    Constructing a driver validates the location and may not touch the network: ``ConfigError`` is all it may raise.
    """

    api_version: ClassVar[int] = API_VERSION
    scheme: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    secret_options: ClassVar[frozenset[str]] = frozenset()
    exact_ttl: ClassVar[bool] = True
    node_clocks: ClassVar[bool] = False
    assigns_subnets: ClassVar[bool] = False

    def __init__(self, location: StoreLocation) -> None:
        location.check_options(self.options, self.secret_options)
        self.location = location

    def expect_existing(self) -> None:  # noqa: B027 - most stores are there, or do not answer
        """Don't create the store if it does not exist: for clients that only read, its absence means a wrong address.

        Called before any other method. From then on, calls for a place without a store raise
        :class:`~pyflannel.errors.StoreAbsentError`, and reading leaves no trace in an existing one. Only a driver that
        creates its place by itself (a directory, a database) needs to override this.
        """

    @abstractmethod
    def read_config(self) -> Record | None:
        """The network document, or ``None`` if there is none."""

    @abstractmethod
    def write_config(self, value: str, expected: Record | None) -> Record:
        """Write the network document if it is still ``expected`` (``None``: absent).

        :raises ConflictError: it is not.
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Everything, in one round trip if the server allows that, and never with a call per lease.

        It contains everything that any client wrote before the call: a daemon that starts removes what leads to nodes
        that are missing from it.
        """

    @abstractmethod
    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """Create a lease's record if the key is absent; it expires in ``ttl`` seconds, or never if ``None``.

        If the server's answer is lost, the driver reads the key back: if it holds what was written, the call succeeded.

        :raises ConflictError: the key exists.
        """

    @abstractmethod
    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """Replace ``record``'s value and expiry if it is unchanged. A permanent record stays permanent.

        :raises ConflictError: it was changed, deleted or has expired.
        """

    @abstractmethod
    def renew(self, record: Record, ttl: float) -> Record:
        """Extend ``record``'s expiry to ``ttl`` seconds from now, leaving value and version unchanged.

        Watches don't report it: every node would be woken by every renewal. Only if ``ttl`` differs from the record's
        previous one may the version change, and watches report that. A permanent record is returned as it is.

        :raises ConflictError: it was deleted, has expired, or belongs to another node now.
        """

    @abstractmethod
    def delete(self, record: Record) -> None:
        """Delete ``record`` if it is unchanged; if it is already gone, that is not an error.

        :raises ConflictError: it was changed.
        """

    @abstractmethod
    def watch(self, revision: str) -> Watch:
        """Changes after ``revision``, which came from a snapshot or a batch of this object or, where
        the server keeps history, of another one. Errors come from iterating."""

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """Key to remaining seconds (``None``: permanent or unknown). May cost calls; for display and migration."""
        return {record.key: record.ttl for record in records}

    def away(self, records: Iterable[Record]) -> Mapping[str, float]:
        """Key to the seconds for which a record's node has been gone, if the store knows that from something other than
        the record's expiry. May cost calls; for display only.

        :raises StoreUnavailableError: it can't be found out now.
        """
        return {}

    def assigned(self, families: Sequence[int]) -> Record | Unassigned:
        """This node's own record, if the store ``assigns_subnets``; called before the node joins.

        The subnets may be of any length, and may include the network's first one. The value may lack everything that
        peers need; the core then writes it with :meth:`update`. The driver knows which node this is, or has an option
        for it.

        :param families: the IP versions in which the network needs a subnet.
        """
        raise NotImplementedError(f"store {self.scheme!r} assigns no subnets")

    def chosen_addresses(self) -> Sequence[str]:
        """The public addresses that an operator has chosen for this node in the store; at most one per IP version.

        Called before the node joins if the store ``assigns_subnets``. The addresses act as ``--public-ip`` and
        ``--public-ipv6`` do, and take precedence over them: the interface that has them becomes the underlay.
        """
        return ()

    def announce(self, ready: bool) -> None:  # noqa: B027 - most stores tell nobody
        """Tell schedulers whether this node's overlay carries packets. Called whenever that changes.

        The last announcement must stay in force until the next; :meth:`renew` and :meth:`update` may restore it.

        :raises StoreUnavailableError: it was not announced; the core tries again.
        """

    def announced(self) -> bool | None:
        """What the place where :meth:`announce` writes says about this node now, whoever wrote it; ``None``: nothing.

        For diagnosis only.
        """
        return None

    def clock(self) -> StoreTime | None:
        """The store's wall clock, read without leaving a trace; ``None`` if it has none. For diagnosis only.

        :raises StoreUnavailableError: it can't be read now, or not this way; the message says why.
        """
        return None

    def close(self) -> None:  # noqa: B027 - a driver that holds nothing has nothing to do
        """Close connections and files, and end all watches. Idempotent."""

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hide_credentials(url: str) -> str:
    """A URL, well-formed or not, without what may be a password: everything before its last ``@``, and its options."""
    before, _, options = url.partition("?")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/*|", url)
    assert scheme is not None
    if "@" in options:  # a password with a question mark, or an option's value: who knows
        return f"{scheme[0]}..."
    if "@" in before:
        return f"{scheme[0]}...@{before.rpartition('@')[2]}"
    return before


# RFC 3986, appendix B, with a scheme and an authority that must be there. urllib would not do: since the fix of
# CVE-2025-0938 it refuses an IPv6 address that is not the only host.
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#\s]*)(?P<path>(?:/[^?#\x00-\x1f]*)?)"
    r"(?:\?(?P<query>[^#\x00-\x1f]*))?(?:#(?P<fragment>.*))?"
)
_HOST: Final = re.compile(r"([^\[\]:]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where a store is: ``scheme://host:port,host:port/path?option=value``, or the same as a table.

    ``hosts`` are ``host[:port]`` texts as written; ``path`` begins with ``/`` or is empty. ``shown`` names the options
    that stood in the URL, where process lists show them.
    """

    scheme: str
    hosts: tuple[str, ...] = ()
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    shown: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str] | None = None) -> StoreLocation:
        """Read a URL; ``options`` are added to those of its query and win over them.

        :raises ConfigError: it is not a URL, or carries a password (that is an option: from a file or the environment).
        """
        shown = hide_credentials(url)
        match = _URL.fullmatch(url)
        if match is None:
            raise ConfigError(
                f"store {shown!r}: expected a URL such as file:///var/lib/pyflannel or etcd://127.0.0.1:2379/coreos.com/network"
            )
        scheme, authority, path, query, fragment = (match[name] or "" for name in _URL.groupindex)
        scheme = scheme.lower()
        if "@" in authority:
            raise ConfigError(
                f"store {shown!r}: credentials don't belong in a URL, "
                "which process lists show; use the driver's options (a password file, or the environment)"
            )
        if authority and "@" in path + fragment:
            raise ConfigError(
                f"store {shown!r}: credentials don't belong in a URL; in a path write %40 for the character '@'"
            )
        hosts = tuple(host for host in authority.split(",") if host)
        for host in hosts:
            if not _HOST.fullmatch(host):
                said = repr(host) if "@" not in url else "what stands before the path"
                raise ConfigError(f"store {shown!r}: {said} is not of the form host:port, or [address]:port for IPv6")
        if fragment:
            raise ConfigError(f"store {shown!r}: a '#' begins nothing that a store knows; write %23 for the character")
        try:
            pairs = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        except ValueError:
            raise ConfigError(f"store {shown!r}: what follows '?' is not of the form name=value&name=value") from None
        return cls(scheme, hosts, unquote(path), {**pairs, **(options or {})}, frozenset(pairs))

    def check_options(self, known: Mapping[str, str], secret: Set[str] = frozenset()) -> None:
        """Refuse options that ``known`` does not name, and ``secret`` ones in a URL.

        :raises ConfigError: naming the option and the nearest known one.
        """
        for name in sorted(self.shown & secret):
            raise ConfigError(
                f"store {self.scheme}: {name} does not belong in a URL, which process lists show; "
                "set it in the config file's [store] table, in a file or in the environment"
            )
        for name in self.options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known)) or 'none'}"
                raise ConfigError(f"store {self.scheme}: unknown option {name!r}; {hint}")

    def __str__(self) -> str:
        """The URL without its options, which may hold secrets."""
        return f"{self.scheme}://{','.join(self.hosts)}{self.path}"
