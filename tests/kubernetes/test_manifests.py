"""The manifests and the chart: an API server takes them, and the policy among them lets a node change itself alone."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.kubernetes.opening import VALUE, opened
from tests.servers.kubernetes import HELM, Kubernetes

from pyflannel.errors import StoreDeniedError
from pyflannel.network.document import NetworkConfig
from pyflannel.settings.settings import resolve
from pyflannel.store import Record
from pyflannel.testing.stores import eventually
from pyflannel_stores._kubernetes_nodes import Annotations

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "contrib" / "kubernetes"
CHART = MANIFESTS / "chart" / "pyflannel"


def rendered(*values: str) -> str:
    words: list[str | Path] = [HELM, "template", "pyflannel", CHART, "--namespace=pyflannel", "--kube-version=1.34.0"]
    words += [f"--set={value}" for value in values]
    done: subprocess.CompletedProcess[str] = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(text) if each}


def rules(text: str) -> dict[str, Any]:
    """What each role and account allows, by kind and name."""
    found = [each for each in yaml.safe_load_all(text) if each]
    return {f"{each['kind']} {each['metadata']['name']}": each["rules"] for each in found if "rules" in each}


@pytest.fixture
def namespace(kube: Kubernetes) -> None:
    """A dry run needs the namespace to be there. It stays: without a controller, a deleted one would never be gone."""
    kube.kubectl("apply", "-f", str(MANIFESTS / "base" / "namespace.yaml"))


@pytest.mark.usefixtures("namespace")
def test_the_api_server_takes_the_manifests(kube: Kubernetes) -> None:
    said = kube.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(MANIFESTS / "base"))
    assert "daemonset.apps/pyflannel created (server dry run)" in said
    assert "validatingadmissionpolicy.admissionregistration.k8s.io/pyflannel-own-node created" in said


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(
    "values",
    [
        (),
        ("netpol.enabled=true", "privileged=true", "podCIDRv6=fd00:10::/48", "backend.Type=wireguard"),
        ("podCIDR=", "podCIDRv6=fd00:10::/48", "cniConf=", "admissionPolicy=false"),
        ("annotationPrefix=example.com/mine", "nodeSelector.zone=a", "env[0].name=X", "env[0].value=y"),
    ],
)
def test_the_api_server_takes_the_chart(kube: Kubernetes, values: tuple[str, ...]) -> None:
    text = rendered(*values)
    kube.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text=text)
    found = objects(text)
    document = NetworkConfig.from_json(found["ConfigMap"]["data"]["net-conf.json"])
    assert (6 in document.versions) == ("podCIDRv6=fd00:10::/48" in values)
    assert ("ValidatingAdmissionPolicy" in found) == ("admissionPolicy=false" not in values)


@pytest.mark.parametrize("prefix", ["example.com", "example.com/", "example.com/mine", "example.com/mine-"])
def test_the_policy_allows_the_annotations_that_the_daemon_writes_and_no_others(prefix: str) -> None:
    policy = objects(rendered(f"annotationPrefix={prefix}"))["ValidatingAdmissionPolicy"]["spec"]
    allowed = {each["name"]: each["expression"] for each in policy["variables"]}["prefix"]
    assert allowed == f'"{Annotations(prefix).prefix}"'


def test_chart_and_manifests_are_one_thing() -> None:
    """But for labels and names, which a chart has its own ways with."""
    base: dict[str, Any] = {}
    for path in (MANIFESTS / "base").glob("*.yaml"):
        base |= objects(path.read_text())
    chart = objects(rendered("image.repository=pyflannel"))
    assert rules((MANIFESTS / "base" / "rbac.yaml").read_text()) == rules(rendered())
    assert base["ValidatingAdmissionPolicy"]["spec"] == chart["ValidatingAdmissionPolicy"]["spec"]
    pods = [each["DaemonSet"]["spec"]["template"]["spec"] for each in (base, chart)]
    containers = [pod.pop("containers")[0] for pod in pods]
    assert pods[0] == pods[1]
    for container in containers:
        container["args"] = sorted(
            {*container["args"]}
            - {
                "--kube-annotation-prefix=flannel.alpha.coreos.com",
                "--set-node-network-unavailable=true",
            }
        )
        del container["image"]
        container.pop("imagePullPolicy", None)
    assert containers[0] == containers[1]


def test_the_daemon_knows_the_flags_in_the_manifests() -> None:
    for pods in (rendered(), (MANIFESTS / "base" / "daemonset.yaml").read_text()):
        words = objects(pods)["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"]
        given = {name: value or "true" for name, _, value in (word.lstrip("-").partition("=") for word in words)}
        assert resolve(given, {}, daemon=True).settings.store.scheme == "kubernetes"


def test_the_charts_health_port_listens_where_it_is_told_to() -> None:
    text = rendered("healthzIP=0.0.0.0", "healthzPort=8402")
    (container,) = objects(text)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert {"--healthz-ip=0.0.0.0", "--healthz-port=8402"} <= set(container["args"])
    assert container["readinessProbe"]["httpGet"] == {"host": "127.0.0.1", "port": 8402, "path": "/readyz"}


@pytest.mark.usefixtures("namespace")
def test_a_nodes_token_changes_that_node_alone(kube: Kubernetes, tmp_path: Path) -> None:
    kube.kubectl("apply", "-k", str(MANIFESTS / "base"))
    for name, cidr in (("one", "10.244.0.0/24"), ("two", "10.244.1.0/24")):
        kube.add_node(name, cidr)
    pod = {
        "metadata": {"name": "p", "namespace": "pyflannel"},
        "spec": {"serviceAccountName": "pyflannel", "nodeName": "one", "containers": [{"name": "c", "image": "i"}]},
    }
    made = kube.admin("POST", "/api/v1/namespaces/pyflannel/pods", pod)
    bound = {"name": "p", "uid": made["metadata"]["uid"]}
    token = kube.account_token("pyflannel", "pyflannel", pod=bound)

    def denied(path: str, patch: Any) -> bool:
        try:
            kube.ask(token, "PATCH", path, patch, "application/strategic-merge-patch+json")
        except AssertionError as error:
            return " 403 " in str(error)
        return False

    stranger = {"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.66"}}}
    eventually(lambda: denied("/api/v1/nodes/two/status", stranger), "the policy is in force")
    for patch in (
        {"metadata": {"labels": {"trusted": "yes"}}},
        {"metadata": {"annotations": {"other.example.com/x": "y"}}},
        {"metadata": {"finalizers": ["example.com/stay"]}},
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": bound["uid"]}]}},
    ):
        assert denied("/api/v1/nodes/one/status", patch)
    assert denied("/api/v1/nodes/one", stranger)

    with opened(kube, tmp_path, "one", {"token": token}) as store:
        record = store.assigned((4,))
        assert isinstance(record, Record)
        record = store.update(record, VALUE, None)
        store.announce(True)
        assert store.snapshot().leases == (record,)
    with opened(kube, tmp_path, "two", {"token": token}) as thief:
        found = thief.assigned((4,))
        assert isinstance(found, Record)
        with pytest.raises(StoreDeniedError, match="on node one may change that Node only"):
            thief.update(found, VALUE, None)
    assert "kube-subnet-manager" not in kube.annotations("two")
