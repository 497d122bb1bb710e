"""host-gw with a process beside it, which stands for a data plane: in place of moving packets it sleeps."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from pyflannel.backend import DataPlane, Lease, Node, Subnets
from pyflannel_backends.host_gw import HostGatewayBackend


class Sleeper(DataPlane):
    """Starts the process, and ends it when the network has left."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "infinity"], start_new_session=True)

    def put(self, peer: Lease) -> None:
        """Packets of this peer have the kernel."""

    def remove(self, subnets: Subnets) -> None:
        """As above."""

    def check(self) -> Mapping[str, str]:
        """All are served."""
        return {}

    def stop(self) -> None:
        """The process goes on."""

    def end(self) -> None:
        """And ends."""
        self.process.kill()
        self.process.wait()


class Lingerer(Sleeper):
    """Takes the end of its use for the daemon's."""

    def end(self) -> None:
        """Leaves the process behind."""
        self.stop()


class Companion(HostGatewayBackend):
    """As it should be."""

    name = "companion"

    def start(self, node: Node) -> DataPlane:
        """One process."""
        return Sleeper()


class Lingering(HostGatewayBackend):
    """As it should not be."""

    name = "lingering"

    def start(self, node: Node) -> DataPlane:
        """One process too many."""
        return Lingerer()
