"""``pyflannel network change`` on real daemons: the network goes over to other settings, and no packet is lost.

Pings of all containers to all others run meanwhile, ten milliseconds apart, in both families where there are two; each
of them has to be answered. The kernel filters strictly by the reverse path, as some distributions have it. What takes
longer is in ``tests/changes``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.changing import USERSPACE, VXLAN, WIREGUARD, Document, Overlay, network, overlay, pinging
from tests.integration.asking import PATIENCE, workers
from tests.waiting import LONG, until

from pyflannel.errors import ExitCode
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_from_backend_to_backend_and_no_packet_is_lost() -> None:
    """Round by way of all that every kernel has."""
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        for backend in ("wireguard", "udp", "host-gw", "vxlan"):
            made.change("--backend", backend)
            made.run_on(backend)
        for kind in ("udp", "wireguard"):
            until(lambda kind=kind: not any(workers(node, kind) for node in made.nodes), f"no {kind} is left", PATIENCE)  # type: ignore[misc]


def test_what_concerns_each_node_alone_is_taken_by_the_processes_that_move_packets() -> None:
    """They are not replaced: what was agreed with peers holds, and what waits in them arrives."""
    with overlay(network(USERSPACE)) as made, pinging(made.lab):
        before = [workers(node, "wireguard") for node in made.nodes]
        made.change("--backend-option", "MTU=1400", "--backend-option", "PersistentKeepaliveInterval=1")
        for node in made.nodes:
            link = ["ip", "link", "show", "flannel-wg"]
            until(lambda node=node, link=link: " mtu 1320 " in node.run(link).stdout, "the device's MTU", PATIENCE)  # type: ignore[misc]
            node.daemon.wait_ready(peers=2, timeout=LONG)
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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--network", "10.250.0.0/16"], "does not contain the present one, 10.244.0.0/16"),
        (["--network", "10.250.0.0/16"], "node by node: drain it, stop its daemon, write the new document"),
        (["--enable-ipv4", "false", "--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48"], "IPv4 off"),
        (["--enable-ipv4", "false", "--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48"], "node by node"),
        (["--backend", "extension"], "plans no routes"),
        (["--backend-option", "Port=4789"], "another name (vxlan: VNI"),
        (["--backend", "udp", "--backend-option", "Port=8472"], "UDP port 8472"),
        (["--backend", "nonsense"], "nonsense"),
        (["--backend", "wireguard", "--backend-option", "Mode=ipv6"], "but EnableIPv6 is false"),
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
    assert says in done.stderr
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


def test_a_node_that_can_not_have_the_new_backend_keeps_nobody_from_going_back(tmp_path: Path) -> None:
    """Here one whose environment asks for what there is not."""
    with overlay(network(VXLAN), nodes=2, without=[1]) as made:
        unable = ["env", "WIREGUARD_IMPLEMENTATION=none"]
        late = made.nodes[1].start_daemon(made.store, "vxlan", wrapper=unable)
        late.wait_ready(peers=1, timeout=LONG)
        made.nodes[1].attach_containers()
        with pinging(made.lab):
            log = tmp_path / "told"
            with log.open("w") as output:
                process = made.nodes[0].start(made.command("--backend", "wireguard"), stdout=output)
            until(lambda: "WIREGUARD_IMPLEMENTATION is 'none'" in log.read_text(), "what keeps it is told", PATIENCE)
            assert made.phase() == "prepare"
            process.stop()
            assert made.change("--abort", node=1)[-1]["phase"] == "back"
            made.run_on("vxlan")


def test_a_node_whose_port_is_taken_says_so_and_prepares_once_it_is_free(tmp_path: Path) -> None:
    """It is the node's own trouble, and not one on the way."""
    with overlay(network(VXLAN), nodes=2) as made, pinging(made.lab):
        taking = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 8285)); time.sleep(1e6)"
        taken = made.nodes[1].start([pyflannel_command()[0], "-c", taking])
        until(lambda: ":8285 " in made.nodes[1].run(["ss", "-uln"]).stdout, "the port is taken", PATIENCE)
        log = tmp_path / "told"
        with log.open("w") as output:
            process = made.nodes[0].start(made.command("--backend", "udp"), stdout=output)
        until(lambda: "in use" in log.read_text(), log.read_text, PATIENCE)
        assert made.phase() == "prepare"
        taken.kill()
        until(lambda: not process.running, "it is over", PATIENCE)
        assert process.returncode == ExitCode.OK
        made.run_on("udp")


def test_a_node_that_can_not_follow_is_named_and_keeps_nobody_from_going_back() -> None:
    """It has no address of the family that the network gets, and goes on as it was until it has one."""
    with overlay(network(VXLAN), nodes=2) as made, pinging(made.lab):
        late = made.nodes[1]
        late.run(["sysctl", "-q", "-w", "net.ipv6.conf.eth0.disable_ipv6=1"])
        late.daemon.wait_status(lambda it: not it["underlay"]["ipv6"], "it has seen that", LONG)
        words = made.command("--enable-ipv6", "true", "--ipv6-network", "fd00:244::/48")
        done = made.nodes[0].run(words, check=False, timeout=LONG)
        assert done.returncode == ExitCode.CHECK_FAILED
        assert "n2 (the network uses IPv6, but interface eth0 has no usable IPv6 address" in done.stderr
        nodes = {node["node_id"]: node for node in json.loads(done.stdout.splitlines()[-1])["nodes"]}
        assert nodes["n1"]["step"] == "done"
        assert "no usable IPv6 address" in nodes["n2"]["trouble"]
        with made.driven("--backend", "host-gw"):
            made.come_to("prepare")
        assert made.change("--abort")[-1]["phase"] == "back"
        late.run(["sysctl", "-q", "-w", "net.ipv6.conf.eth0.disable_ipv6=0"])
        late.ip(["address add 2001:db8::2/64 dev eth0 nodad"])
        late.daemon.wait_status(lambda it: len(it["lease"]["subnets"]) == 2, "it follows", LONG)
        made.run_on("vxlan")


def test_going_back_when_the_former_settings_go_takes_a_change_of_its_own(idle: Overlay) -> None:
    document = {
        **idle.document(),
        "Change": {"Id": "00000000000000a1", "Phase": "retire", "To": network(WIREGUARD)},
    }
    words = pyflannel_command("config", "set", "--force", "-", "--store", idle.store)
    idle.nodes[0].run(words, input=json.dumps(document))
    asked = [word for word in idle.command("--abort") if word != "--yes"]
    assert "--yes says that this is wanted" in idle.nodes[0].run(asked, check=False, timeout=LONG).stderr
    assert idle.phase() == "retire"
    told = idle.change("--abort")
    assert told[0]["changes"][0] == "backend wireguard -> vxlan"
    assert [bool(each.get("over")) for each in told].count(True) == 2
    idle.run_on("vxlan")


FOLLOWING = {"prepare": ("prepared", "switch"), "switch": ("switched", "retire")}
"""What all nodes say at a phase's end, and the next phase."""


def test_nobody_loses_a_packet_who_goes_back_that_late() -> None:
    with overlay(network(VXLAN), nodes=2) as made, pinging(made.lab):
        with made.driven("--backend", "udp"):
            made.come_to("prepare", "switch", "retire")
        while (phase := made.phase()) in FOLLOWING:  # nobody drives it any more: it stays in the last one
            step, following = FOLLOWING[phase]
            made.all_are(step)
            document = made.document()
            made.write({**document, "Change": {**document["Change"], "Phase": following}})
        assert made.change("--abort")[0]["changes"][0] == "backend udp -> vxlan"
        made.run_on("vxlan")


def test_nothing_leaves_in_plain_text_after_a_change_to_wireguard() -> None:
    with overlay(network(VXLAN)) as made:
        assert made.overheard()[1], "the capture sees what is in plain text"
        made.change("--backend", "wireguard")
        frames, readable = made.overheard()
        assert frames
        assert not readable


def test_a_document_changed_behind_our_back_is_named_and_not_followed() -> None:
    with overlay(network(VXLAN)) as made, pinging(made.lab):
        words = pyflannel_command("config", "set", "--force", "-", "--store", made.store)
        made.nodes[0].run(words, input=json.dumps(network(WIREGUARD)))
        for node in made.nodes:
            status = node.daemon.wait_status(lambda status: "wireguard" in status["message"], "it is named", LONG)
            assert status["ready"]
            assert status["backend"]["name"] == "vxlan"
            assert "network change" in status["message"]
        made.nodes[0].run(words, input=json.dumps(network(VXLAN)))
        for node in made.nodes:
            node.daemon.wait_status(lambda status: status["state"] == "ready", "all is well again", LONG)


@pytest.mark.parametrize("written", [WIREGUARD, {"Type": "vxlan", "VNI": 2}], ids=lambda backend: str(backend["Type"]))
def test_a_node_that_starts_does_not_cut_itself_off(written: Document) -> None:
    """By a document that somebody put there with a tool that knows nothing of nodes; by force, it does."""
    with overlay(network(VXLAN)) as made:
        path = made.path("config.json")
        path.write_text(json.dumps(network(written)))
        with pinging(made.lab):
            made.nodes[0].daemon.restart()
            status = made.nodes[0].daemon.wait_ready(peers=2, timeout=LONG)
            assert status["backend"]["name"] == "vxlan"
            status = made.nodes[0].daemon.wait_status(
                lambda status: "behind the nodes' back" in status["message"], "it says so", LONG
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
