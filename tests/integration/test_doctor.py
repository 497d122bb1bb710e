"""``pyflannel doctor`` on real nodes: well it finds nothing, and each thing that is broken it names.

One lab serves all tests of this module; each leaves it as it found it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.integration.asking import until
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("vxlan") as lab:
        yield lab


@dataclass(frozen=True)
class Report:
    code: int
    worst: str
    findings: list[dict[str, str]]

    def of(self, check: str) -> list[dict[str, str]]:
        return [finding for finding in self.findings if finding["check"] == check]

    def verdicts(self, check: str) -> set[str]:
        return {finding["verdict"] for finding in self.of(check)}

    @property
    def trouble(self) -> list[str]:
        return [
            f"{finding['check']}: {finding['message']}"
            for finding in self.findings
            if finding["verdict"] in ("warn", "fail")
        ]


def examine(node: Node, *words: str, then: Sequence[str] = ()) -> Report:
    """Run doctor with the daemon's own flags, and ``then`` with others that win over these."""
    flags = node.daemon.command[len(pyflannel_command()) :]
    done = node.run(pyflannel_command("doctor", "--json", *words, *flags, *then), check=False, timeout=90)
    assert done.stderr == "", done.stderr
    document = json.loads(done.stdout)
    for finding in document["findings"]:
        assert finding["verdict"] in ("pass", "skip", "warn", "fail")
        assert bool(finding["meaning"]) == (finding["verdict"] in ("warn", "fail")), finding
        assert finding["fix"] or finding["verdict"] in ("pass", "skip"), finding
    return Report(done.returncode, document["worst"], document["findings"])


def state(node: Node) -> dict[str, str]:
    """What may not change. Addresses of the link are left out: they lose their "tentative" by themselves."""
    commands = [
        "ip -o -4 addr",
        "ip -o -6 addr show scope global",
        "ip -4 route show table all",
        "ip neigh show nud permanent",
        "bridge fdb show dev flannel.1 | grep dst | sort",
        "nft list ruleset",
    ]
    commands += ["sysctl net.ipv4.ip_forward net.ipv4.conf.all", "find /run/lab -type f | sort"]
    return {command: node.run(["sh", "-c", f"{command} 2>&1"]).stdout for command in commands}


def test_a_healthy_node_has_nothing_to_mend_and_is_left_as_it_was(lab: Lab) -> None:
    node = lab.nodes[0]
    before = state(node)
    report = examine(node)
    assert report.trouble == []
    assert (report.code, report.worst) == (0, "pass")
    assert {finding["group"] for finding in report.findings} == {"node", "membership", "firewall", "peers"}
    assert len(report.of("peer overlay")) == 2
    assert len(report.of("peer packet size")) == 2
    assert report.verdicts("peer UDP checksum") == {"pass"}
    assert state(node) == before


def test_people_read_the_same(lab: Lab) -> None:
    node = lab.nodes[0]
    flags = node.daemon.command[len(pyflannel_command()) :]
    done = node.run(pyflannel_command("doctor", "--no-probes", *flags))
    assert "PASS" not in done.stdout
    assert "pass" in done.stdout.splitlines()[-1]
    everything = node.run(pyflannel_command("doctor", "--all", "--peer", "192.0.2.3", *flags)).stdout
    assert "PASS  peer overlay: 10.244." in everything
    assert "192.0.2.2" not in everything


BROKEN = {
    "IPv4 forwarding": ("echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
    "rp_filter": ("echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter", "echo 0 >/proc/sys/net/ipv4/conf/eth0/rp_filter"),
    "kernel objects": ("ip route flush proto 241", ":"),
    "device and lease": ("ip link set flannel.1 address 02:00:00:00:00:99", ":"),
    "subnet.env": ("sed -i s/MTU=1450/MTU=1500/ /run/lab/n1/subnet.env", ":"),
    "container bridge": ("ip link set cni0 mtu 1500", "ip link set cni0 mtu 1450"),
    "underlay": ("ip link set eth0 down", "ip link set eth0 up; ip route add default via 192.0.2.254"),
}


@pytest.mark.parametrize("check", BROKEN)
def test_what_is_broken_is_named_while_the_daemon_is_down(lab: Lab, check: str) -> None:
    """Down, since it would be repaired before anybody could look."""
    node = lab.nodes[0]
    do, undo = BROKEN[check]
    node.daemon.stop()
    try:
        node.run(["sh", "-ec", do])
        report = examine(node, "--no-probes")
        assert report.verdicts("daemon") == {"fail"}
        assert report.verdicts(check) & {"warn", "fail"}, report.trouble
        assert report.code == 9
    finally:
        node.run(["sh", "-c", undo])
        node.daemon.start()
    node.daemon.wait_ready(peers=2)
    until(lambda: examine(node, "--no-probes").trouble == [])


def test_a_lost_store_and_a_lost_lease_are_told_apart(lab: Lab) -> None:
    node = lab.nodes[0]
    report = examine(node, "--no-probes", then=["--store", "etcd://127.0.0.1:1/x"])
    assert [report.verdicts(check) for check in ("store", "lease", "daemon")] == [{"fail"}, {"skip"}, {"pass"}]
    empty = ["--store", "file:///run/lab/empty"]
    report = examine(node, "--no-probes", then=empty)
    assert (report.verdicts("store"), report.verdicts("lease")) == ({"fail"}, {"skip"})
    assert node.run(["ls", "/run/lab/empty"], check=False).returncode != 0, "looking makes nothing"
    node.run(["mkdir", "-p", "/run/lab/empty/subnets"])
    report = examine(node, "--no-probes", then=empty)
    assert [report.verdicts(check) for check in ("store", "network config", "lease")] == [{"pass"}, {"fail"}, {"fail"}]


WALL = "table inet wall {\n chain forward {\n type filter hook forward priority 10; policy drop;\n }\n}\n"


def test_a_foreign_chain_that_drops_is_named(lab: Lab) -> None:
    node = lab.nodes[0]
    node.run(
        ["nft", "-f", "-"],
        input="table inet wall { chain forward { type filter hook forward priority 10; policy drop; }; }",
    )
    try:
        until(lambda: "wall" in str(examine(node, "--no-probes").of("foreign drops")))
        (finding,) = [item for item in examine(node, "--no-probes").of("foreign drops") if "wall" in item["message"]]
        # Whether ours can be put before it is the firewall's affair; doctor must agree with what packets meet.
        reached = lab.reachability(versions=(4,)).complete
        assert finding["verdict"] == ("pass" if reached else "fail")
    finally:
        node.run(["nft", "delete", "table", "inet", "wall"])
    until(lambda: examine(node, "--no-probes").trouble == [])


# Peers ----------------------------------------------------------------------------------------------------------------


@contextmanager
def filtered(node: Node, rules: str) -> Iterator[None]:
    """Rules of nftables in a node's namespace, for a while."""
    node.run(["nft", "-f", "-"], input=f"table inet trial {{\n chain trial {{\n {rules}\n }}\n}}\n")
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", "inet", "trial"])


def test_a_blocked_encapsulation_is_told_from_a_dead_node(lab: Lab) -> None:
    one, two, three = lab.nodes
    with filtered(two, "type filter hook input priority -300; udp dport 8472 drop"):
        three.unplug()
        try:
            report = examine(one)
        finally:
            three.plug()
    below = {finding["message"].split()[2].rstrip(":"): finding["verdict"] for finding in report.of("peer underlay")}
    assert below == {"192.0.2.2": "pass", "192.0.2.3": "fail"}
    blocked, dead = sorted(report.of("peer overlay"), key=lambda finding: "192.0.2.3" in finding["message"])
    assert "UDP port 8472 is blocked" in blocked["meaning"]
    assert "nothing reaches that node" in dead["meaning"]
    assert report.code == 9


def test_a_node_that_answers_no_pings_is_there(lab: Lab) -> None:
    one, two = lab.nodes[:2]
    with filtered(two, "type filter hook input priority -300; iifname eth0 icmp type echo-request drop"):
        report = examine(one, "--peer", "192.0.2.2")
    (below,) = report.of("peer underlay")
    assert (below["verdict"], "does not answer pings" in below["message"]) == ("pass", True)
    assert report.trouble == []


def test_a_smaller_mtu_on_the_way_is_measured(lab: Lab) -> None:
    """The cable carries less than both ends believe, and drops what is larger without a word."""
    one, two = lab.nodes[:2]
    with filtered(two, "type filter hook prerouting priority -500; iifname eth0 meta length > 1400 drop"):
        report = examine(one, "--peer", "192.0.2.2")
    (size,) = report.of("peer packet size")
    assert size["verdict"] == "fail"
    assert "1350 bytes get through, 1450 should" in size["message"]
    assert "Backend.MTU 1400" in size["fix"]


# What sits between a node and the switch here does what a network card with a broken checksum offload does: it takes
# packets from a kernel that has left their checksum to the hardware, and sends them on as they are. Some cards finish
# the outer packet and forget the inner one: so does this, by declaring the outer one unchecked.
CARELESS = """
import select, socket, sys
forget_inner = sys.argv[3] == "inner"
ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2)]
for end, name in zip(ends, sys.argv[1:]):
    end.bind((name, 3))
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        frame, (_, _, kind, _, _) = end.recvfrom(65536)
        if kind == 4:  # PACKET_OUTGOING: our own
            continue
        if forget_inner and frame[12:14] == b"\\x08\\x00" and frame[23] == 17 and frame[36:38] == b"\\x21\\x18":
            frame = frame[:40] + b"\\0\\0" + frame[42:]
        ends[end is ends[0]].send(frame)
"""


@contextmanager
def careless(lab: Lab, node: Node, what: str) -> Iterator[None]:
    """Put the card with the broken offload between a node and the switch."""
    lab.switch.ip(["link add careless type veth peer name careless2", "link set careless2 master br1 up"])
    lab.switch.ip(["link set careless up", f"link set {node.name} nomaster"])
    words = [sys.executable, "-c", CARELESS, node.name, "careless", what]
    relay = lab.switch.start(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert relay.proxy.stdout is not None
        assert relay.proxy.stdout.readline() == "ready\n"
        yield
    finally:
        relay.kill()
        relay.proxy.communicate()
        lab.switch.ip([f"link set {node.name} master br1", "link delete careless"])


@pytest.mark.parametrize(("what", "overlay", "device"), [("inner", "pass", "flannel.1"), ("outer", "fail", "eth0")])
def test_unfinished_checksums_are_found(lab: Lab, what: str, overlay: str, device: str) -> None:
    one = lab.nodes[0]
    with careless(lab, one, what):
        report = examine(one, "--peer", "192.0.2.2")
    assert report.verdicts("peer underlay") == {"pass"}, "pings are not hurt: their checksum is made by software"
    assert report.verdicts("peer overlay") == {overlay}
    (checksum,) = report.of("peer UDP checksum")
    assert checksum["verdict"] == "fail"
    assert checksum["fix"] == f"ethtool -K {device} tx-checksum-ip-generic off"


def test_an_ordinary_user_gets_what_can_be_had(lab: Lab) -> None:
    node = lab.nodes[0]
    flags = node.daemon.command[len(pyflannel_command()) :]
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = node.run([*drop, *pyflannel_command("doctor", "--json", *flags)], check=False, timeout=90)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["rights"]["verdict"] == "warn"
    assert found["kernel objects"]["verdict"] == "pass"
    assert found["own rules"]["verdict"] in ("skip", "pass")
    assert found["daemon"]["verdict"] == "pass"


def test_a_daemon_that_may_not_be_asked_is_not_called_dead(lab: Lab) -> None:
    """It is another user's; doctor said that nobody renews the lease, and to start a daemon."""
    node = lab.nodes[0]
    flags = node.daemon.command[len(pyflannel_command()) :]
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    where = node.daemon.run_directory / "status.sock"
    node.run(["chmod", "0", str(where)])
    try:
        done = node.run([*drop, *pyflannel_command("doctor", "--no-probes", "--json", *flags)], check=False, timeout=90)
    finally:
        node.run(["chmod", "600", str(where)])
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert (found["daemon"]["verdict"], "permission denied" in found["daemon"]["message"]) == ("skip", True)


@pytest.mark.parametrize(
    ("backend", "arguments", "sizes"),
    [
        ("vxlan", ["--ipv6-network", "fd00:10:244::/56"], {4: 1450, 6: 1430}),
        ("host-gw", [], {4: 1500}),
        ("udp", [], {4: 1472}),
    ],
)
def test_every_backend_and_family_is_probed(backend: str, arguments: list[str], sizes: dict[int, int]) -> None:
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, backend, "10.244.0.0/16", ["--ip-masq", *arguments])
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        report = examine(lab.nodes[0])
    assert report.trouble == []
    assert len(report.of("peer underlay")) == len(report.of("peer overlay")) == len(sizes)
    found = [finding["message"].rpartition(": ")[2] for finding in report.of("peer packet size")]
    assert found == [f"{size} bytes get through" for size in sizes.values()]
    assert {finding["check"] for finding in report.findings} >= {f"IPv{version} forwarding" for version in sizes}


# Nothing changes ------------------------------------------------------------------------------------------------------


def test_it_runs_no_command_of_the_extension_backend() -> None:
    commands = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")
    with Lab(nodes=2) as lab:
        node = lab.nodes[0]
        ran = node.directory / "ran"
        backend = {"Type": "extension", **{name: f"echo {name} >>{ran}" for name in commands}}
        text = json.dumps({"Network": "10.244.0.0/16", "Backend": backend})
        node.run(pyflannel_command("config", "set", "-", "--store", lab.file_store), input=text)
        for each in lab.nodes:
            each.start_daemon(lab.file_store, "extension")
        for each in lab.nodes:
            each.daemon.wait_ready(peers=1)
        until(lambda: len(lab.outside(ran).read_text().splitlines()) == 3 * len(lab.nodes))
        before = lab.outside(ran).read_text()
        for _ in "up", "down":
            examine(node, "--no-probes")
            assert lab.outside(ran).read_text() == before
            node.daemon.stop()


def test_it_makes_no_key() -> None:
    with Lab(nodes=1) as lab:
        node = lab.nodes[0]
        node.start_daemon(lab.file_store, "wireguard", "10.244.0.0/16")
        node.daemon.wait_ready()
        (key,) = lab.outside(node.directory).rglob("wireguard.key")
        report = examine(node, "--no-probes")
        assert report.verdicts("device and lease") == {"pass"}
        node.daemon.stop()
        key.unlink()
        files = sorted(lab.outside(node.directory).rglob("*"))
        assert examine(node, "--no-probes").verdicts("daemon") == {"fail"}
        assert sorted(lab.outside(node.directory).rglob("*")) == files
