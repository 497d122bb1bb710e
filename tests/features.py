"""What the kernel that runs the tests has; a machine of :mod:`tests.kernels` has other things than the one outside."""

from __future__ import annotations

import subprocess

from pyflannel.errors import KernelError
from pyflannel.kernel.generic import has_family

__all__ = ["has_device", "has_wireguard"]


def has_wireguard() -> bool:
    """Whether the kernel has WireGuard, or a module for it, which it loads."""
    try:
        return has_family("wireguard")
    except KernelError:
        return False


def has_device(kind: str) -> bool:
    """Whether tunnel devices of this kind can be made, in a namespace that goes away with the attempt."""
    words = ["unshare", "-n", "ip", "link", "add", "probe", "type", kind, "local", "192.0.2.1"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0
