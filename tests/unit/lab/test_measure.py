"""The lab's arithmetic: loss, matrices, subnet.env, checksums. What measures real packets is tested in namespaces."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import DaemonError
from pyflannel.lab.daemon import read_container_network
from pyflannel.lab.measure import Loss, Matrix, Pair, Throughput, longest_gap, read_pcap
from pyflannel.lab.probe import checksum


@given(st.lists(st.booleans()))
def test_the_longest_gap_is_the_longest_run_of_unanswered_packets(answers: list[bool]) -> None:
    answered = {sequence for sequence, answer in enumerate(answers) if answer}
    runs = "".join("." if answer else "x" for answer in answers).split(".")
    assert longest_gap(len(answers), answered) == max(map(len, runs), default=0)


def test_loss_is_what_was_sent_and_not_answered() -> None:
    assert Loss(sent=10, received=7, duplicates=2, longest_gap=3, interval=0.1).lost == 3


def test_a_matrix_with_a_silent_pair_is_not_complete() -> None:
    good, bad = Pair("a", "b", "10.0.0.2", 0.1), Pair("b", "a", "10.0.0.1", None)
    assert Matrix(("a", "b"), (good,)).complete
    matrix = Matrix(("a", "b"), (good, bad))
    assert not matrix.complete
    assert matrix.failed == (bad,)
    assert matrix.of(4) == {("a", "b"): 0.1, ("b", "a"): None}
    assert matrix.of(6) == {}


def test_an_empty_matrix_proves_nothing() -> None:
    assert not Matrix(("a",), ()).complete


def test_families_are_told_apart() -> None:
    pairs = (Pair("a", "b", "fd00::2", 0.1), Pair("a", "b", "10.0.0.2", None))
    matrix = Matrix(("a", "b"), pairs)
    assert matrix.versions == (4, 6)
    assert matrix.of(6) == {("a", "b"): 0.1}


def test_throughput_counts_bits() -> None:
    assert Throughput("a", "b", bytes=1_000_000, seconds=2.0).bits_per_second == 4_000_000
    assert Throughput("a", "b", bytes=0, seconds=0.0).bits_per_second == 0


@given(st.binary(min_size=2).filter(lambda data: len(data) % 2 == 0))
def test_a_packet_with_its_checksum_sums_up_to_zero(data: bytes) -> None:
    assert checksum(data + struct.pack("!H", checksum(data))) == 0


def test_the_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_subnet_env_tells_containers_their_place() -> None:
    text = (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )
    network = read_container_network(text)
    assert network.mtu == 1430
    assert [str(gateway) for gateway in network.gateways] == ["10.244.7.1/24", "fd00:0:0:7::1/64"]


@pytest.mark.parametrize("text", ["", "FLANNEL_MTU=1450\n", "FLANNEL_SUBNET=10.244.7.1/24\n"])
def test_an_incomplete_subnet_env_is_refused(text: str) -> None:
    with pytest.raises(DaemonError, match=r"subnet\.env"):
        read_container_network(text)


@given(frames=st.lists(st.binary(min_size=14, max_size=60)))
def test_a_pcap_file_gives_its_frames_back(frames: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path: Path = tmp_path_factory.mktemp("pcap") / "file"
    records = b"".join(struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)
    path.write_bytes(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1) + records)
    assert read_pcap(path) == tuple(frames)
