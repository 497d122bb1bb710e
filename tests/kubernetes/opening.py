"""How tests open the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.kubernetes import Kubernetes

from pyflannel.store import StoreLocation
from pyflannel_stores.kubernetes import KubernetesStore

DOCUMENT = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
VALUE = (
    '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":'
    '"82:97:93:af:72:bf"},"NodeID":"one"}'
)


def location(kube: Kubernetes, directory: Path, node: str | None, user: Any = None, **options: str) -> StoreLocation:
    """A location with a kubeconfig for ``user``; an administrator's if there is none."""
    document = directory / "net-conf.json"
    if not document.exists():
        document.write_text(DOCUMENT)
    given = {"net_config": str(document), **({"node": node} if node else {}), **options}
    if "kubeconfig" not in given:
        given["kubeconfig"] = str(kube.kubeconfig(directory / f"kubeconfig-{node}", user))
    return StoreLocation.parse("kubernetes://", given)


@contextmanager
def opened(
    kube: Kubernetes, directory: Path, node: str | None, user: Any = None, **options: str
) -> Iterator[KubernetesStore]:
    """An open store."""
    store = KubernetesStore(location(kube, directory, node, user, **options))
    with store:
        yield store
