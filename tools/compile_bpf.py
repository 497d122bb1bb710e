"""Compile ``native/bpf/lone.bpf.c`` into ``native/lone_code.h``, which is kept beside it: ``tools/compile_bpf.py``.

So nobody who builds the extension needs a compiler for BPF. Needs Debian's clang, llvm and linux-libc-dev. What comes
out depends on clang's release, but loads into the same kernels; the header says of which source it was made, and
``tests/unit/backends/userspace/test_lone_code.py`` sees that it is today's.
"""

from __future__ import annotations

import hashlib
import platform
import struct
import subprocess
import tempfile
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "backends/pyflannel_backends/userspace/native"
SOURCE, HEADER = NATIVE / "bpf" / "lone.bpf.c", NATIVE / "lone_code.h"
PROGRAMS = ("wrap", "unwrap")
INSTRUCTION = struct.Struct("<BBhi")
"""Operation, registers (source in the upper half), offset, immediate value: linux/bpf.h."""


def sections(folder: Path) -> dict[str, bytes]:
    """The programs as the compiler has them."""
    compiled = folder / "lone.o"
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        ["clang", "-O2", "-target", "bpfel", "-mcpu=v3", *warnings, "-I", headers, "-c", SOURCE, "-o", compiled],
        check=True,
    )
    found = {}
    for name in PROGRAMS:
        cut = folder / name
        subprocess.run(["llvm-objcopy", "-O", "binary", f"--only-section=tcx/{name}", compiled, cut], check=True)
        found[name] = cut.read_bytes()
    return found


def table(name: str, code: bytes) -> str:
    """A program as C has it."""
    lines = []
    for operation, registers, offset, value in INSTRUCTION.iter_unpack(code):
        lines.append(f"    {{{operation:#04x}, {registers & 15}, {registers >> 4}, {offset}, {value}}},")
    return "\n".join([f"static const struct bpf_insn lone_{name}[] = {{", *lines, "};", ""])


def main() -> None:
    """Write the header anew."""
    with tempfile.TemporaryDirectory() as folder:
        found = sections(Path(folder))
    sources = hashlib.sha256(SOURCE.read_bytes() + (NATIVE / "lone_maps.h").read_bytes()).hexdigest()
    longest = max(len(code) // INSTRUCTION.size for code in found.values())
    HEADER.write_text(
        "/* Made of bpf/lone.bpf.c and lone_maps.h by tools/compile_bpf.py, for little-endian machines: don't edit.\n"
        f" * sha256 of both: {sources}\n */\n\n"
        "#include <linux/bpf.h>\n\n"
        f"enum {{ LONE_LONGEST = {longest} }};\n\n" + "\n".join(table(name, found[name]) for name in PROGRAMS)
    )


if __name__ == "__main__":
    main()
