"""The store driver for etcd v3: flannel's keys, on one cluster with flanneld.

Two keys' worth of schema: ``<prefix>/config`` holds the network document, ``<prefix>/subnets/<key>`` one lease each,
attached to an etcd lease that carries the expiry. A key without an etcd lease never expires (a reservation). Every
write is one transaction that compares first: the version with 0 to create, ``mod_revision`` to change. That makes it
safe to send again when an answer got lost: a second one changes nothing, and what it finds tells whose the first was.

Everything is read in one range, whose revision the watch continues from. The watch is etcd's own stream, read by the
thread that iterates; if its member fails it goes on from the next one, one revision after the last change it passed on.
"""

from __future__ import annotations

import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, NoReturn

from pyflannel.errors import ConflictError, HistoryGoneError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.store import (
    API_VERSION,
    CALL_TIMEOUT,
    CONFIG_KEY,
    Batch,
    Change,
    Record,
    Snapshot,
    Store,
    StoreLocation,
    StoreTime,
    Watch,
)
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._etcd_access import OPTIONS, Access, MemberAddress
from pyflannel_stores._etcd_cluster import Cluster, ErrorMeaning, LeaseGone, Member, Metadata, plain
from pyflannel_stores._etcd_loader import load_grpc, patient_threads

__all__ = ["EtcdStore", "EtcdWatch"]

# A margin for what happens around the calls, so that a driver's method ends within CALL_TIMEOUT.
_BUDGET: Final = CALL_TIMEOUT - 0.3

# Requests for remaining lifetimes that are under way at once; etcd has no call for more than one lease.
_TTL_REQUESTS: Final = 64
# Seconds between two questions whether the member of an open watch still hears of what is written, and for an answer.
_ASKED: Final = (45.0, 75.0)
_ANSWERED: Final = 5.0
# A watch that ends sooner than this many seconds after it was opened, on each member in turn, is not opened again.
_EARLY: Final = 1.0


def _deadline() -> Deadline:
    """The end of a call that begins now. Importing gRPC, which may take a slow machine as long, is none of its time."""
    load_grpc()
    return Deadline(_BUDGET)


class EtcdStore(Store):
    """Leases in etcd v3.

    ``Record.version`` is the key's mod_revision, ``handle`` its etcd lease's id in hexadecimal, as etcdctl has it.
    """

    api_version = API_VERSION
    scheme = "etcd"
    options: ClassVar[Mapping[str, str]] = OPTIONS
    secret_options = frozenset({"password"})

    def __init__(self, location: StoreLocation) -> None:
        super().__init__(location)
        access = Access.of(location)
        self._keys = _Keys(access.prefix)
        self._cluster = Cluster(access)
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()
        # etcd leases that we were granted or took a key from, and that may be left without any key.
        self._idle_leases: set[int] = set()
        # etcd rounds short lifetimes up to this (one and a half times its election timeout).
        self._shortest_ttl = 1

    def read_config(self) -> Record | None:
        """The key ``<prefix>/config``."""
        reply = self._read(self._keys.config, _deadline())
        return _record(CONFIG_KEY, reply.kvs[0]) if reply.kvs else None

    def write_config(self, value: str, expected: Record | None) -> Record:
        """Write ``<prefix>/config``, without an etcd lease, if it is still ``expected``."""
        return self._put(CONFIG_KEY, self._keys.config, value, expected, 0, _deadline())

    def snapshot(self) -> Snapshot:
        """The document and one range over the leases, read at one revision. Other keys of the prefix stay there."""

        def send(member: Member, metadata: Metadata, deadline: Deadline) -> Any:
            rpc = member.rpc
            document = rpc.RangeRequest(key=self._keys.config)
            leases = rpc.RangeRequest(key=self._keys.subnets, range_end=self._keys.end)
            both = [rpc.RequestOp(request_range=document), rpc.RequestOp(request_range=leases)]
            return member.client.kvstub.Txn(rpc.TxnRequest(success=both), timeout=deadline.left, metadata=metadata)

        reply = self._cluster.call(send, _deadline())
        self._cluster.identity = reply.header.cluster_id
        document, found = (response.response_range.kvs for response in reply.responses)
        config = _record(CONFIG_KEY, document[0]) if document else None
        leases = [_record(key, kv) for kv in found if (key := self._keys.key_of(kv.key)) is not None]
        return Snapshot(str(reply.header.revision), config, tuple(leases))

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """Grant an etcd lease and put the key on it if the key's version is 0."""
        deadline = _deadline()
        lease, granted = self._grant(ttl, deadline) if ttl is not None else (0, None)
        try:
            record = self._put(key, self._keys.lease(key), value, None, lease, deadline)
        except LeaseGone:
            raise StoreUnavailableError(f"store etcd: {key}: its lease expired before the key could be put") from None
        except StoreError:
            self._release(lease, deadline)
            raise
        return replace(record, ttl=None if granted is None else float(granted))

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """Put the key if its mod_revision is the record's; on its etcd lease, unless another lifetime is asked for."""
        return self._rewrite(record, value, None if record.permanent else ttl, _deadline())

    def renew(self, record: Record, ttl: float) -> Record:
        """Keep the record's etcd lease alive once, then see that the key still is what it was.

        The key is put on a new etcd lease if another lifetime is asked for than it was granted.
        """
        if record.permanent:
            return record
        deadline = _deadline()
        granted = self._keep_alive(_lease_id(record), deadline)
        if granted is None:
            raise ConflictError(f"store etcd: {record.key}: its lease has expired")
        if granted != self._whole(ttl):
            return self._rewrite(record, record.value, ttl, deadline)
        # The etcd lease lives; whether the key still hangs on it is another question.
        reply = self._read(self._keys.lease(record.key), deadline)
        if not reply.kvs or str(reply.kvs[0].mod_revision) != record.version:
            raise _changed(record.key, reply.kvs)
        return replace(record, ttl=float(granted))

    def delete(self, record: Record) -> None:
        """Delete the key if its mod_revision is the record's, and its etcd lease if nothing else hangs on that."""
        deadline = _deadline()
        key = self._keys.lease(record.key)

        def operation(rpc: Any) -> Any:
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))

        reply, _ = self._transact(key, record, operation, deadline)
        if not reply.succeeded and (kvs := reply.responses[0].response_range.kvs):
            raise _changed(record.key, kvs)
        self._release(_lease_id(record), deadline)

    def watch(self, revision: str) -> EtcdWatch:
        """Changes after ``revision``, of whichever etcd member; a store object's own or another one's."""
        opened = EtcdWatch(self._cluster, self._keys, revision)
        self._watches.add(opened)
        if self._cluster.closed:
            opened.close()
        return opened

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """Asked of etcd for each etcd lease, many at a time. A lease that is gone has 0 seconds left."""
        records = tuple(records)
        leases = sorted({lease for record in records if (lease := _lease_id(record))})
        left: dict[int, float | None] = {0: None}
        deadline = _deadline()
        for start in range(0, len(leases), _TTL_REQUESTS):
            some = leases[start : start + _TTL_REQUESTS]
            left.update(zip(some, self._lifetimes(some, deadline), strict=True))
        return {record.key: left[_lease_id(record)] for record in records}

    def clock(self) -> StoreTime:
        """A member's, to the second, asked over HTTP: see :mod:`pyflannel_stores._etcd_clock`."""
        from pyflannel_stores import _etcd_clock

        members, first = self._cluster.access.endpoints, self._cluster.preferred
        return _etcd_clock.ask(self._cluster.access, members[first:] + members[:first], _deadline())

    def close(self) -> None:
        """Close all connections and end all watches. An etcd lease that waits to be given back expires by itself."""
        self._cluster.close()
        for watch in tuple(self._watches):
            watch.close()

    def _read(self, key: bytes, deadline: Deadline) -> Any:
        def send(member: Member, metadata: Metadata, deadline: Deadline) -> Any:
            request = member.rpc.RangeRequest(key=key)
            return member.client.kvstub.Range(request, timeout=deadline.left, metadata=metadata)

        return self._cluster.call(send, deadline)

    def _rewrite(self, record: Record, value: str, ttl: float | None, deadline: Deadline) -> Record:
        """Put a new value or expiry, on the record's own etcd lease if that has the right lifetime."""
        old = _lease_id(record)
        lease, granted = 0, None
        if ttl is not None:
            granted = self._keep_alive(old, deadline) if old else None
            lease = old
            if granted != self._whole(ttl):
                lease, granted = self._grant(ttl, deadline)
        try:
            written = self._put(record.key, self._keys.lease(record.key), value, record, lease, deadline)
        except LeaseGone:
            raise ConflictError(f"store etcd: {record.key}: its lease has just expired") from None
        except StoreError:
            if lease != old:
                self._release(lease, deadline)
            raise
        if lease != old:
            self._release(old, deadline)
        return replace(written, ttl=None if granted is None else float(granted))

    def _put(
        self, name: str, key: bytes, value: str, expected: Record | None, lease: int, deadline: Deadline
    ) -> Record:
        """Write a key if it is still ``expected``."""
        data = value.encode("utf-8", "surrogateescape")

        def operation(rpc: Any) -> Any:
            return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=data, lease=lease))

        reply, lost = self._transact(key, expected, operation, deadline)
        if reply.succeeded:
            revision = reply.header.revision
            created = expected.created if expected is not None else revision
            return Record(name, value, str(revision), not lease, None, _handle(lease), created)
        kvs = reply.responses[0].response_range.kvs
        if lost and kvs and kvs[0].value == data and kvs[0].lease == lease:
            # What the last request met is what an earlier one did, whose answer got lost.
            return _record(name, kvs[0])
        raise _changed(name, kvs)

    def _transact(
        self, key: bytes, expected: Record | None, operation: Callable[[Any], Any], deadline: Deadline
    ) -> tuple[Any, bool]:
        """Do ``operation`` if ``key`` is as expected, else read it.

        :returns: etcd's reply, and whether an earlier request, whose answer got lost, may have done it already.
        """
        lost = False

        def send(member: Member, metadata: Metadata, deadline: Deadline) -> Any:
            nonlocal lost
            grpc = load_grpc()

            rpc = member.rpc
            unchanged = rpc.Compare(key=key, result=rpc.Compare.EQUAL)
            if expected is None:
                unchanged.target, unchanged.version = rpc.Compare.VERSION, 0
            else:
                unchanged.target, unchanged.mod_revision = rpc.Compare.MOD, _number(expected.version)
            request = rpc.TxnRequest(
                compare=[unchanged],
                success=[operation(rpc)],
                failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key))],
            )
            try:
                return member.client.kvstub.Txn(request, timeout=deadline.left, metadata=metadata)
            except grpc.RpcError as error:
                lost |= self._cluster.judge(error) is ErrorMeaning.MOVE_ON
                raise

        return self._cluster.call(send, deadline), lost

    def _whole(self, ttl: float) -> int:
        """``ttl`` as etcd takes it: whole seconds, and not too few."""
        return max(math.ceil(ttl), self._shortest_ttl)

    def _grant(self, ttl: float, deadline: Deadline) -> tuple[int, int]:
        """A new etcd lease and its lifetime.

        We choose its id, so that a request whose answer got lost can be sent again without making a second one.
        """
        lease, asked, sent = random.SystemRandom().getrandbits(62) + 1, self._whole(ttl), 0

        def send(member: Member, metadata: Metadata, deadline: Deadline) -> int:
            nonlocal sent
            grpc = load_grpc()

            sent += 1
            request = member.rpc.LeaseGrantRequest(TTL=asked, ID=lease)
            try:
                reply = member.client.leasestub.LeaseGrant(request, timeout=deadline.left, metadata=metadata)
            except grpc.RpcError as error:
                if sent > 1 and "lease already exists" in (error.details() or ""):
                    return asked
                raise
            return int(reply.TTL)

        try:
            granted = self._cluster.call(send, deadline)
        except StoreUnavailableError:
            self._idle_leases.add(lease)
            raise
        if granted > asked:
            self._shortest_ttl = granted
        return lease, granted

    def _keep_alive(self, lease: int, deadline: Deadline) -> int | None:
        """Put off an etcd lease's expiry by the lifetime it was granted, and return that; ``None`` if it is gone."""

        def send(member: Member, metadata: Metadata, deadline: Deadline) -> int:
            requests = iter([member.rpc.LeaseKeepAliveRequest(ID=lease)])
            replies = member.client.leasestub.LeaseKeepAlive(requests, timeout=deadline.left, metadata=metadata)
            try:
                return next((int(reply.TTL) for reply in replies), 0)
            finally:
                replies.cancel()

        try:
            # etcd does not fail: it answers that nothing is left.
            return self._cluster.call(send, deadline) or None
        except LeaseGone:
            return None

    def _release(self, lease: int, deadline: Deadline) -> None:
        """Give back an etcd lease if no key hangs on it, and those that could not be given back before.

        One that can't be given back now is kept in mind for the next time; in the end it expires by itself.
        """
        if lease:
            self._idle_leases.add(lease)
        for idle in tuple(self._idle_leases):
            if not deadline.left:
                return
            try:
                self._revoke_if_idle(idle, deadline)
            except StoreUnavailableError:
                return
            except (LeaseGone, StoreDeniedError):
                pass  # gone already, or it holds keys that are none of our business
            self._idle_leases.discard(idle)

    def _revoke_if_idle(self, lease: int, deadline: Deadline) -> None:
        def ask(member: Member, metadata: Metadata, deadline: Deadline) -> Any:
            request = member.rpc.LeaseTimeToLiveRequest(ID=lease, keys=True)
            return member.client.leasestub.LeaseTimeToLive(request, timeout=deadline.left, metadata=metadata)

        def revoke(member: Member, metadata: Metadata, deadline: Deadline) -> None:
            request = member.rpc.LeaseRevokeRequest(ID=lease)
            member.client.leasestub.LeaseRevoke(request, timeout=deadline.left, metadata=metadata)

        found = self._cluster.call(ask, deadline)
        if found.TTL > 0 and not found.keys:
            self._cluster.call(revoke, deadline)

    def _seconds(self, answer: Any) -> float:
        grpc = load_grpc()

        try:
            return max(0.0, float(answer.result().TTL))
        except grpc.RpcError as error:
            if self._cluster.judge(error) is ErrorMeaning.LEASE_GONE:
                return 0.0
            raise

    def _lifetimes(self, leases: list[int], deadline: Deadline) -> list[float]:
        """The seconds that some etcd leases still live, asked for all at once; 0 for one that is gone."""

        def send(member: Member, metadata: Metadata, deadline: Deadline) -> list[float]:
            ask = member.client.leasestub.LeaseTimeToLive.future
            answers = [
                ask(member.rpc.LeaseTimeToLiveRequest(ID=lease), timeout=deadline.left, metadata=metadata)
                for lease in leases
            ]
            return [self._seconds(answer) for answer in answers]

        return self._cluster.call(send, deadline)


class EtcdWatch(Watch):
    """A stream of changes from one member, and from the next one when that fails.

    The stream has a connection of its own, so that a failed call of the store does not end it, nor the other way round.

    A member that is stopped or cut off is noticed by the connection's keepalive. One whose disk hangs answers that and
    keeps the stream, but takes in nothing that others write, and so has nothing to tell. Therefore the member is asked,
    now and then, for what only one that is up to date can answer: a read that the cluster agrees to.
    """

    def __init__(self, cluster: Cluster, keys: _Keys, revision: str) -> None:
        self._cluster = cluster
        self._keys = keys
        self._revision = _number(revision)
        self._position = cluster.preferred
        self._closed = threading.Event()
        self._changing = threading.Lock()
        self._member: Member | None = None
        self._responses: Iterator[Any] | None = None
        self._end_requests = threading.Event()
        self._opened_at = 0.0
        self._early_ends = 0

    def __next__(self) -> Batch:
        grpc = load_grpc()

        while not self._closed.is_set():
            try:
                if self._responses is None:
                    self._open()
                    continue
                response = next(self._responses)
            except (grpc.RpcError, StopIteration, ValueError) as error:
                if not self._closed.is_set():
                    self._broke(error)
                continue
            except StoreError:
                self._drop()
                if self._closed.is_set():
                    break
                raise
            if response.canceled:
                self._drop()
                self._refuse(response)
            if not response.created:
                return self._batch(response)
        raise StopIteration

    def close(self) -> None:
        """End the stream and its connection."""
        self._closed.set()
        self._drop()

    def _broke(self, error: Exception) -> None:
        """The stream ended: go on from the next member, unless none of them lets a stream last."""
        if isinstance(error, ValueError):
            raise error
        self._early_ends = self._early_ends + 1 if time.monotonic() - self._opened_at < _EARLY else 0
        where = self._member.endpoint if self._member is not None else self._cluster
        self._drop()
        self._position = (self._position + 1) % len(self._cluster.access.endpoints)
        if self._early_ends > len(self._cluster.access.endpoints):
            self._early_ends = 0
            raise StoreUnavailableError(f"store etcd {where}: the watch broke: {plain(error)}")

    def _batch(self, response: Any) -> Batch:
        changes = []
        for event in response.events:
            key = self._keys.key_of(event.kv.key)
            if key is not None:
                changes.append(Change(key, None if event.type == event.DELETE else _record(key, event.kv)))
        # The header's revision is that of the store, which may be ahead of the events that are still to come. Without
        # events it is a notice of progress, which etcd sends when there are none.
        self._revision = response.events[-1].kv.mod_revision if response.events else response.header.revision
        return Batch(str(self._revision), tuple(changes))

    def _open(self) -> None:
        """Open the stream on a member that has a leader, and see that it can go on where we are.

        :raises HistoryGoneError: it can't.
        :raises StoreError: no member would, or all refused.
        """
        if self._revision < 0:
            raise HistoryGoneError("store etcd: the revision to watch from is not one of etcd's")
        self._position, (responses, created) = self._cluster.rotate(self._attempt, self._position, _deadline())
        if created.canceled:
            self._refuse(created)
        self._check_history(created.header)
        self._opened_at = time.monotonic()
        self._responses = responses

    def _attempt(self, endpoint: MemberAddress, deadline: Deadline) -> tuple[Iterator[Any], Any]:
        grpc = load_grpc()

        self._drop()
        member = self._cluster.connect(endpoint)
        with self._changing:
            self._member = member
            self._end_requests = threading.Event()
        if self._closed.is_set():
            raise StoreUnavailableError("store etcd: the watch was closed")
        try:
            responses, created = self._request(member, deadline)
        except grpc.RpcError as error:
            if not self._cluster.forget_token(error):
                raise
            return self._request(member, deadline)
        # What etcd says of an expired token here is that permission is denied.
        if created.canceled and not created.compact_revision and self._cluster.forget_token():
            return self._request(member, deadline)
        return responses, created

    def _request(self, member: Member, deadline: Deadline) -> tuple[Iterator[Any], Any]:
        """Ask for the watch; returns the stream behind etcd's first answer, and that answer."""
        rpc = member.rpc
        create = rpc.WatchCreateRequest(
            key=self._keys.config, range_end=self._keys.end, start_revision=self._revision + 1, progress_notify=True
        )
        metadata = self._cluster.metadata(member, deadline)
        end = self._end_requests

        def ask() -> Iterator[Any]:
            """The stream's requests: one, and then none until its end, which some servers take for the watch's."""
            yield rpc.WatchRequest(create_request=create)
            while not end.wait(random.uniform(*_ASKED)):  # noqa: S311 - not for secrets
                if not self._is_up_to_date(member):
                    responses.cancel()
                    return

        requests = ask()
        with patient_threads():  # those that wait for the stream's requests and answers
            responses = rpc.WatchStub(member.client.channel).Watch(requests, metadata=metadata)
        # A deadline given to gRPC would be one for the whole stream.
        alarm = threading.Timer(deadline.left, responses.cancel)
        alarm.daemon = True
        alarm.start()
        try:
            return responses, next(responses)
        finally:
            alarm.cancel()

    def _is_up_to_date(self, member: Member) -> bool:
        """Whether a member answers a read that needs all that was written before; for the thread of its requests."""
        grpc = load_grpc()

        deadline = Deadline(_ANSWERED)
        try:
            request = member.rpc.RangeRequest(key=self._keys.config, count_only=True)
            metadata = self._cluster.metadata(member, deadline)
            member.client.kvstub.Range(request, timeout=deadline.left, metadata=metadata)
        except grpc.RpcError as error:
            return self._cluster.judge(error) is not ErrorMeaning.MOVE_ON
        except ValueError:  # gRPC's complaint about a channel that was closed meanwhile
            return True
        return True

    def _check_history(self, header: Any) -> None:
        """See that the cluster is the one the revision came from, and has come as far.

        :raises HistoryGoneError: it was replaced, or restored from a backup.
        """
        known = self._cluster.identity
        if known is not None and known != header.cluster_id:
            raise HistoryGoneError("store etcd: this is another cluster than the one the last snapshot came from")
        if header.revision < self._revision and self._newest_revision() < self._revision:
            raise HistoryGoneError(
                f"store etcd: the cluster has not come as far as revision {self._revision}: begun anew, or restored"
            )

    def _newest_revision(self) -> int:
        """The revision of the cluster, as opposed to that of a member which may lag behind."""

        def attempt(endpoint: MemberAddress, deadline: Deadline) -> int:
            member = self._cluster.connect(endpoint)
            try:
                request = member.rpc.RangeRequest(key=self._keys.config)
                metadata = self._cluster.metadata(member, deadline)
                reply = member.client.kvstub.Range(request, timeout=deadline.left, metadata=metadata)
                return int(reply.header.revision)
            finally:
                member.close()

        return self._cluster.rotate(attempt, self._position, _deadline())[1]

    def _refuse(self, response: Any) -> NoReturn:
        """Raise what a response that ends the watch stands for."""
        if response.compact_revision:
            raise HistoryGoneError(
                f"store etcd: changes after revision {self._revision} were compacted up to {response.compact_revision}"
            )
        reason = response.cancel_reason or "no reason given"
        if "permission denied" in reason:
            raise StoreDeniedError(
                f"store etcd: may not watch the prefix {self._cluster.access.prefix}/: grant the right to read it"
            )
        raise StoreUnavailableError(f"store etcd: etcd ended the watch: {reason}")

    def _drop(self) -> None:
        """Let the stream and its connection go."""
        with self._changing:
            member, self._member, self._responses = self._member, None, None
            self._end_requests.set()
        if member is not None:
            member.close()


class _Keys:
    """The keys below one prefix, as etcd has them."""

    def __init__(self, prefix: str) -> None:
        base = prefix.encode("utf-8", "surrogateescape")
        self.config = base + b"/config"
        self.subnets = base + b"/subnets/"
        # The first key behind all leases. From the document to here there is little else, below any prefix but "/".
        self.end = base + b"/subnets" + bytes([ord("/") + 1])

    def lease(self, key: str) -> bytes:
        """Where the lease ``key`` is kept."""
        return self.subnets + key.encode("utf-8", "surrogateescape")

    def key_of(self, path: bytes) -> str | None:
        """The key that a store's user knows a path by; ``None`` if it is not one of ours."""
        if path == self.config:
            return CONFIG_KEY
        if not path.startswith(self.subnets):
            return None
        name = path[len(self.subnets) :]
        if not name or name == b"config":
            return None  # no lease can have the name that stands for the document
        return name.decode("utf-8", "surrogateescape")


def _record(key: str, kv: Any) -> Record:
    """A key as etcd returned it. Bytes that are not UTF-8 survive as surrogates, and are written back as they were."""
    lease = kv.lease
    value = kv.value.decode("utf-8", "surrogateescape")
    return Record(key, value, str(kv.mod_revision), not lease, None, _handle(lease), kv.create_revision)


def _handle(lease: int) -> str:
    return f"{lease:x}" if lease else ""


def _lease_id(record: Record) -> int:
    return int(record.handle, 16) if record.handle else 0


def _number(text: str) -> int:
    """A revision; -1, which no key ever has, for a text that is none."""
    return int(text) if text.isascii() and text.isdigit() else -1


def _changed(key: str, kvs: Any) -> ConflictError:
    if not kvs:
        return ConflictError(f"store etcd: {key}: it was deleted or has expired")
    return ConflictError(f"store etcd: {key}: somebody else wrote it at revision {kvs[0].mod_revision}")
