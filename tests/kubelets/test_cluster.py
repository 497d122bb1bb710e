"""Whole clusters: two machines with kubelet and containerd, real controllers, and the pods of the manifests.

Pods are pinged in both families from each other's network namespaces, and while things happen to daemons every packet
is accounted for.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from tests.servers import flanneld, images
from tests.servers.kubernetes import binary
from tests.servers.machines import COMMANDS, PAUSE, PROGRAMS, ControlPlane, Machine, Pod, is_ready
from tests.servers.memory import in_memory
from tests.waiting import LONG, until

from pyflannel.lab import Lab
from pyflannel.lab.daemon import pyflannel_command
from pyflannel.lab.measure import Ping, measure_row

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
BASE, CHART = (HERE.parents[1] / "contrib" / "kubernetes" / name for name in ("base", "chart/pyflannel"))
NETWORK = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/48", "Backend": {"Type": "vxlan"}}
CLUSTER_CIDR = "10.244.0.0/16,fd00:10::/48"
IMAGE, FLANNEL, BUSYBOX = (f"registry.example.com/{name}:1" for name in ("pyflannel", "flannel", "busybox"))
OURS, THEIRS = "app.kubernetes.io/name=pyflannel", "app=flannel"

# One pod on each machine, which does nothing; tolerant, so that it is there as soon as the machine has a network.
BOX: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "NAME", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "NAME"}},
        "template": {
            "metadata": {"labels": {"app": "NAME"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "box", "image": BUSYBOX, "command": ["sleep", "100000"]}],
            },
        },
    },
}


def _missing() -> str | None:
    lacking = [name for name in (*COMMANDS, "helm") if not binary(name).exists()]
    if lacking:
        return f"no {', '.join(lacking)}: tools/build-kubernetes {' '.join(lacking)}"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else images.MISSING


MISSING = _missing()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The images that pods use here."""
    if MISSING is not None:
        pytest.skip(MISSING)
    directory = tmp_path_factory.mktemp("images")
    found = [images.pause_image(directory, PAUSE), images.busybox_image(directory, BUSYBOX, ("sh", "sleep", "ping"))]
    with Lab(nodes=1, containers=0) as lab, images.built_image(lab.nodes[0], IMAGE, directory) as docker:
        docker("save", "--output", str(lab.nodes[0].directory / "image.tar"), IMAGE)
        found.append(directory / "pyflannel.tar")
        shutil.copy(lab.outside(lab.nodes[0].directory / "image.tar"), found[-1])
    if flanneld.MISSING is None:
        found.append(images.tools_image(directory / "flannel.tar", FLANNEL, flanneld.BINARY, directory / "flannel"))
    return found


@dataclass
class Cluster:
    """A control plane and its machines, with the lab that they are in."""

    lab: Lab
    kube: ControlPlane
    machines: tuple[Machine, ...]
    directory: Path

    def apply(self, *objects: Any) -> None:
        """kubectl apply."""
        self.kube.kubectl("apply", "-f", "-", text="\n---\n".join(json.dumps(each) for each in objects))

    def _server(self) -> list[dict[str, str]]:
        """The API server's own address, as environment of the daemon."""
        host, port = self.kube.host, str(self.kube.port)
        return [
            {"name": "KUBERNETES_SERVICE_HOST", "value": host},
            {"name": "KUBERNETES_SERVICE_PORT", "value": port},
        ]

    def manifests(self, selector: str = "") -> Path:
        """The manifests with this cluster's network and image, and the API server's own address, for want of a proxy.

        :param selector: a label, ``yes`` on the nodes that are to run pyflannel.
        """
        target = self.directory / "base"
        shutil.copytree(BASE, target, dirs_exist_ok=True)
        where = "/spec/template/spec/containers/0/env/-"
        daemon: list[Any] = [{"op": "add", "path": where, "value": each} for each in self._server()]
        if selector:
            daemon.append({"op": "add", "path": f"/spec/template/spec/nodeSelector/{selector}", "value": "yes"})
        network = [{"op": "replace", "path": "/data", "value": {"net-conf.json": json.dumps(NETWORK)}}]
        patches = [
            {"patch": json.dumps(daemon), "target": {"kind": "DaemonSet"}},
            {"patch": json.dumps(network), "target": {"kind": "ConfigMap"}},
        ]
        file = target / "kustomization.yaml"
        document = yaml.safe_load(file.read_text())
        document["images"] = [{"name": "pyflannel", "newName": IMAGE.rpartition(":")[0], "newTag": "1"}]
        file.write_text(json.dumps({**document, "patches": patches}))
        return target

    def install_manifests(self) -> None:
        """pyflannel as kustomize makes it."""
        self.kube.kubectl("apply", "-k", str(self.manifests()))

    def install_chart(self) -> None:
        """pyflannel as Helm's chart makes it, with the same network."""
        values = {
            "podCIDR": NETWORK["Network"],
            "podCIDRv6": NETWORK["IPv6Network"],
            "image": {"repository": IMAGE.rpartition(":")[0], "tag": "1"},
            "env": self._server(),
        }
        file = self.directory / "values.json"
        file.write_text(json.dumps(values))
        where = ("--namespace", "pyflannel", "--create-namespace")
        self.kube.helm("install", "pyflannel", str(CHART), *where, "--values", str(file))

    def boxes(self, name: str) -> list[Pod]:
        """A pod on each machine, in their order."""
        box = json.loads(json.dumps(BOX).replace("NAME", name))
        self.apply(box)
        return self.running(name)

    def running(self, name: str) -> list[Pod]:
        """Those pods, when each is ready."""
        found = self.kube.ready_pods("default", f"app={name}", len(self.machines))
        return [machine.pod(pod) for machine, pod in zip(self.machines, found, strict=True)]

    def pings(self, stack: ExitStack, pods: Sequence[Pod]) -> list[Ping]:
        """Ping between the first two pods, both ways in both families."""
        found = [
            stack.enter_context(Ping(one, other.address(version), 0.05, self.lab.new_file("ping")))
            for one, other in (pods, reversed(pods))
            for version in (4, 6)
        ]
        for ping in found:
            ping.wait_replies(3)
        return found


@pytest.fixture
def cluster(archives: list[Path]) -> Iterator[Cluster]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(nodes=2, containers=0))
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="pyflannel-cluster-", dir=in_memory())))
        place = lab.add_server("kube")
        netns = Path(f"/proc/{lab.sandbox.pid}/root/run/netns/{place.name}")
        options: dict[str, Any] = {"place": place, "netns": netns, "host": str(place.ipv4.ip)}
        kube = stack.enter_context(ControlPlane(directory / "kube", cluster_cidr=CLUSTER_CIDR, **options))
        machines = tuple(Machine(node, archives) for node in lab.nodes)
        for machine in machines:
            stack.callback(machine.shut_down)
        lab.each(lambda machine: machine.start_up(kube), machines)
        yield Cluster(lab, kube, machines, directory)


def networks(cluster: Cluster, machine: Machine) -> list[Any]:
    return [ip_network(each) for each in cluster.kube.node(machine.name)["spec"]["podCIDRs"]]


def all_reach_all(pods: Sequence[Pod]) -> None:
    addresses = {pod.name: pod.addresses for pod in pods}
    pairs = [pair for pod in pods for pair in measure_row(pod, addresses, 10.0)]
    assert len(pairs) == len(pods) * (len(pods) - 1) * 2
    assert not [pair for pair in pairs if pair.milliseconds is None], pairs


def available(cluster: Cluster) -> list[str]:
    """When each machine's network became available."""
    conditions = [cluster.kube.condition(machine.name) or {} for machine in cluster.machines]
    assert [each.get("status") for each in conditions] == ["False"] * len(conditions)
    return [each["lastTransitionTime"] for each in conditions]


@pytest.mark.parametrize("install", [Cluster.install_manifests, Cluster.install_chart], ids=["kustomize", "Helm"])
def test_a_cluster_gets_its_network(cluster: Cluster, install: Callable[[Cluster], None]) -> None:
    kube = cluster.kube
    for machine in cluster.machines:
        until(lambda name=machine.name: kube.condition(name, "Ready"), "the kubelet's word")  # type: ignore[misc]
        ready = kube.condition(machine.name, "Ready") or {}
        assert ready["status"] == "False"
        assert "cni plugin not initialized" in ready["message"]

    install(cluster)
    daemons = kube.ready_pods("pyflannel", OURS, 2)
    for machine in cluster.machines:
        until(lambda machine=machine: is_ready(kube.node(machine.name)), lambda machine=machine: machine.log("kubelet"))  # type: ignore[misc]
        until(lambda machine=machine: not kube.node(machine.name)["spec"].get("taints"), "no taint")  # type: ignore[misc]
    since = available(cluster)
    one, other = cluster.boxes("one"), cluster.boxes("other")
    for pod in (*one, *other):
        ranges = networks(cluster, pod.machine)
        assert all(any(ip_address(each) in network for network in ranges) for each in pod.addresses), pod.addresses
    all_reach_all([*one, *other])
    status = kube.kubectl("-n", "pyflannel", "exec", "daemonset/pyflannel", "--", "pyflannel", "status")
    assert "vxlan" in status
    ask = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/metrics').read().decode())"
    metrics = kube.kubectl("-n", "pyflannel", "exec", "daemonset/pyflannel", "--", "python", "-c", ask)
    assert "\npyflannel_ready 1.0\n" in metrics
    doctor = ("pyflannel", "doctor", "--kube-subnet-mgr", "--json", "--all")
    found = json.loads(kube.kubectl("-n", "pyflannel", "exec", "daemonset/pyflannel", "--", *doctor))
    assert not [each for each in found["findings"] if each["verdict"] == "fail"]
    assert {"announcement", "assigned subnet"} <= {
        each["check"] for each in found["findings"] if each["verdict"] == "pass"
    }
    answer = kube.kubectl("exec", one[0].name, "--", "ping", "-c", "1", one[1].address(4))
    assert " 0% packet loss" in answer

    with ExitStack() as stack:
        pings = cluster.pings(stack, one)
        kube.kubectl("-n", "pyflannel", "rollout", "restart", "daemonset/pyflannel")
        until(lambda: kube.updated("pyflannel", "pyflannel"), "other daemons")
        old = {pod["metadata"]["uid"] for pod in daemons}
        assert not old & {pod["metadata"]["uid"] for pod in kube.pods("pyflannel", OURS)}
        for ping in pings:
            ping.wait_replies(20)
        assert [ping.stop().lost for ping in pings] == [0, 0, 0, 0]
    assert available(cluster) == since

    with ExitStack() as stack:
        pings = cluster.pings(stack, one)
        config = kube.kubeconfig(cluster.directory / "operator.kubeconfig")
        words = ("network", "change", "--backend", "host-gw", "--json", "--store", f"kubernetes://?kubeconfig={config}")
        said = cluster.lab.nodes[0].run(pyflannel_command(*words), timeout=LONG * 4).stdout.splitlines()
        assert json.loads(said[-1])["phase"] == "done"
        assert not json.loads(said[-1])["waiting"]
        for ping in pings:
            ping.wait_replies(20)
        assert [ping.stop().lost for ping in pings] == [0, 0, 0, 0]
    status = kube.kubectl("-n", "pyflannel", "exec", "daemonset/pyflannel", "--", "pyflannel", "status")
    assert "host-gw" in status
    assert "vxlan" not in status
    assert available(cluster) == since


def flannel(cluster: Cluster) -> None:
    """flannel as its own manifest has it. What its CNI plugin hands on to others is written here in its place."""
    kube = cluster.kube
    text = (HERE / "kube_flannel.yaml").read_text()
    for word, value in {
        "net-conf.json: NETWORK": f"net-conf.json: {json.dumps(json.dumps(NETWORK))}",
        "SERVER_HOST": kube.host,
        "SERVER_PORT": str(kube.port),
    }.items():
        text = text.replace(word, value)
    kube.kubectl("apply", "-f", "-", text=text)
    kube.ready_pods("kube-flannel", THEIRS, len(cluster.machines))
    for machine in cluster.machines:
        said = machine.outside("/run/flannel/subnet.env").read_text()
        values = dict(line.split("=", 1) for line in said.splitlines())
        bridge = {
            "type": "bridge",
            "mtu": int(values["FLANNEL_MTU"]),
            "ipMasq": False,
            "isGateway": True,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": str(network)}] for network in networks(cluster, machine)],
                "routes": [{"dst": values["FLANNEL_NETWORK"]}, {"dst": values["FLANNEL_IPV6_NETWORK"]}],
            },
        }
        delegate = {"name": "cbr0", "cniVersion": "0.3.1", **bridge}
        machine.outside("/etc/cni/delegate.json").write_text(json.dumps(delegate))
        plugin = machine.outside("/opt/cni/bin/flannel")
        plugin.write_text("#!/bin/sh\nexec /opt/cni/bin/bridge </etc/cni/delegate.json\n")
        plugin.chmod(0o755)
        plugins = [{"type": "flannel"}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        conflist = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins}
        machine.outside("/etc/cni/net.d/10-flannel.conflist").write_text(json.dumps(conflist))


@pytest.mark.skipif(flanneld.MISSING is not None, reason=str(flanneld.MISSING))
def test_from_kube_flannel_node_by_node(cluster: Cluster) -> None:
    """As docs/kubernetes.md has it; half way, one machine is flannel's and the other pyflannel's."""
    kube = cluster.kube
    flannel(cluster)
    boxes = cluster.boxes("first")
    all_reach_all(boxes)
    later: list[Pod] = []
    with ExitStack() as stack:
        pings = cluster.pings(stack, boxes)
        kube.kubectl("-n", "kube-flannel", "patch", "daemonset", "kube-flannel-ds", *_documented_patch())
        kube.kubectl("apply", "-k", str(cluster.manifests(selector="pyflannel")))
        for done, machine in enumerate(cluster.machines, 1):
            kube.kubectl("label", "node", machine.name, "pyflannel=yes")
            kube.ready_pods("pyflannel", OURS, done)
            until(lambda gone=machine: not kube.pods("kube-flannel", THEIRS, gone.name), "flannel's end")  # type: ignore[misc]
            theirs = machine.outside("/etc/cni/net.d/10-flannel.conflist")
            until(lambda theirs=theirs: not theirs.exists(), "the end of flannel's conflist")  # type: ignore[misc]
            later += cluster.boxes(f"later-{done}")
            all_reach_all([*boxes, *later])
        kube.kubectl("apply", "-k", str(cluster.manifests()))
        kube.kubectl("delete", "namespace", "kube-flannel", "--wait=false")
        until(lambda: kube.updated("pyflannel", "pyflannel"), "the daemons without a selector")
        for ping in pings:
            ping.wait_replies(20)
        assert [ping.stop().lost for ping in pings] == [0, 0, 0, 0]
    addresses = [address for pod in (*boxes, *later) for address in pod.addresses]
    assert len(addresses) == len(set(addresses))


def _documented_patch() -> list[str]:
    """What the page about Kubernetes does to flannel's DaemonSet."""
    text = (HERE.parents[1] / "docs" / "kubernetes.md").read_text().replace("\\\n", "")
    (command,) = [line for line in text.splitlines() if line.startswith("kubectl -n kube-flannel patch")]
    return shlex.split(command)[6:]
