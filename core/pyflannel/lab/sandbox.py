"""The box a lab lives in: network, mount and process namespaces of its own, and a way to run commands inside.

The idea: one tiny process holds everything. It is the first process of a pid namespace, waits for the end of its
standard input, and nothing else refers to the namespaces. When its input ends, because :meth:`Sandbox.close` was
called or because this process died in whatever way, it exits; the kernel then kills every process of the pid
namespace, and with the last of them go the mounts, the network namespaces and all links in them. So there is no
clean-up code that could fail to run, and nothing outside is ever touched.

Inside, ``/run`` is a private tmpfs, so names in ``/run/netns`` (as ``ip netns`` keeps them) can't collide between labs.
Commands enter through nsenter(1). Without root, all of this happens in a user namespace in which the caller is root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Final

from pyflannel.errors import ExitCode, KernelError, PyflannelError
from pyflannel.lab.warm import Forked, Warm, of_ours

__all__ = ["CommandError", "Namespace", "Process", "Sandbox", "missing_programs", "rootless"]

PROGRAMS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount"}
"""The programs a lab runs, and the Debian packages they come in."""

LAB_DIRECTORY: Final = PurePosixPath("/run/lab")

_warm: Final = Warm()

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21

# Until the new /proc is mounted, the old one tells the holder its pid as the outside sees it. Ignoring SIGCHLD, which
# exec keeps, makes the kernel reap what is re-parented to the holder as the pid namespace's first process.
_HOLDER: Final = """
read -r pid _ </proc/self/stat
mount -t tmpfs -o mode=0755 lab /run
mkdir /run/netns /run/lab
mount -t proc proc /proc
ip link set lo up
echo "$pid"
trap '' CHLD
exec cat >/dev/null
"""


class CommandError(PyflannelError):
    """A command inside a lab failed, or took too long."""

    exit_code = ExitCode.CHECK_FAILED


def missing_programs() -> dict[str, str]:
    """The programs a lab needs and this system lacks, with their Debian packages."""
    return {
        program: package for program, package in PROGRAMS.items() if shutil.which(program, path=_search_path()) is None
    }


def rootless() -> bool:
    """Whether a lab of this process needs a user namespace, for want of CAP_SYS_ADMIN and CAP_NET_ADMIN."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return not (effective >> _CAP_NET_ADMIN & 1 and effective >> _CAP_SYS_ADMIN & 1)
    return True


def _search_path() -> str:
    """``PATH`` with the sbin directories, where Debian keeps ``ip`` and doesn't let users find it."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    environment = {**os.environ, "PATH": _search_path(), **(extra or {})}
    if python_path := environment.get("PYTHONPATH"):
        # Commands start in "/": a relative entry would point elsewhere.
        environment["PYTHONPATH"] = os.pathsep.join(
            str(Path(entry).absolute()) for entry in python_path.split(os.pathsep)
        )
    return environment


class Process:
    """A process inside a sandbox.

    What was started is nsenter, or a fork that does the same (:mod:`pyflannel.lab.warm`). It waits for its one child,
    the process proper; signals go to the child.
    """

    def __init__(self, proxy: subprocess.Popen[str] | Forked, words: Sequence[str], where: str) -> None:
        self.proxy = proxy
        self.words = tuple(words)
        self.where = where
        self._child: int | None = None

    @property
    def pid(self) -> int:
        """The process id as seen from outside the sandbox.

        :raises ProcessLookupError: it has ended.
        """
        deadline = time.monotonic() + 10
        while self._child is None and time.monotonic() < deadline:
            if self.proxy.poll() is not None:
                break
            self._child = _child_of(self.proxy.pid)
        if self._child is None or self.proxy.poll() is not None:
            raise ProcessLookupError(f"{self.where}: {self.words[0]} has ended")
        return self._child

    @property
    def running(self) -> bool:
        """Whether it has not ended; a stopped process runs too."""
        return self.proxy.poll() is None

    @property
    def returncode(self) -> int | None:
        """As ``subprocess`` has it: negative for a signal, ``None`` while it runs."""
        return self.proxy.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; none if it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def pause(self) -> None:
        """Stop it (SIGSTOP), and return when it and nsenter, which follows suit, stand still."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while self.running and _state(self.proxy.pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.002)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self.signal(signal.SIGCONT)
        self.proxy.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it (SIGKILL) and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.proxy.send_signal(signal.SIGCONT)
        self.proxy.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        :raises subprocess.TimeoutExpired: it did not end within ``timeout`` seconds.
        """
        return self.proxy.wait(timeout)

    def stop(self, timeout: float = 10.0) -> int:
        """Ask it to end (SIGTERM), kill it after ``timeout`` seconds, and return its exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) behind the command: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _state(pid: int) -> str:
    try:
        return _stat(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _child_of(parent: int) -> int | None:
    # Not /proc/<pid>/task/<tid>/children: kernels without CONFIG_PROC_CHILDREN have no such file.
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int(_stat(int(entry.name))[1]) == parent:
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return None


class Namespace:
    """A network namespace of a sandbox, by its name; the sandbox's own has the name ``""``."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.sandbox = sandbox
        self.name = name

    @property
    def entry(self) -> list[str]:
        """The command that, put before another, runs that one here. Works in any shell of the same user."""
        return self.sandbox.entry(self.name)

    def start(
        self,
        words: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = subprocess.DEVNULL,
        stderr: int | IO[str] | None = subprocess.DEVNULL,
    ) -> Process:
        """Start a command here, in a session of its own so that a terminal's Ctrl-C reaches only the lab's owner."""
        command, environment = [os.fspath(word) for word in words], _environment(env)
        ours = of_ours(command)
        proxy: subprocess.Popen[str] | Forked | None = None
        if ours is not None:
            proxy = _warm.start(ours, environment, self.sandbox.namespaces(self.name), (stdin, stdout, stderr))
        if proxy is None:
            proxy = subprocess.Popen(
                [*self.entry, *command],
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        process = Process(proxy, command, self.name or "lab")
        self.sandbox.processes.add(process)
        return process

    def run(
        self,
        words: Sequence[str | os.PathLike[str]],
        *,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here and return its exit status, output and errors.

        :param check: raise if it fails.
        :raises CommandError: it failed, or took longer than ``timeout`` seconds (it is killed then).
        """
        process = self.start(
            words,
            env=env,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process.proxy:
            try:
                output, errors = process.proxy.communicate(input, timeout)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CommandError(
                        f"{process.where}: {' '.join(process.words)}: no end within {timeout:g} s"
                    ) from None
                raise
            finally:
                self.sandbox.processes.discard(process)
        done = subprocess.CompletedProcess(list(process.words), process.proxy.wait(), output, errors)
        if check and done.returncode:
            raise CommandError(
                f"{process.where}: {' '.join(process.words)}: exit status {done.returncode}: "
                f"{(errors or output).strip() or 'no message'}"
            )
        return done

    def __repr__(self) -> str:
        return f"<Namespace {self.name or '(lab)'}>"


class Sandbox:
    """The namespaces of one lab. A context manager; :meth:`close` leaves nothing behind.

    :raises KernelError: the namespaces can't be made; says which right or program is missing.
    """

    def __init__(self) -> None:
        if missing := missing_programs():
            packages = " ".join(sorted(set(missing.values())))
            raise KernelError(f"the lab needs {', '.join(missing)}: apt-get install {packages}")
        self.rootless = rootless()
        self.processes: set[Process] = set()
        user = ["--user", "--map-root-user"] if self.rootless else []
        self._holder = subprocess.Popen(
            ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-ec", _HOLDER],
            env=_environment(),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        answer = self._holder.stdout.readline()
        if not answer:
            raise self._refused()
        self.pid = int(answer)
        self.namespace = Namespace(self, "")

    def _refused(self) -> KernelError:
        reason = self._holder.communicate()[1].strip()
        if not self.rootless:
            return KernelError(f"can't make the lab's namespaces: {reason}")
        return KernelError(
            f"can't make a user namespace for the lab ({reason}). This system keeps them from unprivileged users "
            "(see sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
            "kernel.apparmor_restrict_unprivileged_userns): run the lab with sudo"
        )

    def entry(self, name: str) -> list[str]:
        """The nsenter command for the network namespace ``name`` (``""``: the sandbox's own)."""
        user = ["--user", "--preserve-credentials"] if self.rootless else []
        network = f"--net={self._network(name)}" if name else "--net"
        return ["nsenter", f"--target={self.pid}", *user, "--mount", "--pid", network]

    def namespaces(self, name: str) -> list[str]:
        """The files of the namespaces that this enters, in order."""
        kinds = [*(["user"] if self.rootless else []), "mnt", "pid"]
        return [*(f"/proc/{self.pid}/ns/{kind}" for kind in kinds), self._network(name)]

    def _network(self, name: str) -> str:
        return f"/proc/{self.pid}/root/run/netns/{name}" if name else f"/proc/{self.pid}/ns/net"

    def outside(self, path: PurePosixPath) -> Path:
        """Where a path inside the sandbox is found from outside."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def close(self) -> None:
        """End every process of the sandbox; its namespaces and files go with them. Idempotent."""
        if self._holder.returncode is not None:
            return
        with self._holder:
            assert self._holder.stdin is not None
            self._holder.stdin.close()
            # The kernel ends a pid namespace when all that was in it is reaped, and a stopped nsenter reaps nothing.
            self._continue_all()
            while not self._ended(0.2):
                self._continue_all()
        for process in self.processes:
            with process.proxy:
                process.proxy.send_signal(signal.SIGCONT)

    def _ended(self, seconds: float) -> bool:
        try:
            self._holder.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _continue_all(self) -> None:
        for process in self.processes:
            process.proxy.send_signal(signal.SIGCONT)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
