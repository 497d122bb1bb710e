"""What the loop is told of the kernel's refusals."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from types import SimpleNamespace
from typing import Any

from pyflannel.daemon.kernel_side import KernelSide
from pyflannel.errors import KernelError
from pyflannel.kernel.model import Address, GenericInfo, KernelObject, Link, Route

LINK = Link("acme0", GenericInfo("gre"), 1400)
ON_IT: list[KernelObject] = [Address("acme0", ip_interface("10.5.1.0/32")), Route(ip_network("10.5.0.0/16"), "acme0")]


def test_a_link_that_is_refused_is_told_before_what_should_be_on_it() -> None:
    side: Any = object.__new__(KernelSide)
    failures = {item.key: SimpleNamespace(error=KernelError(f"no {item}")) for item in (*ON_IT, LINK)}
    side.tracker = SimpleNamespace(failures=failures)
    assert side.refusals == [f"no {item}" for item in (LINK, *ON_IT)]
