"""How long the command line takes to answer, as whole processes: interpreter, imports, work, exit.

Usage: python benchmarks/startup.py [RUNS]. ``--help`` is to stay below 0.2 s: a person or a completion waits for it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "python (nothing at all)": ["-c", "pass"],
    "pyflannel --help": ["-m", "pyflannel", "--help"],
    "pyflannel version": ["-m", "pyflannel", "version"],
    "pyflannel plugins": ["-m", "pyflannel", "plugins"],
    "pyflannel leases (file store without any)": ["-m", "pyflannel", "leases"],
}


def seconds(arguments: list[str], environ: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environ, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, "PYFLANNEL_STORE": f"file://{directory}/store"}
        print(f"{'command':<38} {'median':>8} {'worst':>8}   of {runs} runs, ms")
        words = [sys.executable, "-m", "pyflannel", "config", "set", "-"]
        document = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
        subprocess.run(words, env=environ, input=document, text=True, stdout=subprocess.DEVNULL, check=True)
        for name, arguments in COMMANDS.items():
            taken = [seconds(arguments, environ) for _ in range(runs)]
            print(f"{name:<38} {statistics.median(taken) * 1000:8.0f} {max(taken) * 1000:8.0f}")


if __name__ == "__main__":
    main()
