"""What a third party's server of a store finds in a lab: an empty directory that all nodes see, addresses on the
underlay, streams that are nobody's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sites import install

from pyflannel.errors import StoreUnavailableError
from pyflannel.lab import Lab
from pyflannel.lab.topology import plan_server

pytestmark = pytest.mark.root

CODE = """\
import json
import os
import socket
import sys
import threading
from contextlib import contextmanager

from pyflannel.errors import ConfigError


def answering(listener, found):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.sendall(found)


@contextmanager
def serve(directory, addresses):
    print("a word to standard output")
    os.write(1, b"and one past Python")
    print("acme://nowhere", file=sys.stderr)
    if len(addresses) == 4:
        threading.Event().wait()
    if len(addresses) == 3:
        raise ConfigError("acmed is not installed: apt-get install acmed")
    files = os.listdir(directory)
    found = json.dumps({"files": files, "addresses": addresses, "input": sys.stdin.read()}).encode()
    (directory / "data").mkdir()
    listeners = [socket.socket(socket.AF_UNIX), *(socket.create_server((address, 7)) for address in addresses)]
    listeners[0].bind(str(directory / "data" / "socket"))
    listeners[0].listen()
    for listener in listeners:
        threading.Thread(target=answering, args=(listener, found), daemon=True).start()
    yield f"acme://{directory}/data/{{}}"
"""

ASK = """\
import socket, sys
kind, place = (socket.AF_UNIX, sys.argv[1]) if sys.argv[1][0] == "/" else (socket.AF_INET, (sys.argv[1], 7))
with socket.socket(kind) as connection:
    connection.settimeout(30)
    connection.connect(place)
    print(connection.makefile().read())
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    (tmp_path / "acme_server.py").write_text(CODE)
    about = tmp_path / "acme_server-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-server\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.lab.servers]\nacme = acme_server:serve\n")
    install(monkeypatch, tmp_path)
    with Lab(nodes=2, containers=0) as lab:
        yield lab


def test_a_server_is_reached_by_its_addresses_and_by_a_unix_socket_from_every_node(lab: Lab) -> None:
    addresses = [str(plan_server("", number).ipv4.ip) for number in range(2)]
    url = lab.start_store("acme", 2)
    assert url.startswith("acme:///")
    assert url.endswith("/data/lab"), "a place of the lab's own, whatever was printed before"
    socket = url.removeprefix("acme://").replace("/data/lab", "/data/socket")
    said = {node.run([sys.executable, "-c", ASK, place]).stdout for node in lab.nodes for place in (socket, *addresses)}
    (found,) = map(json.loads, said)
    assert found["files"] == []
    assert found["input"] == "", "standard input is at its end"
    assert found["addresses"] == addresses


def test_what_is_missing_is_told_with_what_was_printed(lab: Lab) -> None:
    with pytest.raises(StoreUnavailableError) as failed:
        lab.start_store("acme", 3)
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("no acme servers in the lab: ")
    assert "acme://nowhere" in str(failed.value)
    assert lines[-1] == "acmed is not installed: apt-get install acmed"


def test_one_that_never_comes_up_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.lab.served.START_TIMEOUT", 2.0)
    with pytest.raises(StoreUnavailableError, match="given up: no answer within 2 s"):
        lab.start_store("acme", 4)
