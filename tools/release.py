"""All that a release publishes, built and checked: ``release.py OUT``.

sdist; a wheel with the piece of C, for every Linux of this architecture where auditwheel can say so (manylinux), and a
wheel without it for everybody; checksums and an SBOM. Each wheel is installed, with what it requires, for every Python
that we support and that is here, and run. The wheels are made from the sdist, with the commit's time in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def run(*command: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """Run a command that can't see our source; end with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env={**environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nrelease: failed with code {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"release: {text}", flush=True)


def build(work: Path, out: Path) -> None:
    """The sdist, and from it both wheels."""
    times = run("git", "log", "-1", "--format=%ct").strip() if (ROOT / ".git").exists() else "315532800"
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", out, SOURCE_DATE_EPOCH=times)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "source", filter="data")
    (source,) = (work / "source").iterdir()
    wheel = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir")
    run(*wheel, out, cwd=source, SOURCE_DATE_EPOCH=times, PYFLANNEL_PURE="1")
    shutil.rmtree(source / "build", ignore_errors=True)
    run(*wheel, work / "native", cwd=source, SOURCE_DATE_EPOCH=times)
    (native,) = (work / "native").glob("*.whl")
    if native.name.endswith("-none-any.whl"):
        sys.exit("release: there is no compiler here, so there is no wheel with the piece of C")
    repaired = run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, native)
    say(next((line for line in repaired.splitlines() if "manylinux" in line), "no manylinux tag"))


def interpreters() -> Iterator[tuple[str, str]]:
    """Version and path of each Python that we support and that is here."""
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for version in PYTHONS:
        places = [*sorted(installed.glob(f"{version}.*/bin/python3")), shutil.which(f"python{version}")]
        for python in places:
            found = python and subprocess.run(
                [python, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if found and found.stdout.strip() == version:
                yield version, str(python)
                break
        else:
            say(f"no Python {version} here: not tried")


def try_out(work: Path, out: Path) -> None:
    """Install each wheel for each Python, and run it."""
    (version,) = {wheel.name.split("-")[1] for wheel in out.glob("*.whl")}
    for number, python in interpreters():
        for wheel in sorted(out.glob("*.whl")):
            place = work / f"{number}-{wheel.stem[-8:]}"
            run(python, "-m", "venv", "--without-pip", place)
            pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python", "--disable-pip-version-check")
            run(*pip, "install", "--quiet", f"pyflannel[all] @ {wheel.as_uri()}")
            run(*pip, "check")
            command = place / "bin" / "pyflannel"
            if version not in run(command, "--version", cwd=work):
                sys.exit(f"release: {wheel.name} on {number} is not {version}")
            broken = [plugin for plugin in _plugins(run(command, "plugins", "--json", cwd=work)) if not plugin["loads"]]
            if broken:
                sys.exit(f"release: {wheel.name} on {number}: {broken}")
            say(f"{wheel.name} works on {number}")


def _plugins(text: str) -> list[dict[str, object]]:
    listed = json.loads(text)
    return [*listed["backends"], *listed["stores"]]


def describe(work: Path, out: Path) -> None:
    """What a fresh installation with all extras holds (CycloneDX), and the checksums of everything."""
    place = work / "sbom"
    run(sys.executable, "-m", "venv", "--without-pip", place)
    pip = (sys.executable, "-m", "pip", "--python", place / "bin" / "python", "--disable-pip-version-check")
    (pure,) = out.glob("*-none-any.whl")
    run(*pip, "install", "--quiet", f"pyflannel[all] @ {pure.as_uri()}")
    version = pure.name.split("-")[1]
    sbom = out / f"pyflannel-{version}.cdx.json"
    words: list[str | Path] = ["environment", "--output-reproducible", "--output-format", "JSON", "--output-file", sbom]
    run(sys.executable, "-m", "cyclonedx_py", *words, place / "bin" / "python")
    parts = {part["name"] for part in json.loads(sbom.read_text())["components"]}
    if not {"pyflannel", "pyroute2", "cryptography"} <= parts:
        sys.exit(f"release: the SBOM lacks what is installed: {sorted(parts)}")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(out.iterdir())]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n")


def main(out: Path) -> None:
    """All of it, anew."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="pyflannel-release-") as directory:
        work = Path(directory)
        build(work, out)
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(out.iterdir()))
        try_out(work, out)
        describe(work, out)
    say(f"in {out}:\n  " + "\n  ".join(path.name for path in sorted(out.iterdir())))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
