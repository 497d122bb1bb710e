"""An option that is on or off is spelled the same way for every store."""

from __future__ import annotations

import pytest

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation
from pyflannel_stores._options import flag


@pytest.mark.parametrize("default", [False, True])
def test_flags(default: bool) -> None:
    texts = {"true": True, "TRUE": True, "1": True, "yes": True, "on": True}
    texts |= {"false": False, "False": False, "0": False, "no": False, "off": False}
    for text, expected in texts.items():
        assert flag(StoreLocation.parse(f"consul://h?tls={text}"), "tls", default) is expected
    assert flag(StoreLocation.parse("consul://h"), "tls", default) is default
    for text in ("", "maybe", "2"):
        with pytest.raises(ConfigError, match=f"^store consul://h: tls={text}: expected true or false$"):
            flag(StoreLocation.parse(f"consul://h?tls={text}"), "tls", default)
