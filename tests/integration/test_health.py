"""The health port of real daemons: what each path says while things go wrong and right again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.asking import get, until
from tests.integration.planted import BACKEND, plant, put_peer, switched_on
from tests.storing import write_document

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PORT = ["--healthz-ip", "127.0.0.1", "--healthz-port", "8401"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3) as lab:
        for node in lab.nodes:
            node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", PORT)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2)
        yield lab
        for node in lab.nodes:
            print(node.name, node.log_tail(40))


def samples(node: Node) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels to value, of all metrics; the text must be what Prometheus reads."""
    status, text = get(node, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    return {(item.name, frozenset(item.labels.items())): item.value for family in families for item in family.samples}


def value(node: Node, name: str, **labels: str) -> float:
    return samples(node)[f"pyflannel_{name}", frozenset(labels.items())]


def test_a_node_that_is_well_says_so(lab: Lab) -> None:
    node = lab.nodes[0]
    assert get(node, "/healthz") == (200, "flanneld is running")
    assert get(node, "/livez")[0] == 200
    status, text = get(node, "/readyz")
    assert (status, text.startswith("ready: 10.244.")) == (200, True)
    status, text = get(node, "/")
    assert status == 200
    assert "192.0.2.3" in text


def test_the_numbers_are_those_of_the_status(lab: Lab) -> None:
    node = lab.nodes[0]
    document, found = node.daemon.status(), samples(node)
    assert value(node, "ready") == 1
    assert value(node, "state", state="ready") == 1
    assert value(node, "state", state="waiting") == 0
    assert value(node, "peers", state="ok") == 2
    for kind, counts in document["objects"]["counts"].items():
        assert value(node, "objects", kind=kind, state="done") == counts["done"]
    assert value(node, "lease_expiry_seconds") == pytest.approx(document["lease"]["expires_in"], abs=120)
    assert value(node, "store_call_duration_seconds_count", call="snapshot") >= 1
    assert value(node, "reconcile_duration_seconds_count") >= 1
    assert value(node, "kernel_writes_total") >= 6
    (build,) = [labels for name, labels in found if name == "pyflannel_build_info"]
    assert {("backend", "vxlan"), ("store", "file")} <= build


def test_repairs_and_packets_are_counted(lab: Lab) -> None:
    node, other = lab.nodes[:2]
    repaired, sent = (
        value(node, "drift_repaired_total"),
        value(node, "device_transmit_packets_total", device="flannel.1"),
    )
    node.run(["ip", "route", "flush", "proto", "241"])
    until(lambda: value(node, "drift_repaired_total") >= repaired + 2)
    until(lambda: node.daemon.status()["state"] == "ready")
    address = str(other.daemon.status()["lease"]["subnets"][0]).partition("/")[0]
    node.run(["ping", "-c", "3", "-i", "0.2", address])
    assert value(node, "device_transmit_packets_total", device="flannel.1") >= sent + 3


def test_a_device_may_have_a_name_of_any_bytes(lab: Lab) -> None:
    """The kernel takes nearly all of them, and somebody's bridge is in texts about what is in the overlay's way."""
    node, peer = lab.nodes[0], lab.nodes[2]
    subnet = peer.daemon.status()["lease"]["subnets"][0].replace("/24", "/25")
    name = "$(printf 'b\\303\\274\\377')"
    node.run(
        ["sh", "-ec", f'ip link add "{name}" type bridge; ip link set "{name}" up; ip route add {subnet} dev "{name}"']
    )
    try:
        until(lambda: "b\u00fc\\udcff" in get(node, "/readyz")[1], lambda: get(node, "/readyz"))
        assert "b\u00fc\\udcff" in get(node, "/")[1]
        assert value(node, "device_transmit_packets_total", device="flannel.1") >= 0
        assert "b\u00fc\udcff" in node.daemon.status()["message"]
    finally:
        node.run(["sh", "-ec", f'ip link del "{name}"'])
    until(lambda: node.daemon.status()["state"] == "ready")


def test_repairs_of_the_firewall_are_counted(lab: Lab) -> None:
    """On this host somebody drops, so there is something of ours to remove."""
    node = lab.nodes[1]
    node.run(["sh", "-ec", "nft add table ip wall; nft add chain ip wall f '{ type filter hook forward priority 9; }'"])
    node.run(["nft", "add rule ip wall f reject"])
    until(lambda: "flanneld forward" in node.run(["nft", "list", "ruleset"]).stdout)
    until(lambda: value(node, "firewall_in_place") == 1)
    repaired = value(node, "firewall_repaired_total")
    node.run(["sh", "-ec", "nft flush chain ip wall f; nft add rule ip wall f reject"])
    until(lambda: value(node, "firewall_repaired_total") > repaired)
    until(lambda: value(node, "firewall_in_place") == 1)
    node.run(["nft", "delete", "table", "ip", "wall"])


def test_readiness_ends_with_the_lease_and_comes_back(lab: Lab) -> None:
    """The store goes away, the lease runs out, the store comes back; forwarding is another matter."""
    node = lab.nodes[2]
    node.daemon.stop()
    node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", [*PORT, "--lease-ttl", "4"])
    node.daemon.wait_ready(peers=2)
    store = lab.outside(Path("/run/lab/store"))  # type: ignore[arg-type]
    away = store.with_name("store-away")
    store.rename(away)
    try:
        until(lambda: get(node, "/readyz")[0] == 503, "the lease has expired")
        status, text = get(node, "/readyz")
        assert (status, "the lease has expired" in text) == (503, True), text
        assert value(node, "ready") == 0
        assert value(node, "lease_expiry_seconds") <= 0
        assert value(node, "store_connected") == 0
        assert get(node, "/livez")[0] == 200
        assert get(node, "/healthz")[0] == 200
        assert "What is wrong" in get(node, "/")[1]
    finally:
        if store.exists():
            store.rename(store.with_name("store-new"))
        away.rename(store)
    until(lambda: get(node, "/readyz")[0] == 200, "ready again")
    assert (
        value(node, "store_call_failures_total", call="renew")
        + value(node, "store_call_failures_total", call="read_config")
        + value(node, "store_call_failures_total", call="snapshot")
        > 0
    )


def test_a_conflict_is_not_ready(lab: Lab) -> None:
    first, second = lab.nodes[:2]
    node_id = second.daemon.options.node_id or second.name
    second.daemon.stop()
    second.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", PORT, node_id="impostor")
    second.daemon.wait_status(lambda status: status["state"] == "conflict", "in conflict")
    status, text = get(second, "/readyz")
    assert (status, text.startswith("conflict: ")) == (503, True), text
    assert get(second, "/livez")[0] == 200
    second.daemon.stop()
    second.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", PORT, node_id=node_id)
    second.daemon.wait_ready(peers=2)
    assert get(first, "/readyz")[0] == 200


def test_a_port_that_is_taken_ends_the_start(lab: Lab) -> None:
    node = lab.nodes[0]
    words = [*node.daemon.command, "--run-dir", "/run/lab/n1/other"]
    done = node.run(words, check=False)
    assert done.returncode == 3
    assert "--healthz-port 8401: can't listen there: Address already in use" in done.stderr


def test_a_stuck_loop_is_told_from_a_dead_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, backend=BACKEND)
    with Lab(nodes=1, containers=0) as lab:
        (node,) = lab.nodes
        write_document(lab, "planted")
        daemon = node.start_daemon(lab.file_store, "planted", None, PORT)
        daemon.wait_ready()
        with switched_on(tmp_path, "plan_peer") as reached:
            put_peer(node)
            until(reached)
            until(lambda: get(node, "/livez")[0] == 503, "the loop is stuck")
            assert get(node, "/livez")[1].startswith("stuck: the loop has not turned for")
            assert get(node, "/healthz") == (200, "flanneld is running")
            assert "backend 'planted' has not come back from planning" in get(node, "/readyz")[1]
        until(lambda: get(node, "/livez")[0] == 200)
