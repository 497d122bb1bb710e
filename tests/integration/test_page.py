"""The status page of a real daemon in a real browser: it renders, fits a phone, loads nothing else."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.storing import FREE, create, write_document

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PORT = 8401
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    for path in found:  # Ubuntu's chromium-browser does no more than ask for a snap
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip("no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(nodes=2) as lab:
        write_document(lab, "vxlan")
        for node in lab.nodes:
            words = ["--healthz-ip", "127.0.0.1", "--healthz-port", str(PORT)]
            node.start_daemon(lab.file_store, "vxlan", None, words)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
        yield lab.nodes[0]


def browse(node: Node, chromium: str, directory: Path, *flags: str) -> str:
    """Open the page in the node's namespace, which has no way out; returns what the browser prints."""
    profile = f"--user-data-dir={directory / 'profile'}"
    url = f"http://127.0.0.1:{PORT}/"
    home = {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    return node.run([chromium, *FLAGS, profile, *flags, url], env=home, timeout=120).stdout


def pixels(png: Path) -> tuple[int, int, list[bytes]]:
    """Width, height and unfiltered rows of an 8-bit PNG without interlacing (RFC 2083)."""
    data = png.read_bytes()
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (data[:8], depth, colour in (2, 6)) == (b"\x89PNG\r\n\x1a\n", 8, True)
    size, position, packed = (3 if colour == 2 else 4), 8, b""
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            packed += data[position + 8 : position + 8 + length]
        position += length + 12
    raw, rows, before = zlib.decompress(packed), [], bytearray(width * size)
    for number in range(height):
        start = number * (width * size + 1)
        row = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + width * size]), before, size)
        rows.append(b"".join(bytes(row[at : at + 3]) for at in range(0, len(row), size)))
        before = row
    return width, height, rows


def _unfiltered(kind: int, row: bytearray, before: bytearray, size: int) -> bytearray:
    for index in range(len(row)):
        left = row[index - size] if index >= size else 0
        up, corner = before[index], before[index - size] if index >= size else 0
        guess = left + up - corner
        paeth = min((left, up, corner), key=lambda near: abs(guess - near))
        row[index] = (row[index] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
    return row


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "light"), (390, "dark")])
def test_the_page_as_a_browser_shows_it(node: Node, chromium: str, tmp_path: Path, width: int, scheme: str) -> None:
    picture = tmp_path / "page.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(node, chromium, tmp_path, f"--window-size={width},900", f"--screenshot={picture}", *dark)
    columns, lines, rows = pixels(picture)
    assert (columns, lines) == (width, 900)
    colours = {row[at : at + 3] for row in rows for at in range(0, len(row), 3)}
    background = rows[-1][:3]
    assert (sum(background) < 3 * 64) == (scheme == "dark"), background
    assert len(colours) > 20, "text and tags, not an empty page"
    if width == 390:  # a margin that stays free on the right: nothing is wider than the screen
        assert {row[-3:] for row in rows} == {background}


def test_the_document_as_a_browser_reads_it(node: Node, chromium: str, tmp_path: Path) -> None:
    dom = browse(node, chromium, tmp_path, "--window-size=390,900", "--dump-dom")
    assert "<h2>2 nodes" in dom
    assert dom.count("192.0.2.2") == 1
    assert 'class="tag ok">ready' in dom
    assert "What is wrong" not in dom


def test_what_is_wrong_is_on_the_page(node: Node, chromium: str, tmp_path: Path) -> None:
    hostile = '{"PublicIP":"192.0.2.77","BackendType":"<script>document.title=1</script>"}'
    create(node, node.lab.file_store, FREE, hostile, 3600)
    until(lambda: any(peer["state"] == "skipped" for peer in node.daemon.status()["peers"]))
    dom = browse(node, chromium, tmp_path, "--window-size=390,900", "--dump-dom")
    assert "What is wrong" in dom
    assert "10.244.250.0/24 is skipped: BackendType is '&lt;script&gt;document.title=1&lt;/script&gt;'" in dom
    assert "<title>1</title>" not in dom


def fetch(node: Node) -> str:
    return node.run(["curl", "-sS", f"http://127.0.0.1:{PORT}/"]).stdout


def test_the_page_says_who_answers(node: Node) -> None:
    other = node.lab.nodes[1]
    until(lambda: "answers in " in fetch(node))
    assert "silent" not in fetch(node)
    other.unplug()
    try:
        until(lambda: "1 silent" in fetch(node))
        assert "192.0.2.2: does not answer" in fetch(node)
    finally:
        other.plug()
    wall = "table inet wall { chain c { type filter hook input priority -300; udp dport 8472 drop; }; }"
    other.run(["nft", "-f", "-"], input=wall)
    try:
        until(lambda: "192.0.2.2: the node answers, the overlay does not" in fetch(node))
    finally:
        other.run(["nft", "delete", "table", "inet", "wall"])
    until(lambda: "silent" not in fetch(node) and "answers in " in fetch(node))


@pytest.mark.parametrize("backend", ["host-gw", "udp"])
def test_who_answers_with_other_backends_and_without_the_right_to_ping(backend: str) -> None:
    script = (
        "import sys; from pathlib import Path; from pyflannel.show.reachability import ask\n"
        "from pyflannel.show.status import query\n"
        "from types import SimpleNamespace as N; from pyflannel.show.status import PeerState\n"
        "said = query(Path(sys.argv[1])); peers = [N(**{**peer, 'state': PeerState(peer['state'])}) "
        "for peer in said['peers']]\n"
        "print([str(answer) for answer in ask(N(peers=peers, lease=N(**said['lease']))).values()])\n"
    )
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, backend, "10.244.0.0/16")
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
        one = lab.nodes[0]
        one.run(["sh", "-c", "echo 1 0 >/proc/sys/net/ipv4/ping_group_range"])
        command = [sys.executable, "-c", script, str(one.daemon.run_directory)]
        for drop in ([], ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all"]):
            wanted = "['the node answers']" if backend == "host-gw" else "['answers in "
            until(lambda words=(*drop, *command), wanted=wanted: one.run(words).stdout.startswith(wanted))  # type: ignore[misc]
