"""Facts are gathered whatever plugins do: one that hangs in the daemon hangs in the doctor, too."""

from __future__ import annotations

import json
import threading
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.unit.daemon.running import settings_in

from pyflannel.backend import Backend, DesiredState, GenericInfo, Lease, Link, Node, NoOptions, Subnets, Underlay
from pyflannel.doctor import Judgement, facts, worst
from pyflannel.doctor.membership import network
from pyflannel.network.document import NetworkConfig
from pyflannel.planning.overlay import Overlay
from pyflannel.settings.settings import Settings
from pyflannel_stores.file import FileStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path)
    with FileStore(settings.store) as store:
        store.write_config(json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "alloc"}}), None)
    return settings


@pytest.mark.parametrize(
    ("function", "fact", "says"),
    [
        ("_ask", "store", "store 'file' failed in answering"),
        ("_clock", "clock", "store 'file' failed in clock"),
        ("_backend", "backend", "backend 'alloc' failed in loading"),
        ("_overlay", "overlay", "backend 'alloc' failed in planning"),
        ("_mtu", "mtu", "backend 'alloc' failed in mtu"),
    ],
)
def test_a_plugin_that_fails_costs_its_fact_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, function: str, fact: str, says: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(facts, function, fail)
    found = facts.gather(settings)
    assert str(found.problems[fact]) == f"{says}: ZeroDivisionError: oops"
    assert getattr(found, fact) is None
    if fact in ("backend", "mtu"):
        assert [finding.message for finding in network(found)] == [str(found.problems[fact])]
        assert worst(network(found)) is Judgement.FAIL


class Apart(Backend[NoOptions]):
    """A device for each peer."""

    name = "apart"

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        return DesiredState([Link("apart2", GenericInfo("ipip"), 1480)])


def test_a_device_of_one_peer_is_the_overlays_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or packets that leave by it are said to go astray."""
    network_config = NetworkConfig.from_json('{"Network": "10.244.0.0/16"}')
    node = Node("n1", network_config, Underlay("eth0", 1500), Subnets(IPv4Network("10.244.1.0/24")))
    overlay = Overlay(Apart(NoOptions()), node)
    overlay.put("10.244.2.0-24", '{"PublicIP": "192.0.2.2", "BackendType": "apart"}')
    monkeypatch.setattr(facts, "_overlay", lambda *arguments: overlay)
    assert [link.name for link in facts.gather(settings).links] == ["apart2"]


def test_a_plugin_that_hangs_is_left_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(facts, "_ask", lambda *arguments: over.wait())
    monkeypatch.setattr(facts, "PLUGIN_PATIENCE", 0.01)
    try:
        found = facts.gather(settings)
    finally:
        over.set()
    assert "store 'file' has not come back from answering" in str(found.problems["store"])
    assert found.store is None
