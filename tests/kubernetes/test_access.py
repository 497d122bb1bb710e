"""The ways to an API server: kubeconfigs of every kind, a pod's service account, files that rotate, proxies."""

from __future__ import annotations

import base64
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.opening import DOCUMENT, location, opened
from tests.servers.kubernetes import ADMIN, Kubernetes

from pyflannel.errors import ConfigError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import StoreLocation
from pyflannel_stores.kubernetes import KubernetesStore


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "NODE_NAME", "POD_NAME"):
        monkeypatch.delenv(name, raising=False)


def text64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def member(kube: Kubernetes) -> Any:
    """A client certificate, with the right to read."""
    certificate = kube.authority.client("reader")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "reader", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    kube.kubectl("apply", "-f", "-", text=json.dumps(binding))
    return certificate


@pytest.mark.parametrize("kind", ["token", "tokenFile", "files", "data"])
def test_every_kind_of_user(kube: Kubernetes, tmp_path: Path, kind: str) -> None:
    certificate = member(kube)
    (tmp_path / "token").write_text(f"{ADMIN}\n")
    user = {
        "token": {"token": ADMIN},
        "tokenFile": {"tokenFile": "token"},  # relative to the kubeconfig
        "files": {"client-certificate": str(certificate.certfile), "client-key": str(certificate.keyfile)},
        "data": {
            "client-certificate-data": text64(certificate.certfile),
            "client-key-data": text64(certificate.keyfile),
        },
    }[kind]
    with opened(kube, tmp_path, "a", user) as store:
        assert store.snapshot().leases == ()


@pytest.mark.parametrize(
    "cluster",
    [
        {"certificate-authority": None, "certificate-authority-data": "CA"},
        {"certificate-authority": None, "insecure-skip-tls-verify": True},
        {"tls-server-name": "127.0.0.1"},
    ],
    ids=["inline authority", "unverified", "another name"],
)
def test_every_kind_of_cluster(kube: Kubernetes, tmp_path: Path, cluster: dict[str, Any]) -> None:
    given = {key: text64(kube.cafile) if value == "CA" else value for key, value in cluster.items()}
    path = kube.kubeconfig(tmp_path / "kc", **given)
    with opened(kube, tmp_path, "a", kubeconfig=str(path)) as store:
        assert store.snapshot().leases == ()


def test_a_kubeconfig_may_be_yaml(kube: Kubernetes, tmp_path: Path) -> None:
    import yaml

    document = json.loads(kube.kubeconfig(tmp_path / "kc").read_text())
    (tmp_path / "kc").write_text(yaml.safe_dump(document))
    with opened(kube, tmp_path, "a", kubeconfig=str(tmp_path / "kc")) as store:
        assert store.snapshot().leases == ()


@pytest.mark.parametrize("authority", ["missing", "another"])
def test_a_server_that_cant_be_verified_is_refused(kube: Kubernetes, tmp_path: Path, authority: str) -> None:
    cafile = None if authority == "missing" else str(kube.signer.certfile)
    path = kube.kubeconfig(tmp_path / "kc", **{"certificate-authority": cafile})
    with (
        opened(kube, tmp_path, "a", kubeconfig=str(path)) as store,
        pytest.raises(StoreDeniedError, match="TLS"),
    ):
        store.snapshot()


PLUGIN = """#!/bin/sh
echo x >>{log}
test "$GREETING" = hello || exit 3
echo "$KUBERNETES_EXEC_INFO" | grep -q '"interactive": false' || exit 4
cat {answer}
"""


@pytest.mark.parametrize("kind", ["token", "certificate"])
def test_an_exec_plugin_is_asked_once_and_again_when_it_matters(kube: Kubernetes, tmp_path: Path, kind: str) -> None:
    log, answer, program = tmp_path / "log", tmp_path / "answer", tmp_path / "plugin"
    program.write_text(PLUGIN.format(log=log, answer=answer))
    program.chmod(0o755)
    certificate = member(kube)
    statuses = {
        "token": {"token": ADMIN},
        "certificate": {
            "clientCertificateData": certificate.certfile.read_text(),
            "clientKeyData": certificate.keyfile.read_text(),
        },
    }
    version = "client.authentication.k8s.io/v1"

    def says(status: dict[str, str]) -> None:
        answer.write_text(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}))

    says(statuses[kind])
    user = {
        "exec": {
            "apiVersion": version,
            "command": "./plugin",
            "env": [{"name": "GREETING", "value": "hello"}],
            "interactiveMode": "IfAvailable",
        }
    }
    with opened(kube, tmp_path, "a", user) as store:
        for _ in range(3):
            store.snapshot()
        assert log.read_text() == "x\n"
    log.unlink()
    says({"token": "stale"})
    with opened(kube, tmp_path, "a", user) as store:
        with pytest.raises(StoreDeniedError, match="token"):
            store.snapshot()
        says(statuses[kind])
        store.snapshot()
        says({**statuses[kind], "expirationTimestamp": "2001-01-01T00:00:00Z"})
    log.unlink()
    with opened(kube, tmp_path, "a", user) as store:
        store.snapshot()
        store.snapshot()
        assert len(log.read_text().split()) > 1, "what has expired is not used"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 7", "status 7"),
        ("echo nonsense", "ExecCredential"),
        ('echo \'{"apiVersion":"x","status":{"token":"t"}}\'', "answered as x"),
    ],
)
def test_an_exec_plugin_that_fails_is_named(kube: Kubernetes, tmp_path: Path, script: str, message: str) -> None:
    program = tmp_path / "plugin"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}}
    with opened(kube, tmp_path, "a", user) as store, pytest.raises(StoreDeniedError, match=message):
        store.snapshot()


def test_a_pods_service_account_and_a_token_that_rotates(
    kube: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyflannel_stores import _kubernetes_access as access

    (tmp_path / "token").write_text(ADMIN)
    (tmp_path / "ca.crt").write_bytes(kube.cafile.read_bytes())
    (tmp_path / "net.json").write_text(DOCUMENT)
    kube.add_node("worker")
    pod = {
        "metadata": {"name": "pyflannel-x", "namespace": "default"},
        "spec": {"nodeName": "worker", "containers": [{"name": "c", "image": "i"}]},
    }
    kube.admin("POST", "/api/v1/namespaces/default/pods", pod)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", kube.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(kube.port))
    monkeypatch.setenv("POD_NAMESPACE", "default")
    monkeypatch.setenv("POD_NAME", "pyflannel-x")
    monkeypatch.setattr(access.in_cluster, "__defaults__", (tmp_path,))
    with KubernetesStore(StoreLocation.parse("kubernetes://", {"net_config": str(tmp_path / "net.json")})) as store:
        store.snapshot()
        assert isinstance(store, KubernetesStore)
        assert store.own == "worker"
        (tmp_path / "token").write_text("expired")
        with pytest.raises(StoreDeniedError, match="expired or been revoked"):
            store.snapshot()
        (tmp_path / "token").write_text(ADMIN)
        store.snapshot()
    kube.admin("DELETE", "/api/v1/namespaces/default/pods/pyflannel-x?gracePeriodSeconds=0")


def test_no_way_to_a_server_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where is the API server"):
        KubernetesStore(StoreLocation.parse("kubernetes://"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "YAML"),
        ("[]", "not a kubeconfig"),
        ("{}", "current-context"),
        ('{"current-context":"x"}', "no context 'x'"),
        ('{"current-context":"x","contexts":[{"name":"x","context":{"cluster":"c"}}]}', "no cluster 'c'"),
    ],
)
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "kc").write_text(text)
    with pytest.raises(ConfigError, match=message):
        KubernetesStore(StoreLocation.parse("kubernetes://", {"kubeconfig": str(tmp_path / "kc")}))


def test_a_node_that_nobody_named_is_asked_for(kube: Kubernetes, tmp_path: Path) -> None:
    with opened(kube, tmp_path, None) as store:
        assert store.snapshot().leases == ()  # to look takes no node
        with pytest.raises(StoreDeniedError, match="NODE_NAME"):
            store.assigned((4,))


# A server that is none ------------------------------------------------------------------------------------------------


@contextmanager
def answering(answers: list[bytes]) -> Iterator[str]:
    """A plain server that gives one of these answers to each connection, the last to all that come later."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            served = 0
            while not stop.is_set():
                if not select.select([server], [], [], 0.05)[0]:
                    continue
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answers[min(served, len(answers) - 1)])
                    served += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def plain(address: str, tmp_path: Path) -> KubernetesStore:
    (tmp_path / "net.json").write_text(DOCUMENT)
    options = {"net_config": str(tmp_path / "net.json"), "tls": "false", "node": "a"}
    return KubernetesStore(StoreLocation.parse(f"kubernetes://{address}", options))


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x16\x03\x01 not http\r\n\r\n",
        answer(b"<html>hello</html>"),
        answer(b"{}"),
        answer(b"[]"),
        answer(b'{"metadata":{"resourceVersion":"1"},"items":[{}]}'),
        answer(b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{"a":'),
        answer(b"", "302 Found", "Location: http://127.0.0.1:1/"),
        answer(b"oops", "500 Internal Server Error"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{",
    ],
)
def test_a_server_that_answers_garbage_is_unavailable(tmp_path: Path, garbage: bytes) -> None:
    with answering([garbage]) as address, plain(address, tmp_path) as store, pytest.raises(StoreUnavailableError):
        store.snapshot()


def stream(events: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\n\r\n" % (len(events) + 1, events)


@pytest.mark.parametrize(
    "events",
    [
        b"no json",
        b'{"type":"ADDED"}',
        b'{"type":"ERROR","object":{"code":500,"message":"etcd is down"}}',
        b'{"type":"ADDED","object":{"metadata":{}}}',
    ],
)
def test_a_watch_of_garbage_is_unavailable(tmp_path: Path, events: bytes) -> None:
    listing = answer(b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}')
    with (
        answering([listing, stream(events)]) as address,
        plain(address, tmp_path) as store,
        store.watch(store.snapshot().revision) as watch,
        pytest.raises(StoreUnavailableError),
    ):
        next(watch)


def test_what_came_before_garbage_is_told(tmp_path: Path) -> None:
    """In one breath, and only then the trouble: whoever opens the watch anew goes on behind what was told."""
    listing = answer(b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}')
    lease = (
        b'{"type":"ADDED","object":{"metadata":{"name":"b","uid":"u","resourceVersion":"2","annotations":{%s}},%s}}'
        % (
            b'"flannel.alpha.coreos.com/kube-subnet-manager":"true"',
            b'"spec":{"podCIDR":"10.244.9.0/24"}',
        )
    )
    with (
        answering([listing, stream(lease + b"\nno json"), stream(b"no json")]) as address,
        plain(address, tmp_path) as store,
        store.watch(store.snapshot().revision) as watch,
    ):
        batch = next(watch)
        assert [change.key for change in batch.changes] == ["10.244.9.0-24"]
        with pytest.raises(StoreUnavailableError):
            next(watch)


def test_a_watch_that_ends_as_soon_as_it_is_open_is_not_opened_again_and_again(tmp_path: Path) -> None:
    listing = answer(b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}')
    ended = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with (
        answering([listing, ended, answer(b"{}", "500 Opened Again")]) as address,
        plain(address, tmp_path) as store,
        store.watch(store.snapshot().revision) as watch,
        pytest.raises(StoreUnavailableError, match="ends a watch as soon as it is open"),
    ):
        next(watch)


def test_a_server_with_too_much_to_do_is_obeyed(tmp_path: Path) -> None:
    busy = answer(b"{}", "429 Too Many Requests", "Retry-After: 1")
    listing = answer(b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}')
    with answering([busy, listing]) as address, plain(address, tmp_path) as store:
        began = time.monotonic()
        assert store.snapshot().leases == ()
        assert time.monotonic() - began >= 1
    long = answer(b"{}", "429 Too Many Requests", "Retry-After: 3600")
    with answering([long]) as address, plain(address, tmp_path) as store:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=r"(asks|asked) to wait"):
                store.snapshot()


def test_a_proxy_is_gone_through(kube: Kubernetes, tmp_path: Path) -> None:
    seen: list[bytes] = []
    with proxy(seen, (kube.host, kube.port)) as address:
        path = kube.kubeconfig(tmp_path / "kc", **{"proxy-url": f"http://{address}"})
        with opened(kube, tmp_path, "a", kubeconfig=str(path)) as store:
            assert store.snapshot().leases == ()
    assert seen[0].startswith(b"CONNECT %s:%d " % (kube.host.encode(), kube.port))


@contextmanager
def proxy(seen: list[bytes], target: tuple[str, int]) -> Iterator[str]:
    """A proxy that knows CONNECT, for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            near, _ = server.accept()
            with near, socket.create_connection(target) as far:
                seen.append(near.recv(1 << 16))
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                pairs = {near: far, far: near}
                while True:
                    for end in select.select(list(pairs), [], [])[0]:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        pairs[end].sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_the_token_is_in_no_error(kube: Kubernetes, tmp_path: Path) -> None:
    secret = "very-secret-token"
    store = KubernetesStore(location(kube, tmp_path, "a", {"token": secret}))
    with store, pytest.raises(StoreDeniedError) as caught:
        store.snapshot()
    assert secret not in f"{caught.value}{store.location!r}"
