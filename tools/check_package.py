"""Build the distribution and check what users will get: ``check_package.py WORK WHEELHOUSE``.

Five steps, each an end to one kind of surprise: build sdist and wheel (the wheel from the sdist, so that a file missing
in one is missing in the other); let twine judge the metadata; compare the wheel's content with the source tree; install
the wheel into a clean environment, without network and without our source in sight, and run the command; install the
distributions under ``examples/`` beside it, as a third party's, and see that they are found.

WHEELHOUSE keeps the wheels of our dependencies, fetched once for each set of requirements.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"pyflannel": "core", "pyflannel_backends": "backends", "pyflannel_stores": "stores"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command in an environment that can't see our source; end with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\npackage: failed with code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def check(condition: bool, problem: str) -> None:
    """End with ``problem`` unless ``condition`` holds."""
    if not condition:
        sys.exit(f"package: {problem}")


def build(work: Path) -> Path:
    """Build both archives, have their metadata judged, and return the wheel."""
    dist = work / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist)
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    (wheel,) = dist.glob("*.whl")
    return wheel


def can_compile() -> bool:
    """Whether C extensions can be built here."""
    headers = Path(sysconfig.get_paths()["include"])
    return shutil.which("cc") is not None and (headers / "Python.h").exists()


def read_wheel(wheel: Path) -> tuple[list[str], str, ConfigParser]:
    """The wheel's file names, its metadata and its entry points; every source file of ours and no other is in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = ConfigParser(delimiters=("=",))
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    found = {name for name in names if not name.startswith(f"{info}/")}
    expected = {
        path.relative_to(ROOT / root).as_posix()
        for package, root in PACKAGES.items()
        for pattern in ("*.py", "*.pyi", "py.typed", "*.tmpl")
        for path in (ROOT / root / package).rglob(pattern)
    }
    check(expected <= found, f"{wheel.name} lacks {sorted(expected - found)}")
    check(
        all(name.partition("/")[0] in PACKAGES for name in found),
        f"{wheel.name} holds what is none of ours: {sorted(found - expected)}",
    )
    check(all(f"{package}/py.typed" in found for package in PACKAGES), f"{wheel.name} lacks a py.typed")
    compiled = any(name.endswith("/_fastpath.abi3.so") for name in found)
    check(compiled or not can_compile(), f"{wheel.name} lacks the fast path, and there is a compiler here")
    check(any(name.endswith("/LICENSE") for name in names), f"{wheel.name} lacks the licence")
    for group, name in (
        ("console_scripts", "pyflannel"),
        ("pyflannel.backends", "vxlan"),
        ("pyflannel.stores", "file"),
    ):
        check(entry_points.has_option(group, name), f"{wheel.name} has no entry point {name} in {group}")
    return names, metadata, entry_points


def dependencies(wheel: Path, metadata: str, wheelhouse: Path) -> Path:
    """A directory with the wheels of all that ``wheel`` requires; filled from the network only if it isn't yet."""
    requirements = sorted(Parser().parsestr(metadata).get_all("Requires-Dist", []))
    return fetched(wheelhouse, requirements, wheel)


def fetched(wheelhouse: Path, requirements: Sequence[str], wheel: Path | None = None) -> Path:
    """A directory with wheels for ``requirements``, which ``wheel`` has, or else stand for themselves."""
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:16]
    complete = wheelhouse / key
    if not complete.exists():
        partial = wheelhouse / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        wanted = requirements if wheel is None else [wheel]
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", partial, *wanted)
        if wheel is not None:
            (partial / wheel.name).unlink(missing_ok=True)
        partial.rename(complete)
    return complete


def run_installed(wheel: Path, wheels: Path, work: Path, entry_points: ConfigParser) -> None:
    """Install ``wheel`` into an environment that holds nothing else, and use it."""
    clean = work / "clean"
    run(sys.executable, "-m", "venv", "--clear", "--without-pip", clean)
    pip = (sys.executable, "-m", "pip", "--python", clean / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-index", "--find-links", wheels, wheel)
    run(*pip, "check")
    command = clean / "bin" / "pyflannel"
    version = wheel.name.split("-")[1]
    check(version in run(command, "--version", cwd=work), f"pyflannel --version does not say {version}")
    check("--backend" in run(command, "--help", cwd=work), "pyflannel --help does not name --backend")
    listed = run(command, "plugins", cwd=work)
    for group in ("pyflannel.backends", "pyflannel.stores"):
        for name in entry_points.options(group):
            check(name in listed, f"pyflannel plugins does not list {name}:\n{listed}")


EXAMPLES = {
    "pyflannel-etcd-v2": "etcd-v2",
    "pyflannel-example-backend-macvlan": "macvlan",
    "pyflannel-postgresql": "postgresql",
}
"""Distributions under ``examples/``, and the plugin that each provides."""

EXAMPLES_NEED = ("psycopg[binary]>=3.2",)
"""What they require besides pyflannel."""


def install_examples(work: Path, wheelhouse: Path) -> None:
    """Build the examples from copies of their sources, and add them to the clean environment."""
    clean = work / "clean"
    for name in EXAMPLES:
        source = shutil.copytree(
            ROOT / "examples" / name, work / name, ignore=shutil.ignore_patterns("build", "*.egg-info", ".*")
        )
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", work / "examples", source)
    wheels = sorted((work / "examples").glob("*.whl"))
    needed = fetched(wheelhouse, EXAMPLES_NEED)
    pip = (sys.executable, "-m", "pip", "--python", clean / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-index", "--find-links", needed, *wheels, *EXAMPLES_NEED)
    rows = [row.split() for row in run(clean / "bin" / "pyflannel", "plugins", cwd=work).splitlines()]
    for name, plugin in EXAMPLES.items():
        found = [row for row in rows if row[1:3] == [plugin, name] and row[-1] == "ok"]
        check(bool(found), f"pyflannel plugins does not list {plugin} of {name}: {rows}")


def main(work: Path, wheelhouse: Path) -> None:
    """All five steps."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    wheel = build(work)
    names, metadata, entry_points = read_wheel(wheel)
    run_installed(wheel, dependencies(wheel, metadata, wheelhouse), work, entry_points)
    install_examples(work, wheelhouse)
    print(f"package: {wheel.name} with {len(names)} files installs and runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
