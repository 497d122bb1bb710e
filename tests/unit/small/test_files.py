"""Small files are read whole, whatever their size, and what can't be read says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyflannel.daemon import cni, subnet_env
from pyflannel.daemon.reverse_path import ReversePath
from pyflannel.errors import ConfigError
from pyflannel.membership import followed
from pyflannel.membership.nodeid import identify
from pyflannel.small import files as smallfile


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20_000])
def test_all_of_it_is_read(tmp_path: Path, size: int) -> None:
    content = bytes(number & 0xFF for number in range(size))
    file = tmp_path / "file"
    file.write_bytes(content)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert smallfile.read(file) == content
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_text_has_an_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\r\n" + "zw\u00f6lf".encode())
    assert smallfile.read_text(file) == "one\nzw\u00f6lf"
    with pytest.raises(OSError, match="File too large"):
        smallfile.read_text(Path("/dev/zero"))


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        smallfile.read(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        smallfile.read(tmp_path)


@pytest.mark.parametrize("path", ["/", "."])
def test_what_can_only_be_a_directory_is_not_replaced(path: str) -> None:
    with pytest.raises(IsADirectoryError, match=f"'{path}'"):
        smallfile.replace(Path(path), "ours")


@pytest.mark.parametrize("target", ["/dev/null", "/proc/self/fd/1"])
def test_what_is_everybodys_is_not_replaced(tmp_path: Path, target: str) -> None:
    """A daemon of root's made a file of /dev/null, and docker-opts one of /dev/stdout."""
    path = tmp_path / "place"
    path.symlink_to(target)
    with pytest.raises(OSError, match="not a regular file"):
        smallfile.replace(path, "ours")
    assert path.readlink() == Path(target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "fresh"
    path.symlink_to(victim)
    smallfile.create(path, "ours")
    assert not victim.exists()
    assert (path.read_text(), path.is_symlink(), path.stat().st_mode & 0o777) == ("ours", False, 0o600)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("plant", [pipe, endless])
def test_what_never_ends_is_not_waited_for(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """A thread that reads it would never come back."""
    path = tmp_path / "file"
    plant(path)
    with pytest.raises(OSError, match="not a regular file"):
        smallfile.read_own(path)


@pytest.mark.parametrize("plant", [pipe, endless])
def test_nothing_of_the_daemon_s_waits_for_it(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "00-first.conf")
    assert cni.write(tmp_path / "10-ours.conflist", "{}")
    for name in ("subnet.env", "network.json", "rp_filter.json", "node-id", "machine-id"):
        plant(tmp_path / name)
    assert subnet_env.read_previous(tmp_path / "subnet.env").subnets is None
    assert followed.read(tmp_path) == ""
    ReversePath(tmp_path).restore()
    with pytest.raises(ConfigError, match="node-id can't keep a random one"):
        identify(tmp_path, machine_id=tmp_path / "machine-id")


def test_what_has_another_length_is_not_read_before_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    os.truncate(path, 1 << 40)
    assert smallfile.replace(path, "ours")
    assert path.read_text() == "ours"


def test_a_long_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    assert smallfile.read_own(path, 100) == b"x" * 100
    assert smallfile.read_own(path) == b"x" * 5000
    with pytest.raises(IsADirectoryError):
        smallfile.read_own(tmp_path)
