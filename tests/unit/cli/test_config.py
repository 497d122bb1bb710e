"""pyflannel config, against a file store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyflannel.plugins import load_store
from pyflannel.store import StoreLocation

from .conftest import CommandLine

DOCUMENT = '{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}'


def add_leases(pyflannel: CommandLine, *keys: str) -> None:
    with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
        for key in keys:
            store.create(key, '{"PublicIP": "192.0.2.1"}', 3600)


def stored(pyflannel: CommandLine) -> Any:
    return json.loads(pyflannel("config", "get").out)


def test_what_is_set_is_got(pyflannel: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    path.write_text(DOCUMENT)
    result = pyflannel("config", "set", str(path))
    assert (result.code, result.out, result.err) == (0, f"written to {pyflannel.store}\n", "")
    assert stored(pyflannel) == json.loads(DOCUMENT)


def test_flags_may_stand_at_every_level(pyflannel: CommandLine) -> None:
    other = f"file://{pyflannel.directory}/other"
    assert pyflannel("config", "set", "-", "--store", other, stdin=DOCUMENT).code == 0
    for words in (
        ["--store", other, "config", "get"],
        ["config", "-store", other, "get"],
        ["config", "get", "-store", other],
    ):
        assert json.loads(pyflannel(*words).out) == json.loads(DOCUMENT)


@pytest.mark.parametrize("command", ["set", "validate"])
@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ("{", "standard input: not valid JSON"),
        ('{"Network": "10.1.0.0/30"}', "standard input: Network is "),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}', 'standard input: Backend.VNI is "x"'),
        (
            '{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "ipip"}}',
            "standard input: backend 'ipip' can't carry IPv6",
        ),
        (
            '{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard", "PSK": "short"}}',
            "network config: Backend.PSK is not a key",
        ),
        (
            '{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard", "Mode": "none"}}',
            "network config: Backend.Mode is 'none'",
        ),
        ("null", "standard input: expected a JSON object, found null"),
        ('["vxlan"]', 'standard input: expected a JSON object, found ["vxlan"]'),
        ("[" * 100_000, "standard input: it is nested more than 100 deep"),
        (
            '{"Network": "10.1.0.0/16", "Backend": {"Type": "ipsec", "PSK": "short"}}',
            "network config: Backend.PSK has 5 bytes",
        ),
    ],
)
def test_an_invalid_document_is_refused(pyflannel: CommandLine, command: str, document: str, fault: str) -> None:
    result = pyflannel("config", command, "-", stdin=document)
    assert result.code == 3
    assert result.err.startswith(f"pyflannel: error: {fault}")
    assert pyflannel("config", "get").code == 4


def test_bytes_that_are_no_text_are_of_standard_input() -> None:
    words = [sys.executable, "-m", "pyflannel", "config", "validate", "-"]
    result = subprocess.run(words, input=b"\xff", capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (3, b"pyflannel: error: standard input: is not UTF-8 text\n")


def test_unknown_keys_are_kept_and_told(pyflannel: CommandLine) -> None:
    document = '{"Network": "10.1.0.0/16", "Netwrok": 1, "Backend": {"Type": "vxlan", "Vni": 5, "Shiny": true}}'
    result = pyflannel("config", "set", "-", stdin=document)
    assert result.code == 0
    assert "unknown key Netwrok" in result.err
    assert "unknown key Backend.Shiny" in result.err
    assert "Vni" not in result.err
    assert stored(pyflannel) == json.loads(document)


def test_what_a_daemon_on_this_machine_alone_would_refuse_is_told(pyflannel: CommandLine) -> None:
    """A file of a node's own need not be here."""
    backend = json.dumps({"Type": "wireguard", "Implementation": "userspace", "PSKFile": "/nonexistent/psk"})
    result = pyflannel("config", "validate", "-", stdin=f'{{"Network": "10.1.0.0/16", "Backend": {backend}}}')
    assert result.code == 0
    assert "a daemon on this machine would refuse it" in result.err
    assert "Backend.PSKFile" in result.err


def test_a_backend_that_is_not_installed_is_told(pyflannel: CommandLine) -> None:
    result = pyflannel("config", "set", "-", stdin='{"Network": "10.1.0.0/16", "Backend": {"Type": "acme"}}')
    assert result.code == 0
    assert "the options of backend 'acme' are not checked: no backend 'acme' is installed" in result.err


def test_validate_needs_no_store(pyflannel: CommandLine) -> None:
    result = pyflannel("config", "validate", "-", environ={"PYFLANNEL_STORE": "nosuch://x"}, stdin=DOCUMENT)
    assert (result.code, result.out) == (0, "10.1.0.0/16: 255 subnets of /24, from 10.1.1.0/24\nbackend vxlan\n")


@pytest.mark.parametrize(
    ("document", "consequence"),
    [
        ('{"Network": "10.2.0.0/16"}', "the network changes under 2 leases, of which 2 don't fit the new one"),
        ('{"Network": "10.1.0.0/17"}', "the network changes under 2 leases, of which 1 don't fit"),
        ('{"Network": "10.1.0.0/16", "SubnetLen": 25}', "the network changes under 2 leases, of which 2 don't fit"),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}', "the backend changes under 2 leases"),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}', "the backend changes under 2 leases"),
    ],
)
def test_a_change_that_hurts_needs_force(pyflannel: CommandLine, document: str, consequence: str) -> None:
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    add_leases(pyflannel, "10.1.5.0-24", "10.1.200.0-24")
    result = pyflannel("config", "set", "-", stdin=document)
    assert result.code == 3
    assert consequence in result.err
    assert "--force" in result.err
    assert stored(pyflannel) == json.loads(DOCUMENT)
    result = pyflannel("config", "set", "-", "--force", stdin=document)
    assert result.code == 0
    assert consequence in result.err
    after = stored(pyflannel)
    assert after.pop("LastChange")["Outcome"] == "forced", "nodes that start are to follow"
    assert after == {"Backend": {"Type": "vxlan"}, **json.loads(document)}


@pytest.mark.parametrize(
    "document",
    [
        '{"Network": "10.1.0.0/16", "SubnetMax": "10.1.210.0", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}',
        '{"network": "10.1.0.0/16", "Backend": {"type": "vxlan"}}',
        '{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "vni": 1}}',
    ],
)
def test_a_change_that_hurts_nobody_needs_no_force(pyflannel: CommandLine, document: str) -> None:
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).code == 0
    add_leases(pyflannel, "10.1.5.0-24", "10.1.200.0-24", "not a lease")
    result = pyflannel("config", "set", "-", stdin=document)
    assert (result.code, result.err) == (0, "")
    assert stored(pyflannel) == json.loads(document)


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cant_be_read_is_said(pyflannel: CommandLine, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net-conf.json"
    if content is not None:
        path.write_bytes(content)
    result = pyflannel("config", "validate", str(path))
    assert result.code == 3
    assert str(path) in result.err


def test_the_backend_is_written_out(pyflannel: CommandLine) -> None:
    bare = '{"Network": "10.1.0.0/16"}'
    result = pyflannel("config", "set", "-", stdin=bare)
    assert (result.code, stored(pyflannel)["Backend"]) == (0, {"Type": "vxlan"})
    assert "names no backend; vxlan is assumed" in result.err
    assert pyflannel("config", "set", "-", stdin=bare.replace("}", ', "Backend": {"Type": "UDP"}}')).code == 0
    assert pyflannel("config", "set", "-", stdin=bare).code == 0
    assert stored(pyflannel)["Backend"] == {"Type": "udp"}


def test_nodes_inside_the_network_are_named(pyflannel: CommandLine) -> None:
    with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
        store.create("10.20.0.0-20", '{"PublicIP": "10.0.1.1"}', 3600)
        store.create("10.20.16.0-20", '{"PublicIP": "10.30.0.1"}', 3600)
    document = {"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0"}
    result = pyflannel("config", "set", "-", stdin=json.dumps({**document, "Backend": {"Type": "vxlan"}}))
    assert result.code == 0
    assert "10.0.1.1 lies in the network 10.0.0.0/8; no subnet there is leased" in result.err
    assert "10.30.0.1 lies in the network 10.0.0.0/8; other nodes will skip it" in result.err


def test_what_needs_no_force_leaves_the_note_of_the_last_change(pyflannel: CommandLine) -> None:
    """By that nodes know that they have gone there together."""
    note = {"Id": "00000000000000a1", "Outcome": "done"}
    assert pyflannel("config", "set", "-", stdin=json.dumps({**json.loads(DOCUMENT), "LastChange": note})).code == 0
    assert pyflannel("config", "set", "-", stdin=json.dumps({**json.loads(DOCUMENT), "EnableNFTables": True})).code == 0
    assert stored(pyflannel)["LastChange"] == note


def test_what_is_forced_names_the_changes_before_it(pyflannel: CommandLine) -> None:
    """By that nodes tell a document that a restored store brings back."""
    note = {"Id": "00000000000000a1", "Outcome": "done"}
    assert pyflannel("config", "set", "-", stdin=json.dumps({**json.loads(DOCUMENT), "LastChange": note})).code == 0
    add_leases(pyflannel, "10.1.5.0-24")
    other = '{"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}'
    assert pyflannel("config", "set", "-", "--force", stdin=other).code == 0
    after = stored(pyflannel)["LastChange"]
    assert (after["Outcome"], after["Before"]) == ("forced", [note["Id"]])
