"""Workers in a confinement where lone packets can't pass them by: they carry everything themselves, and say why."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import pytest
from tests.integration.backends.udp.conftest import MakeOverlay
from tests.waiting import until

pytestmark = pytest.mark.root

BPF = {"x86_64": 321, "aarch64": 280}
"""The system call's number."""
# It kills whoever calls bpf(2), as systemd's filters do unless they are given an error number.
_FILTER = """
import ctypes, os, struct, sys
LOAD, IS_EQUAL, RETURN = 0x20, 0x15, 0x06
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
steps = (LOAD, 0, 0, 0), (IS_EQUAL, 0, 1, int(sys.argv[1])), (RETURN, 0, 0, KILL_PROCESS), (RETURN, 0, 0, ALLOW)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
assert ctypes.CDLL(None).prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_without_the_right_to_bpf_a_worker_does_not_try(make_overlay: MakeOverlay) -> None:
    if platform.machine() not in BPF:
        pytest.skip("not applicable: the number of bpf(2) on this kind of machine is not known here")
    filtered = (sys.executable, "-c", _FILTER, str(BPF[platform.machine()]))
    overlay = make_overlay(extensions=True, under=(*filtered, "setpriv", "--bounding-set=-bpf,-sys_admin"))
    for node in overlay.nodes:
        until(lambda node=node: node.tell("kernel_path"), "what the worker says")  # type: ignore[misc]
        assert node.tell("kernel_path") == ["can't make a BPF map: Operation not permitted; it takes CAP_BPF"]
        assert node.ping(count=3)


@pytest.mark.parametrize("offset", ["86400", "-1"])
def test_in_a_time_namespace_with_another_clock(make_overlay: MakeOverlay, offset: str) -> None:
    """Where it is ahead of the kernel's, no rule against the datagrams would be heeded for as long."""
    words = ("unshare", "--time", "--monotonic", offset)
    if shutil.which("unshare") is None or subprocess.run((*words, "true"), capture_output=True, check=False).returncode:
        pytest.skip("not applicable: no time namespaces here")
    overlay = make_overlay(extensions=True, under=words)
    for node in overlay.nodes:
        until(lambda node=node: node.tell("kernel_path"), "what the worker says")  # type: ignore[misc]
        assert node.tell("kernel_path") == ["the worker is in a time namespace with a clock of its own"]
        assert node.ping(count=3)
