"""The half of the backends' kit that runs one: three real daemons, packets, repairs, restarts, departures."""

# A test's name is its docstring:

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

import pytest

from pyflannel.backend import Backend
from pyflannel.errors import KernelError, PluginError
from pyflannel.kernel.model import Kind
from pyflannel.lab import Lab
from pyflannel.lab import Node as LabNode
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.testing import _live
from pyflannel.testing._live import LiveOverlay, everything, is_fragment
from pyflannel.testing._subject import Subject
from pyflannel.testing._waiting import eventually
from pyflannel.testing.clauses import clause, not_applicable

__all__ = ["BackendBehaviour", "Trip"]

UNDERLAY_MTU: Final = 1500
"""What the lab's underlay carries, in bytes."""


@dataclasses.dataclass(frozen=True)
class Trip:
    """A running network that was changed to another backend and back.

    :param refused: why it was not. ``lost``: the pings that lost packets, with how many.
    :param before: each node's kernel objects before that.
    :param left: what each node held of a data plane when all had gone over.
    """

    refused: str
    lost: tuple[tuple[str, str, int], ...]
    before: Mapping[str, list[tuple[str, str]]]
    left: Mapping[str, list[str]]


class BackendBehaviour(Subject):
    """The backend in a lab of three nodes, which the tests of a class share; each leaves it as it found it."""

    @pytest.fixture(scope="class")
    @classmethod
    def overlay(cls) -> Iterator[LiveOverlay]:
        """Three nodes that run the first of ``variants``, in every family the backend carries."""
        subject = cls()
        kind = subject.kind
        try:
            from pyflannel.plugins import load_backend

            assert load_backend(kind.name) is kind
        except (PluginError, AssertionError):
            pytest.skip(f"{kind.__qualname__} is not installed as {kind.name!r}: the lab's daemons could not load it")
        try:
            lab = Lab(nodes=3, mtu=UNDERLAY_MTU)
        except KernelError as error:
            pytest.skip(f"no lab on this machine: {error}")
        with lab:
            live = LiveOverlay(lab, kind, subject.versions, subject.variants[0])
            try:
                yield live
            finally:
                for node in lab.nodes:
                    print(node.name, node.log_tail(40), sep="\n")
                live.close()

    def _need_traffic(self) -> None:
        if not self.carries_traffic:
            not_applicable("carries_traffic is false: the backend only leases subnets")

    @clause("pyflannel.backend.Backend", "packets of each family that it claims arrive")
    def test_containers_reach_each_other(self, overlay: LiveOverlay) -> None:
        self._need_traffic()
        matrix = overlay.lab.reachability(timeout=_live.PATIENCE)  # handshakes that cross begin anew, seconds later
        assert matrix.complete, f"no answer: {matrix.failed}"
        assert matrix.versions == overlay.versions

    @clause("pyflannel.backend.Backend.mtu", "packets of that size pass without fragmentation, on the underlay, too")
    def test_full_packets_pass_without_fragmentation(self, overlay: LiveOverlay) -> None:
        """The MTU in subnet.env is one that the overlay carries, and the underlay under it."""
        self._need_traffic()
        one, _, three = overlay.lab.containers
        network = overlay.nodes[0].network
        assert network is not None
        version = overlay.versions[0]  # of the device that packets meet first; others learn by path MTU discovery
        size = str(network.mtu - {4: 28, 6: 48}[version])
        words = ["ping", "-M", "do", "-c1", "-W1", "-s", size, three.address(version)]
        with overlay.nodes[0].capture() as capture:
            eventually(
                lambda: one.run(words, check=False).returncode == 0,
                f"a packet of {network.mtu} bytes that must not be fragmented arrives",
            )
        outer = [frame for frame in capture.stop() if is_fragment(frame)]
        assert not outer, (
            f"mtu() says {network.mtu} and the underlay has {UNDERLAY_MTU}: packets of that size leave the node in "
            f"{len(outer)} fragments; leave room for what is put around them"
        )

    @clause("pyflannel.backend.Capabilities", "encrypts: packets on the underlay are unreadable")
    def test_the_underlay_shows_no_plain_text(self, overlay: LiveOverlay) -> None:
        self._need_traffic()
        if not overlay.kind.capabilities.encrypts:
            not_applicable("capabilities.encrypts is false")
        pattern = os.urandom(8)
        one, two = overlay.lab.containers[:2]
        with overlay.nodes[0].capture() as capture:
            for version in overlay.versions:
                one.run(["ping", "-c3", "-W5", "-p", pattern.hex(), two.address(version)])
        frames = capture.stop()
        assert frames, "nothing was seen on the underlay"
        assert not [frame for frame in frames if pattern in frame], "packets are readable on the underlay"

    @clause("pyflannel.backend.Backend", "what somebody takes out of the kernel comes back")
    @pytest.mark.parametrize("kind", [kind.name for kind in Kind])
    def test_what_is_removed_comes_back(self, overlay: LiveOverlay, kind: str) -> None:
        """Each kernel object of a kind, one by one."""
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before = overlay.dump(node, sysctls)
        texts = [text for found, text in before if found == kind]
        kept = [item for item in node.daemon.status()["objects"]["list"] if item["kind"] == kind.lower()]
        assert len(texts) >= len(kept), f"the daemon keeps {kept}, of which the kit sees {texts}"
        if not texts:
            not_applicable(f"the plan holds nothing of the kind {kind}")
        for text in texts:
            overlay.remove(node, text, sysctls)
            overlay.settled(node, lambda now: now == before, f"{text} came back")
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other after the repairs", _live.PATIENCE)

    @clause("pyflannel.backend.Link", "master: a device that somebody puts into a bridge or VRF does not stay there")
    def test_a_device_leaves_a_foreign_master(self, overlay: LiveOverlay) -> None:
        """The bridge would take all packets that arrive; a VRF would route them by its own table."""
        node = overlay.nodes[0]
        before, links = overlay.dump(node, overlay.sysctls(node)), overlay.free_links(node)
        if not links:
            not_applicable("the plan holds no device, or says that each may be in any bridge")
        for name in links:
            with overlay.enslaved(node, name) as master:
                if not master:
                    not_applicable(f"neither a bridge nor a VRF takes {name}, or this kernel has none")
                overlay.settled(node, lambda now: now == before, f"{name} has left {master}")
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other after that", _live.PATIENCE)

    @clause(
        "pyflannel.backend.Backend",
        "a restart of the daemon finds everything as it should be, and loses no packet",
    )
    def test_a_restart_changes_nothing(self, overlay: LiveOverlay) -> None:
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before, lease = overlay.dump(node, sysctls), node.daemon.status()["lease"]["key"]
        if self.carries_traffic and self.keeps_forwarding:
            one, two = overlay.lab.containers[:2]
            with one.ping(two.address(overlay.versions[0]), _live.PACE) as ping:
                ping.wait_replies(5, _live.PATIENCE)
                self._restart(node)
                ping.wait_replies(5, _live.PATIENCE)
                assert ping.stop().lost == 0, "packets were lost while the daemon was restarted"
        else:
            self._restart(node)
        overlay.settled(node, lambda now: now == before, "the kernel is as before")
        assert node.daemon.status()["lease"]["key"] == lease
        assert node.daemon.status()["repaired"] == 0, "a restart found something to repair"

    def _restart(self, node: LabNode) -> None:
        node.daemon.restart()
        node.daemon.wait_ready(peers=2, timeout=_live.PATIENCE)

    @clause("pyflannel.backend.Backend", "the next start after kill -9 mends what was broken meanwhile")
    def test_kill_9_is_survived(self, overlay: LiveOverlay) -> None:
        """And what was broken meanwhile is mended by the next start."""
        node = overlay.nodes[0]
        sysctls = overlay.sysctls(node)
        before, lease = overlay.dump(node, sysctls), node.daemon.status()["lease"]["key"]
        node.daemon.kill()
        removed = [text for kind, text in before if kind in (Kind.ROUTE.name, Kind.FDB.name)]
        for text in removed:
            overlay.remove(node, text, sysctls)
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=_live.PATIENCE)
        overlay.settled(node, lambda now: now == before, "the kernel is as before")
        assert node.daemon.status()["lease"]["key"] == lease
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", _live.PATIENCE)

    @clause("pyflannel.backend.Backend", "what was for a departed peer goes, and nothing else")
    def test_a_departed_peer_is_swept(self, overlay: LiveOverlay) -> None:
        """While the daemon runs, and while it does not; and comes back with the same subnet."""
        staying, other, gone = overlay.nodes
        sysctls = overlay.sysctls(staying)
        before = overlay.dump(staying, sysctls)
        theirs = [text for text in before if _mentions(text, overlay.terms(other))]
        for running in (True, False):
            terms = overlay.terms(gone)
            gone.daemon.stop()
            if not running:
                staying.daemon.stop()
            key = overlay.forget(gone)
            if not running:
                staying.daemon.start()
            staying.daemon.wait_status(
                lambda status, key=key: status["ready"] and key not in [peer["key"] for peer in status["peers"]],  # type: ignore[misc]
                f"rid of {key}",
                _live.PATIENCE,
            )
            overlay.settled(
                staying,
                lambda now, terms=terms: not any(_mentions(item, terms) for item in now),  # type: ignore[misc]
                f"nothing is left of {key}",
            )
            left = overlay.dump(staying, sysctls)
            assert set(theirs) <= set(left) <= set(before), "only what was for the departed peer goes"
            gone.daemon.start()
            for node in overlay.nodes:
                node.daemon.wait_ready(peers=2, timeout=_live.PATIENCE)
            assert gone.daemon.status()["lease"]["key"] == key, "subnet.env remembers"
            overlay.settled(staying, lambda now: now == before, "the peer is back as it was")
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", _live.PATIENCE)

    @clause("pyflannel.backend.Backend", "options changed and changed back leave the kernel as it was")
    def test_options_there_and_back(self, overlay: LiveOverlay) -> None:
        """A, then B, then A again: the kernel is as it was, and packets flow in each."""
        if len(self.variants) < 2:
            not_applicable("variants name no second set of options")
        before = {node.name: overlay.dump(node) for node in overlay.nodes}
        for options in (self.variants[1], self.variants[0]):
            overlay.change(options)
            for node in overlay.nodes:
                node.attach_containers()  # a new MTU is the runtime's business
            if self.carries_traffic:
                eventually(overlay.reachable, f"containers reach each other with {dict(options)}", _live.PATIENCE)
        for node in overlay.nodes:
            overlay.settled(
                node,
                lambda now, node=node: [item for item in now if item[0] != Kind.SYSCTL.name] == before[node.name],  # type: ignore[misc]
                "the kernel is as before the change",
            )

    @pytest.fixture(scope="class")
    @classmethod
    def trip(cls, overlay: LiveOverlay) -> Trip:
        """The running network, changed to an in-tree backend and back, while all containers ping each other."""
        if not cls.carries_traffic:
            not_applicable("carries_traffic is false: the backend only leases subnets")
        partner = "host-gw" if overlay.kind.name == "vxlan" else "vxlan"
        eventually(overlay.reachable, "containers reach each other", _live.PATIENCE)
        before = {node.name: overlay.dump(node) for node in overlay.nodes}
        left: dict[str, list[str]] = {}
        pairs = [(one, two) for one in overlay.lab.containers for two in overlay.lab.containers if one is not two]
        with ExitStack() as stack:
            pings = [
                stack.enter_context(one.ping(two.address(version), _live.PACE))
                for one, two in pairs
                for version in overlay.versions
            ]
            for ping in pings:
                ping.wait_replies(5, _live.PATIENCE)
            refused = overlay.go_over(partner, {})
            if not refused:
                left = overlay.left()
                refused = overlay.go_over(overlay.kind.name, overlay.options)
            for ping in pings:
                ping.wait_replies(5, _live.PATIENCE)
            lost = [(ping.source.name, ping.address, ping.stop().lost) for ping in pings]
        return Trip(refused, tuple(each for each in lost if each[2]), before, left)

    def _went(self, trip: Trip) -> None:
        if "plans no routes" in trip.refused:
            not_applicable("the backend leaves its routes to others, so that nothing can be switched over")
        assert not trip.refused, trip.refused

    @clause(
        "pyflannel.backend.Backend", "a network that runs changes to another backend, and back, and loses no packet"
    )
    def test_a_running_network_changes_there_and_back(self, overlay: LiveOverlay, trip: Trip) -> None:
        """With an in-tree backend as the partner; a backend needs no code for it."""
        self._went(trip)
        assert not trip.lost, "packets were lost"
        for node in overlay.nodes:
            overlay.settled(
                node,
                lambda now, node=node: [item for item in now if item[0] != Kind.SYSCTL.name] == trip.before[node.name],  # type: ignore[misc]
                "the kernel is as before the change",
            )

    @clause(
        "pyflannel.backend.DataPlane.end",
        "where the network has gone over to another backend, no process, socket or device of the data plane is left",
    )
    def test_a_data_plane_that_is_left_ends(self, trip: Trip) -> None:
        """While the network runs on another backend, nothing is left of this one but the daemon itself."""
        if self.kind.start is Backend.start:
            not_applicable("the kernel moves the packets: the backend has no data plane of its own")
        self._went(trip)
        left = {node: what for node, what in trip.left.items() if what}
        assert not left, f"left behind by end(): {left}"

    @clause(
        "pyflannel.backend.DataPlane",
        "after cleanup the kernel is as before the first start, and no process is left",
    )
    def test_cleanup_leaves_nothing(self, overlay: LiveOverlay) -> None:
        """The kernel is as it was before the first start, processes and devices included."""
        node = overlay.nodes[2]
        node.daemon.stop()
        node.detach_containers()
        node.run(pyflannel_command("cleanup", "--run-dir", str(node.daemon.run_directory)), timeout=_live.PATIENCE)
        eventually(
            lambda: everything(node) == overlay.pristine[node.name], lambda: _difference(overlay, node), _live.PATIENCE
        )
        node.daemon.start()
        node.daemon.wait_ready(peers=2, timeout=_live.PATIENCE)
        node.attach_containers()
        if self.carries_traffic:
            eventually(overlay.reachable, "containers reach each other again", _live.PATIENCE)


def _mentions(item: tuple[str, str], terms: Iterable[str]) -> bool:
    """Whether an object's text holds one of these addresses, alone or as a network."""
    return any(f"'{term}{end}" in item[1] for term in terms for end in ("'", "/"))


def _difference(overlay: LiveOverlay, node: LabNode) -> str:
    now, before = set(everything(node)), set(overlay.pristine[node.name])
    return f"the kernel is as before the first start; more: {sorted(now - before)}; less: {sorted(before - now)}"
