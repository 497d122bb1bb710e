"""The unit under a real systemd: started, reloaded, watched and restarted, with all its hardening in force.

systemd is PID 1 of a machine that shares nothing with this one but its files: it has a root of its own to write to
(overlays in memory), its own /run, /dev and network, and only the units that are put there. /proc/sys is read-only but
for the network's part, since systemd sets limits of the whole kernel when it boots. A machine lives in a node of a lab
and dies with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.competing import competitors
from tests.integration.asking import until

from pyflannel.firewall.sync import LEGACY_DROP_IN
from pyflannel.lab import Lab, Node
from pyflannel.lab.sandbox import _child_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

CONTRIB = Path(__file__).parents[2] / "contrib"
SYSTEMD = next((path for path in (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd")) if path.exists()), "")
NET_ADMIN, NET_RAW, SYS_NICE, BPF = 1 << 12, 1 << 13, 1 << 23, 1 << 39

BOOT = r"""
mount --make-rprivate /
scratch=/run/lab/scratch
mkdir -p $scratch
mount -t tmpfs -o mode=0755 scratch $scratch
for place in etc var; do
    mkdir $scratch/$place-up $scratch/$place-work
    mount -t overlay overlay -o lowerdir=/$place,upperdir=$scratch/$place-up,workdir=$scratch/$place-work /$place
done
mkdir -p $scratch/opt/python $scratch/opt/pyflannel/bin $scratch/dev/net $scratch/dev/pts $scratch/dev/shm
mount --bind "$PREFIX" $scratch/opt/python
mount --rbind $scratch/opt /opt
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 console:1:3 kmsg:1:3 net/tun:10:200; do
    mknod -m 0666 $scratch/dev/${node%%:*} c $(echo ${node#*:} | tr : ' ')
done
mount --rbind $scratch/dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
units=/opt/units
mkdir -p $units/pyflannel.service.d /etc/pyflannel
for target in sysinit basic shutdown multi-user umount; do
    printf '[Unit]\nDefaultDependencies=no\n' >$units/$target.target
done
printf '%s' "$UNIT" >$units/pyflannel.service
printf '%s' "$DROP_IN" >$units/pyflannel.service.d/trial.conf
ln -s "/opt/python/$PYTHON" /opt/pyflannel/bin/python
ln -s "$LIBRARIES" /opt/pyflannel/lib
printf 'home = /opt/python/bin\ninclude-system-site-packages = %s\n' "$SYSTEM_SITE" >/opt/pyflannel/pyvenv.cfg
printf '#!/opt/pyflannel/bin/python\nimport sys\nfrom pyflannel.cli import main\nsys.exit(main())\n' \
    >/opt/pyflannel/bin/pyflannel
chmod 0755 /opt/pyflannel/bin/pyflannel
printf '%s' "$USERS" | systemd-sysusers -
printf '%s' "$SETTINGS" >/etc/pyflannel/pyflannel.toml
chown -R pyflannel:pyflannel /etc/pyflannel
install -d -o pyflannel -g pyflannel /run/lab/store /var/lib/pyflannel /var/lib/pyflannel/store
mount --bind /run/lab/store /var/lib/pyflannel/store
mount -t tmpfs -o mode=0755 run /run
exec env -i PATH="$PATH" container=lab SYSTEMD_UNIT_PATH=/opt/units SYSTEMD_GENERATOR_PATH=/nowhere \
    "$SYSTEMD" --system --unit=multi-user.target --log-target=console --log-level=warning
"""


SETTINGS = """
node-id = "{name}"
iface = ["eth0"]
ip-masq = true
healthz-ip = "127.0.0.1"
healthz-port = 8401
[store]
url = "file:///var/lib/pyflannel/store"
[network]
Network = "10.244.0.0/16"
Backend = {{ Type = "{backend}" }}
"""

LOG = "[Service]\nStandardError=append:/run/pyflannel.log\n"


def unified_cgroups() -> Path:
    """Where control groups of the second version are."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    pytest.skip("not applicable: no control groups that could be made here")


@contextmanager
def control_group() -> Iterator[Path]:
    """A control group for one machine, removed with all below it when the machine has gone."""
    group = unified_cgroups() / f"pyflannel-{uuid4()}"
    group.mkdir()
    try:
        yield group
    finally:
        until(lambda: "populated 0" in (group / "cgroup.events").read_text())
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


def python() -> dict[str, str]:
    """What makes /opt/pyflannel a virtual environment with this Python, moved to another place, and this pyflannel.

    The unit hides home directories, and many a Python lives in one.
    """
    prefix = Path(sys.base_prefix).resolve()
    sites = [path for path in map(Path, site.getsitepackages()) if not path.resolve().is_relative_to(prefix)]
    if any(path.parts[1] in ("home", "root", "tmp") for path in sites):
        pytest.skip("not applicable: pyflannel is installed in a home directory, which the unit hides")
    return {
        "PREFIX": str(prefix),
        "PYTHON": str(Path(sys.executable).resolve().relative_to(prefix)),
        "LIBRARIES": str(sites[0].parents[1] if sites else "/nowhere"),
        "SYSTEM_SITE": "false" if sites else "true",
    }


class Machine:
    """A node of a lab that has booted systemd."""

    def __init__(self, node: Node, group: Path, backend: str, drop_in: str) -> None:
        self.node = node
        environment = {
            **python(),
            "UNIT": (CONTRIB / "pyflannel.service").read_text(),
            "USERS": (CONTRIB / "pyflannel.sysusers.conf").read_text(),
            "DROP_IN": LOG + drop_in,
            "SETTINGS": SETTINGS.format(name=node.name, backend=backend),
            "SYSTEMD": str(SYSTEMD),
        }
        enter = f"echo 0 >{shlex.quote(str(group / 'cgroup.procs'))} && exec"
        unshare = "unshare --mount --pid --fork --kill-child --ipc --uts --cgroup sh -ec"
        console = node.lab.outside(node.directory / "console")
        with console.open("w") as output:
            words = ["sh", "-c", f"{enter} {unshare} {shlex.quote(BOOT)}"]
            self.process = node.start(words, env=environment, stdout=output, stderr=output)
        self.console = console
        until(self._booted, self.console.read_text)

    def _booted(self) -> bool:
        assert self.process.running, self.console.read_text()
        child = _child_of(self.process.pid)
        if child is None or Path(f"/proc/{child}/comm").read_text() != "systemd\n":
            return False
        self.pid = child
        return self.run("systemctl is-active multi-user.target", check=False) == "active"

    def run(self, script: str, check: bool = True) -> str:
        """Run a shell script in the machine as root, with nothing of this process's environment but its PATH."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--", "sh", "-ec", script],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not (check and done.returncode), f"{script}: {done.stdout}{done.stderr}{self.log}"
        return done.stdout.strip()

    @property
    def log(self) -> str:
        """The daemon's log."""
        return self.run("cat /run/pyflannel.log", check=False)

    def show(self, name: str) -> str:
        """A property of the service, as systemd knows it."""
        return self.run(f"systemctl show --property={name} --value pyflannel")

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        found: dict[str, Any] = json.loads(self.run("/opt/pyflannel/bin/pyflannel status --json"))
        return found

    def doctor(self, check: str) -> dict[str, str]:
        """The one finding of a check, as root sees it."""
        told = self.run("/opt/pyflannel/bin/pyflannel doctor --no-probes --json || true")
        (found,) = (finding for finding in json.loads(told)["findings"] if finding["check"] == check)
        return dict(found)

    def pings(self, other: Machine) -> bool:
        """Whether the other's overlay device answers over the overlay."""
        address = other.run("sed -n 's/^FLANNEL_SUBNET=\\(.*\\)\\.1\\/.*/\\1.0/p' /run/flannel/subnet.env")
        return not self.node.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode


@contextmanager
def machines(backend: str = "vxlan", rules: str = "true", drop_in: str = "") -> Iterator[list[Machine]]:
    """Two machines with the unit, which is not started, and with somebody's firewall rules."""
    if not SYSTEMD or not shutil.which("systemctl"):
        pytest.skip("no systemd here: apt-get install systemd")
    with ExitStack() as stack:
        groups = [stack.enter_context(control_group()) for _ in range(2)]
        lab = stack.enter_context(Lab(nodes=2))
        for node in lab.nodes:
            node.run(["sh", "-ec", rules])
        yield [Machine(node, group, backend, drop_in) for node, group in zip(lab.nodes, groups, strict=True)]


def drop_in_for(name: str) -> str:
    """A drop-in that we ship, without what it says to people."""
    return re.sub("(?m)^#.*\n", "", (CONTRIB / "pyflannel.service.d" / name).read_text())


CNI = f"{drop_in_for('cni.conf')}Environment=PYFLANNEL_CNI_CONF=/etc/cni/net.d/10-pyflannel.conflist\n"
FLANNELS = """rm -rf /etc/cni && mkdir -p /etc/cni/net.d
echo '{"plugins": [{"type": "flannel"}]}' >/etc/cni/net.d/10-flannel.conflist"""


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Machine]]:
    """Two machines with vxlan and a CNI network, whose watchdog is quicker than the unit's."""
    with machines(drop_in=f"{CNI}WatchdogSec=2\n") as pair:
        for machine in pair:
            machine.run(f"{FLANNELS}\nsystemctl start pyflannel")
        yield pair


def test_start_returns_when_the_daemon_is_ready_and_peers_are_reached(pair: list[Machine]) -> None:
    one, two = pair
    assert one.show("ActiveState") == "active"
    assert one.show("StatusText").startswith("ready: 10.244.")
    assert "FLANNEL_SUBNET=10.244." in one.run("cat /run/flannel/subnet.env")
    until(lambda: one.pings(two) and two.pings(one), lambda: (one.log, two.log))
    assert one.run("systemctl --failed --no-legend --plain") == ""


def test_all_of_the_hardening_is_in_force(pair: list[Machine]) -> None:
    machine = pair[0]
    status = machine.run("cat /proc/$(systemctl show --property=MainPID --value pyflannel)/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == machine.run("id -u pyflannel") != "0"
    assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NET_ADMIN}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert machine.status["firewall"]["port"] == "nftables"
    assert machine.status["state"] == "ready"


def test_the_cni_network_is_written_where_a_drop_in_allows_it(pair: list[Machine]) -> None:
    machine = pair[0]
    assert json.loads(machine.run("cat /etc/cni/net.d/10-pyflannel.conflist"))["name"] == "cbr0"
    assert machine.run("ls /etc/cni/net.d").split() == ["10-flannel.conflist.before-pyflannel", "10-pyflannel.conflist"]


def test_the_page_asks_peers_also_where_its_user_may_not_ping(pair: list[Machine]) -> None:
    machine = pair[0]
    machine.run("echo 1 0 >/proc/sys/net/ipv4/ping_group_range")
    until(lambda: "answers in " in machine.run("curl -sS http://127.0.0.1:8401/"))


def test_what_is_changed_by_hand_comes_back_under_it_too(pair: list[Machine]) -> None:
    machine = pair[0]
    machine.run("nft flush ruleset; ip link delete flannel.1; echo 0 >/proc/sys/net/ipv4/ip_forward")
    until(lambda: "masquerade" in machine.run("nft list ruleset"))
    until(lambda: machine.pings(pair[1]))
    assert machine.run("cat /proc/sys/net/ipv4/ip_forward") == "1"


def test_a_reload_is_a_reload(pair: list[Machine]) -> None:
    machine = pair[0]
    pid = machine.show("MainPID")
    machine.run("echo 'log-level = \"debug\"' | cat - /etc/pyflannel/pyflannel.toml >/tmp/new")
    machine.run("cat /tmp/new >/etc/pyflannel/pyflannel.toml; systemctl reload pyflannel")
    until(lambda: "settings reloaded: log level debug" in machine.log, lambda: machine.log)
    until(lambda: machine.show("ActiveState") == "active")
    assert machine.show("MainPID") == pid


def test_a_daemon_that_hangs_is_replaced_and_forwarding_goes_on(pair: list[Machine]) -> None:
    machine = pair[0]
    pid = machine.show("MainPID")
    machine.run(f"kill -STOP {pid}")
    until(lambda: machine.show("Result") == "watchdog" or machine.show("NRestarts") != "0")
    assert machine.pings(pair[1])
    until(lambda: machine.show("ActiveState") == "active" and machine.show("MainPID") not in (pid, "0"))
    assert machine.pings(pair[1])


def test_stopping_leaves_the_overlay_and_starting_again_the_subnet(pair: list[Machine]) -> None:
    machine = pair[0]
    before = machine.run("cat /run/flannel/subnet.env")
    machine.run("systemctl stop pyflannel")
    assert machine.show("Result") == "success"
    assert machine.pings(pair[1])
    assert machine.run("cat /run/flannel/subnet.env") == before
    machine.run("systemctl start pyflannel")
    assert machine.run("cat /run/flannel/subnet.env") == before


def scheduling(machine: Machine) -> set[str]:
    """The scheduling classes of udp's workers."""
    processes = machine.run("ps -eo cls=,args=").splitlines()
    return {line.split()[0] for line in processes if "udp.worker" in line}


def kernel_path(machine: Machine) -> str:
    """Whether udp's lone packets pass the workers by."""
    return str(machine.status["backend"]["details"]["kernel_path"])


LEGACY = "for p in iptables ip6tables; do $p-legacy -P FORWARD DROP; done"
DROP_IN = drop_in_for(Path(LEGACY_DROP_IN).name)
REALTIME = drop_in_for("realtime.conf")
KERNEL_PATH = drop_in_for("kernel-path.conf")


@pytest.mark.parametrize(
    ("backend", "rules", "drop_in", "port", "rights"),
    [
        ("vxlan", LEGACY.replace("legacy", "nft"), "", "iptables-nft", NET_ADMIN),
        ("vxlan", LEGACY, DROP_IN, "iptables-legacy", NET_ADMIN | NET_RAW),
        ("udp", "true", "", "nftables", NET_ADMIN),
        ("udp", "true", REALTIME, "nftables", NET_ADMIN | SYS_NICE),
        ("udp", "true", KERNEL_PATH, "nftables", NET_ADMIN | BPF),
    ],
    ids=[
        "iptables-nft",
        "iptables-legacy with the drop-in",
        "udp",
        "udp with realtime.conf",
        "udp with kernel-path.conf",
    ],
)
def test_each_way_works_with_what_the_unit_gives(
    backend: str, rules: str, drop_in: str, port: str, rights: int
) -> None:
    with machines(backend, rules, drop_in) as pair:
        one, two = pair
        for machine in pair:
            machine.run("systemctl start pyflannel")
        until(lambda: one.pings(two) and two.pings(one), lambda: (one.log, two.log))
        until(lambda: one.status["firewall"]["in_place"], lambda: one.status["firewall"])
        assert one.status["firewall"]["port"] == port
        effective = one.run("grep CapEff /proc/$(systemctl show --property=MainPID --value pyflannel)/status")
        assert int(effective.split()[1], 16) == rights
        if backend == "udp":
            until(lambda: kernel_path(one) != "not known yet", lambda: one.status["backend"])
            assert ("CAP_BPF" in kernel_path(one)) != bool(rights & BPF)
            with competitors():
                if rights & SYS_NICE:
                    until(lambda: one.pings(two) and scheduling(one) == {"RR"}, lambda: one.log)
                assert one.pings(two)
                assert scheduling(one) == ({"RR"} if rights & SYS_NICE else {"TS"})
        one.run("systemctl kill --signal=KILL pyflannel")
        until(lambda: one.show("NRestarts") == "1" and one.show("ActiveState") == "active")
        until(lambda: one.pings(two) and two.pings(one), lambda: (one.log, two.log))


def test_legacy_without_its_drop_in_is_said_to_be_in_want_of_rights() -> None:
    """Only root may read which tables there are; a rule and a policy are found nevertheless, others don't matter."""
    with machines(rules="ip6tables-legacy -A FORWARD -s 2001:db8::7 -j DROP") as (machine, other):
        machine.run("systemctl start pyflannel")
        until(lambda: machine.status["state"] == "degraded", lambda: machine.status)
        assert "iptables-legacy has rules for forwarded packets" in machine.status["message"]
        assert LEGACY_DROP_IN in machine.status["message"]
        own = machine.doctor("own rules")
        assert own["verdict"] == "fail"
        assert LEGACY_DROP_IN in own["fix"]
        assert "neither see nor change" in own["message"]
        other.run("ip6tables-legacy -F FORWARD")
        other.run("iptables-legacy -A INPUT -s 192.0.2.77 -j DROP; systemctl start pyflannel")
        until(lambda: other.status["firewall"]["in_place"])
        assert other.status["state"] == "ready"
        other.run("iptables-legacy -P FORWARD DROP")
        until(lambda: other.status["state"] == "degraded", lambda: other.status)
