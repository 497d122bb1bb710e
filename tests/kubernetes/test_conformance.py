"""The conformance kit for stores that assign subnets, on a real API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.servers.kubernetes import Kubernetes

from pyflannel.store import Store, StoreLocation
from pyflannel.testing.assigned import AssigningStoreConformance
from pyflannel_stores.kubernetes import KubernetesStore


class TestKubernetesStore(AssigningStoreConformance):
    store_class = KubernetesStore
    kube: Kubernetes
    directory: Path

    @pytest.fixture(autouse=True)
    def _cluster(self, kube: Kubernetes, tmp_path: Path) -> None:
        self.kube, self.directory = kube, tmp_path

    def open_for(self, node: str) -> Store:
        config = self.kube.kubeconfig(self.directory / "kubeconfig")
        options = {"kubeconfig": str(config), "node": node, "net_config": str(self.directory / "net-conf.json")}
        return KubernetesStore(StoreLocation.parse("kubernetes://", options))

    def write_document(self, text: str) -> None:
        draft = self.directory / "draft"
        draft.write_text(text)
        draft.replace(self.directory / "net-conf.json")

    def add(self, node: str) -> None:
        self.kube.add_node(node)

    def assign(self, node: str, key: str) -> None:
        self.kube.assign(node, *("/".join(part.rsplit("-", 1)) for part in key.split("&")))

    def remove(self, node: str) -> None:
        self.kube.remove_node(node)

    def touch(self, node: str) -> None:
        self.kube.heartbeat(node)
        self.kube.patch(node, {"metadata": {"labels": {"touched": "yes"}}})

    def ready(self, node: str) -> bool | None:
        condition = self.kube.condition(node)
        return None if condition is None else condition["status"] == "False"

    def stop_server(self) -> None:
        self.kube.server.kill()

    def start_server(self) -> None:
        self.kube.start()
