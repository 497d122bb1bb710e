"""The daemon's side of charon: keeps it alive, tells it which tunnels there are, and connects those that aren't.

The core only changes what is *wanted*, and never waits. A thread brings charon there, level-triggered: what it has been
told is compared with what is wanted, and which tunnels have keys with those that should; whatever goes wrong is tried
again. A charon that was killed leaves its keys in the kernel, and packets go on (but with ``UDPEncap``, whose socket is
charon's); the next one negotiates new ones.

A charon of an earlier life may know peers that are gone. They are forgotten once the core has called ``check`` for the
first time, which says that all peers are known.
"""

from __future__ import annotations

import random
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyflannel.backend import Attendant, Backoff, DataPlane, Lease, Subnets

from .charon import Charon, CharonError, RefusalError, Session
from .connections import PREFIX, Tunnel, connecting, established, troubles

__all__ = ["IpsecDataPlane", "pause_after"]

FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 30.0
"""Seconds before charon is started, or a peer connected to, once more."""

NO_INTERFACE: Final = 0.2
"""Seconds between two looks whether the interface is there, without which charon would only end itself."""

COURTESY: Final = 8.0
"""Seconds that the node with the higher address leaves to the other one to connect."""

LOOK_AFTER: Final = 1.0
LOOK_AT_EASE: Final = 5.0
"""Seconds between two looks at the tunnels: while some are missing, and while all are there."""

LOOKING_SHARE: Final = 20
"""How many times as long as a look takes the pause after it is, at least, for looks at thousands of tunnels."""

LONGEST_LOOK: Final = 0.5
"""Seconds that count of a look. One takes far longer where the kernel just loads its algorithms, and tests them."""

_STOP_PATIENCE: Final = 1.0
_YOUNG: Final = 10.0


@dataclass(slots=True)
class _State:
    """A tunnel as charon knows it. ``refused`` says why it does not; ``due`` is when to connect, if nobody has."""

    tunnel: Tunnel
    due: float
    backoff: Backoff = field(default_factory=lambda: _backoff())
    up: bool = False
    refused: str = ""


def _backoff() -> Backoff:
    return Backoff(random.Random(), FIRST_PAUSE, LAST_PAUSE)  # noqa: S311 - no secret


class IpsecDataPlane(DataPlane):
    """See the module's docstring.

    :param tunnels: a peer's tunnels; raises what the planner raises.
    """

    def __init__(self, tunnels: Callable[[Lease], tuple[Tunnel, ...]], charon: Charon) -> None:
        self._tunnels, self._charon = tunnels, charon
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[Tunnel, ...]] = {}
        self._known: dict[str, _State] = {}
        self._why: dict[str, str] = {}
        self._complete = self._swept = False
        self._trouble = "charon is starting"
        self._counters = {"charon_started": 0, "connections_begun": 0}
        self._session: Session | None = None
        self._restart, self._due, self._opened = _backoff(), 0.0, 0.0
        self._took = 0.0
        self._ending = False
        self._attendant = Attendant("ipsec data plane", self._work, self._leave)
        self._attendant.start()

    # Called by the core

    def put(self, peer: Lease) -> None:
        tunnels = self._tunnels(peer)
        with self._lock:
            if self._wanted.get(peer.key) == tunnels:
                return
            self._wanted[peer.key] = tunnels
        self._attendant.wake.set()

    def remove(self, subnets: Subnets) -> None:
        with self._lock:
            self._wanted.pop(subnets.key, None)
        self._attendant.wake.set()

    def check(self) -> Mapping[str, str]:
        """See :class:`DataPlane`: the peers without keys. A charon that died is started again by our own thread."""
        self._attendant.check()
        with self._lock:
            if not self._complete:
                self._complete = True
                self._attendant.wake.set()
            if self._trouble:
                return dict.fromkeys(self._wanted, self._trouble)
            reasons = {key: self._reason(tunnels) for key, tunnels in self._wanted.items()}
        return {key: reason for key, reason in reasons.items() if reason}

    def _reason(self, tunnels: tuple[Tunnel, ...]) -> str:
        for tunnel in tunnels:
            state = self._known.get(tunnel.name)
            if state is None or state.tunnel != tunnel or not state.up:
                if state is not None and state.refused:
                    return state.refused
                why = self._why.get(tunnel.name)
                why = f": {why};" if why else " yet: does it run, has it the same PSK?"
                return f"no tunnel with {tunnel.remote}{why} charon says more in {self._charon.log}"
        return ""

    def counters(self) -> Mapping[str, int]:
        """See :class:`DataPlane`: how often charon was started, and connections were begun."""
        with self._lock:
            return dict(self._counters)

    def stop(self) -> None:
        """Let go of charon, which goes on."""
        self._attendant.stop(_STOP_PATIENCE)

    def end(self) -> None:
        """See :class:`DataPlane`: charon ends, too, and takes the keys along."""
        self._ending = True
        self.stop()

    # The thread

    def _work(self) -> None:
        while not self._attendant.stopping.is_set():
            self._turn()

    def _leave(self) -> None:
        self._hang_up()
        if self._ending:
            self._charon.end()
            self._charon.reap()

    def _turn(self) -> None:
        try:
            if self._session is None and time.monotonic() >= self._due:
                self._open()
            if self._session is not None:
                now = time.monotonic()  # a charon that was just started took its time
                self._tell(self._session, now)
                self._look(self._session, now)
        except CharonError as error:
            self._lose(str(error))
        self._sleep()

    def _open(self) -> None:
        session = self._charon.connect()
        if session is None and (awaits := self._charon.awaits):
            self._due = time.monotonic() + NO_INTERFACE
            with self._lock:
                self._trouble = awaits
            return
        self._opened = time.monotonic()
        if session is None:
            with self._lock:
                self._counters["charon_started"] += 1
                self._known, self._why = {}, {}
            session = self._charon.start(self._attendant.stopping)
        self._session, self._swept = session, False
        self._charon.share(session)
        with self._lock:
            self._trouble = ""

    def _lose(self, reason: str) -> None:
        """Try again: at once if it had lived for a while, else later and later."""
        self._hang_up()
        now = time.monotonic()
        if now - self._opened > _YOUNG:
            self._restart.reset()
            self._due = now
        else:
            self._due = now + self._restart.next()
        with self._lock:
            self._trouble = reason
            self._known = {}

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._charon.reap()

    def _tell(self, session: Session, now: float) -> None:
        """Bring what charon knows to what is wanted."""
        with self._lock:
            wanted = {tunnel.name: tunnel for tunnels in self._wanted.values() for tunnel in tunnels}
            complete = self._complete
        known = self._known
        for name, state in list(known.items()):
            if wanted.get(name) != state.tunnel:
                self._forget(session, name)
                with self._lock:
                    del known[name]
        for name, tunnel in wanted.items():
            if name not in known:
                self._load(session, tunnel, now)
        if complete and not self._swept:
            self._swept = True
            for name in _names(session) - wanted.keys():
                self._forget(session, name)

    def _load(self, session: Session, tunnel: Tunnel, now: float) -> None:
        state = _State(tunnel, now if tunnel.begins else now + COURTESY)
        try:
            session.ask("load-conn", tunnel.connection)
        except RefusalError as error:
            state.refused = str(error)
        with self._lock:
            self._known[tunnel.name] = state

    @staticmethod
    def _forget(session: Session, name: str) -> None:
        for command, message in (("unload-conn", {"name": name}), ("terminate", {"ike": name, "timeout": "-1"})):
            try:
                session.ask(command, message)
            except RefusalError:  # there was none
                continue

    def _look(self, session: Session, now: float) -> None:
        """See which tunnels have keys, and connect those that have none."""
        begin = time.monotonic()
        answers = session.ask_all("list-sas", "list-sa")
        there, busy = established(answers), connecting(answers)
        with self._lock:
            self._why |= troubles(self._charon.news())
            self._why = {name: why for name, why in self._why.items() if name in self._known}
        for name, state in self._known.items():
            up = (name, str(state.tunnel.local), str(state.tunnel.remote)) in there
            if up:
                state.backoff.reset()
            elif state.up:
                state.due = now if state.tunnel.begins else now + COURTESY
            with self._lock:
                state.up = up
                if up:
                    self._why.pop(name, None)
            if not up and not state.refused and name not in busy and now >= state.due:
                self._connect(session, state, now)
        self._charon.trim()
        self._took = time.monotonic() - begin

    def _connect(self, session: Session, state: _State, now: float) -> None:
        name = state.tunnel.name
        state.due = now + state.backoff.next()
        with self._lock:
            self._counters["connections_begun"] += 1
        try:
            session.ask("initiate", {"ike": name, "child": name, "timeout": "-1"})
        except RefusalError:  # told as a peer without keys, and tried again
            return

    def _sleep(self) -> None:
        """Until something is wanted, charon ends, or it is time to look again."""
        pause = max(0.0, self._due - time.monotonic())
        with selectors.DefaultSelector() as selector:
            selector.register(self._attendant.wake, selectors.EVENT_READ)
            if self._session is not None:
                selector.register(self._session, selectors.EVENT_READ)
                pause = pause_after(self._took, all(state.up for state in self._known.values()))
            selector.select(pause)
        self._attendant.wake.drain()


def pause_after(took: float, at_ease: bool) -> float:
    """Seconds until the next look, after one that ``took`` so many; ``at_ease``: all tunnels are there."""
    return max(LOOK_AT_EASE if at_ease else LOOK_AFTER, LOOKING_SHARE * min(took, LONGEST_LOOK))


def _names(session: Session) -> frozenset[str]:
    """Of our connections that charon knows."""
    found = session.ask("get-conns").get("conns", [])
    return frozenset(name for raw in found if (name := raw.decode(errors="replace")).startswith(PREFIX))
