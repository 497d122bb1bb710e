"""Where a file store may be, and its options: wrong ones are refused with the right form."""

from __future__ import annotations

import pytest

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation
from pyflannel_stores.file import FileStore


@pytest.mark.parametrize(
    "url",
    [
        "file:///var/lib/pyflannel",
        "file:///var/lib/pyflannel/",
        "file:///srv/with%20space?watch=poll&poll=0.5&create=no",
        "file:///srv/x?watch=inotify&create=yes",
    ],
)
def test_good_locations(url: str) -> None:
    FileStore(StoreLocation.parse(url)).close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file://var/lib/pyflannel", "file:///var/lib/pyflannel"),
        ("file://localhost/var/lib/pyflannel", "no host"),
        ("file://", "absolute path"),
        ("file:///", "absolute path"),
        ("file:///a%00b", "absolute path"),
        ("file:///srv/x?watch=often", "inotify, poll or auto"),
        ("file:///srv/x?poll=often", "seconds"),
        ("file:///srv/x?poll=nan", "seconds"),
        ("file:///srv/x?poll=0", "seconds"),
        ("file:///srv/x?poll=86400", "seconds"),
        ("file:///srv/x?create=perhaps", "yes or no"),
        ("file:///srv/x?pol=1", "'poll'"),
    ],
)
def test_bad_locations_say_what_is_expected(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        FileStore(StoreLocation.parse(url))
