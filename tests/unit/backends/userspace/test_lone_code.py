"""What is loaded into the kernel was compiled from the source that is kept beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

NATIVE = Path(__file__).parents[4] / "backends/pyflannel_backends/userspace/native"


def test_the_compiled_programs_are_those_of_the_source() -> None:
    """Else: ``tools/compile_bpf.py``."""
    sources = (NATIVE / "bpf" / "lone.bpf.c").read_bytes() + (NATIVE / "lone_maps.h").read_bytes()
    assert hashlib.sha256(sources).hexdigest() in (NATIVE / "lone_code.h").read_text()
