"""Where a store is: URLs and their options, and what must never be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///var/lib/pyflannel", StoreLocation("file", (), "/var/lib/pyflannel")),
        ("file:///with%20space/%23", StoreLocation("file", (), "/with space/#")),
        ("file:///with space", StoreLocation("file", (), "/with space")),
        ("etcd://127.0.0.1:2379", StoreLocation("etcd", ("127.0.0.1:2379",))),
        (
            "etcd://a:1,b:2,[2001:db8::1]:3/coreos.com/network?tls=yes&ca=/x%26y",
            StoreLocation(
                "etcd", ("a:1", "b:2", "[2001:db8::1]:3"), "/coreos.com/network", {"tls": "yes", "ca": "/x&y"}
            ),
        ),
        ("consul://h?token=", StoreLocation("consul", ("h",), "", {"token": ""})),
        ("ETCD://Host", StoreLocation("etcd", ("Host",))),
    ],
)
def test_urls(url: str, expected: StoreLocation) -> None:
    assert StoreLocation.parse(url) == expected


def test_a_table_wins_over_the_query() -> None:
    location = StoreLocation.parse("etcd://h?a=1&b=2", {"b": "3", "c": "4"})
    assert location.options == {"a": "1", "b": "3", "c": "4"}


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "expected a URL"),
        ("/var/lib/pyflannel", "expected a URL"),
        ("file:/var/lib", "expected a URL"),
        ("://h", "expected a URL"),
        ("etcd://[::1", "[address]:port"),
        ("etcd://::1:2379", "[address]:port"),
        ("etcd://a,[::1]x", "[address]:port"),
        ("etcd://h:port", "[address]:port"),
        ("etcd://h /x", "expected a URL"),
        ("etcd://root:hunter2@h /x", "expected a URL"),
        ("etcd://root:hun@ter2@h/x@y", "credentials"),
        ("file:///x\n", "expected a URL"),
        ("etcd://root:hunter2@h:2379/x", "credentials"),
        ("etcd://h/x?password=hunter2#y", "%23"),
        ("etcd://h?hunter2", "name=value"),
        ("etcd:/root:hunter2@h", "expected a URL"),
        ("root:hunter2@h", "expected a URL"),
        ("hunter2@h", "expected a URL"),
        ("etcd://root:hun/ter2@h", "credentials"),
        ("etcd://root:123/hunter2@h", "credentials"),
        ("etcd://root:hunter2#@h", "credentials"),
        ("etcd://root:hunter2?@h", "[address]:port"),
        ("etcd://root:hun?ter2@h", "[address]:port"),
        ("etcd://root:hunter2 @h", "expected a URL"),
        ("etcd:root:hunter2@h:2379/x?a=b", "expected a URL"),
        ("//root:hunter2@h", "expected a URL"),
        ("etcd://root:hunter2\n@h", "expected a URL"),
    ],
)
def test_bad_urls_are_refused_without_showing_secrets(url: str, word: str) -> None:
    with pytest.raises(ConfigError, match=r"^store ") as caught:
        StoreLocation.parse(url)
    assert word in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_options_are_not_shown() -> None:
    location = StoreLocation.parse("etcd://h:1,i:2/p?password=hunter2")
    assert str(location) == "etcd://h:1,i:2/p"
    assert "hunter2" not in repr(location)


def test_unknown_options_name_the_nearest() -> None:
    location = StoreLocation.parse("etcd://h?pasword=x")
    with pytest.raises(ConfigError, match=r"'pasword'; did you mean 'password'\?"):
        location.check_options({"password": "", "prefix": ""})
    with pytest.raises(ConfigError, match="known are: ca, prefix"):
        location.check_options({"prefix": "", "ca": ""})
    with pytest.raises(ConfigError, match="known are: none"):
        location.check_options({})
    location.check_options({"pasword": ""})


@given(st.text(max_size=40) | st.text("etcd:/@?#[]%&=,;ab1.", max_size=40).map("x://".__add__))
def test_any_url_is_read_or_refused(url: str) -> None:
    try:
        location = StoreLocation.parse(url)
    except ConfigError:
        return
    assert location.scheme


def test_a_secret_option_is_refused_in_a_url_and_taken_from_a_table() -> None:
    known, secret = {"password": "a password"}, frozenset({"password"})
    with pytest.raises(ConfigError, match="password does not belong in a URL") as caught:
        StoreLocation.parse("etcd://a/b?password=hush").check_options(known, secret)
    assert "hush" not in str(caught.value)
    StoreLocation.parse("etcd://a/b", {"password": "hush"}).check_options(known, secret)
