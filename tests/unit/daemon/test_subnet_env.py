"""subnet.env: flanneld's bytes, whole or not at all, and forgiving when read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.daemon import subnet_env as envfile
from pyflannel.errors import ConfigError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease, Subnets

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/subnet.env"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_recorded_files_are_written_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    """Node 1 of each recording is 192.0.2.1; MTU and masquerade come from its own file."""
    expected = (folder / "subnet.env").read_bytes()
    network = NetworkConfig.from_json((folder / "config.json").read_text())
    lines = [line for line in (folder / "leases.txt").read_text().splitlines() if line]
    leases = [
        Lease.from_record(key.rpartition("/")[2], value) for key, value in zip(lines[::2], lines[1::2], strict=True)
    ]
    own = next(lease for lease in leases if str(lease.attributes.public_ip) == "192.0.2.1")
    mtu = int(expected.partition(b"FLANNEL_MTU=")[2].split()[0])
    path = tmp_path / "subnet.env"
    assert envfile.write(path, envfile.render(network, own.subnets, mtu, ip_masq=True))
    assert path.read_bytes() == expected
    assert envfile.read_previous(path) == (own.subnets, "")


def test_ipv6_only_names_no_ipv4() -> None:
    document = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "2001:db8:42::/56"}
    network = NetworkConfig.from_json(json.dumps(document))
    text = envfile.render(network, Subnets(None, IPv6Network("2001:db8:42:2d::/64")), 1430, ip_masq=False)
    assert text == (
        "FLANNEL_IPV6_NETWORK=2001:db8:42::/56\n"
        "FLANNEL_IPV6_SUBNET=2001:db8:42:2d::1/64\n"
        "FLANNEL_MTU=1430\n"
        "FLANNEL_IPMASQ=false\n"
    )


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("tight_umask")
def test_everybody_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    envfile.write(path, "x\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755


def test_rewritten_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    assert envfile.write(path, "one\n")
    before = path.stat()
    assert not envfile.write(path, "one\n")
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert envfile.write(path, "two\n")
    assert path.read_text() == "two\n"
    path.chmod(0o600)
    assert envfile.write(path, "two\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """The file is replaced, not rewritten: who has the old one open goes on reading it, and no draft is left."""
    path = tmp_path / "subnet.env"
    envfile.write(path, "old\n")
    with path.open() as reader:
        envfile.write(path, "new and longer\n")
        assert reader.read() == "old\n"
    assert os.listdir(tmp_path) == ["subnet.env"]


def test_what_a_killed_daemon_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".subnet.env").write_text("half a fi")
    victim = tmp_path / "victim"
    victim.write_text("keep")
    path = tmp_path / "subnet.env"
    envfile.write(path, "one\n")
    (tmp_path / ".subnet.env").symlink_to(victim)
    envfile.write(path, "two\n")
    assert sorted(os.listdir(tmp_path)) == ["subnet.env", "victim"]
    assert victim.read_text() == "keep"
    assert path.read_text() == "two\n"


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "subnet.env", tmp_path):
        with pytest.raises(ConfigError, match="--subnet-file") as caught:
            envfile.write(path, "x\n")
        assert str(path) in str(caught.value)
    assert sorted(item.name for item in tmp_path.parent.glob(f".{tmp_path.name}*")) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "names no FLANNEL_SUBNET"),
        (b"FLANNEL_MTU=1450\n", "names no FLANNEL_SUBNET"),
        (b"FLANNEL_SUBNET=\n", "''"),
        (b"FLANNEL_SUBNET=10.42.67.1/33\n", "10.42.67.1/33"),
        (b"FLANNEL_SUBNET=10.42.67.1/24\nFLANNEL_IPV6_SUBNET=10.0.0.1/24\n", "10.0.0.1"),
        (b"FLANNEL_SUBNET=fd00::1/64\n", "fd00::1"),
        (b"FLANNEL_SUBNET=10.42.67.1\n", "10.42.67.1"),
        (b"FLANNEL_IPV6_SUBNET=fd00::1%x/64\n", "%x"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_damaged_file_names_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(content)
    subnets, why = envfile.read_previous(path)
    assert subnets is None
    assert why.startswith(f"{path}: ")
    assert reason in why


def test_a_missing_file_names_the_reason(tmp_path: Path) -> None:
    assert envfile.read_previous(tmp_path / "none").reason.endswith("No such file or directory")
    assert envfile.read_previous(tmp_path).subnets is None


def test_quotes_spaces_comments_and_unknown_keys_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("# hand-made\n\n FLANNEL_SUBNET = \"10.42.67.1/24\" \nOTHER=1\nFLANNEL_IPV6_SUBNET='fd00::1/64'\n")
    assert envfile.read_previous(path).subnets == Subnets(IPv4Network("10.42.67.0/24"), IPv6Network("fd00::/64"))


@given(
    st.binary(max_size=200) | st.text(max_size=80).map(lambda text: f"FLANNEL_SUBNET={text}".encode(errors="replace"))
)
def test_no_content_raises(content: bytes) -> None:
    path = Path(f"/dev/shm/pyflannel-test-envfile-{os.getpid()}")
    path.write_bytes(content)
    try:
        subnets, reason = envfile.read_previous(path)
    finally:
        path.unlink()
    assert (subnets is None) == bool(reason)


@pytest.mark.parametrize(
    "line",
    [
        "export FLANNEL_SUBNET=10.244.7.1/24",
        "export\tFLANNEL_SUBNET=10.244.7.1/24",
        "FLANNEL_SUBNET=10.244.7.1/24 # of node 7",
        'FLANNEL_SUBNET="10.244.7.1/24"\t# of node 7 (FLANNEL_SUBNET=10.244.8.1/24)',
        "  export  FLANNEL_SUBNET = '10.244.7.1/24'  ",
        "FLANNEL_SUBNET: 10.244.7.1/24",
        "#FLANNEL_SUBNET=10.244.8.1/24\nFLANNEL_SUBNET=10.244.7.1/24\r",
    ],
)
def test_a_file_for_a_shell_to_source_is_read(tmp_path: Path, line: str) -> None:
    """As flanneld reads it."""
    path = tmp_path / "subnet.env"
    path.write_text(f"{line}\nexport  FLANNEL_MTU=1450\n")
    assert str(envfile.read_previous(path).subnets) == "10.244.7.0/24"
