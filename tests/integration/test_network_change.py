"""``pyflannel network change`` on real daemons: the network goes over to other settings, and no packet is lost.

Pings of all containers to all others run meanwhile, ten milliseconds apart, in both families where there are two; each
of them has to be answered. The kernel filters strictly by the reverse path, as some distributions have it. What takes
longer is in ``tests/changes``.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator

import pytest
from tests.changing import DUAL, UDP, USERSPACE, VXLAN, WIREGUARD, Document, Overlay, network, overlay, pinging
from tests.integration.asking import PATIENCE, workers
from tests.waiting import until

from pyflannel.errors import ExitCode
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


# From each backend to each other --------------------------------------------------------------------------------------


def test_from_backend_to_backend_and_no_packet_is_lost() -> None:
    """Round by way of all that every kernel has."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for backend in ("wireguard", "udp", "host-gw", "vxlan"):
            made.change("--backend", backend)
            made.run_on(backend)
        for kind in ("udp", "wireguard"):
            until(lambda kind=kind: not any(workers(node, kind) for node in made.nodes), f"no {kind} is left", PATIENCE)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("document", "options"),
    [
        (VXLAN, ["VNI=2", "Port=4789"]),
        (VXLAN, ["DirectRouting=true"]),
        (VXLAN, ["MTU=1400"]),
        (WIREGUARD, ["PSK=TsP23gTYx8hFJfOWzQsgEyKdhvFzNzq4aIXPnAq3G0I=", "ListenPort=51900"]),
        (UDP, ["Port=8300"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value["Type"]),
)
def test_the_same_backend_with_other_options(document: Document, options: list[str]) -> None:
    with overlay(network(document)) as made, pinging(made.lab):
        made.change(*(word for option in options for word in ("--backend-option", option)))
        made.run_on(str(document["Type"]))
        for option in options:
            name, _, value = option.partition("=")
            assert str(made.document()["Backend"][name]).lower() == value.lower()


def test_what_concerns_each_node_alone_is_taken_by_the_processes_that_move_packets() -> None:
    """They are not replaced: what was agreed with peers holds, and what waits in them arrives."""
    with overlay(network(USERSPACE)) as made, pinging(made.lab):
        before = [workers(node, "wireguard") for node in made.nodes]
        made.change("--backend-option", "MTU=1400", "--backend-option", "PersistentKeepaliveInterval=1")
        for node in made.nodes:
            link = ["ip", "link", "show", "flannel-wg"]
            until(lambda node=node, link=link: " mtu 1320 " in node.run(link).stdout, "the device's MTU", PATIENCE)  # type: ignore[misc]
            node.daemon.wait_ready(peers=2, timeout=PATIENCE)
        source, target = made.lab.containers[:2]
        whole = ["ping", "-c1", "-W1", "-M", "do", "-s", str(1320 - 28), target.address()]
        until(lambda: source.run(whole, check=False).returncode == 0, "a full packet arrives", PATIENCE)
        assert [workers(node, "wireguard") for node in made.nodes] == before


def test_a_daemon_s_backend_counts_less_than_a_change_and_that_is_said() -> None:
    """As the daemon was started, it is started again: in the middle, and after it."""
    with overlay(network(VXLAN), nodes=2) as made:
        with made.driven("--backend", "host-gw"):
            made.come_to("prepare", "switch", "retire")
        made.nodes[0].daemon.restart()
        with pinging(made.lab):
            made.change()
            made.run_on("host-gw")
            made.nodes[1].daemon.restart()
            made.run_on("host-gw")
        for node in made.nodes:
            assert "--backend vxlan: take that out of its settings" in node.daemon.status()["backend"]["assumed"]
            assert "--backend vxlan: take that out of its settings" in node.daemon.log()


def test_both_families_go_over() -> None:
    """And the rules that let nothing past the encryption are there when it is over, and in nobody's way before."""
    with overlay(network(VXLAN, **DUAL)) as made, pinging(made.lab, (4, 6)):
        for backend in ("wireguard", "host-gw", "vxlan"):
            made.change("--backend", backend)
            made.run_on(backend)
            for node in made.nodes:
                rules = node.run(["nft", "list", "ruleset"]).stdout
                assert rules.count("chain exits") == (2 if backend == "wireguard" else 0), rules


# The network's ranges -------------------------------------------------------------------------------------------------


def test_a_larger_network_and_another_backend_leave_containers_their_addresses() -> None:
    """Both at once, one after the other."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        before = [node.daemon.status()["lease"]["subnets"] for node in made.nodes]
        told = made.change("--backend", "host-gw", "--network", "10.244.0.0/15", "--subnet-len", "26")
        assert told[0]["changes"][:2] == ["network 10.244.0.0/16 -> 10.244.0.0/15", "backend vxlan -> host-gw"]
        made.run_on("host-gw")
        assert [node.daemon.status()["lease"]["subnets"] for node in made.nodes] == before
        assert made.document()["Network"] == "10.244.0.0/15"


SINGLE: dict[int, Document] = {
    4: network(VXLAN),
    6: {"EnableIPv4": False, **DUAL, "Backend": VXLAN},
}
OTHER = {
    4: ["--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48"],
    6: ["--enable-ipv4", "true", "--network", "10.244.0.0/16"],
}


@pytest.mark.parametrize("version", [4, 6])
def test_the_other_family_is_added_and_containers_keep_their_addresses(version: int) -> None:
    with overlay(SINGLE[version], nodes=2) as made:
        before = [node.daemon.status()["lease"]["subnets"][0] for node in made.nodes]
        with pinging(made.lab, (version,)):
            told = made.change(*OTHER[version])
            assert not told[0]["together"]
            assert told[-1]["over"]
            for node, subnet in zip(made.nodes, before, strict=True):
                status = node.daemon.wait_status(lambda it: len(it["lease"]["subnets"]) == 2, "two subnets", PATIENCE)
                assert subnet in status["lease"]["subnets"]
        for node in made.nodes:
            node.attach_containers()
        with pinging(made.lab, (4, 6)):
            pass


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--network", "10.250.0.0/16"], "renumber|lose their subnets"),
        (["--enable-ipv4", "false", "--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48"], "IPv4 off"),
        (["--backend", "extension"], "plans no routes"),
        (["--backend-option", "Port=4789"], "another name (vxlan: VNI"),
        (["--backend", "udp", "--backend-option", "Port=8472"], "UDP port 8472"),
        (["--backend", "nonsense"], "nonsense"),
        (["--backend-option", "Vni"], "KEY=VALUE"),
        (["--backend-option", "VNJ=2"], "did you mean 'VNI'"),
        (["--backend-option", "VNI=two"], "whole number"),
        (["--backend", "vxlan"], "as you want it already"),
        (["--backend", "host-gw", "--without", "n9"], "no node has this"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_done_is_refused_beforehand(idle: Overlay, words: list[str], says: str) -> None:
    before = idle.document()
    done = idle.nodes[0].run(idle.command(*words), check=False, timeout=60)
    assert done.returncode in (ExitCode.CONFIG, ExitCode.PLUGIN), done.stdout
    assert any(part in done.stderr for part in says.split("|")), done.stderr
    assert idle.document() == before


@pytest.fixture(scope="module")
def idle() -> Iterator[Overlay]:
    with overlay(network(VXLAN), nodes=1) as made:
        yield made


def test_a_dry_run_says_what_would_happen_and_writes_nothing(idle: Overlay) -> None:
    before = idle.document()
    (told,) = idle.change("--backend", "wireguard", "--dry-run")
    assert told["changes"][0] == "backend vxlan -> wireguard"
    assert told["together"]
    assert told["nodes"] == ["n1"]
    assert idle.document() == before


# Going back, and going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_a_change_is_given_up_and_no_packet_is_lost(phase: str) -> None:
    """One node is stopped so that the change stays in a phase; it comes back in the middle of the way back."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        with made.driven("--backend", "wireguard"):
            made.come_to(phase)
        made.nodes[2].daemon.kill()
        assert "another change is under way" in made.refused("--backend", "host-gw")
        made.nodes[2].daemon.start()
        told = made.change("--abort", node=1)
        assert told[-1]["phase"] == "back"
        made.run_on("vxlan")
        assert "no change of the network is under way" in made.refused("--abort")


def test_it_is_too_late_to_go_back_when_the_former_settings_go(idle: Overlay) -> None:
    document = {
        **idle.document(),
        "Change": {"Id": "00000000000000a1", "Phase": "retire", "To": network(WIREGUARD)},
    }
    words = pyflannel_command("config", "set", "--force", "-", "--store", idle.store)
    idle.nodes[0].run(words, input=json.dumps(document))
    assert "come to its end" in idle.refused("--abort")
    idle.change()
    idle.change("--backend", "vxlan")
    idle.run_on("vxlan")


def test_a_change_that_was_interrupted_goes_on_elsewhere_whoever_is_killed() -> None:
    """The command is killed in every phase and run again on another node; so is a daemon."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for number, phase in enumerate(("prepare", "switch", "retire")):
            with made.driven(*(("--backend", "wireguard") if phase == "prepare" else ())):
                made.come_to(phase)
            made.nodes[number].daemon.kill()
            made.nodes[number].daemon.start()
        made.change(node=2)
        made.run_on("wireguard")


def test_a_node_that_is_down_is_left_behind_and_follows_later() -> None:
    with overlay(network(VXLAN)) as made:
        made.nodes[2].daemon.kill()
        with pinging(made.lab, only=(0, 1)):
            told = made.change("--backend", "wireguard", "--without", "n3")
            assert told[0]["without"]
        made.nodes[2].daemon.start()
        made.run_on("wireguard")
        with pinging(made.lab):
            pass


def test_a_node_that_joins_in_the_middle_takes_part() -> None:
    with overlay(network(VXLAN), without=[2]) as made, pinging(made.lab, only=(0, 1)):
        made.nodes[1].daemon.kill()  # so that it stays where it is
        with made.driven("--backend", "wireguard"):
            made.come_to("prepare")
            late = made.nodes[2].start_daemon(made.store, "vxlan")
            late.wait_status(lambda status: status["change"] is not None, "it takes part", PATIENCE)
            made.nodes[1].daemon.start()
            late.wait_ready(peers=2, timeout=PATIENCE)
            made.nodes[2].attach_containers()
            with pinging(made.lab):
                made.run_on("wireguard")


def test_a_port_that_is_closed_is_found_before_anything_is_sent_there() -> None:
    """Of either family; the change waits, says why, and goes on when the ports are open."""
    with overlay(network(VXLAN, **DUAL), nodes=2) as made, pinging(made.lab, (4, 6)):
        closed, other = made.nodes
        ports = {"ip": 51820, "ip6": 51821}
        for family, port in ports.items():
            chain = f"chain input {{ type filter hook input priority 0; udp dport {port} drop; }}"
            closed.run(["nft", "-f", "-"], input=f"table {family} closed {{ {chain}; }}")
        with made.driven("--backend", "wireguard") as process:
            for family, subnet in zip(ports, closed.daemon.status()["lease"]["subnets"], strict=True):
                says = f"{subnet.partition('/')[0]} answers pings by vxlan, and not by wireguard"
                other.daemon.wait_status(
                    lambda it, says=says: it["change"] is not None and it["change"]["trouble"].startswith(says),  # type: ignore[misc]
                    says,
                    PATIENCE,
                )
                assert made.phase() == "prepare"
                closed.run(["nft", "delete", "table", family, "closed"])
            until(lambda: not process.running, "the change is over", PATIENCE)
        made.run_on("wireguard")


# What it is for -------------------------------------------------------------------------------------------------------


def test_nothing_leaves_in_plain_text_after_a_change_to_wireguard() -> None:
    with overlay(network(VXLAN)) as made:
        pattern = os.urandom(8)
        one, two = made.lab.containers[:2]
        with one.ping(two.address(), 0.01), made.nodes[0].capture() as before:
            one.run(["ping", "-c3", "-p", pattern.hex(), two.address()])
        assert [frame for frame in before.stop() if pattern in frame], "the capture sees what is in plain text"
        made.change("--backend", "wireguard")
        captures = [node.capture() for node in made.nodes]
        for source, target in itertools.permutations(made.lab.containers, 2):
            source.run(["ping", "-c3", "-p", pattern.hex(), target.address()])
        for capture in captures:
            frames = capture.stop()
            assert frames
            assert not [frame for frame in frames if pattern in frame]


def test_the_reverse_path_filter_is_as_it_was() -> None:
    with overlay(network(VXLAN), nodes=2) as made:
        node = made.nodes[0]
        path = "/proc/sys/net/ipv4/conf/eth0/rp_filter"
        node.run(["sysctl", "-q", "-w", "net.ipv4.conf.eth0.rp_filter=1"])
        with made.driven("--backend", "host-gw"):
            until(lambda: node.run(["cat", path]).stdout.strip() == "2", "it is loose", PATIENCE)
            made.run_on("host-gw")
        until(lambda: node.run(["cat", path]).stdout.strip() == "1", "it is strict again", PATIENCE)


# A document that was merely written -----------------------------------------------------------------------------------


def test_a_document_changed_behind_our_back_is_named_and_not_followed() -> None:
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        words = pyflannel_command("config", "set", "--force", "-", "--store", made.store)
        made.nodes[0].run(words, input=json.dumps(network(WIREGUARD)))
        for node in made.nodes:
            status = node.daemon.wait_status(lambda status: "wireguard" in status["message"], "it is named", PATIENCE)
            assert status["ready"]
            assert status["backend"]["name"] == "vxlan"
            assert "network change" in status["message"]
        made.nodes[0].run(words, input=json.dumps(network(VXLAN)))
        for node in made.nodes:
            node.daemon.wait_status(lambda status: status["state"] == "ready", "all is well again", PATIENCE)


@pytest.mark.parametrize("written", [WIREGUARD, {"Type": "vxlan", "VNI": 2}], ids=lambda backend: str(backend["Type"]))
def test_a_node_that_starts_does_not_cut_itself_off(written: Document) -> None:
    """By a document that somebody put there with a tool that knows nothing of nodes; by force, it does."""
    with overlay(network(VXLAN)) as made:
        path = made.path("config.json")
        path.write_text(json.dumps(network(written)))
        with pinging(made.lab):
            made.nodes[0].daemon.restart()
            status = made.nodes[0].daemon.wait_ready(peers=2, timeout=PATIENCE)
            assert status["backend"]["name"] == "vxlan"
            status = made.nodes[0].daemon.wait_status(
                lambda status: "behind the nodes' back" in status["message"], "it says so", PATIENCE
            )
            assert "network change" in status["message"]
        path.write_text(json.dumps(network(VXLAN)))
        words = pyflannel_command("config", "set", "--force", "-", "--store", made.store)
        made.nodes[0].run(words, input=json.dumps(network(written)))
        for node in made.nodes:
            node.daemon.stop()
            node.start_daemon(made.store, str(written["Type"]))
        made.run_on(str(written["Type"]))
        with pinging(made.lab):
            pass
