"""The route that keeps packets at home while a device that encrypts is away."""

from __future__ import annotations

from typing import Final

from pyflannel.backend import IPNetwork, Route

__all__ = ["SHUT", "shut"]

SHUT: Final = 4_000_000_000
"""The metric of the route that takes what is not routed into the device: worse than any that somebody would set."""


def shut(network: IPNetwork) -> Route:
    """Behind the route of a whole network into a device, which goes with the device if somebody deletes that: until
    both are back, nothing may leave in plaintext."""
    return Route(network, None, metric=SHUT)
