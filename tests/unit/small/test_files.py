"""Small files are read whole, whatever their size, and what can't be read says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.small import files as smallfile


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20_000])
def test_all_of_it_is_read(tmp_path: Path, size: int) -> None:
    content = bytes(number & 0xFF for number in range(size))
    file = tmp_path / "file"
    file.write_bytes(content)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert smallfile.read(file) == content
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        smallfile.read(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        smallfile.read(tmp_path)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "fresh"
    path.symlink_to(victim)
    smallfile.create(path, "ours")
    assert not victim.exists()
    assert (path.read_text(), path.is_symlink(), path.stat().st_mode & 0o777) == ("ours", False, 0o600)
