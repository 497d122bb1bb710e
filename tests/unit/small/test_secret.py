"""A secret does not show itself, whatever it is put into."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from pyflannel.kernel.model import DesiredState, WireguardDevice, WireguardPeer
from pyflannel.small.secret import Secret

KEY = bytes(range(40, 72))


def test_it_is_equal_to_the_same_bytes_only() -> None:
    assert Secret(KEY) == Secret(KEY)
    assert hash(Secret(KEY)) == hash(Secret(KEY))
    assert Secret(KEY) != Secret(KEY[::-1])
    assert Secret(KEY) != Secret(KEY[:-1])
    assert Secret(KEY) != Secret(KEY + b"\0")
    assert all(Secret(KEY) != Secret(KEY[:at] + b"\xff" + KEY[at + 1 :]) for at in range(len(KEY)))
    assert Secret(KEY) != KEY
    assert Secret(KEY).reveal() == KEY
    assert copy.deepcopy(Secret(KEY)) == Secret(KEY)


def test_no_text_shows_it() -> None:
    secret = Secret(KEY)
    device = WireguardDevice("flannel-wg", secret, 51820)
    peer = WireguardPeer("flannel-wg", "A" * 43 + "=", (), None, secret)
    things = [secret, device, peer, DesiredState([device, peer]), ValueError(secret), {"key": secret}]
    shown = "\n".join(
        form
        for thing in things
        for form in (f"{thing}", f"{thing!r}", f"{thing!s:>9}", "%r" % (thing,))  # noqa: UP031
    )
    assert "hidden" in shown
    for part in (KEY.decode("latin-1"), KEY.hex(), KEY.hex()[:16], str(KEY)[2:10]):
        assert part not in shown


def test_it_is_not_written_down() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(KEY))
    with pytest.raises(TypeError):
        json.dumps(Secret(KEY))
