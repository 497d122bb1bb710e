"""What pyflannel plugin-test refuses before it runs anything."""

from __future__ import annotations

import pytest

from pyflannel.cli.plugin import _fitting
from pyflannel.errors import ConfigError
from pyflannel.network.lease import JSON


@pytest.mark.parametrize(
    ("kind", "key", "value", "reason"),
    [
        ("backend", "no_such", 1, "--set no_such: the kit for a backend has no such attribute; it has carries_traffic"),
        ("backend", "backend", 1, "--set backend: the kit for a backend has no such attribute"),
        ("store", "variants", [], "--set variants: the kit for a store has no such attribute; it has call_timeout, "),
        ("store", "racers", "8", '--set racers: "8" must be of the kind of 32'),
        ("store", "keeps_history", 1, "--set keeps_history: 1 must be of the kind of false"),
        ("backend", "variants", {}, r"--set variants: \{\} must be of the kind of \[\{\}\]"),
    ],
)
def test_an_attribute_that_the_kit_has_not(kind: str, key: str, value: JSON, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _fitting(kind, key, value)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("store", "minimum_ttl", 10), ("store", "odd_keys", ["a"]), ("backend", "variants", [{"Port": 1}])],
)
def test_an_attribute_that_it_has(kind: str, key: str, value: JSON) -> None:
    assert _fitting(kind, key, value) == value
