"""A real kube-apiserver for tests: on an etcd of its own, with TLS, RBAC and service accounts as a cluster has them.

``tools/build-kubernetes`` makes the binaries. What a cluster's other parts would do, tests do by hand, as an
administrator: make Nodes, give them pod CIDRs, write their status as a kubelet does.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.servers.authority import Authority
from tests.servers.memory import in_memory

from pyflannel.errors import StoreUnavailableError
from pyflannel.kernel.netns import call_in
from pyflannel.lab.servers.etcd import EtcdCluster, find_etcd
from pyflannel.lab.servers.process import HERE, PORTS, Cluster, Place, Server

VERSION = os.environ.get("PYFLANNEL_KUBERNETES_VERSION", "1.34.4")
ROOT = Path(__file__).parents[2]
START_TIMEOUT = 90.0
ADMIN = "administrator"
PREFIX = "flannel.alpha.coreos.com/"


def binary(name: str) -> Path:
    """Where ``tools/build-kubernetes`` puts a command."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyflannel"
    return Path(os.environ.get("PYFLANNEL_CACHE") or base) / f"kubernetes-{VERSION}" / name


KUBECTL, HELM = binary("kubectl"), binary("helm")


def _missing() -> str | None:
    if not all(binary(name).exists() for name in ("kube-apiserver", "kubectl", "helm")):
        return "no kube-apiserver: tools/build-kubernetes builds one"
    return None if find_etcd() else "etcd is not installed: apt-get install etcd-server"


MISSING = _missing()
"""Why there are no tests on Kubernetes here, or ``None``."""


class Kubernetes(Cluster):
    """An API server and its etcd. A context manager.

    :param directory: for data, certificates and logs.
    :param place: where the API server runs; its etcd is beside it.
    :param netns: the network namespace of that place, if it is not ours.
    :param host: the address it listens on, one of the place.
    :param arguments: more flags for the API server.
    :param disabled_admission: its admission plugins that don't work. Tests make accounts and pods by hand.
    """

    def __init__(
        self,
        directory: Path,
        *,
        place: Place = HERE,
        netns: Path | None = None,
        host: str = "127.0.0.1",
        arguments: Sequence[str] = (),
        disabled_admission: Sequence[str] = ("ServiceAccount",),
    ) -> None:
        self.directory = directory
        self.host = host
        self.port = _free_port(host)
        self.etcd = EtcdCluster(directory / "etcd", place=place)
        self.server = Server("kube-apiserver", directory / "kube-apiserver.log")
        self.place, self._netns = place, netns
        self._arguments = [*arguments, f"--disable-admission-plugins={','.join(disabled_admission)}"]
        certificates = directory / "pki"
        certificates.mkdir(parents=True)
        (directory / "etcd").mkdir()
        self.authority = Authority(certificates)
        self.certificate = self.authority.server(addresses=sorted({"127.0.0.1", "::1", host}))
        self.signer = self.authority.client("service-accounts")
        self._tokens = directory / "tokens.csv"
        self._tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n')

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}"

    @property
    def cafile(self) -> Path:
        """The authority's certificate."""
        return self.authority.cafile

    def start(self) -> None:
        """Start both, and wait until the API server is ready. See :class:`Cluster`."""
        self.etcd.start()
        if not self.server.running:
            self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the API server without waiting."""
        words: list[str | os.PathLike[str]] = [
            binary("kube-apiserver"),
            f"--etcd-servers={self.etcd.members[0].client_url}",
            f"--bind-address={self.host}",
            f"--secure-port={self.port}",
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self.certificate.certfile}",
            f"--tls-private-key-file={self.certificate.keyfile}",
            f"--client-ca-file={self.cafile}",
            f"--token-auth-file={self._tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.signer.certfile}",
            f"--service-account-signing-key-file={self.signer.keyfile}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--shutdown-delay-duration=0s",
            f"--cert-dir={self.directory}",
            *self._arguments,
        ]
        self.server.launch(self.place, words)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it serves; its own roles are there by then.

        :raises StoreUnavailableError: it does not, or has ended.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.server.running:
            try:
                self.admin("GET", "/readyz")
                return
            except (OSError, AssertionError, http.client.HTTPException):
                time.sleep(0.05)
        raise StoreUnavailableError(f"kube-apiserver is not ready: {self.server.last_words()}")

    def stop(self) -> None:
        """See :class:`Cluster`."""
        if self.server.running:
            self.server.resume()
            self.server.kill()
        self.etcd.stop()

    # What an administrator and a cluster's other parts do

    def admin(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Ask as an administrator; the answer as JSON where it is some. Fails if it is not success."""
        return self.ask(ADMIN, method, path, body, kind)

    def ask(self, token: str, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """The same with a token of one's own."""
        if self._netns is not None:
            return call_in(self._netns, lambda: self._ask(token, method, path, body, kind))
        return self._ask(token, method, path, body, kind)

    def _ask(self, token: str, method: str, path: str, body: Any, kind: str) -> Any:
        context = ssl.create_default_context(cafile=str(self.cafile))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.connect()
            connection.sock.getpeername()  # see the driver's own connect()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=self.host)
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
        return json.loads(text) if text.startswith(("{", "[")) else text

    def add_node(
        self,
        name: str,
        *cidrs: str,
        annotations: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Make a Node with these pod CIDRs, as the controllers do; none: it has not got them yet."""
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "annotations": dict(annotations or {})},
            "spec": spec,
        }
        made: dict[str, Any] = self.admin("POST", "/api/v1/nodes", node)
        return made

    def node(self, name: str) -> dict[str, Any]:
        """A Node."""
        found: dict[str, Any] = self.admin("GET", f"/api/v1/nodes/{name}")
        return found

    def annotations(self, name: str) -> dict[str, str]:
        """flannel's annotations of a Node, without their prefix."""
        found = self.node(name)["metadata"].get("annotations") or {}
        return {key.removeprefix(PREFIX): text for key, text in found.items() if key.startswith(PREFIX)}

    def assign(self, name: str, *cidrs: str) -> None:
        """Give a Node its pod CIDRs."""
        self.patch(name, {"spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}})

    def annotate(self, name: str, **annotations: str | None) -> None:
        """Set flannel's annotations of a Node (``_`` stands for ``-``); ``None`` removes one."""
        named = {PREFIX + key.replace("_", "-"): text for key, text in annotations.items()}
        self.patch(name, {"metadata": {"annotations": named}})

    def patch(self, name: str, patch: Any, part: str = "") -> None:
        """Change a Node, or its status."""
        self.admin("PATCH", f"/api/v1/nodes/{name}{part}", patch, "application/strategic-merge-patch+json")

    def heartbeat(self, name: str) -> None:
        """What a kubelet does to its Node again and again."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "reason": f"at-{time.monotonic_ns()}", "lastHeartbeatTime": now}
        self.patch(name, {"status": {"conditions": [ready]}}, "/status")

    def condition(self, name: str, kind: str = "NetworkUnavailable") -> dict[str, str] | None:
        """A condition of a Node."""
        conditions = self.node(name).get("status", {}).get("conditions") or ()
        return next((each for each in conditions if each["type"] == kind), None)

    def remove_node(self, name: str) -> None:
        """Delete a Node."""
        self.admin("DELETE", f"/api/v1/nodes/{name}")

    def remove_nodes(self) -> None:
        """Delete all of them."""
        self.admin("DELETE", "/api/v1/nodes")

    def allow(self, role: str, verbs: Sequence[str]) -> None:
        """Make a cluster role with some of the rights that the store needs: get, list, watch, and patch of a status."""
        rules = [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": [verb for verb in verbs if verb != "patch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": [verb for verb in verbs if verb == "patch"]},
        ]
        document = {"metadata": {"name": role}, "rules": [rule for rule in rules if rule["verbs"]]}
        self.admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", document)

    def account(self, name: str, verbs: Sequence[str]) -> str:
        """Make a service account that has these rights by a role of its name; returns a token of it."""
        self.admin("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
        self.allow(name, verbs)
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        }
        self.admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        return self.account_token("default", name)

    def account_token(
        self, namespace: str, account: str, seconds: int = 3600, pod: Mapping[str, str] | None = None
    ) -> str:
        """A token of a service account; bound to ``pod`` (name and uid) as a mounted one is."""
        spec: dict[str, Any] = {"expirationSeconds": seconds}
        if pod is not None:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", **pod}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = self.admin("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", body)
        return str(answer["status"]["token"])

    def kubeconfig(self, path: Path, user: Any = None, **cluster: Any) -> Path:
        """Write a kubeconfig, for an administrator unless ``user`` is given."""
        entry = {"server": self.url, "certificate-authority": str(self.cafile), **cluster}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {key: item for key, item in entry.items() if item is not None}}],
            "users": [{"name": "u", "user": dict(user or {"token": ADMIN})}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(document))
        return path

    def kubectl(self, *words: str, text: str | None = None, check: bool = True) -> str:
        """Run kubectl as an administrator; what it prints."""
        return self._run(KUBECTL, (f"--cache-dir={self.directory / 'kubectl-cache'}", *words), text, check)

    def helm(self, *words: str) -> str:
        """Run helm as an administrator; what it prints."""
        return self._run(HELM, words)

    def _run(self, program: Path, words: Sequence[str], text: str | None = None, check: bool = True) -> str:
        config = self.kubeconfig(self.directory / "admin.kubeconfig")
        command: list[str | Path] = [program, f"--kubeconfig={config}", *words]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=60)

        done = run() if self._netns is None else call_in(self._netns, run)
        if check:
            assert done.returncode == 0, f"{program.name} {' '.join(words)}: {done.stderr}"
        return done.stdout + done.stderr if not check else done.stdout


@contextmanager
def kubernetes(**options: Any) -> Iterator[Kubernetes]:
    """A ready API server on data in memory, gone without a trace afterwards."""
    with TemporaryDirectory(prefix="pyflannel-kube-", dir=in_memory()) as data, Kubernetes(Path(data), **options) as it:
        yield it


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.choice(PORTS)
        with socket.socket(family) as probe:
            try:
                probe.bind((host if host in ("127.0.0.1", "::1") else ("::" if ":" in host else "0.0.0.0"), port))
            except OSError:
                continue
            return port
