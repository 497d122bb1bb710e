"""Commands that only look: they make nothing where nothing is, say so, and leave no trace in what is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyflannel.plugins import load_store
from pyflannel.store import StoreLocation

from .conftest import CommandLine

LOOKING = (
    ("leases",),
    ("leases", "--json"),
    ("config", "get"),
    ("network", "change", "--dry-run", "--backend", "host-gw"),
    ("network", "change", "--abort"),
    ("network", "change", "--yes", "--backend", "host-gw"),
)


def tree(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and directory, as far as writing would show."""
    found = (Path(where) / name for where, *names in os.walk(directory) for each in names for name in each)
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode) for path in found}


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_a_store_that_is_not_there_is_named_and_not_made(pyflannel: CommandLine, words: tuple[str, ...]) -> None:
    result = pyflannel(*words)
    assert result.code == 4
    assert f"the directory {pyflannel.directory}/store does not exist; correct --store" in result.err
    assert tree(pyflannel.directory) == {}


def test_a_check_finds_that_there_is_none(pyflannel: CommandLine) -> None:
    result = pyflannel("store", "check")
    assert result.code == 9
    assert f"the directory {pyflannel.directory}/store does not exist" in result.out
    assert tree(pyflannel.directory) == {}


def test_doctor_finds_that_there_is_none(pyflannel: CommandLine) -> None:
    result = pyflannel("doctor", "--no-probes")
    assert result.code == 9
    assert f"the directory {pyflannel.directory}/store does not exist" in result.out
    assert tree(pyflannel.directory) == {}


def test_a_directory_of_something_else_is_no_store(pyflannel: CommandLine) -> None:
    (pyflannel.directory / "store").mkdir()
    result = pyflannel("leases")
    assert result.code == 4
    assert f"the directory {pyflannel.directory}/store is not a store: nothing named 'subnets' is in it" in result.err
    assert not list((pyflannel.directory / "store").iterdir())


@pytest.mark.parametrize("locked_before", [True, False])
def test_looking_at_a_store_leaves_no_trace(pyflannel: CommandLine, locked_before: bool) -> None:
    """Nor a lock where nobody has written with one: it would be ours, and the daemon's user could not take it."""
    place = pyflannel.directory / "store"
    if locked_before:
        with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
            store.write_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', None)
            store.create("10.1.20.0-24", '{"PublicIP": "192.0.2.2", "BackendType": "vxlan"}', 3600)
        (place / "subnets" / "10.1.21.0-24.json").write_text('{"Expires": "2001-01-01T00:00:00Z"}')
    else:
        (place / "subnets").mkdir(parents=True)
        (place / "config.json").write_text('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}')
    before = tree(pyflannel.directory)
    for words in (*LOOKING[:4], ("store", "check"), ("doctor", "--no-probes")):
        result = pyflannel(*words)
        assert "does not exist" not in result.err + result.out
        assert tree(pyflannel.directory) == before, words
    assert pyflannel("leases").out.count("10.1.2") == locked_before, "what has expired is gone for who looks"


def test_a_migration_can_be_tried_before_its_target_is_there(pyflannel: CommandLine) -> None:
    with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
        store.write_config('{"Network": "10.1.0.0/16"}', None)
        store.create("10.1.20.0-24", '{"PublicIP": "192.0.2.2"}', 3600)
    before = tree(pyflannel.directory)
    words = ("store", "migrate", "--from", pyflannel.store, "--to", f"file://{pyflannel.directory}/new")
    tried = pyflannel(*words, "--dry-run")
    assert tried.code == 0
    assert "1 copied: 10.1.20.0-24" in tried.out
    assert tree(pyflannel.directory) == before
    assert pyflannel(*words).code == 0
    assert (pyflannel.directory / "new" / "subnets" / "10.1.20.0-24.json").exists()


def test_a_migration_from_nowhere_is_refused(pyflannel: CommandLine) -> None:
    words = ("store", "migrate", "--from", pyflannel.store, "--to", f"file://{pyflannel.directory}/new")
    result = pyflannel(*words)
    assert result.code == 4
    assert f"the directory {pyflannel.directory}/store does not exist" in result.err
    assert not (pyflannel.directory / "store").exists()
