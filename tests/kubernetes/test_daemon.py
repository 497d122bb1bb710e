"""Real daemons on a real API server: Nodes get their pod CIDRs, pods' addresses reach each other, and faults pass."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.integration.asking import until
from tests.kubernetes.lagging import lagging
from tests.servers.kubernetes import ADMIN, MISSING, PREFIX, Kubernetes, kubernetes

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.measure import Ping

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NETWORKS: dict[str, dict[str, Any]] = {
    "ipv4": {"Network": "10.244.0.0/16"},
    "ipv6": {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10::/48"},
    "both": {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/48"},
}
CIDRS = {
    "n1": ("10.244.0.0/24", "fd00:10::/64"),  # the first subnet, as kubeadm gives it to the control plane
    "n2": ("10.244.1.128/25", "fd00:10:0:1::/64"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("enters the lab's namespaces: needs root")
    with Lab(nodes=2, containers=1) as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Kubernetes]:
    if MISSING is not None:
        pytest.skip(MISSING)
    place = lab.add_server("kube")
    with kubernetes(place=place, netns=netns(lab), host=str(place.ipv4.ip)) as server:
        yield server


def netns(lab: Lab) -> Path:
    """Where the API server is."""
    return Path(f"/proc/{lab.sandbox.pid}/root/run/netns/kube")


@pytest.fixture
def kube(server: Kubernetes, lab: Lab) -> Iterator[Kubernetes]:
    """The API server without Nodes; the lab's nodes are as new afterwards."""
    server.start()
    server.remove_nodes()
    yield server
    for node in lab.nodes:
        node.detach_containers()
        if node._daemon is not None and node.daemon.running:
            node.daemon.resume()
            node.daemon.stop()
        node.run(["sh", "-c", "ip link del flannel.1; ip link del flannel-v6.1; ip link del cni0; true"])
        for left in ("subnet.env", "net.d", "state", "run"):
            node.run(["rm", "-rf", str(node.directory / left)])


def families(kind: str) -> tuple[int, ...]:
    return {"ipv4": (0,), "ipv6": (1,), "both": (0, 1)}[kind]


def cidrs(node: str, kind: str) -> list[str]:
    return [CIDRS[node][index] for index in families(kind)]


def start(
    kube: Kubernetes,
    node: Node,
    kind: str = "ipv4",
    backend: str = "vxlan",
    *arguments: str,
    token: str = ADMIN,
    server: str | None = None,
    **options: Any,
) -> None:
    """Start a node's daemon as its DaemonSet would."""
    document = kube.directory / "net-conf.json"
    document.write_text(json.dumps({**NETWORKS[kind], "Backend": {"Type": backend}}))
    config = kube.kubeconfig(kube.directory / f"kubeconfig-{node.name}", {"token": token}, server=server or kube.url)
    conf = f"--cni-conf={node.directory / 'net.d' / '10-pyflannel.conflist'}"
    url = f"kubernetes://?kubeconfig={config}&node={node.name}&net_config={document}"
    node.start_daemon(url, backend, arguments=[conf, *arguments], **options)


def conflist(node: Node) -> dict[str, Any] | None:
    try:
        text = node.lab.outside(node.directory / "net.d" / "10-pyflannel.conflist").read_text()
    except FileNotFoundError:
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def subnets(node: Node) -> list[str]:
    plugin = (conflist(node) or {"plugins": [{"ipam": {"ranges": []}}]})["plugins"][0]
    return [each[0]["subnet"] for each in plugin["ipam"]["ranges"]]


def available(kube: Kubernetes, node: str) -> bool:
    condition = kube.condition(node)
    return condition is not None and condition["status"] == "False"


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_nodes_join_and_their_containers_reach_each_other(kube: Kubernetes, lab: Lab, kind: str, backend: str) -> None:
    for node in lab.nodes:
        kube.add_node(node.name, *cidrs(node.name, kind))
        start(kube, node, kind, backend)
    for node in lab.nodes:
        node.daemon.wait_ready(peers=1)
        until(lambda node=node: available(kube, node.name), "the condition")  # type: ignore[misc]
        assert subnets(node) == cidrs(node.name, kind)
        node.attach_containers()
        assert kube.annotations(node.name)["backend-type"] == backend
    matrix = lab.reachability()
    assert matrix.complete, matrix
    lab.nodes[0].daemon.restart()
    lab.nodes[0].daemon.wait_ready(peers=1)
    assert subnets(lab.nodes[0]) == cidrs("n1", kind)


def test_a_pod_cidr_that_comes_late_is_waited_for_with_words(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    start(kube, node)
    node.daemon.wait_status(lambda status: "no Node 'n1'" in status["message"], "told that there is no Node")
    kube.add_node("n1")
    node.daemon.wait_status(lambda status: "--allocate-node-cidrs" in status["message"], "told what is missing")
    assert conflist(node) is None
    assert kube.condition("n1") is None
    kube.assign("n1", "10.244.7.0/24")
    node.daemon.wait_ready()
    assert subnets(node) == ["10.244.7.0/24"]
    until(lambda: available(kube, "n1"), "the condition")


def test_a_range_outside_the_network_is_named(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.99.0.0/24")
    start(kube, node)
    node.daemon.wait_status(
        lambda status: "10.99.0.0/24" in status["message"] and "10.244.0.0/16" in status["message"],
        "told that the two differ",
    )
    assert conflist(node) is None


def test_a_peer_of_flannelds_is_a_peer(kube: Kubernetes, lab: Lab) -> None:
    data = {"VNI": 1, "VtepMAC": "12:c6:65:89:b4:e3"}
    notes = {
        "backend-data": json.dumps(data, separators=(",", ":")),
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ip": "192.0.2.77",
    }
    kube.add_node("theirs", "10.244.9.0/24", annotations={PREFIX + name: text for name, text in notes.items()})
    kube.add_node("n1", "10.244.0.0/24")
    node = lab.nodes[0]
    start(kube, node)
    node.daemon.wait_ready(peers=1)
    assert "10.244.9.0/24 via 10.244.9.0" in node.run(["ip", "route"]).stdout
    kube.annotate("theirs", public_ip_overwrite="198.51.100.7", public_ip="198.51.100.7")
    fdb = ["bridge", "fdb", "show", "dev", "flannel.1"]
    until(lambda: "12:c6:65:89:b4:e3 dst 198.51.100.7" in node.run(fdb).stdout, "the other address")
    kube.remove_node("theirs")
    until(lambda: "10.244.9.0" not in node.run(["ip", "route"]).stdout, "the end of the route")


def test_our_own_overwrite_is_followed_live(kube: Kubernetes, lab: Lab) -> None:
    kube.add_node("n1", "10.244.0.0/24")
    node = lab.nodes[0]
    start(kube, node)
    node.daemon.wait_ready()
    for other in ("198.51.100.7", None, "198.51.100.8"):
        kube.annotate("n1", public_ip_overwrite=other)
        wanted = other or str(node.ipv4.ip)
        until(lambda wanted=wanted: kube.annotations("n1")["public-ip"] == wanted, wanted)  # type: ignore[misc]
    assert node.daemon.status()["state"] == "ready"
    kube.annotate("n1", public_ip_overwrite="198.51.100.300")
    node.daemon.wait_status(lambda status: "public-ip-overwrite" in status["message"], "told that it is no address")
    assert kube.annotations("n1")["public-ip"] == "198.51.100.8"
    kube.annotate("n1", public_ip_overwrite=None)
    until(lambda: kube.annotations("n1")["public-ip"] == str(node.ipv4.ip), "its own address again")
    node.daemon.wait_ready()


@pytest.mark.parametrize(("kind", "address"), [("ipv4", "198.51.100.9"), ("ipv6", "2001:db8:9::9")])
def test_a_node_s_own_address_that_an_operator_names_chooses_the_interface(
    kube: Kubernetes, lab: Lab, kind: str, address: str
) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", *cidrs("n1", kind))
    name = "public_ip" if kind == "ipv4" else "public_ipv6"
    kube.annotate("n1", **{f"node_{name}": address})
    length = "24" if kind == "ipv4" else "64 nodad"
    node.ip(["link add other type veth peer name far", "link set far up", "link set other up"])
    node.ip([f"address add dev other {address}/{length}"])
    try:
        start(kube, node, kind, interface=None)
        node.daemon.wait_ready()
        assert node.daemon.status()["underlay"]["interface"] == "other"
        assert kube.annotations("n1")[name.replace("_", "-")] == address
    finally:
        node.ip(["link del other"])


def test_a_node_deleted_and_made_again_gets_its_new_range(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.0.0/24")
    start(kube, node)
    node.daemon.wait_ready()
    kube.remove_node("n1")
    node.daemon.wait_status(lambda status: "no Node 'n1'" in status["message"], "told that its Node is gone")
    kube.add_node("n1", "10.244.33.0/24")
    until(lambda: subnets(node) == ["10.244.33.0/24"], "the new range")
    node.daemon.wait_ready()
    until(lambda: available(kube, "n1"), "the condition of the new Node")
    assert kube.annotations("n1")["public-ip"] == str(node.ipv4.ip)


def test_cleanup_says_that_the_lease_stays(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.0.0/24")
    start(kube, node)
    node.daemon.wait_ready()
    node.daemon.stop()
    flags = dict(zip(node.daemon.command, node.daemon.command[1:], strict=False))
    given = [word for flag in ("--store", "--node-id", "--state-dir", "--run-dir") for word in (flag, flags[flag])]
    done = node.run([*pyflannel_command("cleanup", "--lease"), *given], timeout=60)
    assert "kept lease 10.244.0.0-24: it ends when kubernetes:// no longer assigns it" in done.stdout
    assert "reservation" not in done.stdout
    assert kube.annotations("n1")["kube-subnet-manager"] == "true"


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_forwarding_goes_on_without_the_api_server(kube: Kubernetes, lab: Lab, fault: str) -> None:
    for node in lab.nodes:
        kube.add_node(node.name, *cidrs(node.name, "ipv4"))
        start(kube, node)
    for node in lab.nodes:
        node.daemon.wait_ready(peers=1)
        node.attach_containers()
    until(lambda: lab.reachability().complete, "all reach all")
    if fault == "killed":
        kube.server.kill()
        lab.nodes[0].daemon.wait_status(lambda status: status["state"] == "degraded", "missing its store", 60)
    else:
        kube.server.pause()
    assert lab.reachability().complete
    if fault == "killed":
        kube.start()
    else:
        kube.server.resume()
    kube.add_node(
        "late",
        "10.244.40.0/24",
        annotations={
            PREFIX + "backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}',
            PREFIX + "backend-type": "vxlan",
            PREFIX + "kube-subnet-manager": "true",
            PREFIX + "public-ip": "192.0.2.78",
        },
    )
    for node in lab.nodes:
        node.daemon.wait_ready(peers=2, timeout=90)


def test_a_watch_that_lags_is_never_taken_for_the_present(kube: Kubernetes, lab: Lab) -> None:
    """What the daemon wrote itself comes back late, behind what others changed; peers come in the order they came."""
    node, other = lab.nodes
    for each in lab.nodes:
        kube.add_node(each.name, *cidrs(each.name, "ipv4"))
    start(kube, other)
    flannel = {"backend-type": "vxlan", "kube-subnet-manager": "true", "backend-data": '{"VNI":1,"VtepMAC":"%s"}'}
    fdb = ["bridge", "fdb", "show", "dev", "flannel.1"]

    def told() -> str:
        """Where the made-up peer is said to be."""
        lines = node.run(fdb).stdout.splitlines()
        return next((line.split()[2] for line in lines if line.startswith("12:c6:65:89:b4:e3")), "")

    with lagging(kube, netns(lab), 3.0) as url:
        start(kube, node, server=url)
        for each in lab.nodes:
            each.daemon.wait_ready(peers=1)
            each.attach_containers()
        notes = {PREFIX + key: text.replace("%s", "12:c6:65:89:b4:e3") for key, text in flannel.items()}
        kube.add_node("theirs", "10.244.9.0/24", annotations={**notes, PREFIX + "public-ip": "192.0.2.71"})
        with Ping(lab.containers[0], lab.containers[1].address(), 0.05, lab.new_file("ping")) as ping:
            ping.wait_replies(3)
            for end in range(72, 76):
                kube.annotate("theirs", public_ip=f"192.0.2.{end}")
            for overwrite in ("198.51.100.7", None, "198.51.100.8", None):
                kube.annotate("n1", public_ip_overwrite=overwrite)
            seen = [told()]

            def caught_up() -> bool:
                seen.append(told())
                return seen[-1] == "192.0.2.75"

            until(caught_up, lambda: seen[-1])
            assert seen == sorted(seen), "no way back to what was before"
            until(lambda: kube.annotations("n1")["public-ip"] == str(node.ipv4.ip), "its own address again")
            kube.remove_node("theirs")
            kube.add_node("theirs", "10.244.99.0/24", annotations={**notes, PREFIX + "public-ip": "192.0.2.79"})
            until(lambda: "10.244.99.0" in node.run(["ip", "route"]).stdout, "the new range")
            assert "10.244.9.0/24" not in node.run(["ip", "route"]).stdout
            assert node.daemon.status()["state"] == "ready"
            assert ping.stop().lost == 0
    assert "conflict" not in node.daemon.log()


def test_of_two_daemons_on_one_node_the_first_yields(kube: Kubernetes, lab: Lab) -> None:
    """Two machines that both take themselves for n1."""
    first, second = lab.nodes
    kube.add_node("n1", "10.244.0.0/24")
    start(kube, first)
    first.daemon.wait_ready()
    config = kube.directory / "kubeconfig-n1"
    url = f"kubernetes://?kubeconfig={config}&node=n1&net_config={kube.directory / 'net-conf.json'}"
    second.start_daemon(url, "vxlan")
    second.daemon.wait_ready()
    first.daemon.wait_status(lambda status: status["state"] == "conflict", "in conflict")
    assert second.daemon.status()["ready"]


def test_what_is_written_follows_the_mtu(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.0.0/24")
    start(kube, node)
    node.daemon.wait_ready()
    node.set_mtu(1400)
    try:
        until(lambda: (conflist(node) or {})["plugins"][0]["mtu"] == 1350, "the other MTU")
    finally:
        node.set_mtu(1500)
    assert ip_network(subnets(node)[0]) == ip_network("10.244.0.0/24")


def findings(node: Node, *wrapper: str) -> dict[str, tuple[str, str]]:
    """What doctor says there: check to verdict and message. A wrapper starts it where something is not there."""
    flags = node.daemon.command[len(pyflannel_command()) :]
    words = [*wrapper, *pyflannel_command("doctor", "--json", "--all", "--no-probes", *flags)]
    done = node.run(words, check=False, timeout=60)
    assert done.stdout, done.stderr
    return {each["check"]: (each["verdict"], each["message"]) for each in json.loads(done.stdout)["findings"]}


def without(*directories: str) -> tuple[str, ...]:
    """A wrapper for which these directories are empty."""
    hide = "; ".join(f"mount -t tmpfs none {each}" for each in directories)
    return ("unshare", "--mount", "sh", "-ec", f'{hide}; exec "$@"', "sh")


def test_doctor_knows_what_kubernetes_has_for_the_node(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1")
    start(kube, node)
    node.daemon.wait_status(lambda status: "--allocate-node-cidrs" in status["message"], "told what is missing")
    found = findings(node)
    assert found["assigned subnet"][0] == "fail"
    assert "--allocate-node-cidrs" in found["assigned subnet"][1]
    assert found["CNI network"][0] == "fail"
    kube.assign("n1", "10.244.7.0/24")
    node.daemon.wait_ready()
    found = findings(node)
    assert found["assigned subnet"] == ("pass", "10.244.7.0/24 of 10.244.0.0/16")
    assert found["CNI network"][0] == "pass"
    assert found["lease"] == ("pass", "10.244.7.0/24, assigned by the store")
    node.ip(["link add cni0 type bridge", "address add 10.244.3.1/24 dev cni0", "link set cni0 up"])
    other = node.lab.outside(node.directory / "net.d" / "05-other.conflist")
    other.write_text('{"name":"x","plugins":[{"type":"bridge"}]}')
    found = findings(node)
    assert found["container bridge"][0] == "warn"
    assert found["CNI network"][0] == "warn"
    assert "05-other.conflist" in found["CNI network"][1]


def test_doctor_finds_a_condition_that_says_otherwise(kube: Kubernetes, lab: Lab) -> None:
    """What the daemon sets right by itself, unless it is told not to, or is not there."""
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.7.0/24")
    start(kube, node, "ipv4", "vxlan", "--set-node-network-unavailable=false")
    node.daemon.wait_ready()
    assert "announcement" not in findings(node)
    for said, verdict in (("False", "pass"), ("True", "fail")):
        kube.patch("n1", {"status": {"conditions": [{"type": "NetworkUnavailable", "status": said}]}}, "/status")
        assert findings(node)["announcement"][0] == verdict
    node.daemon.stop()
    assert findings(node)["announcement"][0] == "pass"
    kube.patch("n1", {"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}}, "/status")
    assert findings(node)["announcement"][0] == "warn"


def test_doctor_finds_what_pods_need_and_the_node_lacks(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.7.0/24")
    start(kube, node)
    node.daemon.wait_ready()
    assert findings(node)["CNI plugins"][0] == "pass"
    found = findings(node, *without("/usr/lib/cni", "/proc/sys/net/bridge"))
    assert found["CNI plugins"][0] == "fail"
    assert "bridge, host-local, portmap" in found["CNI plugins"][1]
    assert found["bridge-nf-call-iptables"][0] == "warn"
    assert "br_netfilter" in found["bridge-nf-call-iptables"][1]


def test_doctor_finds_a_range_outside_the_network(kube: Kubernetes, lab: Lab) -> None:
    node = lab.nodes[0]
    kube.add_node("n1", "10.99.0.0/24")
    start(kube, node)
    node.daemon.wait_status(lambda status: "10.99.0.0/24" in status["message"], "told that the two differ")
    verdict, message = findings(node)["assigned subnet"]
    assert verdict == "fail"
    assert "10.99.0.0/24 lies outside 10.244.0.0/16" in message


@pytest.mark.parametrize(("verbs", "check"), [((), "store"), (("get", "list", "watch"), "daemon")])
def test_doctor_finds_that_rights_are_missing(kube: Kubernetes, lab: Lab, verbs: tuple[str, ...], check: str) -> None:
    """Without any, the store can't be read; without that to write, no peer hears of this node."""
    node = lab.nodes[0]
    kube.add_node("n1", "10.244.7.0/24")
    start(kube, node, token=kube.account(f"rights-{len(verbs)}", verbs))
    node.daemon.wait_status(lambda status: "forbidden" in status["message"], "told that it may not")
    verdict, message = findings(node)[check]
    assert verdict == "fail"
    assert "forbidden" in message
    assert "contrib/kubernetes/base/rbac.yaml" in message
