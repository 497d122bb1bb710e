"""Daemons with deliberately bad stores: named, survived, and the lease is kept where it can be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.storing import FREE, write_document

from pyflannel.lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.xdist_group("bad-stores")]

PATIENCE = 60.0

HEAD = """\
import sys
from dataclasses import replace
from pyflannel.store import *
from pyflannel_stores.file import FileStore

class Bad(FileStore):
    scheme = "bad"

"""

AT_THE_START = {
    "bytes for texts": (
        "leases=tuple(replace(each, value=b'{}') for each in found.leases)",
        "store 'bad' failed in snapshot: TypeError: Record: value is of type bytes: must be str",
    ),
    "a snapshot that breaks off half way": (
        "leases=(1 / 0 for each in found.leases)",
        "store 'bad' failed in snapshot: TypeError: Snapshot: leases is of type generator: must be tuple",
    ),
    "revisions that are numbers": (
        "revision=7",
        "store 'bad' failed in snapshot: TypeError: Snapshot: revision is of type int: must be str",
    ),
}

WITH_A_LEASE = {
    "a watch without a pause": (
        "def watch(self, revision):\n        return Endless()\n\n"
        "class Endless(Watch):\n    closed = False\n\n    def __next__(self):\n        if self.closed:\n"
        "            raise StopIteration\n        return Batch('1')\n\n    def close(self):\n        self.closed = True"
    ),
    "a watch that is none": "def watch(self, revision):\n        return None",
    "a watch that is a generator": "def watch(self, revision):\n        yield from super().watch(revision)",
    "a delete that answers": "def delete(self, record):\n        super().delete(record)\n        return True",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=len(AT_THE_START) + len(WITH_A_LEASE), containers=0) as lab:
        yield lab


def install(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad_store.py").write_text(f"{HEAD}    {code}\n")
    about = folder / "bad_store-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-store\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.stores]\nbad = bad_store:Bad\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


def place(lab: Lab, number: int) -> str:
    """A store with the network document and somebody's lease; its URL."""
    store = f"{lab.file_store}-{number}"
    write_document(lab, "host-gw", store)
    leases = lab.outside(lab.nodes[0].directory).parent / f"store-{number}" / "subnets"
    leases.mkdir(mode=0o700)
    (leases / f"{FREE}.json").write_text(json.dumps({"PublicIP": "192.0.2.77", "BackendType": "host-gw"}))
    return store.replace("file:", "bad:")


@pytest.mark.parametrize("number", range(len(AT_THE_START)), ids=AT_THE_START)
def test_it_is_named_and_the_daemon_goes_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    wrong, reason = list(AT_THE_START.values())[number]
    code = f"def snapshot(self):\n        found = super().snapshot()\n        return replace(found, {wrong})"
    install(code, tmp_path, monkeypatch)
    daemon = lab.nodes[number].start_daemon(place(lab, number), "host-gw", None, [])
    for _ in range(2):
        daemon.wait_status(lambda status: reason in status["message"], f"saying {reason!r}", PATIENCE)
    assert daemon.stop(PATIENCE) == 0


@pytest.mark.parametrize("number", range(len(WITH_A_LEASE)), ids=WITH_A_LEASE)
def test_a_lease_is_renewed_and_the_daemon_ends_when_it_is_told_to(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    install(list(WITH_A_LEASE.values())[number], tmp_path, monkeypatch)
    number += len(AT_THE_START)
    daemon = lab.nodes[number].start_daemon(place(lab, number), "host-gw", None, ["--lease-ttl", "3"])
    status = daemon.wait_status(lambda status: status["lease"] is not None, "holding a lease", PATIENCE)
    for _ in range(3):
        renewed = status["lease"]["renewed"]
        status = daemon.wait_status(
            lambda status: status["lease"] is not None and status["lease"]["renewed"] != renewed,  # noqa: B023
            "renewing",
            PATIENCE,
        )
    assert daemon.stop(PATIENCE) == 0
    assert "Traceback" not in daemon.log()
