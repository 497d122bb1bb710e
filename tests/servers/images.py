"""Container images for tests, made here without a registry, as archives in the form of ``docker save``.

That of pyflannel comes from its Dockerfile, which a Docker daemon builds in a node of a lab, so that it meets no other
Docker of this machine. Its base has this machine's Python, what that needs, and a shell; wheels are those that
``tools/bootstrap kubernetes`` has collected. Images of one program need no daemon.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.waiting import until

from pyflannel.lab import Node

__all__ = ["MISSING", "built_image", "busybox_image", "pause_image", "tools_image"]

ROOT: Final = Path(__file__).parents[2]
CONTEXT: Final = ROOT / "contrib" / "kubernetes"
WHEELS: Final = ROOT / ".cache" / "image-wheels"
APPLETS: Final = ("sh", "find", "rm", "mkdir", "chmod", "cp", "env", "true", "ls", "cat")
PROGRAMS: Final = ("dockerd", "docker", "containerd", "runc", "busybox", "nft", "iptables", "ldd")


def _missing() -> str | None:
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not any(WHEELS.glob("*.whl")):
        return f"no wheels in {WHEELS}: tools/bootstrap kubernetes"
    return None if os.access("/sys/fs/cgroup", os.W_OK) else "containers need cgroups"


MISSING: Final = _missing()
"""Why the image can't be built here, or ``None``."""


@contextmanager
def built_image(node: Node, name: str, wheels: Path) -> Iterator[Callable[..., str]]:
    """pyflannel's image, built by its Dockerfile under this name.

    :param node: where the Docker daemon runs, for as long as the context lasts.
    :param wheels: an empty directory, for that of this source tree.
    :returns: a function that runs docker with more words, and returns what it prints.
    """
    work = node.lab.outside(node.directory)
    shutil.copytree(CONTEXT, work / "context")
    shutil.copytree(WHEELS, work / "context" / "wheels", dirs_exist_ok=True)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*words, "--wheel-dir", wheels, ROOT], check=True, timeout=200)
    for wheel in wheels.glob("*.whl"):
        shutil.copy(wheel, work / "context" / "wheels")
    _base(work / "base")
    with _docker(node) as run:
        host = f"unix://{node.directory}/docker/docker.sock"
        node.run(["sh", "-ec", f"tar -C {node.directory}/base -c . | docker --host {host} import - base"], timeout=120)
        here = str(node.directory / "context")
        run("build", "--network=none", "--build-arg", "BASE=base", "--tag", name, here)
        yield run


@contextmanager
def _docker(node: Node) -> Iterator[Callable[..., str]]:
    docker = node.directory / "docker"
    host = f"unix://{docker}/docker.sock"
    cgroup = f"pyflannel-image-{os.getpid()}"
    flags = {
        "--storage-driver": "vfs",
        "--data-root": docker / "data",
        "--exec-root": docker / "exec",
        "--pidfile": docker / "pid",
        "--host": host,
        "--cgroup-parent": f"/{cgroup}",
    }
    log = (node.lab.outside(node.directory) / "docker.log").open("w")
    daemon = node.start(
        ["dockerd", "--iptables=false", *(f"{name}={value}" for name, value in flags.items())],
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def run(*asked: str) -> str:
        words = ["docker", "--host", host, *asked]
        done = node.run(words, env={"DOCKER_BUILDKIT": "0"}, timeout=300, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    try:
        until(lambda: not node.run(["docker", "--host", host, "version"], check=False).returncode, "dockerd answers")
        yield run
    finally:
        daemon.stop()
        log.close()
        for left in Path("/sys/fs/cgroup").glob(f"**/{cgroup}"):
            left.rmdir()


def _base(directory: Path) -> None:
    """A root file system with Python and no compiler."""
    python = Path(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = Path(os.path.realpath(python / "bin" / version))
    modules = python / "lib" / version
    unused = shutil.ignore_patterns("test", "tests", "idlelib", "tkinter", "__pycache__", "site-packages", "config-*")
    shutil.copytree(modules, directory / modules.relative_to("/"), ignore=unused)
    (directory / modules.relative_to("/") / "site-packages").mkdir(exist_ok=True)
    bundled = sysconfig.get_config_var("WHEEL_PKG_DIR")  # where distributions have the pip of virtual environments
    if bundled:
        shutil.copytree(bundled, directory / Path(bundled).relative_to("/"))
    _tools(directory)
    _copy(directory, [interpreter, *_libraries([interpreter, *modules.glob("lib-dynload/*.so")])])
    (directory / "bin" / "python3").symlink_to(interpreter)


def _tools(directory: Path) -> None:
    """A root file system with a shell, nft and iptables, as distributions have them."""
    for name in ("bin", "usr/sbin", "tmp", "etc", "run", "proc", "sys", "dev"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(shutil.which("busybox") or "", directory / "bin" / "busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    nft, iptables = (Path(os.path.realpath(shutil.which(name) or "")) for name in ("nft", "iptables-nft"))
    extensions = list(Path("/usr/lib").glob("*/xtables/*.so"))
    _copy(directory, [nft, iptables, *extensions, *_libraries([nft, iptables, *extensions])])
    for version in ("iptables", "ip6tables"):
        for kind in ("", "-nft"):
            for part in ("", "-save", "-restore"):
                (directory / "usr/sbin" / f"{version}{kind}{part}").symlink_to(iptables)


def _libraries(paths: Sequence[Path]) -> set[Path]:
    """The shared libraries that programs and modules need, and the loader."""
    said = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False).stdout
    words = {word for line in said.splitlines() for word in line.split() if word.startswith("/") and ".so" in word}
    return {Path(word) for word in words if Path(word).exists()}


def _copy(directory: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        place = directory / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(path), place)


# Images without a daemon ----------------------------------------------------------------------------------------------


def tools_image(path: Path, name: str, program: Path, work: Path) -> Path:
    """An image of one program, with the tools that a network daemon calls.

    :param work: a directory for its files, which is made.
    """
    _tools(work)
    _copy(work, [program, *_libraries([program])])
    files = {str(file.relative_to(work)): file for file in work.rglob("*") if file.is_symlink() or file.is_file()}
    return _write(path, name, files, {}, [str(program)])


# The first process of a pod: it reaps what is re-parented to it, and waits for its end.
_PAUSE = """
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


def _write(path: Path, name: str, files: Mapping[str, Path], links: Mapping[str, str], command: Sequence[str]) -> Path:
    """An image of one layer.

    :param files: by their paths in the image.
    :param links: what symbolic links point to, by their paths.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for inside, file in files.items():
            tar.add(file, inside, filter=_of_root)
        for inside, target in links.items():
            link = tarfile.TarInfo(inside)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(command), "Env": ["PATH=/bin:/usr/sbin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for inside, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(inside)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def pause_image(directory: Path, name: str) -> Path:
    """The image of a pod's first process; compiled here."""
    program = directory / "pause"
    words: list[str | Path] = ["cc", "-static", "-Os", "-x", "c", "-", "-o", program]
    subprocess.run(words, input=_PAUSE, text=True, check=True)
    return _write(directory / "pause.tar", name, {"pause": program}, {}, ["/pause"])


def busybox_image(directory: Path, name: str, applets: Sequence[str]) -> Path:
    """An image with a shell."""
    program = Path(shutil.which("busybox") or "")
    links = {f"bin/{applet}": "busybox" for applet in applets}
    return _write(directory / "busybox.tar", name, {"bin/busybox": program}, links, ["/bin/sh"])


def _of_root(entry: Any) -> Any:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
