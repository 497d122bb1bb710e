"""A third party's server of a store, as the lab starts it: whatever its function does, it is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.sites import installed

from pyflannel.errors import ConfigError, PluginError, PyflannelError, StoreUnavailableError
from pyflannel.lab.serve import serving

HEAD = """\
from contextlib import contextmanager
from pyflannel.errors import ConfigError

@contextmanager
def serve(directory, addresses):
"""


class Site:
    """A directory on the import path with distributions that bring a server."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, code: str, distribution: str = "acme-kv") -> None:
        module = distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(code)
        about = self.path / f"{module}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[pyflannel.lab.servers]\nacme = {module}:serve\n")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    path = tmp_path / "site"
    path.mkdir()
    with installed(path):
        yield Site(path)
    for name in ("acme_kv", "other_kv"):
        sys.modules.pop(name, None)


def served(tmp_path: Path) -> str:
    with serving("acme", tmp_path / "server", ["192.0.2.9"]) as url:
        return url


@pytest.mark.parametrize(
    ("given", "url"), [("192.0.2.9:7", "acme://192.0.2.9:7"), ("acme://192.0.2.9:7/{}", "acme://192.0.2.9:7/{}")]
)
def test_it_gives_a_url_and_is_ended(site: Site, tmp_path: Path, given: str, url: str) -> None:
    ended = tmp_path / "ended"
    site.install(f"{HEAD}    yield {given!r}\n    open({str(ended)!r}, 'w').close()\n")
    assert served(tmp_path) == url
    assert ended.exists()


def test_it_is_ended_where_whoever_uses_it_fails(site: Site, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    site.install(f"{HEAD}    yield ''\n    open({str(ended)!r}, 'w').close()\n")
    with suppress(ZeroDivisionError), serving("acme", tmp_path / "server", ["192.0.2.9"]):
        raise ZeroDivisionError
    assert ended.exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "lab server 'acme' (acme_kv:serve) does not load: ModuleNotFoundError"),
        ("raise SystemExit(3)", "lab server 'acme' (acme_kv:serve) does not load: SystemExit: 3"),
        ("other = 1", "lab server 'acme' (acme_kv:serve) does not load: AttributeError"),
        ("serve = 1", "lab server 'acme' (acme_kv:serve) is of type int, and must be a function"),
        ("def serve(directory):\n    pass", "lab server 'acme' failed in starting: TypeError: serve() takes 1"),
        ("def serve(directory, addresses):\n    yield '192.0.2.9:7'", "an object of type generator: must be a context"),
        (f"{HEAD}    yield 7", "lab server 'acme' gives 7: must be the store's URL, or the host part of it"),
        (f"{HEAD}    raise SystemExit(3)\n    yield", "lab server 'acme' failed in starting: SystemExit: 3"),
        (f"{HEAD}    1 / 0\n    yield", "lab server 'acme' failed in starting: ZeroDivisionError"),
        (f"{HEAD}    yield ''\n    1 / 0", "lab server 'acme' failed in ending: ZeroDivisionError"),
        (
            f"{HEAD}    yield ''\n    yield ''",
            "lab server 'acme' failed in ending: RuntimeError",
        ),
    ],
)
def test_one_that_is_wrong_is_named(site: Site, tmp_path: Path, code: str, reason: str) -> None:
    site.install(code)
    with pytest.raises(PluginError) as caught:
        served(tmp_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("error", [ConfigError, StoreUnavailableError])
def test_what_it_may_raise_passes_as_it_is(site: Site, tmp_path: Path, error: type[PyflannelError]) -> None:
    site.install(
        f"from pyflannel.errors import {error.__name__}\n{HEAD}    raise {error.__name__}('no acmed')\n    yield"
    )
    with pytest.raises(error, match=r"^no acmed$"):
        served(tmp_path)


def test_of_two_with_one_name_none_is_chosen(site: Site, tmp_path: Path) -> None:
    site.install(f"{HEAD}    yield ''")
    site.install(f"{HEAD}    yield ''", "other-kv")
    with pytest.raises(PluginError, match=r"provided more than once, by acme-kv \(.*\), other-kv \(.*\); uninstall"):
        served(tmp_path)


def test_where_there_is_none_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"store 'acme' brings no server for the lab .*; there are: etcd, consul"):
        served(tmp_path)
