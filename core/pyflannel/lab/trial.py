"""A whole overlay brought up in a lab and tried out: what ``pyflannel lab`` does, as a library.

The steps build on each other (store, daemons, containers, measurements), but a failure of one node doesn't end them:
what can still be measured is, and the :class:`Report` says what failed, so that the picture of a broken network is as
complete as that of a working one.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from pyflannel.errors import ConfigError, LeaseError, PyflannelError
from pyflannel.lab.daemon import peers_in, pyflannel_command
from pyflannel.lab.lab import Lab, Node
from pyflannel.lab.measure import Matrix, Throughput
from pyflannel.lab.serve import has_server, schemes
from pyflannel.lab.servers import GROUP
from pyflannel.network.lease import JSON
from pyflannel.small.entry_points import entry_points
from pyflannel.small.text import counted

__all__ = ["ChangedNetwork", "NodeReport", "Report", "Shortfall", "TrialNetwork", "try_out"]

CHANGE_TIMEOUT: Final = 120.0
"""Seconds within which a change of the network must be over."""

_MOST_PINGS: Final = 30
_PING_INTERVAL: Final = 0.01

READY_TIMEOUT: Final = 30.0
"""Seconds within which every daemon must be ready and know all others."""


@dataclass(frozen=True, slots=True)
class TrialNetwork:
    """The network to bring up.

    :param store: ``file`` (inside the lab), ``etcd``, ``consul`` or the scheme of another store whose server is known
        (real servers inside the lab, see :func:`pyflannel.lab.serve.schemes`), or a ``file://`` URL.
    :param store_members: how many servers.
    :param network: the overlay's IPv4 network, ``None`` for none.
    :param ipv6_network: the overlay's IPv6 network, ``None`` for none.
    :param options: keys of the network document's ``Backend`` dictionary.
    :param arguments: more words for every daemon's command line.
    :param change_to: a backend that the network is changed to while it runs.
    :raises ConfigError: a store the lab can't offer, or no network at all.
    """

    backend: str = "vxlan"
    store: str = "file"
    store_members: int = 1
    network: str | None = "10.244.0.0/16"
    ipv6_network: str | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    change_to: str | None = None

    def __post_init__(self) -> None:
        served = schemes()
        if self.store != "file" and self.store not in served:
            _check_place(self.store)
        if not 1 <= self.store_members <= 7 or (self.store_members > 1 and self.store not in served):
            raise ConfigError(f"{self.store_members} store members: 1 to 7 of {' or '.join(served)}, 1 of a file store")
        if self.network is None and self.ipv6_network is None:
            raise ConfigError("an overlay needs an IPv4 or an IPv6 network")

    @property
    def document(self) -> dict[str, JSON]:
        """The network document."""
        document: dict[str, JSON] = {"Backend": {"Type": self.backend, **self.options}}
        if self.network is not None:
            document["Network"] = self.network
        else:
            document["EnableIPv4"] = False
        if self.ipv6_network is not None:
            document |= {"EnableIPv6": True, "IPv6Network": self.ipv6_network}
        return document


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Something that went wrong, and the nodes whose logs may tell why."""

    what: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangedNetwork:
    """A change of the network while containers pinged each other: how long it took, and how many pings were lost."""

    backend: str
    seconds: float
    sent: int
    lost: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node as it came up. ``subnets`` is empty if it got none; ``mtu`` is the containers', in bytes."""

    name: str
    segment: str
    underlay: tuple[str, ...]
    state: str
    subnets: tuple[str, ...]
    mtu: int | None
    containers: Mapping[str, tuple[str, ...]]
    shell: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. ``seconds`` are the steps' durations, in their order."""

    overlay: TrialNetwork
    rootless: bool
    nodes: tuple[NodeReport, ...]
    reachability: Matrix
    throughput: Throughput | None
    failures: tuple[Shortfall, ...]
    seconds: Mapping[str, float]
    logs: Mapping[str, str]
    changed: ChangedNetwork | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """One line for people."""
        pairs = len(self.reachability.pairs)
        reached = pairs - len(self.reachability.failed)
        nodes = counted(len(self.nodes), "node")
        summary = f"{nodes} on {self.overlay.backend}, {reached} of {pairs} container pairs reached"
        return f"PASSED: {summary}" if self.ok else f"FAILED: {summary}; {self.failures[0].what}"

    def to_json(self) -> JSON:
        """The report as one document; times in milliseconds and seconds, rates in bits per second."""
        rate = self.throughput
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "backend": self.overlay.backend,
            "store": self.overlay.store,
            "network": self.overlay.document,
            "rootless": self.rootless,
            "nodes": [
                {
                    "name": node.name,
                    "segment": node.segment,
                    "underlay": list(node.underlay),
                    "state": node.state,
                    "subnets": list(node.subnets),
                    "mtu": node.mtu,
                    "containers": {name: list(addresses) for name, addresses in node.containers.items()},
                    "shell": node.shell,
                }
                for node in self.nodes
            ],
            "reachability": [
                {
                    "from": pair.source,
                    "to": pair.target,
                    "address": pair.address,
                    "milliseconds": None if pair.milliseconds is None else round(pair.milliseconds, 3),
                }
                for pair in self.reachability.pairs
            ],
            "throughput": rate
            and {"from": rate.source, "to": rate.target, "bits_per_second": round(rate.bits_per_second)},
            "changed": self.changed
            and {
                "to": self.changed.backend,
                "seconds": round(self.changed.seconds, 3),
                "sent": self.changed.sent,
                "lost": self.changed.lost,
            },
            "failures": [{"what": failure.what, "nodes": list(failure.nodes)} for failure in self.failures],
            "seconds": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
            "logs": dict(self.logs),
        }


def _check_place(store: str) -> None:
    """Refuse a store that can't be in a lab, and say what can."""
    scheme, separator, rest = store.partition("://")
    offers = f"a lab offers 'file', {', '.join(map(repr, schemes()))}, or the URL of a store in files, such as file://"
    if not separator:
        if not entry_points("pyflannel.stores", scheme):
            raise ConfigError(f"--store {store}: no such store is installed (see: pyflannel plugins); {offers}")
        raise ConfigError(
            f"--store {store}: the store is installed, but its distribution brings no server for the lab: it needs an "
            f"entry point in the group {GROUP} (pyflannel.lab.servers says how); {offers}"
        )
    if rest[:1] in ("", "/", "?"):
        return  # no host: files, which the nodes of a lab share with this machine
    instead = (
        f"say --store {scheme}, and a server is started inside"
        if has_server(scheme)
        else f"no distribution here brings a server of {scheme!r} for the lab (entry point group {GROUP})"
    )
    raise ConfigError(
        f"--store {store}: a lab is shut off from every network, so that server can't be reached from it; {instead}; "
        f"{offers}"
    )


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2] or "no message"


class _Trial:
    """The steps, and what they found."""

    def __init__(self, lab: Lab, overlay: TrialNetwork, progress: Callable[[str], None], timeout: float) -> None:
        self.lab = lab
        self.overlay = overlay
        self.timeout = timeout
        self.failures: list[Shortfall] = []
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._rng = random.Random(0)  # noqa: S311 - which pairs ping, where there are many

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce and time one step; an error of ours becomes a failure."""
        self._progress(name)
        start = time.monotonic()
        try:
            yield
        except PyflannelError as error:
            self.failures.append(Shortfall(str(error)))
        self.seconds[name] = time.monotonic() - start

    def open_store(self) -> str:
        """The store's URL, holding the network document."""
        overlay, lab = self.overlay, self.lab
        if has_server(overlay.store):
            store = lab.start_store(overlay.store, overlay.store_members)
        else:
            store = lab.file_store if overlay.store == "file" else overlay.store
        words = pyflannel_command("config", "set", "-", "--store", store)
        done = lab.nodes[0].run(words, input=json.dumps(overlay.document), check=False)
        if done.returncode:
            reason = _last_line(done.stderr).removeprefix("pyflannel: error: ")
            raise ConfigError(f"the network document can't be written to the store: {reason}")
        return store

    def start_daemons(self, store: str) -> tuple[Node, ...]:
        """Start all, wait until all are ready, then until each knows all others that are; returns those ready."""
        for node in self.lab.nodes:
            node.start_daemon(store, self.overlay.backend, arguments=self.overlay.arguments)
        ready = self._each(self.lab.nodes, self._wait_ready)
        self._each(ready, lambda node: self._wait_for_peers(node, len(ready) - 1))
        return ready

    def _wait_ready(self, node: Node) -> None:
        node.daemon.wait_ready(timeout=self.timeout)

    def _wait_for_peers(self, node: Node, peers: int) -> None:
        """Wait until ``node`` has made up its mind about all others; those it can't use are failures."""
        status = node.daemon.wait_status(
            lambda status: len(peers_in(status, "ok", "skipped")) >= peers, f"decided on {peers} peers", self.timeout
        )
        skipped = [f"{' '.join(peer['subnets'])} ({peer['reason']})" for peer in peers_in(status, "skipped")]
        if skipped:
            raise LeaseError(f"{node.name} can't use {', '.join(skipped)}")

    def _each(self, nodes: tuple[Node, ...], function: Callable[[Node], None]) -> tuple[Node, ...]:
        """Call ``function`` for all nodes side by side; errors become failures. Returns the nodes without one."""

        def call(node: Node) -> PyflannelError | None:
            try:
                function(node)
            except PyflannelError as error:
                return error
            return None

        errors = self.lab.each(call, nodes)
        for node, error in zip(nodes, errors, strict=True):
            if error is not None:
                reason, separator, _ = str(error).partition("; the end of its log:")
                last = f": {_last_line(node.log_tail())}" if separator and not node.daemon.running else ""
                self.failures.append(Shortfall(reason + last, (node.name,)))
        return tuple(node for node, error in zip(nodes, errors, strict=True) if error is None)

    def attach_containers(self, nodes: tuple[Node, ...]) -> None:
        """Connect the containers of nodes that got a subnet."""
        self._each(nodes, lambda node: node.attach_containers())

    def measure_reachability(self) -> Matrix:
        """Ping all pairs of containers that have addresses."""
        matrix = self.lab.reachability()
        if matrix.failed:
            owner = {container.name: container.node.name for container in self.lab.containers}
            names = dict.fromkeys(owner[name] for pair in matrix.failed for name in (pair.source, pair.target))
            self.failures.append(
                Shortfall(f"{len(matrix.failed)} container pairs don't reach each other", tuple(names))
            )
        elif not (matrix.pairs or self.failures) and len(self.lab.containers) > 1:
            self.failures.append(Shortfall("there was no pair of containers to try"))
        return matrix

    def change(self, store: str, backend: str) -> ChangedNetwork:
        """Change the network to another backend, and count what is lost of pings meanwhile.

        :raises LeaseError: it is refused, or something was lost.
        """
        ends = [container for container in self.lab.containers if container.addresses]
        pairs = list(itertools.permutations(ends, 2))
        pairs = self._rng.sample(pairs, min(len(pairs), _MOST_PINGS))
        words = pyflannel_command("network", "change", "--backend", backend, "--yes", "--store", store)
        with ExitStack() as stack:
            pings = [stack.enter_context(one.ping(str(two.addresses[0].ip), _PING_INTERVAL)) for one, two in pairs]
            for ping in pings:
                ping.wait_replies(3)
            began = time.monotonic()
            done = self.lab.nodes[0].run(words, check=False, timeout=CHANGE_TIMEOUT)
            seconds = time.monotonic() - began
            if done.returncode:
                raise LeaseError(
                    f"the change to {backend}: {_last_line(done.stderr).removeprefix('pyflannel: error: ')}"
                )
            for ping in pings:
                ping.wait_replies(3)
            losses = [ping.stop() for ping in pings]
        changed = ChangedNetwork(backend, seconds, sum(loss.sent for loss in losses), sum(loss.lost for loss in losses))
        if changed.lost:
            self.failures.append(
                Shortfall(f"{changed.lost} of {changed.sent} pings were lost in the change to {backend}")
            )
        return changed

    def measure_throughput(self, seconds: float) -> Throughput | None:
        """Send from a container of the first node to one of the last, if both are up."""
        ends = [container for container in self.lab.containers if container.addresses]
        if len(ends) < 2:
            return None
        version = ends[0].addresses[0].version
        return self.lab.throughput(ends[0], ends[-1], version=version, seconds=seconds)

    def node_report(self, node: Node) -> NodeReport:
        """What became of one node."""
        network = node.network
        return NodeReport(
            name=node.name,
            segment=node.host.segment.bridge,
            underlay=(str(node.ipv4.ip), str(node.ipv6.ip)),
            state=node.state(),
            subnets=tuple(str(gateway.network) for gateway in network.gateways) if network else (),
            mtu=network.mtu if network else None,
            containers={
                container.name: tuple(str(address.ip) for address in container.addresses)
                for container in node.containers
            },
            shell=node.shell_hint,
        )


def try_out(
    lab: Lab,
    overlay: TrialNetwork,
    *,
    throughput: float | None = 1.0,
    progress: Callable[[str], None] = lambda step: None,
    timeout: float = READY_TIMEOUT,
) -> Report:
    """Bring ``overlay`` up in ``lab`` and measure it.

    :param throughput: seconds to send between a sample pair; ``None``: don't.
    :param progress: called with each step's name when it begins.
    :param timeout: seconds for the daemons to become ready, and as many to know each other.
    """
    trial = _Trial(lab, overlay, progress, timeout)
    store: str | None = None
    ready: tuple[Node, ...] = ()
    matrix = Matrix((), ())
    rate = changed = None
    with trial.step("store"):
        store = trial.open_store()
    if store is not None:
        with trial.step("daemons"):
            ready = trial.start_daemons(store)
    if ready:
        with trial.step("containers"):
            trial.attach_containers(ready)
        with trial.step("reachability"):
            matrix = trial.measure_reachability()
    if throughput is not None and matrix.complete:
        with trial.step("throughput"):
            rate = trial.measure_throughput(throughput)
    target = overlay.change_to
    if target is not None and matrix.complete:
        with trial.step(f"change to {target}"):
            changed = trial.change(str(store), target)
    suspects = {name for failure in trial.failures for name in failure.nodes}
    return Report(
        overlay=overlay,
        rootless=lab.sandbox.rootless,
        nodes=tuple(map(trial.node_report, lab.nodes)),
        reachability=matrix,
        throughput=rate,
        failures=tuple(trial.failures),
        seconds=trial.seconds,
        logs={node.name: node.log_tail() for node in lab.nodes if node.name in suspects},
        changed=changed,
    )
