"""Two nodes per backend: up, packets across, repaired, and gone. For machines on which everything takes its time."""

from __future__ import annotations

import pytest

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.testing._live import at_rest, everything
from pyflannel.testing.stores import eventually

pytestmark = pytest.mark.root

DEVICES = {"vxlan": "flannel.1", "host-gw": None, "ipip": "flannel.ipip", "gre": "flannel.gre"}
PATIENCE = 300.0


def routes(node: Node) -> str:
    return node.run(["ip", "route", "show", "proto", "241"]).stdout


@pytest.mark.parametrize(("backend", "device"), DEVICES.items(), ids=DEVICES)
def test_two_nodes(backend: str, device: str | None) -> None:
    with Lab(nodes=2) as lab:
        one = lab.nodes[0]
        pristine = at_rest(one)
        for node in lab.nodes:
            node.start_daemon(lab.file_store, backend, "10.244.0.0/16")
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1, timeout=PATIENCE)
            node.attach_containers()
        assert lab.reachability(versions=[4], timeout=PATIENCE).complete

        before = routes(one)
        one.run(["ip", "route", "delete", before.split()[0]])
        eventually(lambda: routes(one) == before, "the route is back", PATIENCE)
        if device is not None:
            one.run(["ip", "link", "delete", device])
            eventually(lambda: routes(one) == before, "device and route are back", PATIENCE)
        assert lab.reachability(versions=[4], timeout=PATIENCE).complete

        assert one.daemon.stop(PATIENCE) == 0
        one.detach_containers()
        one.run(pyflannel_command("cleanup", "--run-dir", str(one.daemon.run_directory)), timeout=PATIENCE)
        left = sorted(set(everything(one)) ^ set(pristine))
        assert not left
