"""ipip where the kernel has none: an error says what to load or to use instead, and that helps."""

from __future__ import annotations

import json

import pytest

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab
from pyflannel.lab.daemon import pyflannel_command

pytestmark = pytest.mark.root

REASON = "this kernel has no ipip devices: load its module ('modprobe ipip'), or set another Backend.Type"


def test_a_kernel_without_ipip() -> None:
    with Lab(nodes=1, containers=0) as lab:
        (node,) = lab.nodes
        probe = node.run(["ip", "link", "add", "probe", "type", "ipip", "local", "198.51.100.1"], check=False)
        if probe.returncode == 0:
            pytest.skip("not applicable: this kernel has ipip")
        daemon = node.start_daemon(lab.file_store, "ipip", "10.244.0.0/16")
        status = daemon.wait_status(lambda status: REASON in status["message"], REASON)
        assert not status["ready"]
        shown = node.run(pyflannel_command("status", "--run-dir", str(daemon.run_directory)))
        assert REASON in " ".join(shown.stdout.split())

        assert daemon.stop() == ExitCode.OK
        document = json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}})
        node.run(pyflannel_command("config", "set", "--force", "-", "--store", lab.file_store), input=document)
        node.start_daemon(lab.file_store, "host-gw").wait_ready()
