"""What this machine's kernel has."""

from __future__ import annotations

import shutil

import pytest

from pyflannel.errors import KernelError
from pyflannel.kernel.generic import has_family

__all__ = ["needs_wireguard"]


def _lack() -> str:
    try:
        there = has_family("wireguard")
    except KernelError as error:
        return str(error)
    if not there:
        return "not applicable: this kernel has no WireGuard; tests/kernels runs this in one that has"
    return "" if shutil.which("wg") else "needs wg, of Debian's wireguard-tools"


_LACK = _lack()

needs_wireguard = pytest.mark.skipif(bool(_LACK), reason=_LACK)
