"""Plugins that do not come back from a call: named while they hang, long before anybody gives them up, and once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
from tests.integration.planted import BACKEND, STORE, plant, switched_on
from tests.storing import write_document
from tests.waiting import LONG, until

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.store import StoreLocation

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PATIENCE = 50.0
"""Less than the minute after which a daemon gives up on a backend."""

GONE = "has not come back from"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=1, containers=0) as lab:
        write_document(lab, "planted")
        store = lab.outside(PurePosixPath(StoreLocation.parse(lab.file_store).path))
        (store / "subnets").mkdir(mode=0o700)  # a store that nobody has used yet is none for commands that only read
        yield lab


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.nodes[0]


CALLS = {
    "a store's import": ("store", "import", "store 'planted' has not come back from its import for"),
    "a store's constructor": ("store", "constructor", "store 'planted' has not come back from its constructor for"),
    "a backend's import": ("backend", "import", "backend 'planted' has not come back from loading for"),
    "a backend's constructor": ("backend", "constructor", "backend 'planted' has not come back from loading for"),
    "publish": ("backend", "publish", "backend 'planted' has not come back from publish for"),
    "planning": ("backend", "plan_node", "backend 'planted' has not come back from planning for"),
}


@pytest.mark.parametrize(("kind", "call", "said"), CALLS.values(), ids=CALLS)
def test_a_daemon_names_the_call_once_and_goes_on_when_it_comes_back(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str, said: str
) -> None:
    planted = tmp_path / kind
    planted.mkdir()
    plant(tmp_path, monkeypatch, **({"store": STORE} if kind == "store" else {}))
    plant(planted, monkeypatch, backend=BACKEND)
    store = node.lab.file_store.replace("file:", "planted:") if kind == "store" else node.lab.file_store
    with switched_on(tmp_path if kind == "store" else planted, call):
        daemon = node.start_daemon(store, "planted", None, [])
        earlier = daemon.log().count(GONE)  # of the daemons before, in one file
        daemon.wait_status(lambda status: said in status["message"], f"saying {said!r}", LONG)
        until(lambda: said in daemon.log(), daemon.log)
        status = daemon.status()
        assert status["store"]["connected"] is True
        seen = status["message"]
        daemon.wait_status(lambda status: said in status["message"] != seen, "saying it with the time", LONG)
        assert daemon.log().count(GONE) == earlier + 1, daemon.log()
    daemon.wait_ready()
    assert GONE not in daemon.status()["message"]
    assert daemon.log().count(GONE) == earlier + 1, daemon.log()
    assert daemon.stop(PATIENCE) == 0


COMMANDS = {
    "leases": (STORE, "snapshot", ["leases", "--json"], "store 'planted' {} from snapshot"),
    "config get": (STORE, "constructor", ["config", "get"], "store 'planted' {} from its constructor"),
    "plugins": (STORE, "import", ["plugins", "--json"], "store 'planted' {} from its import"),
    "doctor, of a store": (STORE, "snapshot", ["doctor", "--json"], "store 'planted' {} from snapshot"),
    "doctor, of a backend": (BACKEND, "constructor", ["doctor", "--json"], "backend 'planted' {} from loading"),
    "config validate": (BACKEND, "constructor", ["config", "validate", "DOCUMENT"], "backend 'planted' {} from its"),
}


@pytest.mark.parametrize(("plugin", "call", "words", "said"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_names_the_call_while_it_waits(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, call: str, words: list[str], said: str
) -> None:
    plant(tmp_path, monkeypatch, **{"store" if plugin is STORE else "backend": plugin})
    (tmp_path / "document.json").write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "planted"}}')
    words = [str(tmp_path / "document.json") if word == "DOCUMENT" else word for word in words]
    if words[0] not in ("plugins",) and "validate" not in words:
        store = node.lab.file_store
        words += ["--store", store.replace("file:", "planted:") if plugin is STORE else store]
    log = tmp_path / "log"
    log.touch()
    command = ["sh", "-c", f'exec "$@" 2>{log}', "sh", *pyflannel_command(*words)]
    with ThreadPoolExecutor() as pool:
        with switched_on(tmp_path, call):
            done = pool.submit(node.run, command, check=False, timeout=LONG)
            until(lambda: said.format("has not come back") in log.read_text(), log.read_text)
            assert not done.done()
        answer = done.result().stdout
    assert log.read_text().count(GONE) == 1, log.read_text()
    assert log.read_text().count(said.format("has come back")) == 1, log.read_text()
    if "--json" in words:
        json.loads(answer)
