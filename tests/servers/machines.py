"""A whole cluster: control plane, and machines with a real kubelet and a real containerd, in namespaces of a lab.

A machine has the network of its lab's node, its own processes and name, and file systems of its own: overlays over this
system's, so that the paths in manifests are the usual ones. All of it hangs on one process, with which everything goes.
What a kubelet wants to set in the kernel, it finds set: files that say so lie over those parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from tests.servers.kubernetes import Kubernetes, binary
from tests.waiting import until

from pyflannel.lab import Node
from pyflannel.lab.sandbox import Namespace, Process
from pyflannel.lab.servers.process import Server

__all__ = ["COMMANDS", "PROGRAMS", "ControlPlane", "Machine", "Pod"]

COMMANDS: Final = ("kubelet", "kube-controller-manager", "kube-scheduler")
"""What ``tools/build-kubernetes`` has to build beside an API server."""

PROGRAMS: Final = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
PLUGINS: Final = Path("/usr/lib/cni")
"""Where Debian has the CNI plugins."""

PAUSE: Final = "registry.example.com/pause:1"
"""The image in which a pod's namespaces live."""

_CGROUPS: Final = Path("/sys/fs/cgroup")

# A kubelet refuses other values (protectKernelDefaults); without that it would write them into this system's kernel.
_KERNEL: Final = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}

_HOLDER: Final = """
mount --make-rshared /
here={directory}/machine
mkdir -p $here/run $here/kernel
for path in etc opt var; do
    mkdir -p $here/$path/upper $here/$path/work
    mount -t overlay -o lowerdir=/$path,upperdir=$here/$path/upper,workdir=$here/$path/work machine /$path
done
mount -t tmpfs machine /var/lib
mount -t tmpfs machine /var/log
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/kubelet
cp {plugins}/bridge {plugins}/host-local {plugins}/portmap {plugins}/loopback /opt/cni/bin
mount -t proc proc /proc
{kernel}
mkdir $here/cgroup
mount --rbind {cgroups} $here/cgroup
mount -t sysfs machine /sys
mount --rbind $here/cgroup {cgroups}
mount --bind $here/run /run
hostname {name}
echo ready
trap '' CHLD
exec cat >/dev/null
"""

_CONTAINERD: Final = f"""
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
"""


class ControlPlane(Kubernetes):
    """An API server with the admission that clusters have, and the two who work for it: controllers and scheduler.

    :param cluster_cidr: from which Nodes get their pod CIDRs.
    """

    def __init__(self, directory: Path, *, cluster_cidr: str, **options: Any) -> None:
        more = ["--kubelet-preferred-address-types=InternalIP"]
        super().__init__(directory, disabled_admission=(), arguments=more, **options)
        self._cluster_cidr = cluster_cidr
        self.workers = {name: Server(name, directory / f"{name}.log") for name in COMMANDS[1:]}

    def start(self) -> None:
        """See :class:`~pyflannel.lab.servers.process.Cluster`."""
        super().start()
        config = f"--kubeconfig={self.kubeconfig(self.directory / 'workers.kubeconfig')}"
        common = [config, "--leader-elect=false", "--secure-port=0"]
        more = {
            "kube-controller-manager": [
                "--allocate-node-cidrs",
                f"--cluster-cidr={self._cluster_cidr}",
                f"--root-ca-file={self.cafile}",
                f"--service-account-private-key-file={self.signer.keyfile}",
                f"--cert-dir={self.directory}",
            ],
            "kube-scheduler": [],
        }
        for name, server in self.workers.items():
            if not server.running:
                server.launch(self.place, [binary(name), *common, *more[name]])

    def stop(self) -> None:
        """See :class:`~pyflannel.lab.servers.process.Cluster`."""
        for server in self.workers.values():
            if server.running:
                server.kill()
        super().stop()

    def pods(self, namespace: str, labels: str = "", node: str | None = None) -> list[dict[str, Any]]:
        """Pods that are not on their way out."""
        found = self.admin("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector={labels}")["items"]
        return [
            pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"] and node in (None, pod["spec"].get("nodeName"))
        ]

    def ready_pods(self, namespace: str, labels: str, count: int) -> list[dict[str, Any]]:
        """Wait until there are so many pods and each is ready, and return them by their Nodes' names."""

        def look() -> list[dict[str, Any]]:
            found = self.pods(namespace, labels)
            return found if len(found) == count and all(map(is_ready, found)) else []

        found = until(look, lambda: self.kubectl("describe", "pods", "-n", namespace, "-l", labels))
        return sorted(found, key=lambda pod: str(pod["spec"]["nodeName"]))

    def updated(self, namespace: str, daemonset: str) -> bool:
        """Whether all pods of a DaemonSet are as it has them now, and ready."""
        found = self.admin("GET", f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{daemonset}")
        status = found["status"]
        wanted = status["desiredNumberScheduled"]
        return bool(
            status["observedGeneration"] == found["metadata"]["generation"]
            and wanted == status.get("updatedNumberScheduled") == status.get("numberReady")
        )


def is_ready(thing: Any) -> bool:
    """Whether a pod or a Node says that it is ready."""
    conditions = thing.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


class Machine(Namespace):
    """A lab's node that is one of a cluster.

    :param images: archives of the images that pods use, as ``docker save`` writes them.
    """

    def __init__(self, node: Node, images: Sequence[Path]) -> None:
        super().__init__(node.sandbox, node.name)
        self.node = node
        self._images = tuple(images)
        self._cgroup = f"pyflannel-{os.getpid()}-{node.name}"
        self._holder: Process | None = None
        self._pid = 0
        self.processes: list[Process] = []

    @property
    def entry(self) -> list[str]:
        """See :class:`~pyflannel.lab.sandbox.Namespace`."""
        return ["nsenter", f"--target={self._pid}", "--mount", "--uts", "--ipc", "--pid", "--net"]

    def outside(self, path: str) -> Path:
        """Where a path of the machine is found from outside."""
        return Path(f"/proc/{self._pid}/root") / path.lstrip("/")

    def log(self, program: str) -> str:
        """What a program of the machine has said."""
        return self._log(program).read_text(errors="replace")

    def _log(self, program: str) -> Path:
        return self.node.lab.outside(self.node.directory / f"{program}.log")

    def start_up(self, kube: ControlPlane) -> None:
        """Power on: containerd, the images, the kubelet, which takes over its Node."""
        self._hold()
        for controller in _controllers():
            (controller / self._cgroup).mkdir(exist_ok=True)
        _copy_cpuset(_CGROUPS / "cpuset" / self._cgroup)
        self.outside("/etc/containerd").mkdir(exist_ok=True)
        self.outside("/etc/containerd/config.toml").write_text(_CONTAINERD)
        self._launch("containerd", ["containerd"])
        until(lambda: not self.run(["ctr", "version"], check=False).returncode, lambda: self.log("containerd"))
        for image in self._images:
            done = self.run(["sh", "-c", 'exec ctr --namespace k8s.io images import - <"$0"', image], timeout=120)
            assert done.stdout, image
        kube.kubeconfig(self.outside("/etc/kubelet.kubeconfig"), **{"certificate-authority": "/etc/kubelet-ca.pem"})
        self.outside("/etc/kubelet-ca.pem").write_bytes(kube.cafile.read_bytes())
        self.outside("/etc/kubelet.json").write_text(json.dumps(self._kubelet()))
        kube.add_node(self.name)  # a kubelet that comes before its Node tries its storage again after minutes only
        self._start_kubelet()

    def _start_kubelet(self) -> None:
        words = ["--config=/etc/kubelet.json", "--kubeconfig=/etc/kubelet.kubeconfig"]
        self._launch("kubelet", [binary("kubelet"), *words, f"--hostname-override={self.name}"])

    def shut_down(self) -> None:
        """Power off: everything that runs here ends at once, and its files are gone."""
        for process in self.processes:
            if process.running:
                process.kill()
        self.processes.clear()
        if self._holder is not None:
            self._holder.kill()
            self._holder = None
        for controller in _controllers():
            until(lambda group=controller / self._cgroup: _removed(group), "the end of all in a control group")  # type: ignore[misc]

    def pod(self, pod: Any) -> Pod:
        """The network namespace of a pod that runs here."""
        return Pod(self, pod)

    def _hold(self) -> None:
        kernel = "\n".join(
            f"echo {value} >$here/kernel/{index}; mount --bind $here/kernel/{index} /proc/sys/{name}"
            for index, (name, value) in enumerate(_KERNEL.items())
        )
        script = _HOLDER.format(
            directory=self.node.directory, plugins=PLUGINS, cgroups=_CGROUPS, kernel=kernel, name=self.name
        )
        words = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-ec", script]
        with self._log("machine").open("a") as log:
            self._holder = self.node.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._holder.proxy.stdout is not None
        assert self._holder.proxy.stdout.readline() == "ready\n", self.log("machine")
        self._pid = _only_child(self._holder.pid)

    def _launch(self, program: str, words: Sequence[str | os.PathLike[str]]) -> None:
        with self._log(program).open("a") as log:
            self.processes.append(self.start(words, stdout=log, stderr=log))

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "protectKernelDefaults": True,
            "resolvConf": "",
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": False,
            "syncFrequency": "5s",  # how late a mounted ConfigMap may be; a minute by default
        }


class Pod(Namespace):
    """A pod, seen from its network namespace."""

    def __init__(self, machine: Machine, pod: Any) -> None:
        super().__init__(machine.sandbox, pod["metadata"]["name"])
        self.machine = machine
        self.addresses = tuple(str(each["ip"]) for each in pod["status"]["podIPs"])
        self.netns = next(self._find())

    @property
    def entry(self) -> list[str]:
        """See :class:`~pyflannel.lab.sandbox.Namespace`. Files and processes are the lab's."""
        return ["nsenter", f"--target={self.sandbox.pid}", "--mount", "--pid", f"--net={self.netns}"]

    def address(self, version: int) -> str:
        """Its address of one family."""
        return next(each for each in self.addresses if ip_address(each).version == version)

    def _find(self) -> Iterator[Path]:
        """CRI keeps the namespaces of its pods by names of its own: ours is the one that has our address."""
        for netns in self.machine.outside("/run/netns").iterdir():
            words = ["nsenter", f"--net={netns}", "ip", "-json", "address"]
            said = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
            if self.addresses[0] in [each["local"] for link in said for each in link.get("addr_info", ())]:
                yield netns


def _only_child(parent: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    return int(entry.name)
    raise ProcessLookupError(f"process {parent} has no child")


def _controllers() -> list[Path]:
    return [entry for entry in _CGROUPS.iterdir() if entry.is_dir()]


def _copy_cpuset(cgroup: Path) -> None:
    """Version 1 gives a new group no processors and no memory."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        (cgroup / name).write_text((cgroup.parent / name).read_text())


def _removed(cgroup: Path) -> bool:
    """Remove what is empty of a control group; whether that is all."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with suppress(OSError):  # somebody who was killed has not ended yet
            os.rmdir(directory)
    return not cgroup.exists()
