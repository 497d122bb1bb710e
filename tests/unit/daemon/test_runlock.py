"""One daemon per run directory, whatever way the other one ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.starving import without_descriptors

from pyflannel.daemon.runlock import RunLock, hold
from pyflannel.errors import DaemonError

PROGRAM = """
import sys
from pathlib import Path
from pyflannel.daemon.runlock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holder(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    run_dir = tmp_path / "deep" / "run"
    with (
        another_holder(run_dir) as process,
        pytest.raises(DaemonError, match=rf"\(pid {process.pid}\) already holds {run_dir}"),
        hold(run_dir),
    ):
        pytest.fail("two hold one directory")


def test_a_killed_holder_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with another_holder(tmp_path) as process:
        process.kill()
        process.wait()
        with hold(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    with hold(tmp_path):
        pass


def test_a_child_program_does_not_keep_it(tmp_path: Path) -> None:
    with hold(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with hold(tmp_path):
            assert child.poll() is None
    finally:
        child.communicate(b"\n")


def test_a_directory_that_cant_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonError, match="choose another --run-dir"), hold(tmp_path / "file" / "run"):
        pytest.fail("held")


def test_what_is_said_to_mend_it_does(tmp_path: Path) -> None:
    with without_descriptors(), pytest.raises(DaemonError, match="LimitNOFILE"):
        RunLock(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(DaemonError, match="file is not a directory; choose another --run-dir"):
        RunLock(tmp_path / "file")


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("untouched")
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run"):
        (name,) = (path.name for path in (tmp_path / "run").iterdir())
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(DaemonError, match="is a link"), hold(tmp_path / "run"):
        pass
    assert target.read_text() == "untouched"
