"""A firewall of one's own: the kernel's, in a network namespace that lives as long as one thread."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from pyflannel.firewall import programs
from pyflannel.firewall.legacy import legacy_tables
from pyflannel.firewall.sync import Firewall, find_tools

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


class Host:
    """A network namespace; what :meth:`do` calls happens inside, programs and threads included."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_unshare)

    def do(self, function: Callable[[], T]) -> T:
        """Call ``function`` inside and return what it returns."""
        return self._thread.submit(function).result()

    def sh(self, script: str) -> str:
        """Run a shell script inside and return its output."""
        return self.do(lambda: programs.run(["sh", "-ec", script]))

    def check(self, firewall: Firewall) -> None:
        """One check, which must put everything in place."""
        state = self.do(firewall.check)
        assert state.errors == ()
        assert state.in_place

    def dump(self) -> str:
        """All rules of all kinds, comparable: without counters and handles, whatever was made first."""
        return "\n".join([*_chains(self.sh("nft -s list ruleset")), self._legacy()])

    def whole(self) -> str:
        """The same as the tools print it, in their order."""
        return self.sh("nft -s list ruleset") + self._legacy()

    def _legacy(self) -> str:
        saved = "".join(
            self.sh(f"ip{'6' if version == 6 else ''}tables-legacy-save -t {table}")
            for version in (4, 6)
            for table in self.do(lambda version=version: legacy_tables(version))  # type: ignore[misc]
        )
        return re.sub(r"(?m)^#.*\n|\[\d+:\d+\]", "", saved)

    def close(self) -> None:
        """End the thread; the kernel takes the namespace down."""
        self._thread.shutdown()


def _chains(listing: str) -> list[str]:
    """The chains that nft lists, each with its table's name, in an order of their own: a table made anew comes last."""
    found = []
    for table, body in re.findall(r"^(table [^\n]*) \{\n(.*?)^\}", listing, flags=re.MULTILINE | re.DOTALL):
        chains = re.findall(r"^\t(chain .*?^\t\})", body, flags=re.MULTILINE | re.DOTALL)
        found += [table, *(f"{table} {chain}" for chain in chains)]
    return sorted(found)


def _unshare() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace")


@pytest.fixture(scope="session", autouse=True)
def _tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skip all where the rights or the programs are missing.

    iptables-legacy knows one lock for all namespaces, and without ``-w`` fails where another has it. Here every test
    process has one of its own.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tools = find_tools()
    if tools.nft is None or set(tools.iptables) != {"nft", "legacy"}:
        pytest.skip("needs nft and both kinds of iptables")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("can't make network namespaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("iptables") / "lock"))
        yield


@pytest.fixture
def host() -> Iterator[Host]:
    """A host without any rules."""
    host = Host()
    try:
        yield host
    finally:
        host.close()
