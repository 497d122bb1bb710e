"""Nothing outlives a lab, whatever ends it; labs don't see each other; root is not needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.lab.traces import inhabited, namespaces_of
from tests.waiting import until

import pyflannel
import pyflannel_backends
import pyflannel_stores
from pyflannel.lab import Lab, rootless

pytestmark = pytest.mark.root

CORE = Path(pyflannel.__file__).parents[1]

OWNER = """
import sys, time
from pyflannel.lab import Lab

with Lab(nodes=2, containers=1) as lab:
    sleeper = lab.nodes[0].start(["sh", "-c", "trap '' TERM INT HUP; sleep 1000 & wait; sleep 1000"])
    print(lab.sandbox.pid, sleeper.pid, flush=True)
    time.sleep(1000)
"""
"""A program that owns a lab, in which something ignores every polite signal."""


def test_the_end_of_a_lab_leaves_nothing() -> None:
    with Lab(nodes=2, containers=1) as lab:
        namespaces = namespaces_of(lab.sandbox.pid) | namespaces_of(lab.nodes[0].start(["sleep", "1000"]).pid)
        assert len(namespaces) == 4
        assert inhabited(namespaces)
    until(lambda: not inhabited(namespaces - namespaces_of(os.getpid())), "all processes of the lab gone")
    lab.close()


def test_an_exception_ends_the_lab() -> None:
    with pytest.raises(ZeroDivisionError), Lab(nodes=1) as lab:  # noqa: PT012 - what raises is the point
        namespaces = namespaces_of(lab.sandbox.pid)
        _ = 1 / 0
    until(lambda: not inhabited(namespaces), "all processes of the lab gone")


def test_a_lab_that_fails_while_it_is_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[frozenset[str]] = []

    def fail(lab: Lab) -> None:
        built.append(namespaces_of(lab.sandbox.pid))
        raise ZeroDivisionError

    monkeypatch.setattr(Lab, "_build", fail)
    with pytest.raises(ZeroDivisionError):
        Lab(nodes=1)
    until(lambda: not inhabited(built[0]), "all processes of the lab gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_owner_ends_the_lab(number: signal.Signals, untouched: None) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        holder, sleeper = map(int, owner.stdout.readline().split())
        namespaces = namespaces_of(holder) | namespaces_of(sleeper)
        owner.send_signal(number)
        owner.wait()
        until(lambda: not inhabited(namespaces), "all processes of the lab gone")


IMPATIENT = """
from pyflannel.lab import Lab

def wait(node):
    print(lab.sandbox.pid, flush=True)
    node.daemon.wait_ready(peers=9, timeout=600)

with Lab(nodes=1) as lab:
    lab.nodes[0].start_daemon(lab.file_store, "vxlan", "10.244.0.0/16")
    lab.each(wait, lab.nodes)
"""


def test_ctrl_c_ends_what_waits_for_daemons() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        assert owner.stdout is not None
        namespaces = namespaces_of(int(owner.stdout.readline()))
        owner.send_signal(signal.SIGINT)
        owner.wait(60)
    until(lambda: not inhabited(namespaces), "all processes of the lab gone")


def test_two_labs_side_by_side_have_the_same_addresses_and_no_contact() -> None:
    with Lab(nodes=2) as one, Lab(nodes=1) as other:
        one.nodes[0].run(["ping", "-c1", "-W5", "192.0.2.2"])
        assert other.nodes[0].run(["ping", "-c1", "-W1", "192.0.2.2"], check=False).returncode != 0
        assert namespaces_of(one.sandbox.pid).isdisjoint(namespaces_of(other.sandbox.pid))


@pytest.fixture
def nobody() -> Iterator[list[str]]:
    """The start of a command line that runs Python as a user without any rights."""
    if rootless():
        yield [sys.executable]
        return
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    allowed = Path("/proc/sys/user/max_user_namespaces")
    if allowed.exists() and int(allowed.read_text(encoding="ascii")) == 0:
        pytest.skip("user namespaces are switched off (user.max_user_namespaces)")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # setpriv itself may still reach what the user can't: only a child of the interpreter tells.
    check = f"import subprocess, sys; open({str(CORE / 'pyflannel/errors.py')!r}).close()\n"
    check += "subprocess.run([sys.executable, '-c', ''], check=True)"
    for python in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if python and subprocess.run([*drop, python, "-c", check], cwd="/", capture_output=True).returncode == 0:
            yield [*drop, python]
            return
    reason = "an unprivileged user can run no Python of this version here, or not read this source tree"
    pytest.skip(f"not applicable: {reason}")


def test_root_is_not_needed(nobody: list[str], untouched: None) -> None:
    program = """
from ipaddress import IPv4Interface
from pyflannel.lab import ContainerNetwork, Lab
with Lab(nodes=2, containers=1) as lab:
    one, other = lab.nodes
    one.attach_containers(ContainerNetwork(1450, IPv4Interface("10.244.1.1/24")))
    other.attach_containers(ContainerNetwork(1450, IPv4Interface("10.244.2.1/24")))
    one.ip(["route add 10.244.2.0/24 via 192.0.2.2", "link add vx0 type vxlan id 1 dev eth0 dstport 8472"])
    other.ip(["route add 10.244.1.0/24 via 192.0.2.1"])
    assert lab.sandbox.rootless
    assert lab.reachability().complete
    assert lab.throughput(*lab.containers, seconds=0.1).bytes
    with one.ping("192.0.2.2", interval=0.01) as ping:
        ping.wait_replies(2)
    assert ping.stop().lost == 0
    with one.capture() as capture:
        one.run(["ping", "-c1", "-W5", "192.0.2.2"])
    assert capture.stop()
    process = one.start(["sleep", "1000"])
    process.pause()
    process.resume()
    assert process.stop() == -15
print("done")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CORE), sysconfig.get_path("purelib")])}
    done = subprocess.run(
        [*nobody, "-c", program], env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_the_command_needs_no_root_either(nobody: list[str], untouched: None) -> None:
    roots = [
        *(Path(package.__file__ or "").parents[1] for package in (pyflannel, pyflannel_backends, pyflannel_stores))
    ]
    path = os.pathsep.join([*map(str, roots), sysconfig.get_path("purelib")])
    done = subprocess.run(
        [*nobody, "-m", "pyflannel", "lab", "--nodes", "2", "--json"],
        env={**os.environ, "PYTHONPATH": path}, cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["rootless"] is True
    assert all(pair["milliseconds"] is not None for pair in document["reachability"])
    assert len(document["reachability"]) == 2


def test_without_user_namespaces_the_error_says_what_to_do(nobody: list[str]) -> None:
    # A user namespace in which no further one may be made stands for a system that forbids them.
    program = """
import pathlib, subprocess, sys
from pyflannel.errors import KernelError
from pyflannel.lab import sandbox
pathlib.Path("/proc/sys/user/max_user_namespaces").write_text("0")
sandbox.rootless = lambda: True
try:
    sandbox.Sandbox()
except KernelError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(CORE)}
    words = [*nobody[:-1], "unshare", "--user", "--map-root-user", nobody[-1], "-c", program]
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert "run the lab with sudo" in done.stdout, done.stderr


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pyflannel.errors import KernelError
    from pyflannel.lab import sandbox

    monkeypatch.setattr(sandbox, "_search_path", lambda: str(tmp_path))
    with pytest.raises(KernelError, match=r"ip, nsenter, unshare, mount.*apt-get install iproute2 mount util-linux"):
        sandbox.Sandbox()


def test_what_stands_still_does_not_hold_up_the_end() -> None:
    with Lab(nodes=1, containers=0) as lab:
        process = lab.nodes[0].start(["sleep", "600"])
        process.pause()
        assert process.running
    assert not process.running
