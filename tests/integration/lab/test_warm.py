"""Daemons and commands that are forks of one process are what they would be with an interpreter of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import pytest
from tests.waiting import LONG, until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.warm import Forked, Warm
from pyflannel.small.interpreter import module_command

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=0) as lab:
        document = '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}'
        words = pyflannel_command("config", "set", "-", "--store", lab.file_store)
        lab.nodes[0].run(words, input=document, timeout=LONG)
        yield lab


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    return lab.nodes[0]


def cold(*words: str) -> list[str]:
    """The same with an interpreter of its own."""
    return ["env", *pyflannel_command(*words)]


@pytest.mark.parametrize(
    "words",
    [
        ["version"],
        ["--nonsense"],
        ["config", "get", "--store", "file:///nowhere"],
        ["plugins", "--json"],
        ["status", "--run-dir", "/nowhere"],
        ["docker-opts", "--help"],
    ],
    ids=" ".join,
)
def test_a_command_says_and_returns_the_same(node: Node, words: list[str]) -> None:
    forked, started = (node.run(command(*words), check=False, timeout=LONG) for command in (pyflannel_command, cold))
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_is_given_its_input_and_its_environment(node: Node) -> None:
    document = '{"Network": "10.244.0.0/16"}'
    environment = {"PYFLANNEL_STORE": "file:///run/lab/given"}
    node.run(pyflannel_command("config", "set", "-"), input=document, env=environment, timeout=LONG)
    assert "10.244.0.0/16" in node.run(pyflannel_command("config", "get"), env=environment, timeout=LONG).stdout
    assert node.run(pyflannel_command("config", "get"), check=False, timeout=LONG).returncode != 0


def test_a_daemon_is_where_and_what_it_would_be(lab: Lab, node: Node) -> None:
    def seen(pid: int) -> dict[str, object]:
        process = Path("/proc", str(pid))
        names = sorted(os.readlink(process / "fd" / number) for number in ("0", "1", "2"))
        spaces = {kind: os.readlink(process / "ns" / kind) for kind in ("mnt", "net", "pid", "user")}
        masks = [
            line
            for line in (process / "status").read_text().splitlines()
            if line.startswith(("SigB", "SigI", "SigC", "Cap"))
        ]
        return {"streams": names, "namespaces": spaces, "masks": masks, "cwd": os.readlink(process / "cwd")}

    both = []
    for wrapper in ((), ("env",)):
        node.start_daemon(lab.file_store, None, wrapper=wrapper)
        node.daemon.wait_ready(timeout=LONG)
        process = node.daemon.process
        assert isinstance(process.proxy, Forked) == (wrapper == ())
        assert os.getsid(process.pid) == process.proxy.pid
        both.append(seen(process.pid))
        # What others left open would stay; what the daemon itself opens for a moment, a pipe to nft say, does not.
        until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) < 30, "only its own descriptors")  # noqa: B023
        node.daemon.stop()
        assert process.returncode == 0
    assert both[0] == both[1]


def test_how_it_ended_is_told(lab: Lab, node: Node) -> None:
    node.start_daemon(lab.file_store, None)
    node.daemon.wait_ready(timeout=LONG)
    node.daemon.pause()
    assert node.daemon.running
    node.daemon.resume()
    assert node.daemon.status()["ready"]
    with pytest.raises(subprocess.TimeoutExpired):
        node.daemon.process.wait(0.01)
    node.daemon.kill()
    assert node.daemon.process.returncode == -signal.SIGKILL


def test_any_module_of_ours_is_run_and_no_other(node: Node) -> None:
    asked = '{"do": "dump", "sysctls": [], "any_mac": []}\n'
    for module, forked in (("pyflannel.testing._kernel_console", True), ("json.tool", False)):
        process = node.start(module_command(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert isinstance(process.proxy, Forked) == forked
        with process.proxy:
            said, _ = process.proxy.communicate(asked, LONG)
        assert ("objects" if forked else "sysctls") in json.loads(said)
        assert process.wait(LONG) == 0


def test_what_counts_at_an_interpreters_start_needs_one(node: Node) -> None:
    process = node.start(pyflannel_command("version"), env={"PYTHONHASHSEED": "7"})
    assert not isinstance(process.proxy, Forked)
    assert process.wait(LONG) == 0


def test_whoever_is_interrupted_while_one_starts_gets_no_other_one_s(node: Node) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    warm, pipes = Warm(), (subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)  # it imports then
        with pytest.raises(KeyboardInterrupt):
            warm.start(["pyflannel", "version"], os.environ, [], pipes)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    try:
        asking = warm.start(["pyflannel", "config", "set", "-"], os.environ, [], (subprocess.PIPE, *pipes[1:]))
        assert asking is not None
        with asking:
            asking.kill()
            assert asking.wait(LONG) == -signal.SIGKILL
    finally:
        warm.end()


def made(said: bytes) -> tuple[Forked, int]:
    """One that has said this and ended, and the descriptor by which more could be said."""
    (read, write), (told, tells) = os.pipe(), os.pipe()
    for number, data in ((write, said), (tells, b"0")):
        os.write(number, data)
    os.close(tells)
    return Forked(["word"], 0, told, [None, TextIOWrapper(os.fdopen(read, "rb"), "utf-8"), None]), write


def test_its_time_is_up_though_something_else_holds_its_output() -> None:
    """As a worker of udp may, which writes to its daemon's log."""
    forked, write = made(b"a word")
    with forked, pytest.raises(subprocess.TimeoutExpired):
        forked.communicate(timeout=0.01)
    os.close(write)


def test_what_is_no_text_is_not_kept_from_who_reads_it() -> None:
    forked, write = made(b"ok \xff")
    os.close(write)
    with forked, pytest.raises(UnicodeDecodeError):
        forked.communicate(timeout=LONG)


def test_nothing_outlives_the_lab_s_process() -> None:
    program = (
        "import os, subprocess\n"
        "from pyflannel.lab import Lab\n"
        "from pyflannel.lab.daemon import pyflannel_command\n"
        "with Lab(nodes=1, containers=0) as lab:\n"
        "    lab.nodes[0].run(pyflannel_command('version'), timeout=600)\n"
        "    words = ['ps', '-o', 'pid=', '--ppid', str(os.getpid())]\n"
        "    print(subprocess.run(words, capture_output=True, text=True).stdout, flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=LONG)
    assert done.stderr == ""
    assert len(done.stdout.split()) >= 2, "the holder of the namespaces and the one that forks"
    for pid in done.stdout.split():
        until(lambda pid=pid: not Path("/proc", pid).exists(), "it is gone")  # type: ignore[misc]
