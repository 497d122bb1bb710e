"""The document that a node followed last outlives the daemon, and nobody else may read it: it may hold a key."""

from __future__ import annotations

import stat
from pathlib import Path

from pyflannel.membership import followed


def test_what_is_kept_is_read_by_us_alone_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert followed.read(directory) == ""
    for document in ('{"Network": "10.5.0.0/16"}', '{"Network": "10.6.0.0/16"}'):
        followed.keep(directory, document)
        assert followed.read(directory) == document
    (kept,) = directory.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_one_that_was_readable_by_all_is_so_no_more(tmp_path: Path) -> None:
    followed.keep(tmp_path, "{}")
    (kept,) = tmp_path.iterdir()
    kept.chmod(0o644)
    followed.keep(tmp_path, "{}")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
