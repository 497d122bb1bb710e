"""The fast path compiled with AddressSanitizer and UndefinedBehaviorSanitizer, and given whatever comes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SOURCES = ROOT / "backends" / "pyflannel_backends" / "userspace" / "native"
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
ROUNDS = 600


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an extension that is compiled with the checks."""
    include = Path(sysconfig.get_paths()["include"])
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    if not (include / "Python.h").exists():
        pytest.skip(f"needs {include}/Python.h (Debian package python3-dev)")
    directory = tmp_path_factory.mktemp("sanitized")
    checks = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    sources = sorted(map(str, SOURCES.glob("*.c")))
    words = ("gcc", *WARNINGS, *checks, "-fPIC", "-shared", f"-I{include}", *sources, "-ldl", "-o")
    done = subprocess.run((*words, str(directory / "_fastpath.abi3.so")), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


def _library(name: str) -> str:
    """Of the compiler's; it says the bare name of one that it has not."""
    path = subprocess.run(
        ("gcc", f"-print-file-name={name}"), capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"needs {name} (Debian package libgcc-dev)")
    return path


@pytest.mark.parametrize("how", ["bare", "sealed"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_packet_and_no_argument_leads_out_of_bounds(sanitized: Path, seed: int, how: str) -> None:
    if how == "sealed" and not Path("/usr/include/openssl/evp.h").exists():
        pytest.skip("needs OpenSSL's headers (Debian package libssl-dev)")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{_library('libasan.so')} {_library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }
    module = "tests.unit.backends.userspace.fuzz_fastpath"
    done = subprocess.run(
        (sys.executable, "-m", module, str(sanitized), str(seed), str(ROUNDS), how),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    counts = {name: int(count) for name, _, count in (word.partition("=") for word in done.stdout.split())}
    assert counts["sent_packets"] > counts["given"] / 2 > ROUNDS / 4
    assert counts["received_packets"] > counts["came"] / 2 > ROUNDS / 4
    assert counts["joined_packets"] > ROUNDS / 2
    assert counts["sent_calls"] > ROUNDS / 2
    assert counts["left"] > ROUNDS / 20
    assert counts["refused"] > ROUNDS / 20
