"""Store check: every rule about what a store holds, and the command on a file store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import CommandLine

from pyflannel.errors import StoreUnavailableError
from pyflannel.plugins import load_store
from pyflannel.store import Record, Snapshot, Store, StoreLocation
from pyflannel.storetools.check import Severity, check, examine

DOCUMENT = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}


def lease(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"PublicIP": f"192.0.2.{number}", "BackendType": "vxlan", "NodeID": f"n{number}", **changes}


def findings(
    leases: Mapping[str, Any], document: Any = DOCUMENT, expiries: Mapping[str, float | None] | None = None
) -> list[tuple[Severity, str]]:
    config = None if document is None else Record("config", json.dumps(document), "1", permanent=True)
    records = tuple(Record(key, json.dumps(value), "1") for key, value in leases.items())
    found = list(examine(Snapshot("1", config, records), expiries))
    assert all(finding.fix for finding in found), "each comes with what to do"
    return [(finding.severity, finding.what) for finding in found]


def test_a_healthy_store_has_no_findings() -> None:
    assert findings({"10.5.1.0-24": lease(1), "10.5.2.0-24": lease(2)}, expiries={"10.5.1.0-24": 86000.0}) == []


@pytest.mark.parametrize(
    ("document", "level", "what"),
    [
        (None, Severity.ERROR, "there is no network config"),
        ({}, Severity.ERROR, "Network is missing"),
        ({**DOCUMENT, "Netwrok": 1}, Severity.WARNING, "key Netwrok is not known"),
        ({**DOCUMENT, "Backend": {"Type": "vxlan", "VIN": 1}}, Severity.WARNING, "key Backend.VIN is not known"),
        ({**DOCUMENT, "Backend": {"Type": "vxlan", "VNI": "x"}}, Severity.ERROR, "VNI"),
        ({**DOCUMENT, "Backend": {"Type": "telepathy"}}, Severity.WARNING, "backend 'telepathy' can't be loaded"),
    ],
)
def test_the_document(document: Any, level: Severity, what: str) -> None:
    ((found, text),) = findings({}, document)
    assert found is level
    assert what in text


@pytest.mark.parametrize(
    ("leases", "level", "what"),
    [
        ({"nonsense": lease()}, Severity.WARNING, "nonsense: lease key"),
        ({"10.5.1.0-24": []}, Severity.WARNING, "10.5.1.0-24: lease value is not a JSON object"),
        ({"10.9.1.0-24": lease()}, Severity.ERROR, "10.9.1.0/24 lies outside the network 10.5.0.0/16"),
        ({"10.5.1.0-24": lease(PublicIP=None)}, Severity.ERROR, "has no PublicIP"),
        ({"10.5.1.0-24": lease(PublicIP="0.0.0.0")}, Severity.ERROR, "not an address that a node can have"),
        ({"10.5.1.0-24": lease(PublicIP="10.5.7.7")}, Severity.ERROR, "lies inside the overlay"),
        ({"fd00::-64": lease(PublicIPv6="2001:db8::1")}, Severity.ERROR, "no subnet of a family"),
        ({"10.5.1.0-25": lease()}, Severity.WARNING, "not a subnet that this network config leases"),
        ({"10.5.1.0-24": lease(BackendType="udp")}, Severity.ERROR, "BackendType is 'udp', this network's is 'vxlan'"),
        ({"10.5.1.0-24": lease(BackendType=None)}, Severity.ERROR, "BackendType is none"),
    ],
)
def test_one_lease(leases: Mapping[str, Any], level: Severity, what: str) -> None:
    ((found, text),) = findings(leases)
    assert found is level
    assert what in text


def test_a_network_whose_leases_have_no_type_takes_none() -> None:
    assert findings({"10.5.1.0-24": lease(BackendType=None)}, {**DOCUMENT, "Backend": {"Type": "udp"}}) == []


@pytest.mark.parametrize("reverse", [False, True])
def test_overlapping_leases(reverse: bool) -> None:
    leases = {"10.5.1.0-24": lease(1), "10.5.1.128-25": lease(2)}
    found = findings(dict(sorted(leases.items(), reverse=reverse)))
    assert (Severity.ERROR, "10.5.1.128-25 overlaps 10.5.1.0-24") in found


def test_two_leases_of_one_node_or_address() -> None:
    assert findings({"10.5.1.0-24": lease(1), "10.5.2.0-24": lease(1)}) == [
        (Severity.ERROR, "public address 192.0.2.1 is in several leases: 10.5.1.0-24, 10.5.2.0-24"),
        (Severity.ERROR, "node id n1 is in several leases: 10.5.1.0-24, 10.5.2.0-24"),
    ]


def test_a_lease_that_nobody_renews() -> None:
    expiries = {"10.5.1.0-24": 100.0, "10.5.2.0-24": 4000.0, "10.5.3.0-24": None}
    assert findings({}, expiries=expiries) == [(Severity.WARNING, "10.5.1.0-24 ends in 100 s and was not renewed")]


def test_a_lease_that_is_renewed_late_or_early_is_judged_by_what_it_says_of_that() -> None:
    leases = {f"10.5.{n}.0-24": lease(n, RenewBefore=margin) for n, margin in ((1, 200.0), (2, 200.0), (3, 14400.0))}
    expiries = {"10.5.1.0-24": 400.0, "10.5.2.0-24": 40.0, "10.5.3.0-24": 3000.0}
    late = [f"{key} ends in {expiries[key]:.0f} s and was not renewed" for key in ("10.5.2.0-24", "10.5.3.0-24")]
    assert findings(leases, expiries=expiries) == [(Severity.WARNING, text) for text in late]


# On a store


@pytest.fixture
def filled(tmp_path: Path) -> StoreLocation:
    location = StoreLocation.parse(f"file://{tmp_path}/store")
    with load_store("file")(location) as store:
        store.write_config(json.dumps(DOCUMENT), None)
        store.create("10.5.1.0-24", json.dumps(lease(1)), 86400)
        store.create("10.5.2.0-24", json.dumps(lease(2)), None)
    return location


def contents(location: StoreLocation) -> tuple[Record, ...]:
    with load_store("file")(location) as store:
        return tuple(record for record in store.snapshot().leases)


@pytest.mark.parametrize("write", [False, True])
def test_nothing_is_left_behind(filled: StoreLocation, write: bool) -> None:
    before = [(record.key, record.value, record.version) for record in contents(filled)]
    report = check(filled, write=write)
    assert report.ok
    assert report.findings == []
    assert (report.leases, report.reservations) == (1, 1)
    assert report.ends_first is not None
    assert 86000 < report.ends_first <= 86400
    assert ("renew a lease" in report.latencies) == write
    assert all(low <= middle <= high for low, middle, high in report.latencies.values())
    assert [(record.key, record.value, record.version) for record in contents(filled)] == before


def test_a_failing_probe_is_deleted_all_the_same(filled: StoreLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Store, *arguments: object) -> Record:
        raise StoreUnavailableError("the wire was cut")

    before = [record.key for record in contents(filled)]
    monkeypatch.setattr(load_store("file"), "renew", fails)
    report = check(filled, write=True)
    assert [finding.what for finding in report.findings] == ["the wire was cut"]
    assert not report.ok
    assert [record.key for record in contents(filled)] == before


# The commands


@pytest.fixture
def pyflannel(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def test_check_prints_findings_and_ends_with_9(pyflannel: CommandLine, filled: StoreLocation) -> None:
    good = pyflannel("store", "check", "--write")
    assert good.code == 0, good.err
    assert good.out.splitlines()[-1] == "PASSED"
    with load_store("file")(filled) as store:
        store.create("10.9.1.0-24", json.dumps(lease(3)), 86400)
    bad = pyflannel("store", "check", str(filled))
    assert bad.code == 9
    assert "error: 10.9.1.0-24: 10.9.1.0/24 lies outside the network 10.5.0.0/16" in bad.out
    assert bad.out.splitlines()[-1] == "FAILED"
    document = json.loads(pyflannel("store", "check", "--json").out)
    assert document["ok"] is False
    assert [finding["key"] for finding in document["findings"]] == ["10.9.1.0-24"]


def test_check_of_a_store_that_is_not_there(pyflannel: CommandLine, tmp_path: Path) -> None:
    result = pyflannel("store", "check", f"file://{tmp_path}/nowhere?create=no")
    assert result.code == 9
    assert "nowhere" in result.out
    assert pyflannel("store", "check", "nonsense").code == 3


def test_migrate_copies_verifies_and_says_the_next_step(pyflannel: CommandLine, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/new"
    with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
        store.write_config(json.dumps(DOCUMENT), None)
        store.create("10.5.1.0-24", json.dumps(lease(1)), 86400)
    words = ("store", "migrate", "--from", pyflannel.store, "--to", target)
    dry = pyflannel(*words, "--dry-run")
    assert dry.code == 0
    assert not (tmp_path / "new" / "config.json").exists()
    first = pyflannel(*words)
    assert first.code == 0, first.err
    assert "1 copied: 10.5.1.0-24" in first.out
    assert f"verified. Next: keep 'store migrate --follow' running, set store = \"{target}\"" in first.out
    second = json.loads(pyflannel(*words, "--json").out)
    assert second["verified"] is True
    assert (second["copied"], second["document"], second["moved"]) == ([], "the same", 0)
    assert pyflannel("leases", "--store", target).out.count("10.5.1.0/24") == 1


def test_migrate_says_how_many_nodes_have_moved(pyflannel: CommandLine, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/new"
    with (
        load_store("file")(StoreLocation.parse(pyflannel.store)) as old,
        load_store("file")(StoreLocation.parse(target)) as new,
    ):
        old.write_config(json.dumps(DOCUMENT), None)
        for number in (1, 2):
            old.create(f"10.5.{number}.0-24", json.dumps(lease(number)), 3600)
        words = ("store", "migrate", "--from", pyflannel.store, "--to", target)
        assert f"0 of 2 nodes are known to work on {target}" in pyflannel(*words).out
        for moved, record in enumerate(new.snapshot().leases):
            new.renew(record, 86400)
            result = pyflannel(*words)
            said = "All 2 nodes work" if moved else "1 of 2 nodes are known to work"
            assert f"{said} on {target}" in result.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--to", "file:///x"), 2, "--from"),
        (("--from", "file:///x", "--to", "file:///x"), 3, "give two stores"),
        (("--from", "file:///x", "--to", "file:///y", "--until-moved"), 2, "needs --follow"),
        (("--from", "file:///x", "--to", "file:///y", "--follow", "--dry-run"), 2, "exclude each other"),
        (("--from", "nonsense", "--to", "file:///y"), 3, "expected a URL"),
    ],
)
def test_migrate_refuses(pyflannel: CommandLine, words: tuple[str, ...], code: int, message: str) -> None:
    result = pyflannel("store", "migrate", *words)
    assert (result.code, message in result.err) == (code, True), result.err


def test_migrate_names_what_contradicts(pyflannel: CommandLine, tmp_path: Path, filled: StoreLocation) -> None:
    target = StoreLocation.parse(f"file://{tmp_path}/new")
    with load_store("file")(target) as store:
        store.create("10.5.1.0-24", json.dumps(lease(9)), 86400)
    result = pyflannel("store", "migrate", "--from", str(filled), "--to", str(target))
    assert result.code == 4
    assert "10.5.1.0-24 is node 'n9' at 192.0.2.9 there, and node 'n1' at 192.0.2.1 in the source" in result.err
