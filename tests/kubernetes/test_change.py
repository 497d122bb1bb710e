"""A running cluster changes its backend: the operator's command writes the ConfigMap, nodes follow what is mounted.

There is no kubelet here, so a thread does what one does with a mounted ConfigMap: it replaces each node's file when the
ConfigMap has changed, for each node at another time.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.changing import Overlay, pinging
from tests.servers.kubernetes import ADMIN, MISSING, Kubernetes, kubernetes
from tests.waiting import LONG, PATIENCE, until

from pyflannel.errors import ExitCode
from pyflannel.lab import Lab
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CIDRS = ("10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/25")
CONFIG_MAP = "/api/v1/namespaces/pyflannel/configmaps/pyflannel"
DOCUMENT = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
OPERATOR = "pyflannel-operator"
"""The roles in the manifests for whoever changes the network."""

RBAC = Path(__file__).parents[2] / "contrib" / "kubernetes" / "base" / "rbac.yaml"


def create(kube: Kubernetes, path: str, body: Mapping[str, Any]) -> None:
    """As an administrator; what is there from an earlier test is deleted."""
    name = f"{path}/{body['metadata']['name']}"
    if not kube.kubectl("get", "--raw", name, check=False).startswith("Error"):
        kube.admin("DELETE", name)
    kube.admin("POST", path, body)


class Cluster(Overlay):
    """Three nodes whose daemons read a mounted file, and the ConfigMap behind it."""

    def __init__(self, lab: Lab, kube: Kubernetes) -> None:
        self.kube = kube
        config = kube.kubeconfig(kube.directory / "operator.kubeconfig")
        super().__init__(lab, f"kubernetes://?kubeconfig={config}")

    def written(self) -> str:
        """The ConfigMap's document."""
        return str(self.kube.admin("GET", CONFIG_MAP)["data"]["net-conf.json"])

    def mounted(self, node: int) -> Path:
        """A node's file."""
        return self.kube.directory / f"mounted-{node}" / "net-conf.json"

    def set_up(self) -> None:
        """The ConfigMap, as the manifests have it, Nodes, and daemons."""
        kube = self.kube
        if kube.kubectl("get", "namespace", "pyflannel", check=False).startswith("Error"):
            kube.admin("POST", "/api/v1/namespaces", {"metadata": {"name": "pyflannel"}})
        kube.kubectl("apply", "-f", str(RBAC))
        body = {"metadata": {"name": "pyflannel"}, "data": {"net-conf.json": json.dumps(DOCUMENT), "cni": "{}"}}
        create(kube, CONFIG_MAP.rpartition("/")[0], body)
        config = kube.kubeconfig(kube.directory / "kubeconfig", {"token": ADMIN})
        for number, (node, cidr) in enumerate(zip(self.nodes, CIDRS, strict=True)):
            kube.add_node(node.name, cidr)
            self.mounted(number).parent.mkdir(exist_ok=True)
            self.mounted(number).write_text(self.written())
            url = f"kubernetes://?kubeconfig={config}&node={node.name}&net_config={self.mounted(number)}"
            node.start_daemon(url, "vxlan")
        for node in self.nodes:
            node.daemon.wait_ready(peers=2, timeout=LONG)
            node.attach_containers()

    @contextmanager
    def mounting(self) -> Iterator[None]:
        """Keep the nodes' files as the ConfigMap is."""
        over = threading.Event()

        def mount() -> None:
            turns = 0
            while not over.wait(0.3):
                turns += 1
                file, text = self.mounted(turns % len(CIDRS)), self.written()
                if file.read_text() != text:
                    draft = file.with_suffix(".draft")
                    draft.write_text(text)
                    draft.replace(file)

        thread = threading.Thread(target=mount)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def account(self, name: str, role: str, *roles: str) -> str:
        """The store as an account sees it that has a cluster role, and roles in the ConfigMap's namespace."""
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        create(self.kube, "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
        subjects = [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]
        bound = [("", "ClusterRole", role), *(("/namespaces/pyflannel", "Role", each) for each in roles)]
        for place, kind, each in bound:
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": each}
            body = {"metadata": {"name": f"{name}-{each}"}, "roleRef": reference, "subjects": subjects}
            create(self.kube, f"{rbac}{place}/{kind.lower()}bindings", body)
        user = {"token": self.kube.account_token("default", name)}
        return f"kubernetes://?kubeconfig={self.kube.kubeconfig(self.kube.directory / f'{name}.kubeconfig', user)}"

    def role(self, name: str, *verbs: str) -> str:
        """A role that allows this with the ConfigMap."""
        rules = [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["pyflannel"], "verbs": list(verbs)}]
        path = "/apis/rbac.authorization.k8s.io/v1/namespaces/pyflannel/roles"
        create(self.kube, path, {"metadata": {"name": name}, "rules": rules})
        return name


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("enters the lab's namespaces: needs root")
    if MISSING is not None:
        pytest.skip(MISSING)
    with Lab(nodes=3, containers=1) as lab:
        place = lab.add_server("kube")
        netns = Path(f"/proc/{lab.sandbox.pid}/root/run/netns/{place.name}")
        with kubernetes(place=place, netns=netns, host=str(place.ipv4.ip)) as server:
            made = Cluster(lab, server)
            made.set_up()
            with made.mounting():
                yield made
            for node in lab.nodes:
                print(node.name, node.daemon.log(), sep="\n")


def test_nodes_go_over_together_and_lose_nothing(cluster: Cluster) -> None:
    """And on to a backend that encrypts, and back to where they began. Of the ConfigMap nothing else is touched."""
    with pinging(cluster.lab):
        for backend in ("host-gw", "wireguard", "vxlan"):
            said = cluster.change("--backend", backend)
            assert said[-1]["phase"] == "done"
            assert not said[-1]["waiting"]
            cluster.run_on(backend)
            assert json.loads(cluster.written())["Backend"]["Type"] == backend
            assert {cluster.kube.annotations(node.name)["backend-type"] for node in cluster.nodes} == {backend}
    assert cluster.kube.admin("GET", CONFIG_MAP)["data"]["cni"] == "{}"


@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_a_change_is_given_up_and_another_one_is_refused_meanwhile(cluster: Cluster, phase: str) -> None:
    with pinging(cluster.lab):
        cluster.nodes[2].daemon.pause()  # or nobody knows how far it gets
        with cluster.driven("--backend", "host-gw"):
            until(lambda: "Change" in json.loads(cluster.written()), "the change has begun", PATIENCE)
        assert "another change is under way" in cluster.refused("--backend", "wireguard")
        cluster.nodes[2].daemon.resume()
        cluster.all_are("prepared")
        if phase == "switch":
            document = cluster.document()
            document["Change"]["Phase"] = "switch"
            cluster.write(document)
            cluster.all_are("switched")
        assert cluster.change("--abort", node=1)[-1]["phase"] == "back"
        cluster.run_on("vxlan")
    assert json.loads(cluster.written())["Backend"]["Type"] == "vxlan"


@pytest.mark.parametrize(("granted", "missing"), [((), "get"), (("get",), "patch")])
def test_a_right_that_is_missing_is_named(cluster: Cluster, granted: tuple[str, ...], missing: str) -> None:
    before = cluster.written()
    roles = [cluster.role("reader", *granted)] if granted else []
    store = cluster.account(f"without-{missing}", OPERATOR, *roles)
    words = pyflannel_command("network", "change", "--backend", "host-gw", "--yes", "--store", store)
    done = cluster.nodes[0].run(words, check=False, timeout=LONG)
    assert done.returncode == ExitCode.STORE
    assert f"no right to {missing} ConfigMap pyflannel/pyflannel" in done.stderr
    assert f"grant the verb '{missing}' on the resource 'configmaps' in namespace pyflannel" in done.stderr
    assert cluster.written() == before


def test_the_roles_in_the_manifests_are_enough(cluster: Cluster) -> None:
    store = cluster.account("entitled", OPERATOR, OPERATOR)
    words = pyflannel_command("network", "change", "--backend-option", "MTU=1400", "--yes", "--store", store)
    done = cluster.nodes[0].run(words, check=False, timeout=LONG)
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(cluster.written())["Backend"] == {"Type": "vxlan", "MTU": 1400}


def test_a_config_map_that_is_not_there_is_named(cluster: Cluster) -> None:
    words = pyflannel_command(
        "network", "change", "--dry-run", "--store", f"{cluster.store}&config_map=pyflannel/other"
    )
    done = cluster.nodes[0].run(words, check=False, timeout=LONG)
    assert done.returncode == ExitCode.STORE
    assert "there is no ConfigMap pyflannel/other" in done.stderr


def test_where_the_document_is_a_file_the_config_map_is_asked_for(cluster: Cluster) -> None:
    """As in a node's own pod."""
    store = f"{cluster.store}&net_config={cluster.mounted(0)}"
    words = pyflannel_command("network", "change", "--backend", "host-gw", "--store", store)
    done = cluster.nodes[0].run(words, check=False, timeout=LONG)
    assert done.returncode == ExitCode.STORE
    assert "config_map=pyflannel/pyflannel" in done.stderr
