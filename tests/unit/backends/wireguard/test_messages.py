"""The wire formats: what is one of the four messages is read as such, all else is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyflannel_backends.wireguard import messages
from pyflannel_backends.wireguard.messages import CookieReply, Initiation, Response, TransportHeader

indices = st.integers(0, 2**32 - 1)


def octets(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


initiations = st.builds(Initiation, indices, octets(32), octets(48), octets(28), octets(16), octets(16))
responses = st.builds(Response, indices, indices, octets(32), octets(16), octets(16), octets(16))
replies = st.builds(CookieReply, indices, octets(24), octets(32))


def test_layouts() -> None:
    """Sizes and places of the white paper's tables."""
    initiation = Initiation(0x04030201, b"e" * 32, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16).pack()
    assert initiation == (bytes([1, 0, 0, 0, 1, 2, 3, 4]) + b"e" * 32 + b"s" * 48 + b"t" * 28 + b"1" * 16 + b"2" * 16)
    assert len(initiation) == 148
    response = Response(0x04030201, 0x08070605, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16).pack()
    assert response == (bytes([2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]) + b"e" * 32 + b"n" * 16 + b"1" * 16 + b"2" * 16)
    assert len(response) == 92
    reply = CookieReply(0x04030201, b"n" * 24, b"c" * 32).pack()
    assert reply == bytes([3, 0, 0, 0, 1, 2, 3, 4]) + b"n" * 24 + b"c" * 32
    assert TransportHeader(0x04030201, 5).pack() == bytes([4, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0])


@given(initiations | responses | replies)
def test_what_was_packed_is_read(message: Initiation | Response | CookieReply) -> None:
    assert messages.parse_handshake(message.pack()) == message


@given(indices, st.integers(0, 2**64 - 1), st.binary(min_size=16))
def test_what_was_packed_is_read_as_transport(receiver: int, counter: int, sealed: bytes) -> None:
    header = TransportHeader(receiver, counter)
    assert messages.parse_transport(header.pack() + sealed) == header
    assert messages.parse_handshake(header.pack() + sealed) is None


@given(initiations | responses | replies, st.data())
def test_another_length_type_or_reserved_byte_is_no_message(
    message: Initiation | Response | CookieReply, data: st.DataObject
) -> None:
    packed = message.pack()
    assert messages.parse_handshake(packed + b"x") is None
    assert messages.parse_handshake(packed[: data.draw(st.integers(0, len(packed) - 1))]) is None
    changed = bytearray(packed)
    changed[data.draw(st.integers(0, 3))] ^= data.draw(st.integers(1, 255))
    assert messages.parse_handshake(bytes(changed)) is None


@given(st.binary(max_size=200))
def test_anything_is_read_or_none(data: bytes) -> None:
    messages.parse_handshake(data)
    header = messages.parse_transport(data)
    assert header is None or data.startswith(header.pack())
