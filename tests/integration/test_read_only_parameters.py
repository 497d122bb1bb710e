"""The daemon where ``/proc/sys`` is read-only, as in a container without privileges: what can be left alone is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyflannel.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

READ_ONLY = ("unshare", "--mount", "sh", "-ec", 'mount --bind -o ro /proc/sys /proc/sys; exec "$@"', "sh")
NETWORKS: dict[str, Any] = {
    "ipv4": {"Network": "10.244.0.0/16"},
    "ipv6": {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10::/48"},
}


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
@pytest.mark.parametrize("family", list(NETWORKS))
def test_an_overlay_without_the_right_to_set_parameters(family: str, backend: str) -> None:
    with Lab(nodes=1, containers=0) as lab:
        node = lab.nodes[0]
        config = lab.new_file("network")
        lab.outside(config).write_text(json.dumps({**NETWORKS[family], "Backend": {"Type": backend}}))
        words = ["--net-config-path", str(config)]
        node.start_daemon(lab.file_store, backend, None, words, wrapper=READ_ONLY)
        assert node.daemon.wait_ready()["state"] == "ready"
