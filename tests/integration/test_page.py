"""The status page of a real daemon in a real browser: it renders, fits a phone, loads nothing else."""

from __future__ import annotations

import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PORT = 8401
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            node.start_daemon(
                lab.file_store, "vxlan", "10.244.0.0/16", ["--healthz-ip", "127.0.0.1", "--healthz-port", str(PORT)]
            )
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
    put = (
        "import sys; from pyflannel.plugins import load_store; from pyflannel.store import StoreLocation\n"
        "store = load_store('file')(StoreLocation.parse(sys.argv[1]))\n"
        "store.create('10.244.77.0-24', sys.argv[2], 3600.0)"
    )
    node.run([sys.executable, "-c", put, node.lab.file_store, hostile])
    until(lambda: any(peer["state"] == "skipped" for peer in node.daemon.status()["peers"]))
    dom = browse(node, chromium, tmp_path, "--window-size=390,900", "--dump-dom")
    assert "What is wrong" in dom
    assert "10.244.77.0/24 is skipped: BackendType is '&lt;script&gt;document.title=1&lt;/script&gt;'" in dom
    assert "<title>1</title>" not in dom
