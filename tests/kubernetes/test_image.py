"""The container image: built from its Dockerfile without a network, on a base that is made here, and run.

The Docker daemon lives in a node of a lab, so it meets no other Docker of this machine. The base has this machine's
Python, what that needs, and a shell; wheels are those that ``tools/bootstrap kubernetes`` has collected.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.integration.asking import until

from pyflannel.lab import Lab
from pyflannel.version import VERSION

ROOT = Path(__file__).parents[2]
CONTEXT = ROOT / "contrib" / "kubernetes"
WHEELS = ROOT / ".cache" / "image-wheels"
APPLETS = ("sh", "find", "rm", "mkdir", "chmod", "cp", "env", "true", "ls", "cat")
PROGRAMS = ("dockerd", "docker", "containerd", "runc", "busybox", "nft", "iptables", "ldd")

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def _missing() -> str | None:
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not any(WHEELS.glob("*.whl")):
        return f"no wheels in {WHEELS}: tools/bootstrap kubernetes"
    return None if os.access("/sys/fs/cgroup", os.W_OK) else "containers need cgroups"


MISSING = _missing()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if MISSING is not None:
        pytest.skip(MISSING)
    with Lab(nodes=1, containers=0) as lab:
        yield lab


def libraries(paths: Sequence[Path]) -> set[Path]:
    """The shared libraries that programs and modules need, and the loader."""
    said = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False).stdout
    words = {word for line in said.splitlines() for word in line.split() if word.startswith("/") and ".so" in word}
    return {Path(word) for word in words if Path(word).exists()}


def base(directory: Path) -> None:
    """A root file system with Python and no compiler."""
    python = Path(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = Path(os.path.realpath(python / "bin" / version))
    modules = python / "lib" / version
    unused = shutil.ignore_patterns("test", "tests", "idlelib", "tkinter", "__pycache__", "site-packages", "config-*")
    shutil.copytree(modules, directory / modules.relative_to("/"), ignore=unused)
    (directory / modules.relative_to("/") / "site-packages").mkdir(exist_ok=True)
    (directory / "usr/bin").mkdir(parents=True, exist_ok=True)
    (directory / "bin").mkdir(exist_ok=True)
    target = directory / interpreter.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(interpreter, target)
    (directory / "bin" / "python3").symlink_to(interpreter)
    tools = [Path(os.path.realpath(shutil.which(name) or "")) for name in ("nft", "iptables")]
    for name, tool in zip(("nft", "iptables"), tools, strict=True):
        shutil.copy(tool, directory / "bin" / name)
    shutil.copy(shutil.which("busybox") or "", directory / "bin" / "busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    needed = libraries([interpreter, *tools, *modules.glob("lib-dynload/*.so")])
    for library in needed:
        place = directory / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), place)
    for name in ("tmp", "etc", "run", "proc", "sys", "dev"):
        (directory / name).mkdir(exist_ok=True)


def test_the_image_is_built_and_runs(lab: Lab, tmp_path: Path) -> None:
    node = lab.nodes[0]
    work = lab.outside(node.directory)
    context = work / "context"
    shutil.copytree(CONTEXT, context)
    shutil.copytree(WHEELS, context / "wheels", dirs_exist_ok=True)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*words, "--wheel-dir", tmp_path, ROOT], check=True, timeout=200)
    for wheel in tmp_path.glob("*.whl"):
        shutil.copy(wheel, context / "wheels")
    base(work / "base")

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
    log = (work / "docker.log").open("w")
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
        node.run(["sh", "-ec", f"tar -C {node.directory}/base -c . | docker --host {host} import - base"], timeout=120)
        here = str(node.directory / "context")
        run("build", "--network=none", "--build-arg", "BASE=base", "--tag", "pyflannel", here)
        assert VERSION in run("run", "--rm", "--network=none", "pyflannel", "version")
        plugins = run("run", "--rm", "--network=none", "pyflannel", "plugins")
        assert "kubernetes" in plugins
        assert "vxlan" in plugins
        inside = run("run", "--rm", "--network=none", "--entrypoint", "ls", "pyflannel", "/", "/opt/pyflannel/bin")
        assert "wheels" not in inside.split()
        assert "pip" not in inside.split()
    finally:
        daemon.stop()
        log.close()
        for left in Path("/sys/fs/cgroup").glob(f"**/{cgroup}"):
            left.rmdir()
