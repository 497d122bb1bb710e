"""The units: systemd accepts them, and the daemon works with no more than they give it.

Here the rights are made with setpriv(1) in a lab: another user, one ambient capability, and memory that can't be
written and executed. What a real systemd makes of the unit is tested in ``test_systemd_boot``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.waiting import PATIENCE, crowd

import pyflannel
from pyflannel.lab import Daemon, Lab
from pyflannel.lab.daemon import DaemonOptions

ROOT = Path(__file__).parents[2]
CONTRIB = ROOT / "contrib"
UNIT = (CONTRIB / "pyflannel.service").read_text()
NOBODY = 65534

# prctl(2): no mapping may gain the right to be executed, what MemoryDenyWriteExecute= means. Kernels from 6.3 on.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    print("no PR_SET_MDWE on this kernel:", os.strerror(ctypes.get_errno()), file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A directory with our units and a stand-in for docker's, all with programs that exist."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for source in [*CONTRIB.glob("*.service"), *CONTRIB.glob("*.service.d/*.conf")]:
        target = tmp_path / source.relative_to(CONTRIB)
        target.parent.mkdir(exist_ok=True)
        text = source.read_text().replace("/opt/pyflannel/bin/pyflannel", "/bin/true")
        target.write_text(text.replace("/usr/bin/dockerd", "/bin/true").replace("/bin/kill", "/bin/true"))
    (tmp_path / "docker.service").write_text("[Unit]\nDescription=Docker\n[Service]\nExecStart=/bin/false\n")
    return tmp_path


def analyze(*words: str, units: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["pyflannel.service", "docker.service"])
def test_systemd_accepts_the_units(units: Path, name: str) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(units / name), units=units)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slip_in_a_unit_would_be_seen(units: Path) -> None:
    (units / "pyflannel.service").write_text(UNIT.replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in analyze("verify", "--man=no", str(units / "pyflannel.service"), units=units).stderr


@pytest.mark.parametrize(("left_out", "most"), [(["ipsec.conf"], 3.0), ([], 4.0)], ids=str)
def test_the_unit_is_hardened(units: Path, left_out: list[str], most: float) -> None:
    """With each drop-in that we ship at once, but for the one that lets the daemon mount."""
    for name in left_out:
        (units / "pyflannel.service.d" / name).unlink()
    done = analyze("security", "--offline=true", "--no-pager", str(units / "pyflannel.service"), units=units)
    print(done.stdout, done.stderr)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) < most


def open_up(lab: Lab) -> None:
    """In the lab's own mounts, as on a usual host: everybody may run the interpreter and open /dev/net/tun."""
    prefix = Path(sys.base_prefix).resolve()
    closed = next((parent for parent in reversed(prefix.parents) if not parent.stat().st_mode & 0o001), None)
    script = ["mknod -m 0666 /run/tun c 10 200", "mount --bind /run/tun /dev/net/tun"]
    if closed is not None:
        script += [
            'mkdir /run/keep && mount --bind "$1" /run/keep',
            'mount -t tmpfs -o mode=0755 open "$2" && mkdir -p "$1" && mount --bind /run/keep "$1"',
        ]
    lab.sandbox.namespace.run(["sh", "-ec", "\n".join(script), "sh", str(prefix), str(closed)])


class ConfinedDaemon(Daemon):
    """A daemon that runs as nobody with what the unit gives: CAP_NET_ADMIN, and no way to more."""

    @property
    def command(self) -> list[str]:
        """Its command line, confined."""
        return [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
            *("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"),
            *(sys.executable, "-c", DENY_WRITE_EXECUTE, *super().command),
        ]


@pytest.fixture(params=["vxlan", "host-gw", "udp"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if not all(parent.stat().st_mode & 0o001 for parent in Path(pyflannel.__file__).parents):
        pytest.skip("not applicable: pyflannel is installed where only its owner can read it")
    with Lab(nodes=2) as lab:
        open_up(lab)
        lab.sandbox.namespace.run(["install", "-d", f"--owner={NOBODY}", "/run/lab/store"])
        for node in lab.nodes:
            node.run(["chown", str(NOBODY), str(node.directory)])
            options = DaemonOptions(lab.file_store, request.param, "10.244.0.0/16", ("--ip-masq",))
            daemon = ConfinedDaemon(node, options)
            daemon.start()
            node._daemon = daemon
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        yield lab
        for node in lab.nodes:
            print(node.name, node.log_tail(50))


@pytest.mark.root
def test_the_daemon_needs_no_more_than_the_unit_gives(lab: Lab) -> None:
    node = lab.nodes[0]
    status = Path(f"/proc/{node.daemon.process.pid}/status").read_text()
    assert re.search(r"^Uid:\s+65534", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0*1000$", status, re.MULTILINE), "CAP_NET_ADMIN is bit 12"
    assert node.daemon.status()["state"] == "ready"
    assert lab.reachability().complete
    node.run(["sh", "-ec", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
    until(lambda: node.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n")


class Manager:
    """Stands for systemd: the socket at NOTIFY_SOCKET, and what came over it."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE * crowd())

    def hear(self, beginning: str) -> str:
        """Wait for a message."""

        def said() -> bool:
            self.heard.append(self._socket.recv(4096).decode())
            return self.heard[-1].startswith(beginning)

        until(said, lambda: f"no {beginning!r} but {self.heard}")
        return self.heard[-1]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.mark.root
def test_the_service_manager_hears_each_step_of_a_daemon_s_life(tmp_path: Path, manager: Manager) -> None:
    with Lab(nodes=1) as lab:
        node = lab.nodes[0]
        options = DaemonOptions(lab.file_store, "vxlan", "10.244.0.0/16", ("--config", str(tmp_path / "config.toml")))
        config = tmp_path / "config.toml"
        config.write_text('log-level = "info"\n')
        daemon = Daemon(node, options)
        words = ["env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=2000000", *daemon.command]
        process = node.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.proxy.stderr is not None
        manager.hear("READY=1")
        assert any(message.startswith("STATUS=") for message in manager.heard)
        for _ in range(3):
            manager.hear("WATCHDOG=1")

        config.write_text('log-level = "debug"\nresync-interval = 7\n')
        process.signal(signal.SIGHUP)
        fields = dict(line.split("=") for line in manager.hear("RELOADING=1").splitlines())
        assert 0 < int(fields["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        manager.hear("READY=1")

        config.write_text("log-level = 7\n")  # a slip while it runs must not end it
        process.signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        assert process.running
        process.signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        log = process.proxy.stderr.read()
        assert process.wait(10) == 0
    assert "settings reloaded: log level debug, resync every 7 s" in log
    assert "the settings stay as they are" in log


@pytest.mark.root
def test_a_daemon_that_is_not_ready_never_says_so(tmp_path: Path, manager: Manager) -> None:
    with Lab(nodes=1) as lab:
        node = lab.nodes[0]
        daemon = Daemon(node, DaemonOptions(lab.file_store, "vxlan"))  # no network config: it waits for one
        process = node.start(["env", f"NOTIFY_SOCKET={tmp_path}/notify", *daemon.command])
        manager.hear("STATUS=waiting")
        process.signal(signal.SIGHUP)
        process.signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert process.wait(10) == 0
    assert not [message for message in manager.heard if message.startswith(("READY", "RELOADING"))]
