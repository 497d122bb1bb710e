"""The machines, booted once for all tests, and the skip where one can't be had.

A test takes the one it wants, ``uml`` or ``cloud``, or ``machine`` to run on each. What a test left behind in a machine
(devices, rules, files) is there for the next: work in namespaces of your own, as everywhere.

The tests below ``inside`` run in a machine, by :meth:`~tests.kernels.guest.Guest.pytest`, and are collected only there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.kernels.guest import INSIDE, KERNELS, Guest, NoMachineError, guest

collect_ignore = [] if INSIDE in os.environ else ["inside"]


def _boot(name: str) -> Iterator[Guest]:
    try:
        with guest(name) as machine:
            print(f"{machine.release} answers after {machine.boot_seconds:.1f} s")
            yield machine
    except NoMachineError as reason:
        pytest.skip(f"no other kernel to test on: {reason}")


@pytest.fixture(scope="session")
def uml() -> Iterator[Guest]:
    """user-mode-linux: vxlan, ipip, gre and tun, no WireGuard; fast."""
    yield from _boot("uml")


@pytest.fixture(scope="session")
def cloud() -> Iterator[Guest]:
    """Debian's cloud kernel under emulation: has everything, WireGuard too; ten to twenty times slower than here."""
    yield from _boot("cloud")


@pytest.fixture(params=sorted(KERNELS))
def machine(request: pytest.FixtureRequest) -> Guest:
    """Each of them in turn."""
    found: Guest = request.getfixturevalue(request.param)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each machine belongs to one process of the tests, which boots it once."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.xdist_group("cloud" if _wants_cloud(item) else "uml"))


def _wants_cloud(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    return "cloud" in getattr(item, "fixturenames", ()) or (given is not None and "cloud" in given.params.values())
