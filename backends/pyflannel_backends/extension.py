"""extension: shell commands of the network document make the overlay, as with flannel's backend of this name.

``PreStartupCommand`` runs once in a daemon's life, and what it prints is this node's lease data. Then come
``PostStartupCommand``, when the node has its subnet, and for each peer ``SubnetAddCommand`` and
``SubnetRemoveCommand``. Data reach a command through its environment and its standard input only: nothing that another
node wrote becomes part of a shell's text.

The core says which peers are wanted, at any time; worker threads bring each there, one command after the other per
peer and several peers at a time. A peer whose command fails is tried again with growing pauses, with
``SubnetRemoveCommand`` before each new try, so that what a half-done command left, or an earlier life of the daemon,
is not in the way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

from pyflannel.backend import (
    LARGEST_PUBLISHED,
    Backend,
    Backoff,
    Capabilities,
    DataPlane,
    DesiredState,
    IPAddress,
    Lease,
    NetworkConfig,
    Node,
    PeerRejected,
    Published,
    Subnets,
    Underlay,
    option,
)
from pyflannel.errors import KernelError

log = logging.getLogger(__name__)

COMMAND_TIMEOUT: Final = 30.0
"""Seconds after which a command is killed, with all that it started."""

FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0
"""Seconds between two tries; the pause doubles from the first to the last."""

REMOVAL_ATTEMPTS: Final = 5
"""How often a ``SubnetRemoveCommand`` is run for a peer that is gone before that is given up."""

WORKERS: Final = 4
"""Peers whose commands run at one time."""

_VARIABLES: Final = ("NETWORK", "IPV6NETWORK", "SUBNET", "IPV6SUBNET", "PUBLIC_IP", "PUBLIC_IPV6")
_OUR_SETTINGS: Final = ("FLANNELD_", "PYFLANNEL_")
"""Beginnings of variables that are for the daemon; passwords of the store are among them."""


@dataclass(frozen=True, slots=True)
class ExtensionOptions:
    """The keys of ``Backend`` in the network document; each a line for ``sh -c``, empty for none."""

    pre_startup: str = option("PreStartupCommand", "", "before the lease; its standard output is the lease data")
    post_startup: str = option("PostStartupCommand", "", "when the node has its subnet")
    subnet_add: str = option("SubnetAddCommand", "", "when a peer comes or changes")
    subnet_remove: str = option("SubnetRemoveCommand", "", "when a peer goes")


class CommandFailed(Exception):  # noqa: N818 - it reads as what happened
    """A command ended with a status other than 0, or not in time. The message says which, and its last words."""


def run_command(
    name: str, command: str, environment: Mapping[str, str], data: str, timeout: float = COMMAND_TIMEOUT
) -> str:
    """Run one of the commands and return what it printed, stripped.

    :param name: the option it is from, for messages.
    :param environment: variables beside those that the daemon itself was given.
    :param data: its standard input, to which a newline is added as flannel does.
    :raises CommandFailed: it failed.
    """
    process = subprocess.Popen(
        ["sh", "-c", command],
        env={**_inherited(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            output, errors = process.communicate(f"{data}\n".encode(errors="replace"), timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CommandFailed(f"{name} did not end within {timeout:g} s and was killed") from None
    if process.returncode:
        raise CommandFailed(f"{name} ended with status {process.returncode}{_last_words(errors or output)}")
    return output.decode(errors="replace").strip()


def _is_secret(name: str) -> bool:
    """Whether a variable holds what opens a store or the like (``CONSUL_HTTP_TOKEN``)."""
    return name.startswith(("CONSUL_", "ETCDCTL_")) or name.upper().endswith(("TOKEN", "PASSWORD", "SECRET", "AUTH"))


def _inherited() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _VARIABLES and not name.startswith(_OUR_SETTINGS) and not _is_secret(name)
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and its children. One that left its session may hold our pipes; they are closed unread."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what it did not read is lost
                pipe.close()


def _last_words(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""


@lru_cache(maxsize=16)  # once in a daemon's life, however many sessions it has: the command may make a device anew
def _lease_data(command: str) -> str:
    output = run_command("PreStartupCommand", command, {}, "")
    size = len(json.dumps([output, None]))
    if size > LARGEST_PUBLISHED:
        raise CommandFailed(
            f"PreStartupCommand printed lease data of {size} characters as JSON: a lease has room for "
            f"{LARGEST_PUBLISHED}"
        )
    return output


class ExtensionBackend(Backend[ExtensionOptions]):
    """The operator's own overlay, in four commands."""

    name = "extension"
    Options = ExtensionOptions
    capabilities = Capabilities(ipv4=True, ipv6=True)

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's, as with flannel: what the commands add to a packet, they alone know."""
        return underlay.mtu

    def publish(self, node: Node) -> Published:
        """What ``PreStartupCommand`` printed, as a string.

        :raises KernelError: it failed; worth another try.
        """
        if not self.options.pre_startup:
            return Published()
        try:
            return Published(_lease_data(self.options.pre_startup))
        except CommandFailed as error:
            raise KernelError(f"backend extension: {error}") from None

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """Nothing: the commands do it. What they could not be given is refused here."""
        _data(peer)
        return DesiredState()

    def start(self, node: Node) -> DataPlane | None:
        """Run ``PostStartupCommand``, then serve the peers, all in threads of our own."""
        return ExtensionDataPlane(node, self.options)


def _data(peer: Lease) -> str:
    data = peer.attributes.backend_data
    if data is not None and not isinstance(data, str):
        raise PeerRejected(f"BackendData is {data!r}, expected the string that PreStartupCommand printed")
    return data or ""


def _environment(network: NetworkConfig, subnets: Subnets, public: Callable[[int], IPAddress | None]) -> dict[str, str]:
    values: dict[str, object] = {}
    for version, infix in ((4, ""), (6, "IPV6")):
        family = network.family(version)
        if family is not None:
            values |= {
                f"{infix}NETWORK": family.network,
                f"{infix}SUBNET": subnets.of(version),
                "PUBLIC_IP" if version == 4 else "PUBLIC_IPV6": public(version),
            }
    return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _Call:
    """What a command is told about a peer."""

    environment: Mapping[str, str]
    data: str


@dataclass(slots=True)
class _Peer:
    """A peer as it should be (``wanted``), and what the commands were given for it last and whether they succeeded."""

    backoff: Backoff
    wanted: _Call | None = None
    tried: _Call | None = None
    done: bool = False
    busy: bool = False
    due: float = 0.0
    reason: str = "SubnetAddCommand has not run yet"
    fresh: bool = True
    """Whether ``wanted`` has changed since a command was started."""

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do."""
        return self.done and self.tried == self.wanted is not None


class ExtensionDataPlane(DataPlane):
    """See the module's docstring.

    :param timeout: seconds that a command may take; ``first_pause`` until a failed one is run again.
    """

    _earlier: ClassVar[ExtensionDataPlane | None] = None
    """The data plane that was stopped last in this process; a command of its may still run."""

    def __init__(
        self,
        node: Node,
        options: ExtensionOptions,
        *,
        timeout: float = COMMAND_TIMEOUT,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._node, self._options = node, options
        self._timeout, self._first_pause = timeout, first_pause
        self._peers: dict[str, _Peer] = {}
        self._pending: dict[str, _Peer] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._own = _Call(_environment(node.network, node.subnets, node.underlay.public), "")
        self._blocked = "PostStartupCommand has not run yet"
        self._complete = threading.Event()
        self._counters = {"commands_run": 0, "commands_failed": 0}
        self._threads = [
            threading.Thread(target=self._prepare, args=(self._earlier,), name="extension start", daemon=True),
            *(threading.Thread(target=self._work, name="extension worker", daemon=True) for _ in range(WORKERS)),
        ]
        for thread in self._threads:
            thread.start()

    # Called from the core's loop

    def put(self, peer: Lease) -> None:
        """See :class:`DataPlane`. A peer that is as before costs no command."""
        call = _Call(_environment(self._node.network, peer.subnets, peer.attributes.public), _data(peer))
        self._want(peer.key, call)

    def remove(self, subnets: Subnets) -> None:
        self._want(subnets.key, None)

    def _want(self, key: str, call: _Call | None) -> None:
        with self._changed:
            peer = self._peers.get(key)
            if peer is None:
                if call is None:
                    return
                peer = self._peers[key] = _Peer(self._backoff())
            if call != peer.wanted:
                peer.wanted, peer.due, peer.fresh = call, 0.0, True
                peer.backoff.reset()
                if not peer.busy:
                    self._pending[key] = peer
                self._changed.notify()

    def check(self) -> Mapping[str, str]:
        """See :class:`DataPlane`: peers whose commands have not succeeded."""
        self._complete.set()  # the core has told all peers before it asks
        with self._changed:
            wanted = {key: peer for key, peer in self._peers.items() if peer.wanted is not None}
            if self._blocked:
                return dict.fromkeys(wanted, self._blocked)
            return {key: peer.reason for key, peer in wanted.items() if not peer.settled}

    def counters(self) -> Mapping[str, int]:
        """How many commands were run, and how many of them failed."""
        with self._changed:
            return dict(self._counters)

    def stop(self) -> None:
        """Run no more commands. One that runs goes on to its end, and what was made stays."""
        with self._changed:
            if not self._stopping.is_set():
                self._stopping.set()
                self._complete.set()
                self._changed.notify_all()
                ExtensionDataPlane._earlier = self

    # The threads

    def _prepare(self, earlier: ExtensionDataPlane | None) -> None:
        """Let commands of an earlier data plane end, run ``PostStartupCommand`` until it succeeds, let workers go."""
        if earlier is not None and self._inherit(earlier):
            return
        backoff = self._backoff()
        while not self._stopping.is_set():
            reason = self._run("PostStartupCommand", self._options.post_startup, self._own)
            self._open(reason)
            if not reason:
                return
            log.warning("backend extension: %s", reason)
            self._stopping.wait(backoff.next())

    def _open(self, reason: str = "") -> None:
        with self._changed:
            self._blocked = reason
            self._changed.notify_all()

    def _inherit(self, earlier: ExtensionDataPlane) -> bool:
        """Take over what an earlier data plane did for this very node; false if it was for another one.

        The core starts us anew whenever anything about the underlay changes, which may be the routes that commands
        made: were they all run again for that, it would never end.
        """
        for thread in earlier._threads:
            thread.join()
        same = (earlier._options, earlier._own) == (self._options, self._own) and not earlier._blocked
        if not same or earlier._node.underlay.interface != self._node.underlay.interface:
            return False
        self._complete.wait()  # until then a peer that is not wanted may just not have been told yet
        with self._changed:
            for key, left in earlier._peers.items():
                peer = self._peers.setdefault(key, _Peer(self._backoff()))
                peer.tried, peer.done = left.tried, left.done
                if peer.settled:
                    self._pending.pop(key, None)
                else:
                    self._pending[key] = peer
        self._open()
        return True

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, peer, wanted = taken
            try:
                reason = self._bring(key, peer, wanted)
            except Exception as error:  # the thread must live on for the other peers
                reason = f"{type(error).__name__}: {error}"
            self._settle(key, peer, wanted, reason)

    def _take(self) -> tuple[str, _Peer, _Call | None] | None:
        """Wait for a peer that needs a command; ``None`` at the end."""
        with self._changed:
            while not self._stopping.is_set():
                pause = None
                if not self._blocked:
                    now = time.monotonic()
                    for key, peer in self._pending.items():
                        if peer.due <= now:
                            del self._pending[key]
                            peer.busy, peer.fresh = True, False
                            return key, peer, peer.wanted
                    pause = min((peer.due - now for peer in self._pending.values()), default=None)
                self._changed.wait(pause)
        return None

    def _bring(self, key: str, peer: _Peer, wanted: _Call | None) -> str:
        """Run the commands that make a peer as ``wanted``; returns what went wrong. ``peer`` is ours as it is busy."""
        if peer.tried is not None:
            reason = self._run("SubnetRemoveCommand", self._options.subnet_remove, peer.tried)
            if wanted is None:
                return reason
            if reason:
                log.info("backend extension: before peer %s is added again: %s", key, reason)
        if wanted is None:
            return ""
        peer.tried = wanted
        return self._run("SubnetAddCommand", self._options.subnet_add, wanted)

    def _settle(self, key: str, peer: _Peer, wanted: _Call | None, reason: str) -> None:
        """Note how it went, and what is left to do."""
        with self._changed:
            peer.busy, peer.done, peer.reason = False, not reason, reason
            if reason:
                log.warning("backend extension: peer %s: %s", key, reason)
                if not peer.fresh:
                    peer.due = time.monotonic() + peer.backoff.next()
            if wanted is None and (not reason or peer.backoff.attempts >= REMOVAL_ATTEMPTS):
                peer.tried = None
                if peer.wanted is None:
                    del self._peers[key]
                    return
            if peer.settled:
                return
            self._pending[key] = peer
            self._changed.notify()

    def _run(self, name: str, command: str, call: _Call) -> str:
        """Run a command if there is one; returns what went wrong."""
        if not command:
            return ""
        reason = ""
        try:
            output = run_command(name, command, call.environment, call.data, self._timeout)
            log.debug("backend extension: %s ran: %s", name, output)
        except CommandFailed as error:
            reason = str(error)
        except Exception as error:  # no descriptor, thread or memory to run it with: our threads go on
            reason = f"{name} can't be run: {type(error).__name__}: {error}"
        with self._changed:
            self._counters["commands_run"] += 1
            self._counters["commands_failed"] += bool(reason)
        return reason

    def _backoff(self) -> Backoff:
        return Backoff(random.Random(), self._first_pause, LAST_PAUSE)  # noqa: S311 - no secret
