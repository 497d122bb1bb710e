"""WireGuard's state machine: who our peers are, which sessions we have with them, and what is due when.

It is told what came and what time it is, and leaves what is to be sent in :attr:`.WireguardMachine.outgoing`; it makes
no system call, so a test can run it over any network and any clock. What authenticates nobody is dropped without an
answer and without a trace: no state changes before the last check has passed.

Packets to a peer are encrypted with its ``current`` session. A handshake that *we* began ends with a session that both
sides have, so it becomes current at once; one that the *peer* began ends with a session of which we do not know whether
our answer arrived, so it waits as ``next`` until something comes that was encrypted with it. Those before become
``former``: packets are still on their way, and until the peer hears of the new session it goes on with the old one. Our
own unanswered initiation is a state beside those, so when both sides begin at once, both handshakes succeed.

When our own key changes, what was agreed under the former one still receives, but sends no more: a kernel forgets it as
it learns the new key, and we can't know when that is. Packets wait for a handshake with the new key, as they do in the
kernel; after some time without one, the peer seems to know the former key only, and they go on.

Times are monotonic seconds, as :func:`time.monotonic` gives them; handshakes carry wall-clock time, which
:class:`Timestamps` keeps from going back. White paper, sections 5 and 6. Where we do otherwise than the kernel:

* a session's keys are dropped when it can't be used any more, after 180 s, not after 540 s;
* there may be several former sessions, so that handshakes that cross each other lose no packet;
* a peer's address is taken from packets of a session only, not from initiations: a recorded one, sent again after our
  restart, moves nobody;
* handshakes that stay unanswered try the configured and the learned address in turn;
* one without which nothing can be sent is repeated after 1, 2 and 4 s before it is every 5 s: packets wait for it, and
  there is room for few;
* of initiations, as many as the kernel takes from a peer in a second, several may come at once: those that a busy
  machine was late to read were not sent at once.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from . import messages
from .cookie import Gate, Stamper
from .messages import CookieReply, Handshake, Initiation, Response
from .noise import KEY, Initiator, RandomBytes, ReceivedInitiation, StaticKeys, TransportKeys
from .session import REJECT_AFTER_TIME, Session

__all__ = ["HELD", "STAGED", "Endpoint", "Limits", "Peer", "Timestamps", "WireguardMachine"]

Endpoint: TypeAlias = tuple[str, int]
Datagram: TypeAlias = tuple[Endpoint, bytes]

STAGED: Final = 128
"""Packets that wait for a handshake, per peer; older ones give way."""
HELD: Final = 4096
"""Further ones that find room, for all peers together, when a new key of ours makes those wait that we talk to."""
_JITTER: Final = 1 / 3
"""Seconds by which repeated handshakes are spread, so that two nodes don't begin together for ever."""
_INITIATION_SPACING: Final = 1 / 50
"""Seconds that must lie between two initiations that we answer to one peer, on average; as they do in the kernel, which
ignores one that comes sooner."""
_INITIATIONS_AT_ONCE: Final = 4
"""Initiations of one peer that we answer at once all the same."""
_HASTY: Final = 3
"""Tries of a handshake that packets wait for, after which it is repeated no sooner than any other."""
_FORMER: Final = 3
"""Former sessions of one peer that may still receive."""
_NEVER: Final = math.inf
_NO_PSK: Final = bytes(KEY)


@dataclass(frozen=True, slots=True)
class Limits:
    """The white paper's constants (section 6.1), in seconds, and in packets sent with one key."""

    rekey_after_messages: int = 2**60
    rekey_after_time: float = 120.0
    rekey_attempt_time: float = 90.0
    rekey_timeout: float = 5.0
    keepalive_timeout: float = 10.0
    first_timeout: float = 1.0
    """Not the white paper's: until a handshake that packets wait for is repeated for the first time."""


class Timestamps:
    """TAI64N labels for handshakes, each greater than all before it: peers refuse an older one.

    That holds when the wall clock is set back, and over restarts, as long as what was reserved is kept. Reserving ahead
    makes that one write in five seconds at most. It is given back at the end: a run that ended otherwise makes the next
    one's labels that much too new, and whoever has the key after that, the kernel say, is ignored for as long.

    :param wall: nanoseconds since 1970.
    :param after: what the last run reserved; 0 if there was none.
    :param reserve: keeps a number, greater than all labels until the next call, for the next run.
    """

    _AHEAD: Final = 5 * 10**9
    _COARSE: Final = 1 << 24
    """Labels are this coarse, in nanoseconds, so that they don't tell how long something took."""

    def __init__(self, wall: Callable[[], int], after: int, reserve: Callable[[int], None]) -> None:
        self._wall, self._reserve = wall, reserve
        self._last = self._reserved = after

    def next(self) -> bytes:
        """A label of 12 bytes."""
        now = self._wall()
        self._last = max(now - now % self._COARSE, self._last + 1)
        if self._last >= self._reserved:
            self._reserved = self._last + self._AHEAD
            self._reserve(self._reserved)
        seconds, nanoseconds = divmod(self._last, 10**9)
        return (2**62 + 10 + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")

    def release(self) -> None:
        """Reserve no more than was used. There may be further labels, which reserve again."""
        if self._last < self._reserved:
            self._reserved = self._last
            self._reserve(self._last)


class Peer:
    """One peer, as the machine knows it. To be read by others, changed by the machine only.

    ``id`` is whatever name its owner gave it; ``public_key`` may change, ``endpoint`` is where it was heard last.
    ``sent_bytes`` and ``received_bytes`` count UDP payload; ``handshaken`` is when the last handshake was completed.
    """

    __slots__ = (
        "asked",
        "configured",
        "current",
        "endpoint",
        "former",
        "handshaken",
        "heard_until",
        "id",
        "initiated",
        "keepalive",
        "keepalive_again",
        "keepalive_at",
        "next",
        "pending",
        "persistent_at",
        "psk",
        "public_key",
        "received_bytes",
        "repeat_at",
        "sent_bytes",
        "staged",
        "stamper",
        "tries",
        "unanswered",
        "wake",
        "welcome_from",
        "welcomed",
    )

    def __init__(self, name: str, public_key: bytes) -> None:
        self.id = name
        self.configured: Endpoint | None = None
        self.endpoint: Endpoint | None = None
        self.psk = _NO_PSK
        self.keepalive = 0.0
        self.sent_bytes = self.received_bytes = 0
        self.handshaken: float | None = None
        self.current: Session | None = None
        self.next: Session | None = None
        self.former: list[Session] = []
        self.staged: deque[bytes] = deque()
        self.set_key(public_key)
        # When something is due:
        self.repeat_at = _NEVER
        """Begin the handshake again: no answer came."""
        self.keepalive_at = _NEVER
        """Say that what came did come: we had nothing to send."""
        self.keepalive_again = False
        self.heard_until = _NEVER
        """Begin a new handshake: we sent, and nothing came back."""
        self.persistent_at = _NEVER
        self.wake = _NEVER
        """The earliest time for which the machine has noted this peer."""
        # Our handshakes:
        self.initiated = -_NEVER
        self.asked = -_NEVER
        """When somebody last wanted a session."""
        self.tries = 0
        self.unanswered = False
        """Whether the last attempt to reach the peer was given up."""

    def set_key(self, public_key: bytes) -> None:
        """Whoever holds this key is the peer now; handshakes that involve an earlier one are void."""
        self.public_key = public_key
        self.stamper = Stamper(public_key)
        self.pending: tuple[int, Initiator] | None = None
        self.welcomed, self.welcome_from = b"", -_NEVER
        """The greatest timestamp that came in an initiation; from when on one could come that is no sooner than
        initiations may be, those before it counted as if they had come no sooner either."""

    @property
    def sessions(self) -> Iterator[Session]:
        """Those there are."""
        yield from self.former
        if self.current is not None:
            yield self.current
        if self.next is not None:
            yield self.next

    @property
    def due(self) -> float:
        """When the machine has something to do for this peer."""
        expires = min((session.expires for session in self.sessions), default=_NEVER)
        return min(self.repeat_at, self.keepalive_at, self.heard_until, self.persistent_at, expires)


class WireguardMachine:
    """See the module's docstring.

    :param identity: our own key pair.
    :param timestamps: for our initiations.
    :param random: :func:`os.urandom`, but for tests.
    :param mtu: of packets inside, in bytes: padding never goes beyond it.
    """

    def __init__(
        self,
        identity: StaticKeys,
        timestamps: Timestamps,
        random: RandomBytes,
        *,
        mtu: int = 1420,
        limits: Limits | None = None,
    ) -> None:
        self.outgoing: list[Datagram] = []
        """What is to be sent now, in this order; whoever sends it takes it out."""
        self.sessions: dict[int, Session] = {}
        """By our index: what may come."""
        self.peers: dict[str, Peer] = {}
        self.handshakes = 0
        """How many were completed."""
        self.changes = 0
        """Grows when a session or an address may not be used as before, for who remembers which to use."""
        self._identity = identity
        self._timestamps = timestamps
        self._random = random
        self.mtu = mtu
        self._limits = limits or Limits()
        self._resume_at = _NEVER
        """When sessions of a former key of ours send again."""
        self._room = 0
        """How many packets more than ``STAGED`` may still be kept."""
        self._gate = Gate(identity.public, random)
        self._pending: dict[int, Peer] = {}
        self._holders: dict[bytes, list[Peer]] = {}
        """Peers by public key. There should be one for each; if there are more, all but the first stay silent."""
        self._heap: list[tuple[float, int, Peer]] = []
        self._pushes = 0

    @property
    def public_key(self) -> bytes:
        """Our own."""
        return self._identity.public

    # Peers

    def put(
        self,
        name: str,
        public_key: bytes,
        endpoint: Endpoint | None,
        now: float,
        *,
        psk: bytes = _NO_PSK,
        keepalive: float = 0.0,
    ) -> None:
        """Know a peer, or know it otherwise than before. Its sessions stay, also when its key is another one.

        With another key, a handshake with the new one begins at once, and what was agreed with the old one is used
        until it is done, or at most as long as any session. An address that was learned is forgotten only when the
        configured one changes.

        :param psk: the preshared key, 32 bytes; zeros for none.
        :param keepalive: seconds; 0 for none.
        :raises ValueError: the public key is our own, or is not 32 bytes.
        """
        if len(public_key) != KEY:
            raise ValueError(f"a public key has {KEY} bytes, not {len(public_key)}")
        if public_key == self._identity.public:
            raise ValueError("the public key is this node's own")
        peer = self.peers.get(name)
        if peer is None:
            peer = self.peers[name] = Peer(name, public_key)
            self._holders.setdefault(public_key, []).append(peer)
        if endpoint != peer.configured:
            peer.configured = peer.endpoint = endpoint
            self.changes += 1
        peer.psk = psk
        if public_key != peer.public_key:
            self._change_key(peer, public_key, now)
        self.set_keepalive(peer, keepalive, now)

    def set_keepalive(self, peer: Peer, seconds: float, now: float) -> None:
        """Send a peer something at least this often; 0 for no such need."""
        if seconds != peer.keepalive:
            peer.keepalive = seconds
            peer.persistent_at = now if seconds else _NEVER
            self._schedule(peer)

    def _change_key(self, peer: Peer, public_key: bytes, now: float) -> None:
        self._forget_pending(peer)
        self._release_key(peer)
        peer.set_key(public_key)
        self._holders.setdefault(public_key, []).append(peer)
        peer.initiated = -_NEVER
        if any(peer.sessions) or peer.staged:
            self._ask(peer, now)

    def remove(self, name: str) -> None:
        """Forget a peer and all that was agreed with it."""
        peer = self.peers.pop(name, None)
        if peer is not None:
            self.changes += 1
            self._forget_pending(peer)
            self._release_key(peer)
            for session in tuple(peer.sessions):
                del self.sessions[session.index]
            peer.current = peer.next = None
            peer.former.clear()
            peer.staged.clear()
            peer.wake = -_NEVER

    def _release_key(self, peer: Peer) -> None:
        holders = self._holders[peer.public_key]
        holders.remove(peer)
        if not holders:
            del self._holders[peer.public_key]

    def set_identity(self, identity: StaticKeys, now: float) -> None:
        """Have another key pair from now on, be it a former one again.

        Sessions that another key of ours agreed on only receive until there are new ones, or until two handshakes have
        gone unanswered. Unfinished handshakes begin anew.
        """
        self._identity = identity
        self.changes += 1
        self._gate = Gate(identity.public, self._random)
        self._room = HELD
        self._resume_at = now + 2 * (self._limits.rekey_timeout + _JITTER)
        for peer in self.peers.values():
            peer.initiated = -_NEVER
            if peer.pending is not None:
                self._ask(peer, now)
            if peer.staged:
                self._send_staged(peer, now)

    def begin_again(self, now: float) -> None:
        """Begin unfinished handshakes of ours anew, as their answers may have gone to somebody else.

        One that was begun just now goes on: its peer may ignore the next one, and we the answer to this one then.
        """
        for peer in tuple(self._pending.values()):
            if now - peer.initiated >= 2 * _INITIATION_SPACING:
                peer.initiated = -_NEVER
                self._ask(peer, now)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Peers that can't be reached as things are, and why."""
        for peer in self.peers.values():
            if not self._speaks(peer):
                yield peer.id, "another peer has the same public key"
            elif peer.unanswered:
                yield peer.id, f"no answer to handshakes at {_text(peer.endpoint)}"

    def _speaks(self, peer: Peer) -> bool:
        return self._holders[peer.public_key][0] is peer

    # Sending

    def sending(self, peer: Peer, now: float) -> Session | None:
        """The session to send with; ``None`` if there is none."""
        session = peer.current
        if session is None or not session.is_alive(now):
            return None
        return session if session.own_key == self._identity.public or self._resume_at == _NEVER else None

    def send(self, peer: Peer, packets: Iterable[bytes], now: float) -> None:
        """Send packets one by one, or keep them and begin a handshake."""
        session = self.sending(peer, now)
        if session is None:
            self._stage(peer, packets)
            self._ask(peer, now)
            return
        count = size = 0
        for packet in packets:
            size += self._seal(session, self._padded(packet))
            count += 1
        self.sent(session, count, size, now)

    def _stage(self, peer: Peer, packets: Iterable[bytes]) -> None:
        for packet in packets:
            if len(peer.staged) >= STAGED:
                if self._room:
                    self._room -= 1
                else:
                    peer.staged.popleft()
            peer.staged.append(packet)

    def sent(self, session: Session, packets: int, size: int, now: float) -> None:
        """Note that ``packets`` with content were sent, ``size`` bytes on the wire, the underlay's headers not counted.

        Whoever encrypts with a session on its own has to say so.
        """
        peer = session.peer
        peer.sent_bytes += size
        self._spoken(peer, now)
        if packets and peer.heard_until == _NEVER:
            peer.heard_until = now + self._limits.keepalive_timeout + self._limits.rekey_timeout + self._jitter()
        old = session.initiator and now - session.created >= self._limits.rekey_after_time
        if old or session.sent >= self._limits.rekey_after_messages:
            self._ask(peer, now)
        self._schedule(peer)

    def _padded(self, packet: bytes) -> bytes:
        size = min(-(-len(packet) // 16) * 16, max(self.mtu, len(packet)))
        return packet + bytes(size - len(packet))

    def _seal(self, session: Session, plain: bytes) -> int:
        """Put one packet into the outgoing ones; returns its size, 0 if the session is used up."""
        message = session.seal(plain)
        if message is None or session.peer.endpoint is None:
            return 0
        self.outgoing.append((session.peer.endpoint, message))
        return len(message)

    def _send_keepalive(self, peer: Peer, now: float) -> None:
        session = self.sending(peer, now)
        if session is None:
            self._ask(peer, now)
        else:
            self.sent(session, 0, self._seal(session, b""), now)

    def _send_staged(self, peer: Peer, now: float) -> None:
        """Send what waited for a session; the initiator says something in any case, so that the responder knows."""
        if peer.staged and self.sending(peer, now) is None:
            self._ask(peer, now)
        elif peer.staged:
            packets = list(peer.staged)
            peer.staged.clear()
            self.send(peer, packets, now)
        elif peer.current is not None and peer.current.initiator:
            self._send_keepalive(peer, now)

    def _spoken(self, peer: Peer, now: float) -> None:
        """Something was sent that the peer can authenticate."""
        peer.keepalive_at, peer.keepalive_again = _NEVER, False
        if peer.keepalive:
            peer.persistent_at = now + peer.keepalive

    # Receiving

    def receive(self, data: bytes, sender: Endpoint, now: float) -> None:
        """Take a datagram of the first three types; any other is ignored, as is what authenticates nobody."""
        message = messages.parse_handshake(data)
        if message is None:
            return
        if isinstance(message, CookieReply):
            self._receive_cookie(message, now)
            return
        if not self._is_expected(message):
            return
        admitted = self._gate.admit(data, message, sender, now)
        if isinstance(admitted, CookieReply):
            self.outgoing.append((sender, admitted.pack()))
        elif admitted and isinstance(message, Initiation):
            self._receive_initiation(message, sender, len(data), now)
        elif admitted and isinstance(message, Response):
            self._receive_response(message, sender, len(data), now)

    def open(self, data: bytes, sender: Endpoint, now: float) -> tuple[Peer, bytes] | None:
        """Take a datagram of the fourth type: who sent it, and the packet, with padding; no packet in a keepalive."""
        header = messages.parse_transport(data)
        session = self.sessions.get(header.receiver) if header else None
        if header is None or session is None or not session.is_alive(now):
            return None
        plain = session.open(header.counter, memoryview(data)[messages.HEADER :])
        if plain is None:
            return None
        self.received(session, sender, 1 if plain else 0, len(data), now)
        return session.peer, plain

    def received(self, session: Session, sender: Endpoint, packets: int, size: int, now: float) -> None:
        """Note that messages of a session were authenticated: ``packets`` of them with content, ``size`` bytes.

        Whoever decrypts with a session on its own has to say so.
        """
        peer = session.peer
        peer.received_bytes += size
        if sender != peer.endpoint:
            peer.endpoint = sender
            self.changes += 1
        if session is peer.next:
            self._confirm(peer, now)
        self._heard(peer, now)
        if packets:
            if peer.keepalive_at == _NEVER:
                peer.keepalive_at = now + self._limits.keepalive_timeout
            else:
                peer.keepalive_again = True
        if session.initiator and not session.renewing and now - session.created >= self._last_minute:
            session.renewing = True
            self._ask(peer, now)
        self._schedule(peer)

    @property
    def _last_minute(self) -> float:
        return REJECT_AFTER_TIME - self._limits.keepalive_timeout - self._limits.rekey_timeout

    def _heard(self, peer: Peer, now: float) -> None:
        """Something came that authenticates the peer."""
        peer.heard_until = _NEVER
        if peer.keepalive:
            peer.persistent_at = now + peer.keepalive

    def _is_expected(self, message: Handshake) -> bool:
        return isinstance(message, Initiation) or message.receiver in self._pending

    def _receive_cookie(self, message: CookieReply, now: float) -> None:
        peer = self._pending.get(message.receiver)
        if peer is None:
            session = self.sessions.get(message.receiver)
            peer = session.peer if session else None
        if peer is not None:
            peer.stamper.accept(message, now)

    def _receive_initiation(self, message: Initiation, sender: Endpoint, size: int, now: float) -> None:
        """Answer; the session waits as next until the peer uses it."""
        received = ReceivedInitiation.read(self._identity, message)
        holders = self._holders.get(received.static) if received else None
        proved = received.prove() if received and holders else None
        if proved is None or holders is None:
            return
        peer = holders[0]
        welcome_from = max(peer.welcome_from, now - _INITIATIONS_AT_ONCE * _INITIATION_SPACING) + _INITIATION_SPACING
        if proved.timestamp <= peer.welcomed or welcome_from > now:
            return
        index = self._new_index()
        answer = proved.respond(peer.psk, index=index, ephemeral=self._random(KEY))
        if answer is None:
            return
        peer.welcomed, peer.welcome_from = proved.timestamp, welcome_from
        response, keys = answer
        self._retire(peer, peer.next)
        peer.next = self._new_session(peer, index, message.sender, keys, initiator=False, now=now)
        if peer.endpoint is None:
            peer.endpoint = sender
        data = peer.stamper.stamp(response, now)
        self.outgoing.append((sender, data))
        peer.received_bytes += size
        peer.sent_bytes += len(data)
        self._heard(peer, now)
        self._spoken(peer, now)
        self._schedule(peer)

    def _receive_response(self, message: Response, sender: Endpoint, size: int, now: float) -> None:
        """Our handshake is done: the session is the current one."""
        peer = self._pending[message.receiver]
        assert peer.pending is not None
        index, initiator = peer.pending
        keys = initiator.finish(message)
        if keys is None:
            return
        self._forget_pending(peer)
        self._retire(peer, peer.current)
        self._retire(peer, peer.next)  # unconfirmed, but it may be what the peer sends with now
        peer.next = None
        peer.current = self._new_session(peer, index, message.sender, keys, initiator=True, now=now)
        self.changes += 1
        peer.endpoint = sender
        peer.received_bytes += size
        self._heard(peer, now)
        self._completed(peer, now)

    def _confirm(self, peer: Peer, now: float) -> None:
        """The peer has the session of a handshake that it began."""
        assert peer.next is not None
        self._retire(peer, peer.current)
        peer.current, peer.next = peer.next, None
        self.changes += 1
        self._forget_pending(peer)
        self._completed(peer, now)

    def _completed(self, peer: Peer, now: float) -> None:
        peer.repeat_at, peer.unanswered, peer.tries = _NEVER, False, 0
        peer.handshaken = now
        self.handshakes += 1
        self._send_staged(peer, now)
        self._schedule(peer)

    def _new_session(
        self, peer: Peer, index: int, remote: int, keys: TransportKeys, *, initiator: bool, now: float
    ) -> Session:
        session = Session(peer, index, remote, keys, own_key=self._identity.public, initiator=initiator, now=now)
        self.sessions[index] = session
        return session

    def _retire(self, peer: Peer, session: Session | None) -> None:
        """Only receive with a session from now on."""
        if session is not None:
            peer.former.append(session)
            self.changes += 1
            if len(peer.former) > _FORMER:
                del self.sessions[peer.former.pop(0).index]

    # Our handshakes

    def _ask(self, peer: Peer, now: float) -> None:
        """Somebody wants a (new) session: begin a handshake, unless one was begun just now."""
        peer.asked = now
        patience = self._patience(peer, now)
        if now - peer.initiated >= patience:
            self._initiate(peer, now)
        elif peer.repeat_at == _NEVER:
            peer.repeat_at = peer.initiated + patience + self._jitter()
            self._schedule(peer)

    def _patience(self, peer: Peer, now: float) -> float:
        """Seconds from a handshake's beginning until it may be begun again."""
        if self.sending(peer, now) is not None or peer.tries > _HASTY:
            return self._limits.rekey_timeout
        return min(self._limits.rekey_timeout, self._limits.first_timeout * 2.0 ** max(0, peer.tries - 1))

    def _initiate(self, peer: Peer, now: float, endpoint: Endpoint | None = None) -> None:
        endpoint = endpoint or peer.endpoint
        if endpoint is None or not self._speaks(peer):
            return
        self._forget_pending(peer)
        peer.tries += 1
        peer.initiated = now
        peer.repeat_at = now + self._patience(peer, now) + self._jitter()
        self._schedule(peer)
        index = self._new_index()
        timestamp, ephemeral = self._timestamps.next(), self._random(KEY)
        try:
            initiator = Initiator(
                self._identity, peer.public_key, peer.psk, index=index, timestamp=timestamp, ephemeral=ephemeral
            )
        except ValueError:
            peer.unanswered = True  # nobody can hold such a key, so nobody can answer
            return
        peer.pending = index, initiator
        self._pending[index] = peer
        data = peer.stamper.stamp(initiator.message, now)
        self.outgoing.append((endpoint, data))
        peer.sent_bytes += len(data)
        self._spoken(peer, now)

    def _repeat(self, peer: Peer, now: float) -> None:
        """No answer came: begin again, or give up."""
        peer.repeat_at = _NEVER
        if now - peer.asked >= self._limits.rekey_attempt_time:
            self._forget_pending(peer)
            peer.unanswered = True
            peer.staged.clear()
            return
        self._initiate(peer, now, peer.configured if peer.tries % 2 else None)

    def _forget_pending(self, peer: Peer) -> None:
        if peer.pending is not None:
            del self._pending[peer.pending[0]]
            peer.pending = None

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index not in self.sessions and index not in self._pending:
                return index

    def _jitter(self) -> float:
        return int.from_bytes(self._random(2), "little") / 0x10000 * _JITTER

    # Time

    @property
    def deadline(self) -> float:
        """When :meth:`tick` has something to do; infinite if never."""
        return min(self._resume_at, self._heap[0][0]) if self._heap else self._resume_at

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._resume_at <= now:
            self._resume(now)
        while self._heap and self._heap[0][0] <= now:
            at, _, peer = heapq.heappop(self._heap)
            if at == peer.wake:
                peer.wake = _NEVER
                self._serve(peer, now)
                self._schedule(peer)

    def _resume(self, now: float) -> None:
        """Send with what a former key of ours agreed on again, where there is nothing else."""
        self._resume_at, self._room = _NEVER, 0
        for peer in self.peers.values():
            if peer.staged:
                self._send_staged(peer, now)

    def _schedule(self, peer: Peer) -> None:
        """Note the peer for when something is due. Too early does no harm; later entries are left to lapse."""
        due = peer.due
        if due < peer.wake:
            peer.wake = due
            self._pushes += 1
            heapq.heappush(self._heap, (due, self._pushes, peer))

    def _serve(self, peer: Peer, now: float) -> None:
        self._expire(peer, now)
        if peer.heard_until <= now:
            peer.heard_until = _NEVER
            self._ask(peer, now)
        if peer.repeat_at <= now:
            self._repeat(peer, now)
        if peer.keepalive_at <= now:
            again = peer.keepalive_again
            peer.keepalive_at, peer.keepalive_again = _NEVER, False
            self._send_keepalive(peer, now)
            if again:
                peer.keepalive_at = now + self._limits.keepalive_timeout
        if peer.persistent_at <= now:
            peer.persistent_at = now + peer.keepalive
            self._send_keepalive(peer, now)

    def _expire(self, peer: Peer, now: float) -> None:
        """Drop the keys of sessions that may not be used any more."""
        over = [session for session in peer.sessions if now >= session.expires]
        self.changes += len(over)
        for session in over:
            del self.sessions[session.index]
        peer.former = [session for session in peer.former if session not in over]
        if peer.current in over:
            peer.current = None
        if peer.next in over:
            peer.next = None


def _text(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return "an unknown address"
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
