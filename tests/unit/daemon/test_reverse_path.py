"""The reverse path filter is loosened where it is strict, and comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.errors import ConfigError
from pyflannel.kernel.model import Sysctl


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    for link in ("all", "default", "eth0", "flannel.1"):
        put(tmp_path / "kernel", link, 0)
    return tmp_path / "kernel"


def put(kernel: Path, link: str, value: int) -> None:
    (kernel / f"net/ipv4/conf/{link}").mkdir(parents=True, exist_ok=True)
    (kernel / f"net/ipv4/conf/{link}/rp_filter").write_text(f"{value}\n")


def value(kernel: Path, link: str) -> str:
    return (kernel / f"net/ipv4/conf/{link}/rp_filter").read_text().strip()


def loose(*links: str) -> tuple[Sysctl, ...]:
    return tuple(Sysctl(f"net/ipv4/conf/{link}/rp_filter", "2", optional=True) for link in links)


@pytest.mark.parametrize(
    ("everywhere", "own", "strict"),
    [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, True), (1, 2, False), (2, 1, False), (0, 2, False)],
)
def test_only_what_is_strict_is_loosened(tmp_path: Path, kernel: Path, everywhere: int, own: int, strict: bool) -> None:
    put(kernel, "all", everywhere)
    put(kernel, "eth0", own)
    assert ReversePath(tmp_path / "state", kernel).loosen(["eth0"]) == (loose("eth0") if strict else ())


def test_what_was_there_comes_back_also_after_a_restart(tmp_path: Path, kernel: Path) -> None:
    put(kernel, "eth0", 1)
    put(kernel, "default", 1)
    assert ReversePath(tmp_path / "state", kernel).loosen(["eth0", "flannel.1", "new"]) == loose("eth0", "new")
    for link in ("eth0", "new"):
        put(kernel, link, 2)
    again = ReversePath(tmp_path / "state", kernel)
    assert again.loosen(["eth0", "flannel.1", "new"]) == loose("eth0", "new"), "still needed"
    assert again.loosen(["new"]) == loose("new"), "those that are asked for"
    again.restore()
    assert [value(kernel, link) for link in ("eth0", "flannel.1", "new")] == ["1", "0", "1"]
    put(kernel, "eth0", 2)
    again.restore()
    assert value(kernel, "eth0") == "2", "restored once, then it is the operator's"


def test_a_link_that_is_gone_and_a_file_that_is_damaged_are_no_trouble(tmp_path: Path, kernel: Path) -> None:
    paths = ReversePath(tmp_path / "state", kernel)
    put(kernel, "default", 1)
    paths.loosen(["gone"])
    paths.restore()
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "rp_filter.json").write_text("[")
    paths.restore()
    assert paths.loosen(["eth0"]) == ()


def test_what_cant_be_kept_is_not_loosened(tmp_path: Path, kernel: Path) -> None:
    put(kernel, "eth0", 1)
    (tmp_path / "state").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"state/rp_filter.json: can't be written: .*--state-dir"):
        ReversePath(tmp_path / "state", kernel).loosen(["eth0"])
