"""wireguard in userspace against an implementation that is not ours: Debian's wireguard-go, looked at with ``wg``.

Two nodes of a lab. On the first our worker runs, fed by a driver that stands for the daemon; on the second there is
wireguard-go, or a second worker where both sides have to be ours.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import PATIENCE, until, workers

from pyflannel.lab import Lab, Node, Process

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

DRIVER = Path(__file__).with_name("userspace_driver.py")
PSK = b64encode(bytes(range(32))).decode()
PORT = 51820
OUTER = 14 + 20 + 8
"""Bytes before the payload of a captured datagram: Ethernet, IPv4, UDP."""


def pings(node: Node, target: str, *options: str) -> bool:
    return node.run(["ping", "-n", "-q", "-c1", "-W1", *options, target], check=False).returncode == 0


class Ours:
    """Our worker on a node whose number is that of its subnet."""

    def __init__(self, node: Node, number: int, options: Mapping[str, Any], limits: Mapping[str, float]) -> None:
        self.node, self.number, self.options = node, number, options
        self.address = f"10.5.{number}.1"
        node.ip(
            [
                "tuntap add flannel-wg mode tun vnet_hdr multi_queue",
                f"address add 10.5.{number}.0/32 dev flannel-wg",
                f"address add {self.address}/32 dev lo",
                "link set lo up",
                "link set flannel-wg mtu 1420 up",
                f"route add 10.5.0.0/16 dev flannel-wg src {self.address}",
            ]
        )
        self.state_dir = node.directory / "state"
        node.lab.outside(self.state_dir).mkdir(parents=True)
        options = {"Implementation": "userspace", **options}
        self._driver = node.start(
            [sys.executable, str(DRIVER), str(self.state_dir), str(number), json.dumps(options), json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.key: str = self._answer()["PublicKey"]

    def _answer(self) -> Any:
        assert self._driver.proxy.stdout is not None
        line = self._driver.proxy.stdout.readline()
        assert line, "the driver ended"
        return json.loads(line)

    def tell(self, *words: str) -> Any:
        assert self._driver.proxy.stdin is not None
        self._driver.proxy.stdin.write(json.dumps(words) + "\n")
        self._driver.proxy.stdin.flush()
        return self._answer()

    def put(self, other: Ours | Theirs) -> None:
        self.tell("put", str(other.number), str(other.node.ipv4.ip), other.key)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.tell("status")
        return status

    def counter(self, name: str) -> int:
        return int(self.status().get("counters", {}).get(name, 0))

    def worker(self) -> int:
        """The pid of the worker as seen from outside the lab; 0 if none runs."""
        return max(workers(self.node, "wireguard"), default=0)

    def close(self) -> None:
        with self._driver.proxy:
            assert self._driver.proxy.stdin is not None
            self._driver.proxy.stdin.close()
            self._driver.wait(20)


class Theirs:
    """wireguard-go."""

    def __init__(self, node: Node, number: int, psk: str, keepalive: int) -> None:
        self.node, self.number = node, number
        self.address = f"10.5.{number}.1"
        self._psk, self._keepalive = psk, keepalive
        self.process: Process
        where = str(node.directory)
        node.run(["sh", "-ec", f"cd {where}; umask 077; wg genkey >key; wg pubkey <key >public; echo {psk} >psk"])
        self.key = node.lab.outside(node.directory / "public").read_text().strip()

    def start(self, ours: Ours) -> None:
        """Start it as it would be after a reboot: only its configuration is there."""
        until(self._comes_up, lambda: f"wireguard-go is there; it said: {self._log.read_text()}")
        where = self.node.directory
        words = f"wg set wg0 listen-port {PORT} private-key {where}/key peer {ours.key}"
        words += f" endpoint {ours.node.ipv4.ip}:{PORT} allowed-ips 10.5.{ours.number}.0/24"
        words += f" preshared-key {where}/psk" if self._psk else ""
        words += f" persistent-keepalive {self._keepalive}" if self._keepalive else ""
        self.node.run(words.split())
        self.node.ip([f"address add {self.address}/16 dev wg0", "link set wg0 mtu 1420 up"])

    @property
    def _log(self) -> Path:
        return self.node.lab.outside(self.node.directory / "wireguard-go.log")

    def _comes_up(self) -> bool:
        """Start it once; on a crowded machine it was seen not to come up, which says nothing about us."""
        with self._log.open("a") as log:
            self.process = self.node.start(["wireguard-go", "-f", "wg0"], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE / 6
        while self.process.running and time.monotonic() < deadline:
            if self.node.run(["wg", "show", "wg0"], check=False).returncode == 0:
                return True
            time.sleep(0.01)
        self.process.kill()
        return False

    def dump(self) -> list[str]:
        """``wg show`` about us: key, psk, endpoint, allowed-ips, handshake, received, sent, keepalive."""
        return str(self.node.run(["wg", "show", "wg0", "dump"]).stdout).splitlines()[1].split("\t")

    @property
    def handshaken(self) -> int:
        return int(self.dump()[4])


class Bench:
    """A lab with our worker on the first node, and on the second whatever a test wants."""

    def __init__(self, cleanup: ExitStack, limits: Mapping[str, float], **options: Any) -> None:
        self.lab = cleanup.enter_context(Lab(nodes=2, containers=0))
        self._cleanup, self._limits, self._options = cleanup, limits, options
        self.ours = self._make_ours(1)

    def _make_ours(self, number: int) -> Ours:
        ours = Ours(self.lab.nodes[number - 1], number, self._options, self._limits)
        self._cleanup.callback(ours.close)
        return ours

    def second(self) -> Ours:
        other = self._make_ours(2)
        other.put(self.ours)
        self.ours.put(other)
        return other

    def theirs(self) -> Theirs:
        psk, keepalive = self._options.get("PSK", ""), self._options.get("PersistentKeepaliveInterval", 0)
        theirs = Theirs(self.lab.nodes[1], 2, psk, keepalive)
        self.ours.put(theirs)
        until(self.ours.status, "our worker, which is to count what comes")
        theirs.start(self.ours)
        return theirs


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    """Build a bench; the first argument are limits other than the white paper's, keywords are the backend's options."""
    with ExitStack() as cleanup:
        yield lambda limits=None, **options: Bench(cleanup, limits or {}, **options)


@pytest.fixture
def wireguard_go() -> None:
    for program, package in (("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian package {package})")


def assert_both_agree(ours: Ours, theirs: Theirs) -> None:
    """``wg show`` and our status say the same of keys, addresses and bytes."""
    key, psk, endpoint, allowed, handshake, received, sent, keepalive = theirs.dump()
    assert key == ours.key
    assert endpoint == f"{ours.node.ipv4.ip}:{PORT}"
    assert allowed == f"10.5.{ours.number}.0/24"
    assert abs(time.time() - int(handshake)) < PATIENCE
    until(lambda: theirs.key in ours.status().get("peers", {}), "our status, which is told once a second")
    status = ours.status()
    peer = status["peers"][theirs.key]
    assert peer["endpoint"] == [str(theirs.node.ipv4.ip), PORT]
    assert peer["handshake_age"] < PATIENCE
    assert not status["failures"]
    options = ours.options
    assert psk == options.get("PSK", "(none)")
    assert keepalive == str(options.get("PersistentKeepaliveInterval", "off"))

    assert min(int(received), int(sent)) > 0


def count_the_same_bytes(ours: Ours, theirs: Theirs) -> bool:
    _, _, _, _, _, received, sent, _ = theirs.dump()
    peer = ours.status()["peers"][theirs.key]
    return (peer["sent_bytes"], peer["received_bytes"]) == (int(received), int(sent))


@pytest.mark.usefixtures("wireguard_go")
@pytest.mark.parametrize(
    "options",
    [{}, {"PSK": PSK, "PersistentKeepaliveInterval": 5}],
    ids=["plain", "psk and keepalive"],
)
def test_we_begin_and_they_begin(make_bench: MakeBench, options: dict[str, Any]) -> None:
    bench = make_bench(**options)
    ours, theirs = bench.ours, bench.theirs()
    until(lambda: pings(ours.node, theirs.address), "wireguard-go answers us")
    assert_both_agree(ours, theirs)
    if not options:  # where both begin at once, wireguard-go gives one handshake up and does not count it
        until(lambda: count_the_same_bytes(ours, theirs), "both count the same bytes")
    for size in ("0", "1", "100", "1391", "1392"):  # the last fills the MTU, where padding has to stop
        assert pings(ours.node, theirs.address, "-M", "do", "-s", size), size
        assert pings(theirs.node, ours.address, "-M", "do", "-s", size), size
    theirs.process.kill()
    began = time.time()
    theirs.start(ours)
    until(lambda: pings(theirs.node, ours.address), "wireguard-go reaches us after its restart")
    assert theirs.handshaken >= int(began)
    if options:
        until(lambda: keepalives(ours, theirs) > 0, "a keepalive")
    assert ours.counter("drop_unauthentic") == 0


def keepalives(ours: Ours, theirs: Theirs) -> int:
    """How many pass within a little more than the five seconds of the interval; one side's keep the other one quiet."""
    with ours.node.capture() as capture:
        before = theirs.dump()[5:7]
        until(lambda: theirs.dump()[5:7] != before, "what is sent without a cause")
        frames = capture.stop()
    return sum(len(frame) == OUTER + 32 for frame in frames)


@pytest.mark.usefixtures("wireguard_go")
def test_tcp_both_ways(make_bench: MakeBench) -> None:
    """Whole batches: every byte arrives, whoever segments and whoever joins."""
    bench = make_bench()
    ours, theirs = bench.ours, bench.theirs()
    until(lambda: pings(ours.node, theirs.address), "wireguard-go answers us")
    for source, target, address in ((ours, theirs, theirs.address), (theirs, ours, ours.address)):
        transfer(source.node, target.node, address, 40 << 20)
    until(lambda: ours.counter("joined_packets") > 0, "a status that tells of packets that were joined")
    assert ours.counter("drop_unauthentic") == 0


def transfer(source: Node, target: Node, address: str, size: int) -> None:
    script = str(Path(__file__).parents[1] / "udp" / "traffic.py")
    sink = target.start([sys.executable, script, "sink", "5001"], stdout=subprocess.PIPE)
    with sink.proxy:
        assert sink.proxy.stdout is not None
        assert sink.proxy.stdout.readline()
        source.run([sys.executable, script, "source", address, "5001", str(size)], timeout=PATIENCE)
        total = json.loads(sink.proxy.stdout.readline())
    from tests.integration.backends.udp import traffic

    assert total == [size, traffic.digest(size)]


def test_nothing_readable_and_no_number_twice_on_the_wire(make_bench: MakeBench) -> None:
    bench = make_bench()
    ours, other = bench.ours, bench.second()
    for node in (ours.node, other.node):
        node.ip(["link set eth0 gso_max_segs 1"])  # or a capture shows many datagrams as one that is cut later
    mark = "deadbeefcafe0123"
    with ours.node.capture() as capture:
        until(lambda: pings(ours.node, other.address, "-p", mark, "-s", "400"), "a ping")
        for _ in range(8):
            transfer(ours.node, other.node, other.address, 96 << 10)  # not more than a capture can take at once
        frames = capture.stop()
    payloads = [frame[OUTER:] for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 17]
    packets = [data for data in payloads if data[:4] == b"\x04\0\0\0"]
    headers = [data[:16] for data in packets]
    assert len(packets) > 400
    assert {data[0] for data in payloads} == {1, 2, 4}
    assert len(set(headers)) == len(headers), "a number was used twice with one key"
    assert all(len(data) <= 1452 for data in payloads)
    whole = b"".join(frames)
    sent = random.Random(5).randbytes(4096)
    assert bytes.fromhex(mark) not in whole
    assert not any(sent[at : at + 16] in whole for at in range(0, len(sent), 16))
    assert bytes([10, 5, 1, 1, 10, 5, 2, 1]) not in whole, "an inner header can be read"


@pytest.mark.parametrize("peer", ["ours", "wireguard-go"])
def test_rekeying_under_load_loses_nothing(make_bench: MakeBench, peer: str, request: pytest.FixtureRequest) -> None:
    """With other limits than the white paper's: a new session every 50 packets."""
    if peer == "wireguard-go":
        request.getfixturevalue("wireguard_go")
    bench = make_bench({"rekey_after_messages": 50, "rekey_timeout": 0.1})
    ours = bench.ours
    other = bench.second() if peer == "ours" else bench.theirs()
    until(lambda: pings(ours.node, other.address), "a ping")
    before = ours.counter("handshakes")
    with ours.node.ping(other.address, 0.002) as there, other.node.ping(ours.address, 0.002) as back:
        until(lambda: ours.counter("handshakes") >= before + 20, "twenty handshakes")
        for account in (there.stop(), back.stop()):
            assert account.sent > 400
            assert account.lost == account.duplicates == 0
    assert ours.counter("drop_unauthentic") == ours.counter("drop_replayed") == 0


def test_kill_9_of_a_worker_costs_one_handshake(make_bench: MakeBench) -> None:
    bench = make_bench()
    ours, other = bench.ours, bench.second()
    until(lambda: pings(ours.node, other.address), "a ping")
    until(lambda: other.counter("handshakes"), "the status has the first one")
    handshakes, worker = other.counter("handshakes"), ours.worker()

    os.kill(worker, signal.SIGKILL)
    until(lambda: ours.worker() not in (0, worker), "another worker runs")
    until(lambda: pings(ours.node, other.address), "it reaches the peer")
    until(lambda: other.counter("handshakes") > handshakes, "the status follows")
    assert other.counter("handshakes") == handshakes + 1


HOSTILE = """
import random, socket, sys
rng = random.Random(7)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
recorded = [bytes.fromhex(line) for line in sys.stdin]
for number in range(20000):
    kind = number % 5
    if kind == 0:
        data = rng.randbytes(rng.randrange(200))
    elif kind == 1:
        size = {1: 148, 2: 92, 3: 64}.get(number % 4, 32 + 16 * rng.randrange(90))
        data = bytes([number % 4 or 4, 0, 0, 0]) + rng.randbytes(size - 4)
    else:
        data = bytearray(rng.choice(recorded))
        if kind == 2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[rng.randrange(len(data)):]
        if kind == 4 and data[0] == 1:
            continue
    sock.sendto(data, (sys.argv[1], 51820))
sock.settimeout(1)
try:
    print(sock.recv(100).hex())
except TimeoutError:
    print("silence")
"""


def test_hostile_packets_end_nothing_and_get_no_answer(make_bench: MakeBench) -> None:
    """Random ones, cut and changed ones, and genuine ones again, from another address than the peer's."""
    bench = make_bench()
    ours, other = bench.ours, bench.second()
    with ours.node.capture() as capture:
        until(lambda: pings(ours.node, other.address, "-c3"), "a ping")
        frames = capture.stop()
    recorded = [frame[OUTER:].hex() for frame in frames if frame[23:24] == b"\x11"]
    worker = ours.worker()
    said = other.node.run(
        [sys.executable, "-c", HOSTILE, str(ours.node.ipv4.ip)], input="\n".join(recorded), timeout=PATIENCE
    )
    assert said.stdout == "silence\n"
    assert pings(ours.node, other.address)
    assert pings(other.node, ours.address)
    assert ours.worker() == worker
    until(lambda: ours.counter("drop_unauthentic") > 1000, "forgeries are counted")
    status = ours.status()
    assert status["peers"][other.key]["endpoint"] == [str(other.node.ipv4.ip), PORT], "and nobody was moved"


def test_a_worker_keeps_its_keys_to_itself(make_bench: MakeBench) -> None:
    bench = make_bench(PSK=PSK)
    ours = bench.ours
    until(ours.status, "a worker that speaks")
    worker = ours.worker()
    process = Path(f"/proc/{worker}")
    private = ours.node.lab.outside(ours.state_dir / "wireguard.key").read_bytes().strip()
    for name in ("cmdline", "environ"):
        told = (process / name).read_bytes()
        assert private not in told
        assert PSK.encode() not in told
        assert bytes(range(32)).hex().encode() not in told
    assert re.search(r"Max core file size +0 +0 ", (process / "limits").read_text())
    assert (process / "mem").stat().st_mode & 0o077 == 0
    assert private.decode() not in json.dumps(ours.status())
