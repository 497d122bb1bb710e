"""Which datagrams the udp backend's worker takes for a peer's, over loopback."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from pyflannel_backends.udp.worker import UdpConfig, UdpPort
from pyflannel_backends.userspace.fastpath import DeviceSide

PEER, STRANGER = "127.0.1.2", "127.0.1.3"


def make_port(*, any_source_port: bool = False, address: str = "127.0.1.1") -> UdpPort:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        number = probe.getsockname()[1]
    port = UdpPort(
        UdpConfig(
            device="flannel0",
            mtu=1472,
            own=["10.5.1.0/24"],
            offload=True,
            address=address,
            port=number,
            any_source_port=any_source_port,
        )
    )
    port.put(PEER, ())
    port.open()
    return port


@pytest.fixture
def port() -> Iterator[UdpPort]:
    port = make_port()
    yield port
    port.close()


def number_of(port: UdpPort) -> int:
    with socket.socket(fileno=os.dup(port.fileno())) as twin:
        return int(twin.getsockname()[1])


def received(port: UdpPort, sender: tuple[str, int], data: bytes) -> tuple[int, int, str | None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(sender)
        peer.sendto(data, ("127.0.1.1", number_of(port)))
        readable, _, _ = select.select([port], [], [], 10)
        assert readable
    answer = port.receive(memoryview(bytearray(1 << 16)))
    assert answer is not None
    return answer


def refused(port: UdpPort) -> dict[str, int]:
    return {name: count for name, count in port.counters.items() if name.startswith("drop_")}


def test_a_peer_is_its_address_and_sends_from_the_network_s_port(port: UdpPort) -> None:
    assert received(port, (PEER, number_of(port)), b"data") == (4, 4, PEER)
    assert port.receive(memoryview(bytearray(1 << 16))) is None
    assert received(port, (PEER, number_of(port)), b"") == (0, 0, PEER)
    assert not any(port.counters.values())


def test_strangers_and_other_ports_are_refused_and_counted(port: UdpPort) -> None:
    assert received(port, (STRANGER, number_of(port)), b"data")[2] is None
    assert refused(port) == {"drop_unknown_sender": 1, "drop_source_port": 0}
    assert received(port, (PEER, 0), b"data")[2] is None
    assert refused(port) == {"drop_unknown_sender": 1, "drop_source_port": 1}
    port.remove(PEER)
    assert received(port, (PEER, number_of(port)), b"data")[2] is None
    assert port.counters["drop_unknown_sender"] == 2


def test_any_port_of_a_peer_is_accepted_where_the_network_says_so() -> None:
    port = make_port(any_source_port=True)
    assert received(port, (PEER, 0), b"data") == (4, 4, PEER)
    assert received(port, (STRANGER, 0), b"data")[2] is None
    port.close()


def test_several_datagrams_of_one_size_go_in_one_call(port: UdpPort) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((PEER, number_of(port)))
        peer.settimeout(10)
        assert port.rows(1000) == 64
        assert port.rows(40000) == port.rows(65507) == 1
        assert port.send(memoryview(b"a" * 1000 + b"b" * 1000 + b"c" * 10), 1000, PEER) == 0
        assert [len(peer.recv(2000)) for _ in range(3)] == [1000, 1000, 10]
    assert port.path_mtu(PEER) > 1472


def fast_path_of(port: UdpPort) -> object:
    with select.epoll() as epoll:
        return port.fast_path(DeviceSide(epoll.fileno(), 0, bytearray(1 << 17), bytearray(1 << 17), True, True, True))


def test_there_is_a_fast_path_where_it_was_compiled_and_nobody_switched_it_off(
    port: UdpPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = pytest.importorskip(
        "pyflannel_backends.userspace._fastpath", reason="the extension was not compiled", exc_type=ImportError
    )
    monkeypatch.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
    assert type(fast_path_of(port)) is extension.FastPath
    monkeypatch.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
    assert fast_path_of(port) is None


def test_over_ipv6_there_is_no_fast_path() -> None:
    try:
        port = make_port(address="::1")
    except OSError as error:
        pytest.skip(f"needs IPv6 on loopback: {error}")
    assert fast_path_of(port) is None
    port.close()
