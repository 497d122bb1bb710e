"""The extension is used if it was made from the sources that are there; if not, the reason says what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel_backends.userspace import fastpath

NATIVE = Path(__file__).parents[4] / "backends/pyflannel_backends/userspace/native"
"""The sources, which an installed package does not have."""


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    fastpath._found.cache_clear()
    yield
    fastpath._found.cache_clear()


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, of which the extension is thought to be made."""
    pytest.importorskip(
        "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
    )
    for each in NATIVE.glob("*.[ch]"):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    monkeypatch.setattr(fastpath, "NATIVE", tmp_path)
    return tmp_path


def test_one_of_the_same_sources_is_used(sources: Path) -> None:
    assert fastpath.load_fast_path() is not None
    assert fastpath.described(fastpath.load_fast_path()) == "yes"


def test_one_of_other_sources_is_left_aside_and_named(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (sources / "packets.h").open("a") as header:
        header.write("\n")
    with caplog.at_level(logging.WARNING):
        assert fastpath.load_fast_path() is None
        assert fastpath.load_transport() is None
    said = fastpath.described(None)
    assert f"_fastpath.abi3.so was compiled from other sources than those in {sources}" in said
    assert "tools/bootstrap test" in said
    assert len(caplog.records) == 1


def test_without_sources_there_is_nothing_to_compare(sources: Path) -> None:
    for each in sources.iterdir():
        each.unlink()
    assert fastpath.load_fast_path() is not None


def test_one_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_extension"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_fastpath.abi3.so").write_bytes(b"no library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fastpath, "__package__", package.name)
    assert fastpath.load_fast_path() is None
    assert fastpath.described(None).startswith("no: can't be loaded: ")
    assert "compile it again" in fastpath.described(None)


def test_none_is_no_trouble(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fastpath, "__package__", "pyflannel_backends")
    with caplog.at_level(logging.WARNING):
        assert fastpath.described(fastpath.load_fast_path()) == "no: not compiled"
    assert not caplog.records


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
    assert fastpath.load_fast_path() is None
    assert fastpath.described(None) == "no: switched off by PYFLANNEL_NO_EXTENSIONS"
