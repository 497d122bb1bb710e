"""The node id: derived as systemd derives ids, random only where there is nothing to derive it from."""

from __future__ import annotations

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel.membership.nodeid import identify, machine_specific

MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"


@pytest.fixture
def machine_id(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text(f"{MACHINE}\n")
    return path


def test_it_is_what_systemd_computes() -> None:
    # systemd-id128 machine-id --app-specific=8d1d7f0c-3c5e-4f5e-9a57-5a7b4d1c2e90, on a machine with that id
    assert machine_specific(uuid.UUID(MACHINE)).hex == "016e35b8c99d48b1805b498023f0456b"


def test_the_machine_id_is_stable_and_not_given_away(tmp_path: Path, machine_id: Path) -> None:
    first = identify(tmp_path / "a", machine_id=machine_id)
    assert first == identify(tmp_path / "b", machine_id=machine_id)
    assert MACHINE not in first.replace("-", "")
    assert not (tmp_path / "a").exists()


def test_a_given_id_holds(tmp_path: Path, machine_id: Path) -> None:
    assert identify(tmp_path, "n1", machine_id) == "n1"


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_without_a_machine_id_a_random_one_is_kept(tmp_path: Path, content: str | None) -> None:
    machine_id = tmp_path / "machine-id"
    if content is not None:
        machine_id.write_text(content)
    first = identify(tmp_path / "a", machine_id=machine_id)
    assert first == identify(tmp_path / "a", machine_id=machine_id)
    assert first != identify(tmp_path / "b", machine_id=machine_id)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["node-id"]


def test_many_at_once_agree_on_one(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from pyflannel.membership.nodeid import identify; "
    program += "print(identify(Path(sys.argv[1]), machine_id=Path('/nonexistent')))"

    def one(_: int) -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(4)))) == 1


def test_nowhere_to_keep_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="use --node-id or --state-dir"):
        identify(tmp_path / "file" / "state", machine_id=tmp_path / "none")
    (tmp_path / "node-id").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        identify(tmp_path, machine_id=tmp_path / "none")
