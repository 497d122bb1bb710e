"""The node id: derived as systemd derives ids, random only where there is nothing to derive it from."""

from __future__ import annotations

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel.membership.nodeid import identify, known_id, machine_specific, read_marks
from pyflannel.network.marks import Kinship

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
    for wrong in (b"\0" * 36, b"x" * 257):  # a file system may leave the first of one after a crash
        (tmp_path / "node-id").write_bytes(wrong)
        with pytest.raises(ConfigError, match="something other"):
            identify(tmp_path, machine_id=tmp_path / "none")


def test_who_only_looks_makes_none_up(tmp_path: Path) -> None:
    none, state = tmp_path / "none", tmp_path / "state"
    assert known_id(state, machine_id=none) == ""
    assert not state.exists()
    assert known_id(state, "n1", none) == "n1"
    assert identify(state, machine_id=none) == known_id(state, machine_id=none)
    none.write_text("0123456789abcdef" * 2)
    assert known_id(state, machine_id=none) == identify(state, machine_id=none)


def machine(root: Path, boot: str = "boot", product: str = "", tree: str = "") -> Path:
    """A machine's files below ``root``."""
    files = {
        "proc/sys/kernel/random/boot_id": boot,
        "sys/class/dmi/id/product_uuid": product,
        "sys/firmware/devicetree/base/serial-number": tree,
    }
    for name, text in files.items():
        if text:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


def test_marks_are_hashes_of_what_lasts(tmp_path: Path) -> None:
    root = machine(tmp_path, "b00t", "4C4C4544-0051-3610-8052-B4C04F4A3132\n")
    marks = read_marks(["02:00:00:00:00:01"], root)
    assert marks == read_marks(["02:00:00:00:00:01"], root)
    assert not {"b00t", "4c4c4544", "02:00"} & {text[:8] for text in (marks.run, marks.product, *marks.cards)}
    machine(root, "after a reboot")
    after = read_marks(["02:00:00:00:00:01"], root)
    assert after.run != marks.run
    assert (after.product, after.cards) == (marks.product, marks.cards)


@pytest.mark.parametrize("product", ["", str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1)).upper()])
def test_a_number_that_nobody_has_is_none(tmp_path: Path, product: str) -> None:
    assert read_marks([], machine(tmp_path, product=product)).product == ""


def test_a_board_without_such_firmware_has_its_serial_number(tmp_path: Path) -> None:
    one = read_marks([], machine(tmp_path / "1", "boot 1", tree="100000003d1f\0"))
    other = read_marks([], machine(tmp_path / "2", "boot 2", tree="100000003d20\0"))
    assert one.kinship(other) is Kinship.OTHER


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    assert read_marks([], tmp_path).kinship(read_marks([], tmp_path)) is Kinship.UNKNOWN


def test_two_network_namespaces_of_one_kernel_are_two_machines(tmp_path: Path) -> None:
    script = "from pyflannel.membership.nodeid import read_marks; print(read_marks([]).run)"
    here = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert here.strip() == read_marks([]).run
    there = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if there.returncode:
        pytest.skip(f"can't make a network namespace: {there.stderr}")
    assert there.stdout != here
