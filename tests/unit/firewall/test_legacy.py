"""Reading iptables-legacy's tables fails in one way, whatever the reason."""

from __future__ import annotations

import pytest
from tests.starving import without_descriptors

from pyflannel.errors import KernelError
from pyflannel.firewall import legacy


@pytest.mark.parametrize("version", [4, 6])
def test_without_a_descriptor_the_tables_cant_be_read(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "_table_names", lambda version: ("filter",))
    with (
        without_descriptors(),
        pytest.raises(KernelError, match="table filter of iptables-legacy: Too many open files"),
    ):
        legacy.legacy_fingerprint(version)
