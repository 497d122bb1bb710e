"""pyflannel leases, against a file store."""

from __future__ import annotations

import json

import pytest

from pyflannel.cli.output import duration
from pyflannel.plugins import load_store
from pyflannel.small.text import inert
from pyflannel.store import StoreLocation

from .conftest import CommandLine


@pytest.fixture
def filled(pyflannel: CommandLine) -> CommandLine:
    with load_store("file")(StoreLocation.parse(pyflannel.store)) as store:
        store.create("10.1.20.0-24", '{"PublicIP": "192.0.2.2", "BackendType": "vxlan", "NodeID": "n2"}', 3630)
        store.create("10.1.3.0-24&fd00::-64", '{"PublicIP": "192.0.2.1", "PublicIPv6": "2001:db8::1"}', None)
        store.create("10.1.4.0-24", '{"PublicIP": "\\u001b[31m"}', 60)
    return pyflannel


def test_a_table_for_people(filled: CommandLine) -> None:
    result = filled("leases")
    assert result.code == 0
    assert result.out.splitlines() == [
        "SUBNET                 PUBLIC IP              BACKEND  NODE  EXPIRES",
        "10.1.3.0/24 fd00::/64  192.0.2.1 2001:db8::1  -        -     reservation",
        "10.1.20.0/24           192.0.2.2              vxlan    n2    in 1 h",
        "",
        "Not leases:",
        result.out.splitlines()[-1],
    ]
    assert result.out.splitlines()[-1].startswith("  10.1.4.0-24: lease value has a bad address")
    assert "\x1b" not in result.out


def test_a_document_for_programs(filled: CommandLine) -> None:
    result = filled("leases", "--json")
    document = json.loads(result.out)
    assert document["store"] == filled.store
    reserved, leased = document["leases"]
    assert 3500 < leased.pop("expires_in") <= 3630
    assert leased == {
        "key": "10.1.20.0-24",
        "subnets": ["10.1.20.0/24"],
        "public_ip": "192.0.2.2",
        "public_ipv6": None,
        "backend": "vxlan",
        "node_id": "n2",
        "reserved": False,
    }
    assert reserved["reserved"] is True
    assert reserved["expires_in"] is None
    assert reserved["public_ipv6"] == "2001:db8::1"
    assert [item["key"] for item in document["malformed"]] == ["10.1.4.0-24"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min 59 s"),
        (86340, "23 h 59 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_show_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_control_characters_become_visible() -> None:
    assert inert("a\x1b[2J\u202eb\n") == "a\\x1b[2J\\u202eb\\n"
