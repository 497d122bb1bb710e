"""A data plane whose thread is dead says so, whatever it died of: that is how the core comes to start another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from pyflannel.backend import DataPlane
from pyflannel_backends.ipsec.charon import Charon
from pyflannel_backends.ipsec.dataplane import IpsecDataPlane
from pyflannel_backends.udp.worker import UdpConfig
from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind


def ipsec(directory: Path) -> DataPlane:
    return IpsecDataPlane(lambda peer: (), Charon.__new__(Charon))


def userspace(directory: Path) -> DataPlane:
    config = UdpConfig.__new__(UdpConfig)
    return UserspaceDataPlane(WorkerKind("udp", "nowhere", config, lambda peer: ()), directory, 1)


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("make", [ipsec, userspace])
def test_a_dead_thread_is_told(
    make: Callable[[Path], DataPlane], error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    for kind in (IpsecDataPlane, UserspaceDataPlane):
        monkeypatch.setattr(kind, "_turn", fail)
    for charon in ("end", "reap"):
        monkeypatch.setattr(Charon, charon, lambda self: None)
    plane = make(tmp_path)

    def told() -> bool:
        try:
            plane.check()
        except type(error):
            return True
        return False

    until(told)
    plane.stop()
