"""Machines with other kernels, inside this one: boot one, run commands in it, and nothing of it is left behind.

The idea: a guest is this machine with another kernel. Its root is a layer in memory over this machine's files, which it
can't write to, so that the interpreter, the virtual environment, the checkout and iproute2 are there under the same
paths, and nothing has to be installed or copied. It has no network device. It lives in the box that a lab lives in
(:class:`~pyflannel.lab.Sandbox`), and goes with it however the process that booted it ends.

Inside, :mod:`tests.kernels.agent` runs the commands, so a test for another kernel is an ordinary test of this
repository, which pytest runs there::

    with guest("uml") as machine:
        machine.run(["ip", "link", "add", "flannel.ipip", "type", "ipip", "local", "192.0.2.1"])
        machine.pytest("tests/kernels/inside/test_ipip.py")

``tools/fetch-kernels`` puts the kernels into the cache; without them, :class:`NoMachineError` says so.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import IO, Any, ClassVar, Final

from tests.kernels.agent import MARK
from tests.kernels.initramfs import archive

from pyflannel.lab import Process, Sandbox

__all__ = [
    "CHECKOUT",
    "INSIDE",
    "KERNELS",
    "Cloud",
    "Guest",
    "GuestError",
    "Kernel",
    "NoMachineError",
    "UserMode",
    "guest",
]

INSIDE: Final = "PYFLANNEL_INSIDE"
"""The environment variable that tells tests in which machine they run; unset outside."""

CHECKOUT: Final = Path(__file__).resolve().parents[2]

_INITRAMFS: Final = PurePosixPath("/run/initramfs")
_GRACE: Final = 30.0
"""Seconds that a guest may take to answer, beyond what it was given for the command itself."""


class NoMachineError(Exception):
    """There is no such machine here; says what is missing."""


class GuestError(Exception):
    """A guest did not boot, or does not answer, or a command in it failed."""


def cache() -> Path:
    """Where ``tools/fetch-kernels`` puts what it fetches."""
    named = os.environ.get("PYFLANNEL_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(named) if named else home / "pyflannel") / "kernels"


class Kernel:
    """A kernel, and the program that runs it.

    ``boot`` is how many seconds its agent may take to answer, several times what it takes on an idle machine.
    ``slowness`` is how many times longer a command may take there than here.
    """

    name: ClassVar[str]
    boot: ClassVar[float]
    slowness: ClassVar[float]
    terminal: ClassVar[str]
    """The agent's, as the guest knows it."""

    mount_host: ClassVar[str]
    """The shell command that mounts this machine's files on ``/host``."""

    drivers: ClassVar[Sequence[str]]
    """Modules that have to be loaded before those files can be the root."""

    environment: Mapping[str, str] = {}
    """What the program needs in its environment."""

    settings: Mapping[str, str] = {}
    """What daemons have to be told there, as environment variables."""

    def needs(self) -> Iterable[Path]:
        """The files without which it does not run."""
        raise NotImplementedError

    def modules(self) -> Path:
        """The folder that is ``/lib/modules`` in the guest."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """The program that is the machine. The agent's terminal is its standard input and output; its standard error
        takes the console."""
        raise NotImplementedError


class UserMode(Kernel):
    """Linux as a process of this machine (Documentation/virt/uml): computes as fast, and its system calls are slow."""

    name = "uml"
    boot = 60.0
    slowness = 4.0
    terminal = "/dev/ttyS0"
    mount_host = "mount -t hostfs -o ro host /host"
    drivers = ("overlay",)
    settings: Mapping[str, str] = {"PYFLANNEL_CHECK_OVERLAY_SOURCES": "false"}  # it has no firewall that could

    def needs(self) -> Iterable[Path]:
        """One program."""
        return [cache() / "uml/usr/bin/linux.uml"]

    def modules(self) -> Path:
        """From the same package."""
        return cache() / "uml/usr/lib/uml/modules"

    def command(self) -> list[str]:
        """``con0`` is the console, ``ssl0`` the terminal."""
        places = ["uml_dir=/run/", "con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1"]
        return [str(*self.needs()), "mem=1024M", f"initrd={_INITRAMFS}", *places, "quiet"]


class Cloud(Kernel):
    """Debian's kernel for virtual machines, in one that qemu emulates: no KVM, so every instruction is slow."""

    name = "cloud"
    boot = 120.0
    slowness = 20.0
    terminal = "/dev/vport0p1"
    mount_host = "mount -t virtiofs -o ro host /host"
    drivers = ("virtio_pci", "virtio_console", "virtiofs", "overlay")

    def __init__(self) -> None:
        # Packages from before /usr was merged have their libraries in /lib.
        old, new = (cache() / f"qemu/{place}/{os.uname().machine}-linux-gnu" for place in ("lib", "usr/lib"))
        self.environment = {"LD_LIBRARY_PATH": f"{new}:{old}", "QEMU_MODULE_DIR": str(new / "qemu")}

    def needs(self) -> Iterable[Path]:
        """qemu, the server of this machine's files, and the kernel."""
        qemu = cache() / "qemu/usr"
        return [qemu / "bin/qemu-system-x86_64", qemu / "lib/qemu/virtiofsd", cache() / "cloud/boot/vmlinuz"]

    def modules(self) -> Path:
        """From the kernel's package."""
        return cache() / "cloud/lib/modules"

    def command(self) -> list[str]:
        """The old PC rather than qemu's faster ``microvm``, in which this kernel finds no timer to measure its clock
        by when the host is busy. The files' server starts first, and qemu waits for its socket."""
        qemu, files, kernel = self.needs()
        share = qemu.parents[1] / "share"
        words = [
            *(str(qemu), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-M", "pc,usb=off,vmport=off,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", "2", "-m", "1024M"),
            *("-object", "memory-backend-memfd,id=memory,size=1024M,share=on"),
            *("-L", str(share / "qemu"), "-L", str(share / "seabios")),
            *("-kernel", str(kernel), "-initrd", str(_INITRAMFS), "-append", f"console=ttyS0 quiet panic=-1 {_LIGHT}"),
            *("-chardev", "file,id=console,path=/proc/self/fd/2", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", "stdio,id=terminal,signal=off"),
            *("-device", "virtserialport,chardev=terminal"),
            *("-chardev", "socket,id=files,path=/run/files", "-device", "vhost-user-fs-pci,chardev=files,tag=host"),
        ]
        server = [
            str(files),
            "--socket-path=/run/files",
            "-o",
            "source=/",
            "-o",
            "cache=always",
            "-o",
            "sandbox=chroot",
        ]
        wait = "while [ ! -S /run/files ]; do kill -0 $!; sleep 0.02; done"
        return ["sh", "-ec", f"{shlex.join(server)} 2>/run/files.log & {wait}; exec {shlex.join(words)}"]


_LIGHT: Final = (
    "mitigations=off randomize_kstack_offset=off init_on_alloc=0 audit=0 nowatchdog rcupdate.rcu_expedited=1"
)
"""What spares an emulated processor work that nobody is protected by there: a quarter to a third of all it does. Its
clock is left alone: how fast the processor's own counter runs can't be found out on a busy machine."""

KERNELS: Final[Mapping[str, type[Kernel]]] = {kernel.name: kernel for kernel in (UserMode, Cloud)}

_TEMPORARY: Final = ("/dev/shm", "/tmp", "/run")
"""Empty in a guest, but for what :func:`_kept` names."""

# The first process, in the initramfs: this machine's files, a layer in memory over them, and the same places as on any
# machine. What the host mounts below its root shows through, so that the virtual file systems come on top.
_INIT: Final = """#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a {drivers}
{mount_host}
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount --move /dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm /root/lib/modules
mount -t devpts devpts /root/dev/pts
ln -s /proc/self/fd/0 /root/dev/stdin
ln -s /proc/self/fd/1 /root/dev/stdout
ln -s /proc/self/fd/2 /root/dev/stderr
ln -s /proc/self/fd /root/dev/fd
{keep}
for place in {temporary}; do mount -t tmpfs tmpfs /root$place; done
chmod 1777 /root/dev/shm /root/tmp
{restore}
mount --bind /host{modules} /root/lib/modules
mkdir /root/run/guest
cp /bin/busybox /start /root/run/guest
ln -s busybox /root/run/guest/modprobe
exec switch_root /root /bin/sh /run/guest/start
"""

# The same process, in the root: it lets the kernel load modules by itself, and reaps what the agent leaves behind.
_START: Final = """
echo /run/guest/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
cd {checkout}
{agent}
"""


def _initramfs(kernel: Kernel) -> bytes:
    busybox = cache() / "busybox/bin/busybox"
    (release,) = (path for path in kernel.modules().iterdir() if (path / "modules.dep").exists())
    applets = ("sh", "mount", "modprobe", "mkdir", "chmod", "cp", "ln", "switch_root")
    agent = [sys.executable, str(Path(__file__).with_name("agent.py")), kernel.terminal]
    environment = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin:/run/guest",
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *agent]
    kept = [(f"/kept/{number}", shlex.quote(f"/root{path}")) for number, path in enumerate(_kept())]
    init = _INIT.format(
        drivers=" ".join(kernel.drivers),
        mount_host=kernel.mount_host,
        modules=shlex.quote(str(kernel.modules())),
        temporary=" ".join(_TEMPORARY),
        keep="\n".join(f"mkdir {aside}; mount --bind {path} {aside}" for aside, path in kept),
        restore="\n".join(f"mkdir -p {path}; mount --move {aside} {path}" for aside, path in kept),
    )
    start = _START.format(checkout=shlex.quote(str(CHECKOUT)), agent=shlex.join(words))
    return archive(
        directories=("bin", "dev", "host", "kept", "layer", "proc", "root"),
        programs={"bin/busybox": busybox.read_bytes(), "init": init.encode(), "start": start.encode()},
        links={f"bin/{applet}": "busybox" for applet in applets},
        files=dict(_drivers(release, kernel.drivers)),
    )


def _kept() -> list[Path]:
    """The checkout and the interpreter, where they lie in a place that is empty in a guest otherwise."""
    needed = {CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}
    found = {path for path in needed if any(path.is_relative_to(place) for place in _TEMPORARY)}
    return sorted(path for path in found if not found & set(path.parents))


def _drivers(release: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The modules of these names, those they need, and their list, under the paths they have on a machine."""
    needs = {}
    for line in (release / "modules.dep").read_text(encoding="utf-8").splitlines():
        module, _, others = line.partition(":")
        needs[Path(module).stem.replace("-", "_")] = [module, *others.split()]
    wanted = sorted({module for name in names for module in needs.get(name, ())})
    for name in ("modules.dep", "modules.alias", "modules.symbols"):
        yield f"lib/modules/{release.name}/{name}", (release / name).read_bytes()
    for module in wanted:
        yield f"lib/modules/{release.name}/{module}", (release / module).read_bytes()


class Guest:
    """A machine that runs; made by :func:`guest`. One command at a time."""

    def __init__(self, kernel: Kernel, sandbox: Sandbox) -> None:
        self.kernel = kernel
        self.console: deque[str] = deque(maxlen=2000)
        """The last lines that the kernel said."""

        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._number = 0
        began = time.monotonic()
        self._process = self._start(sandbox)
        self.release = str(self._answer(kernel.boot, "boot")["ready"])
        """As ``uname -a`` has it."""

        self.boot_seconds = time.monotonic() - began

    def _start(self, sandbox: Sandbox) -> Process:
        # Whatever a guest does to its view of this machine's files, they can't be written from here.
        sandbox.namespace.run(["mount", "-o", "remount,bind,ro", "/"])
        sandbox.outside(_INITRAMFS).write_bytes(_initramfs(self.kernel))
        process = sandbox.namespace.start(
            self.kernel.command(),
            env=self.kernel.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for stream in (process.proxy.stdout, process.proxy.stderr):
            threading.Thread(target=self._read, args=[stream, stream is process.proxy.stdout], daemon=True).start()
        return process

    def _read(self, stream: IO[str], terminal: bool) -> None:
        """Sort what comes: answers, and everything else."""
        for line in stream:
            before, mark, message = line.partition(MARK)
            if terminal and mark:
                self._answers.put(json.loads(message))
            else:
                self.console.append(before.rstrip())
        if terminal:
            self._answers.put(None)

    def _answer(self, seconds: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise self._silent(f"{what}: no answer within {seconds:g} s") from None
            if answer is None:
                raise self._silent(f"{what}: the machine ended")
            if answer["number"] == self._number:  # else it is to a command that was given up
                return answer

    def _silent(self, what: str) -> GuestError:
        return GuestError("\n".join([f"{self.kernel.name}: {what}; its console:", *self.console]))

    def run(
        self,
        words: Sequence[str | os.PathLike[str]],
        *,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout's folder, as root, and return its exit status, output and errors.

        :param timeout: seconds, as a machine like this one takes them; the guest gets ``slowness`` times as many.
        :param check: raise if it fails.
        :raises GuestError: it failed or took too long, or the guest does not answer.
        """
        command = [os.fspath(word) for word in words]
        seconds = timeout * self.kernel.slowness
        self._number += 1
        message = {
            "number": self._number,
            "words": command,
            "input": input,
            "timeout": seconds,
            "environment": dict(env or {}),
        }
        assert self._process.proxy.stdin is not None
        print(json.dumps(message), file=self._process.proxy.stdin, flush=True)
        answer = self._answer(seconds + _GRACE, shlex.join(command))
        said = f"{answer['output']}{answer['errors']}"
        if answer["status"] is None:
            raise GuestError(f"{self.kernel.name}: {shlex.join(command)}: no end within {seconds:g} s\n{said}")
        if check and answer["status"]:
            raise GuestError(f"{self.kernel.name}: {shlex.join(command)}: exit status {answer['status']}\n{said}")
        return subprocess.CompletedProcess(command, answer["status"], answer["output"], answer["errors"])

    def load(self, *modules: str) -> None:
        """Load modules, where nothing asks the kernel for them in time."""
        self.run(["/run/guest/modprobe", "-a", *modules])

    def pytest(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run tests of this repository, under the rules of this run (``CI``), and return what pytest says.

        :param arguments: files below the checkout, node ids, options.
        :raises GuestError: one failed; has pytest's report.
        """
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=0", "-vv", *arguments]
        names = ("CI", "PYFLANNEL_CACHE", "PYTHONPATH", "XDG_CACHE_HOME")
        rules = {name: os.environ[name] for name in names if name in os.environ}
        rules |= {INSIDE: self.kernel.name, "PYFLANNEL_SLOWNESS": str(self.kernel.slowness), **self.kernel.settings}
        return self.run(words, env=rules, timeout=timeout).stdout


@contextmanager
def guest(name: str) -> Iterator[Guest]:
    """Boot the machine ``name`` (see :data:`KERNELS`); it runs as long as the context lasts.

    :raises NoMachineError: it can't be run here; says why.
    :raises GuestError: it did not boot; has its console.
    """
    kernel = KERNELS[name]()
    for path in (cache() / "busybox/bin/busybox", *kernel.needs()):
        if not path.exists():
            raise NoMachineError(f"{path} is missing: tools/fetch-kernels {name}")
    if shutil.which("ip") is None:
        raise NoMachineError("ip is missing: apt-get install iproute2")
    with Sandbox() as sandbox:
        yield Guest(kernel, sandbox)
