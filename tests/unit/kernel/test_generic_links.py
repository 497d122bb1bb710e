"""Devices of kinds that we know nothing about: a refused attribute is named, and libraries keep their stacks."""

from __future__ import annotations

import pytest

from pyflannel.kernel.links import encode_new_link
from pyflannel.kernel.model import GenericInfo, Link

GOOD = ("IFLA_GRE_LOCAL", "192.0.2.1")


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (("IFLA_GRE_TTL", "many"), "IFLA_GRE_TTL = 'many': a gre device can't have that value"),
        (("IFLA_GRE_TTL", 500), "IFLA_GRE_TTL = 500: a gre device can't have that value"),
        (("IFLA_GRE_REMOTE", "nowhere"), "IFLA_GRE_REMOTE = 'nowhere': a gre device can't have that value"),
        (("IFLA_GRE_COLOUR", 1), "IFLA_GRE_COLOUR = 1 is no attribute of a gre device"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_refused_attribute_is_named_alone(
    item: tuple[str, str | int], told: str, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = (item, GOOD) if first else (GOOD, item)
    with pytest.raises(ValueError, match=told) as refused:
        encode_new_link(Link("gre7", GenericInfo("gre", None, data), 1400), 0)
    assert "192.0.2.1" not in str(refused.value)
    assert caplog.text == ""
