"""The Backend dictionary becomes a backend's typed options, or one error that names key, value and rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pyflannel.backend import NoOptions, option, parse_options
from pyflannel.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Options:
    vni: int = option("VNI", 1, "network identifier", minimum=0, maximum=16777215)
    learning: bool = option("Learning", False, "learn addresses")
    mtu: int | None = option("MTU", None, "override", minimum=576)
    level: int = option("Level", 0, "at most", maximum=9)
    mode: str = option("Mode", "separate", "how")


def test_defaults_and_values() -> None:
    assert parse_options(Options, {}) == (Options(), ())
    values = {"vni": 172, "LEARNING": True, "Mtu": 1400, "Mode": "ipv4"}
    assert parse_options(Options, values) == (Options(vni=172, learning=True, mtu=1400, mode="ipv4"), ())


def test_null_is_the_default_and_unknown_keys_are_reported() -> None:
    assert parse_options(Options, {"VNI": None, "Newer": 1, "x": {}}) == (Options(), ("Newer", "x"))
    assert parse_options(NoOptions, {"Port": 1}) == (NoOptions(), ("Port",))


@pytest.mark.parametrize("vni", [0, 16777215])
def test_bounds_are_inclusive(vni: int) -> None:
    assert parse_options(Options, {"VNI": vni})[0].vni == vni


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vni": "1"}, 'Backend.VNI is "1": must be a whole number'),
        ({"VNI": True}, "Backend.VNI is true: must be a whole number"),
        ({"VNI": 1.0}, "Backend.VNI is 1.0: must be a whole number"),
        ({"VNI": -1}, "Backend.VNI is -1: must be between 0 and 16777215"),
        ({"VNI": 16777216}, "Backend.VNI is 16777216: must be between 0 and 16777215"),
        ({"MTU": 575}, "Backend.MTU is 575: must be 576 or more"),
        ({"Level": 10}, "Backend.Level is 10: must be 9 or less"),
        ({"MTU": "1400"}, 'Backend.MTU is "1400": must be a whole number'),
        ({"Learning": 1}, "Backend.Learning is 1: must be true or false"),
        ({"Mode": ["x"]}, 'Backend.Mode is ["x"]: must be a string'),
        ({"VNI": "1" * 999}, f'Backend.VNI is "{"1" * 199}... (1001 characters): must be a whole number'),
        ({"MTU": -(10**999)}, f"Backend.MTU is -1{'0' * 198}... (1001 characters): must be 576 or more"),
    ],
)
def test_violations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(Options, values, "here")
    assert str(caught.value) == f"here: {message}"
