"""Calls to an etcd cluster: one member at a time, the next one when it fails, and errors in our own words.

The idea: a call is a function of one member, metadata and a deadline. :meth:`Cluster.call` runs it on the member that
worked last and, when the *connection* fails (not the request), on the others in turn, sharing out the time that is
left. What a retry means for a write is the caller's business: its requests carry a comparison that makes a second one
harmless.

A connection that failed is thrown away rather than left to gRPC, which waits ever longer between attempts. A call
names a user by a token that etcd forgets after a while or a restart: it is fetched again when etcd says so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from enum import Enum, auto
from functools import cache, partial
from typing import Any, Final, TypeVar

from pyflannel.errors import ConfigError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel_stores._bounds import LARGEST_ANSWER, TOO_LARGE
from pyflannel_stores._deadline import Deadline
from pyflannel_stores._etcd_access import Access, MemberAddress
from pyflannel_stores._etcd_loader import load_etcd3, load_grpc

__all__ = ["Cluster", "ErrorMeaning", "LeaseGone", "Member", "Metadata", "plain"]

Reply = TypeVar("Reply")
Metadata = tuple[tuple[str, str], ...]
Send = Callable[["Member", Metadata, Deadline], Reply]

# A lost peer is noticed within 15 s (gRPC does that only if all four are set; more often, and etcd calls it abuse).
# Reconnecting waits 3 s at most. Proxies in the environment are for the web.
_CHANNEL: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.enable_http_proxy", 0),
)

# The member answers at once when it has lost its leader, instead of letting us wait.
_WITH_LEADER: Final = ("hasleader", "true")


class LeaseGone(Exception):  # noqa: N818 - an answer, which callers turn into an error or not
    """etcd does not know the etcd lease that a request names."""


class ErrorMeaning(Enum):
    """What a failed call means."""

    MOVE_ON = auto()
    """The connection or this member failed; another one may do."""
    LOG_IN = auto()
    """The token is not, or no longer, valid."""
    DENIED = auto()
    FULL = auto()
    """The NOSPACE alarm is on: nothing can be written to the whole cluster until somebody makes room."""
    LEASE_GONE = auto()


@cache
def _client_class() -> Any:
    """etcd3's client, with files read by us: of a certificate without a key, or a key alone, gRPC aborts the process.

    An empty file is the same to it as none.
    """
    grpc = load_grpc()

    class Client(load_etcd3().Etcd3Client):  # type: ignore[misc]
        def _get_secure_creds(self, *paths: str | None) -> Any:
            """:param paths: of the CA, our key and our certificate, which is gRPC's order, too."""
            return grpc.ssl_channel_credentials(*(None if path is None else Access.content(path) for path in paths))

    return Client


class Member:
    """A connection to one member."""

    def __init__(self, access: Access, endpoint: MemberAddress) -> None:
        self.endpoint = endpoint
        self._access = access
        self._stamp = access.files_stamp()
        self.rpc = load_etcd3().etcdrpc
        self.client = _client_class()(
            host=endpoint.bracketed,
            port=endpoint.port,
            ca_cert=access.cafile,
            cert_cert=access.certfile,
            cert_key=access.keyfile,
            grpc_options=_CHANNEL,
        )

    def is_stale(self) -> bool:
        """Whether a certificate or key was replaced since we connected."""
        try:
            return self._stamp != self._access.files_stamp()
        except StoreDeniedError:
            return False  # one is being replaced just now; this connection still serves

    def close(self) -> None:
        """Drop the connection; calls under way fail."""
        self.client.close()


class Cluster:
    """All members of a cluster, as one thing to call.

    :meth:`call` is for one thread, the other methods are for any.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self.closed = False
        # Every node lists the members in the same order; they should not all use the first.
        self.preferred = random.randrange(len(access.endpoints))  # noqa: S311 - not for secrets
        # The cluster's own id, as of the last snapshot.
        self.identity: int | None = None
        self._member: Member | None = None
        self._token: str | None = None

    def __str__(self) -> str:
        return "etcd " + ",".join(map(str, self.access.endpoints))

    def close(self) -> None:
        """End the call under way and refuse more. Idempotent, from any thread."""
        self.closed = True
        if (member := self._member) is not None:
            member.close()

    def call(self, send: Send[Reply], deadline: Deadline) -> Reply:
        """Run ``send`` on a member that answers.

        :raises StoreUnavailableError: no member did, in time; ``send`` may have had its effect.
        :raises StoreDeniedError: the cluster, or every member, refused.
        :raises LeaseGone: the request names an etcd lease that does not exist.
        """
        # With a single member, a second attempt is for a connection that had died unnoticed.
        tries = 2 if self._member is not None else 1
        self.preferred, reply = self.rotate(partial(self._attempt, send), self.preferred, deadline, tries)
        return reply

    def _attempt(self, send: Send[Reply], endpoint: MemberAddress, deadline: Deadline) -> Reply:
        grpc = load_grpc()

        if self._member is None or self._member.endpoint != endpoint or self._member.is_stale():
            self._drop()
            self._member = self.connect(endpoint)
            if self.closed:
                self._drop()
                raise self._closed()
        member = self._member
        try:
            try:
                return send(member, self.metadata(member, deadline), deadline)
            except grpc.RpcError as error:
                if not self.forget_token(error):
                    raise
            return send(member, self.metadata(member, deadline), deadline)
        except grpc.RpcError as error:
            if self.judge(error) is ErrorMeaning.MOVE_ON:
                self._drop()
            raise

    def rotate(
        self, attempt: Callable[[MemberAddress, Deadline], Reply], start: int, deadline: Deadline, at_least: int = 1
    ) -> tuple[int, Reply]:
        """Make attempts on members in turn, from the one numbered ``start``; also say which one it was that worked.

        Each member gets one attempt, and ``at_least`` as many are made. Raises as :meth:`call`.
        """
        grpc = load_grpc()

        endpoints = self.access.endpoints
        failures: dict[MemberAddress, Exception] = {}
        tries = max(at_least, len(endpoints))
        for number in range(tries):
            position = (start + number) % len(endpoints)
            endpoint = endpoints[position]
            if self.closed:
                raise self._closed()
            if not deadline.left:
                break
            try:
                return position, attempt(endpoint, deadline.share(tries - number))
            except grpc.RpcError as error:
                if self.judge(error) is not ErrorMeaning.MOVE_ON:
                    raise self._answer(error, endpoint) from None
                failures[endpoint] = error
            except ValueError:
                if not self.closed:
                    raise
                raise self._closed() from None  # gRPC's complaint about a channel that was closed meanwhile
        raise self._failed(failures, deadline)

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"store {self}: closed")

    def connect(self, endpoint: MemberAddress) -> Member:
        """A connection of its own to a member; nothing is sent yet.

        :raises StoreDeniedError: a certificate can't be read.
        """
        return Member(self.access, endpoint)

    def _drop(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None

    def metadata(self, member: Member, deadline: Deadline) -> Metadata:
        """What goes with every request: that the member must have a leader, and who we are.

        :raises grpc.RpcError: logging in failed.
        """
        if self.access.username is None:
            return (_WITH_LEADER,)
        token = self._token
        if token is None:
            token = self._token = self._log_in(member, deadline)
        return (_WITH_LEADER, ("token", token)) if token else (_WITH_LEADER,)

    def _log_in(self, member: Member, deadline: Deadline) -> str:
        grpc = load_grpc()

        try:
            password = self.access.password()
        except ConfigError as error:
            raise StoreDeniedError(str(error)) from None
        request = member.rpc.AuthenticateRequest(name=self.access.username, password=password)
        try:
            reply = member.rpc.AuthStub(member.client.channel).Authenticate(request, timeout=deadline.left)
        except grpc.RpcError as error:
            if "authentication is not enabled" in _details(error):
                return ""  # as etcd's own client does: a user may be configured before etcd is told to ask for one
            raise
        return str(reply.token)

    def forget_token(self, error: Exception | None = None) -> bool:
        """Forget our token, if we log in and ``error`` says that it is no good; the next call logs in again.

        That may be so although there is none any more: another thread's call was refused at the same time.
        """
        if self.access.username is None or (error is not None and self.judge(error) is not ErrorMeaning.LOG_IN):
            return False
        self._token = None
        return True

    def judge(self, error: Exception) -> ErrorMeaning:
        """What a failed call means."""
        grpc = load_grpc()

        code, details = _code(error), _details(error)
        if code == grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _TOKEN_TROUBLE):
            return ErrorMeaning.LOG_IN
        if "database space exceeded" in details:
            return ErrorMeaning.FULL
        if code == grpc.StatusCode.NOT_FOUND and "lease" in details:
            return ErrorMeaning.LEASE_GONE
        if code in {
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.NOT_FOUND,
        }:
            return ErrorMeaning.DENIED
        return ErrorMeaning.MOVE_ON

    def _answer(self, error: Exception, endpoint: MemberAddress) -> Exception:
        """A failed call in our own words, if it is one that no other member would treat differently."""
        where, verdict, said = f"store etcd {endpoint}", self.judge(error), _details(error)
        if verdict is ErrorMeaning.LEASE_GONE:
            return LeaseGone(said)
        if verdict is ErrorMeaning.FULL:
            return StoreUnavailableError(
                f"{where}: {said}: its disk quota is used up and nothing can be written (leases are still renewed); "
                "compact, defragment, then etcdctl alarm disarm"
            )
        user = f"user {self.access.username!r}" if self.access.username else "a client without a user"
        if "user name is empty" in said:
            hint = "authentication is on; add username and password_file"
        elif verdict is ErrorMeaning.LOG_IN or "authentication failed" in said:
            hint = f"{user} can't log in; check username and password"
        elif "permission denied" in said:
            hint = f"{user} needs the right to read and write the prefix {self.access.prefix}/"
        elif "too large" in said:
            hint = "raise etcd's --max-request-bytes, or write less"
        else:
            hint = "is this an etcd of version 3.2 or later?"
        return StoreDeniedError(f"{where}: {said}: {hint}")

    def _failed(self, failures: dict[MemberAddress, Exception], deadline: Deadline) -> StoreError:
        """The error after every member failed: refused if each of them keeps us out, else unavailable."""
        reasons, refused = [], bool(failures)
        for endpoint, error in failures.items():
            why = None
            if deadline.left and not _by_etcd(error):
                why = _refusal(self.access, endpoint, min(1.0, deadline.left / 2))
            refused &= why is not None
            reasons.append(f"{endpoint}: {why or plain(error)}")
        if refused:
            return StoreDeniedError(f"store etcd: {'; '.join(reasons)}")
        tried = "; ".join(reasons) or "not tried for want of time"
        return StoreUnavailableError(
            f"store {self}: no member answered ({tried}); check that etcd runs there, has a leader, and can be reached"
        )


def _refusal(access: Access, endpoint: MemberAddress, timeout: float) -> str | None:
    """See :func:`pyflannel_stores._etcd_refusal.refusal`, which loads OpenSSL, for those alone who are kept out."""
    try:
        from pyflannel_stores._etcd_refusal import refusal
    except (ImportError, OSError, MemoryError):  # no descriptor, or no memory: the error that there is says enough
        return None
    return refusal(access, endpoint, timeout)


_TOKEN_TROUBLE: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")


# "UNKNOWN: ipv4:192.0.2.1:2379: ", before the message proper.
_WHERE: Final = re.compile(r"^[A-Z_]+: ipv[46]:\S+: ")


def _code(error: Exception) -> Any:
    code = getattr(error, "code", None)
    return code() if callable(code) else None


def _details(error: Exception) -> str:
    details = getattr(error, "details", None)
    return str(details() or "") if callable(details) else str(error)


def _by_etcd(error: Exception) -> bool:
    """Whether etcd itself said so: then the connection works. A deadline that passed tells nothing about TLS either."""
    return "etcdserver:" in _details(error) or _too_late(error)


def _too_late(error: Exception) -> bool:
    """Whether time was up: of a call, or of the start of a watch, whose stream we end ourselves then."""
    grpc = load_grpc()

    return _code(error) == grpc.StatusCode.DEADLINE_EXCEEDED or "Locally cancelled" in _details(error)


def plain(error: Exception) -> str:
    """The end of gRPC's message, which is where it says something."""
    grpc = load_grpc()

    if _too_late(error):
        return "no answer in time"
    if _code(error) == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in _details(error):
        return f"{TOO_LARGE}; delete what is no lease below the prefix"
    said = _details(error).rpartition("last error: ")[2] or "connection failed"
    return _WHERE.sub("", said)
