"""The handshake: two messages after which two nodes that know each other's public key share two fresh keys.

Noise's pattern IKpsk2 as the WireGuard white paper specifies it (section 5.4). Both sides keep a chaining key and a
hash of all that was said; every Diffie-Hellman result is mixed into the first, every byte on the wire into the second,
and what a message hides is authenticated by the hash so far. A handshake that does not fit ends as ``None``.

Nothing here has a clock, a random number or a state that outlives one handshake: those are parameters. Secrets are
plain attributes of objects that never show them; Python cannot overwrite memory, so forgetting one means dropping the
last reference to it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2s
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pyflannel_backends.userspace.fastpath import load_transport

from .messages import Initiation, Response

if TYPE_CHECKING:
    from cryptography.utils import Buffer

__all__ = [
    "CHAIN",
    "KEY",
    "PROLOGUE",
    "Initiator",
    "ProvedInitiation",
    "RandomBytes",
    "ReceivedInitiation",
    "StaticKeys",
    "TransportKeys",
    "kdf",
    "mixed",
]

KEY: Final = 32
"""Bytes of a key, public, private or shared."""
CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Gives as many random bytes as asked for: :func:`os.urandom`, or a test's own."""

_FIRST_NONCE: Final = bytes(12)


def mixed(state: bytes, data: bytes) -> bytes:
    """The hash of what was said before and what is said now."""
    return blake2s(state + data).digest()


CHAIN: Final = blake2s(CONSTRUCTION).digest()
"""The chaining key that every handshake begins with."""
PROLOGUE: Final = mixed(CHAIN, IDENTIFIER)
"""The hash that every handshake begins with."""


def kdf(count: int, key: bytes, data: bytes) -> tuple[bytes, ...]:
    """``count`` keys derived from ``key`` and ``data``: HKDF (RFC 5869) with HMAC-BLAKE2s, as the paper's KDF_n."""
    secret = _hmac(key, data)
    derived: list[bytes] = []
    block = b""
    for number in range(1, count + 1):
        block = _hmac(secret, block + bytes((number,)))
        derived.append(block)
    return tuple(derived)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, blake2s).digest()


def _seal(key: bytes, plain: bytes, state: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_FIRST_NONCE, plain, state)


def _open(key: bytes, sealed: bytes, state: bytes) -> bytes | None:
    try:
        return ChaCha20Poly1305(key).decrypt(_FIRST_NONCE, sealed, state)
    except InvalidTag:
        return None


class StaticKeys:
    """A node's static key pair.

    :param private: 32 bytes.
    :raises ValueError: they are not 32.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def shared(self, public: bytes) -> bytes | None:
        """The Diffie-Hellman secret with the owner of ``public``; ``None`` if that key is a degenerate one."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            return None  # all zeros: the other side chose a point that makes the secret known to everybody


class _CopyingCipher:
    """What ``cryptography`` before version 47 lacks, at the price of a copy."""

    __slots__ = ("_cipher", "decrypt", "encrypt")

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self.encrypt, self.decrypt = self._cipher.encrypt, self._cipher.decrypt

    def encrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: memoryview) -> int:
        buf[:] = self._cipher.encrypt(nonce, data, associated_data)
        return len(buf)

    def decrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: memoryview) -> int:
        buf[:] = self._cipher.decrypt(nonce, data, associated_data)
        return len(buf)


TransportCipher: TypeAlias = "ChaCha20Poly1305 | _CopyingCipher"
_transport_cipher: Callable[[bytes], TransportCipher] = (
    ChaCha20Poly1305 if hasattr(ChaCha20Poly1305, "encrypt_into") else _CopyingCipher
)


class TransportKeys:
    """The two keys that a handshake ends with, ready for use: here, and by the fast path where there is one."""

    __slots__ = ("receive", "send", "transport")

    def __init__(self, send: bytes, receive: bytes) -> None:
        self.send = _transport_cipher(send)
        self.receive = _transport_cipher(receive)
        made = load_transport()
        self.transport = None if made is None else made(send, receive)


class Initiator:
    """A handshake that we begin: :attr:`message` goes out, :meth:`finish` takes the answer.

    :param remote: the responder's public key.
    :param psk: the preshared key, 32 bytes; zeros for none.
    :param index: our name for the session to be.
    :param timestamp: TAI64N, 12 bytes, greater than in any earlier handshake.
    :param ephemeral: 32 random bytes.
    :raises ValueError: ``remote`` is a key that nobody can hold.
    """

    __slots__ = ("_chain", "_ephemeral", "_hash", "_identity", "_psk", "message")

    def __init__(
        self, identity: StaticKeys, remote: bytes, psk: bytes, *, index: int, timestamp: bytes, ephemeral: bytes
    ) -> None:
        self._identity, self._psk = identity, psk
        self._ephemeral = StaticKeys(ephemeral)
        public = self._ephemeral.public
        first, second = self._ephemeral.shared(remote), identity.shared(remote)
        if first is None or second is None:
            raise ValueError("a public key with which every secret is known to everybody")
        state = mixed(mixed(PROLOGUE, remote), public)
        (chain,) = kdf(1, CHAIN, public)
        chain, key = kdf(2, chain, first)
        static = _seal(key, identity.public, state)
        state = mixed(state, static)
        chain, key = kdf(2, chain, second)
        stamp = _seal(key, timestamp, state)
        self._hash, self._chain = mixed(state, stamp), chain
        self.message = Initiation(index, public, static, stamp)

    def finish(self, message: Response) -> TransportKeys | None:
        """The keys, if ``message`` answers ours and comes from whom we meant. Can be called again if not."""
        first, second = self._ephemeral.shared(message.ephemeral), self._identity.shared(message.ephemeral)
        if first is None or second is None:
            return None
        state, chain, key = _respond(self._hash, self._chain, message.ephemeral, first, second, self._psk)
        if _open(key, message.empty, state) is None:
            return None
        send, receive = kdf(2, chain, b"")
        return TransportKeys(send, receive)


class ReceivedInitiation:
    """A handshake that somebody begins with us, who claims to hold the key of ``static``; made by :meth:`read`."""

    __slots__ = ("_chain", "_hash", "_identity", "_message", "static")

    def __init__(self, identity: StaticKeys, message: Initiation, static: bytes, state: bytes, chain: bytes) -> None:
        self._identity, self._message = identity, message
        self._hash, self._chain = state, chain
        self.static = static

    @classmethod
    def read(cls, identity: StaticKeys, message: Initiation) -> ReceivedInitiation | None:
        """``None`` if the message was not made for us."""
        secret = identity.shared(message.ephemeral)
        if secret is None:
            return None
        state = mixed(mixed(PROLOGUE, identity.public), message.ephemeral)
        (chain,) = kdf(1, CHAIN, message.ephemeral)
        chain, key = kdf(2, chain, secret)
        static = _open(key, message.static, state)
        if static is None:
            return None
        return cls(identity, message, static, mixed(state, message.static), chain)

    def prove(self) -> ProvedInitiation | None:
        """``None`` if whoever made the message does not hold the key."""
        secret = self._identity.shared(self.static)
        if secret is None:
            return None
        chain, key = kdf(2, self._chain, secret)
        timestamp = _open(key, self._message.timestamp, self._hash)
        if timestamp is None:
            return None
        return ProvedInitiation(
            self._message, self.static, timestamp, mixed(self._hash, self._message.timestamp), chain
        )


class ProvedInitiation:
    """A handshake that a peer begins; ``timestamp`` (TAI64N) has to be greater than any that came from it before."""

    __slots__ = ("_chain", "_hash", "_message", "_static", "timestamp")

    def __init__(self, message: Initiation, static: bytes, timestamp: bytes, state: bytes, chain: bytes) -> None:
        self._message, self._static = message, static
        self._hash, self._chain = state, chain
        self.timestamp = timestamp

    def respond(self, psk: bytes, *, index: int, ephemeral: bytes) -> tuple[Response, TransportKeys] | None:
        """The answer and the keys; ``None`` if the peer's own key is degenerate.

        :param psk: the preshared key, 32 bytes; zeros for none.
        :param index: our name for the session to be.
        :param ephemeral: 32 random bytes.
        """
        ours = StaticKeys(ephemeral)
        first, second = ours.shared(self._message.ephemeral), ours.shared(self._static)
        if first is None or second is None:
            return None
        state, chain, key = _respond(self._hash, self._chain, ours.public, first, second, psk)
        receive, send = kdf(2, chain, b"")
        message = Response(index, self._message.sender, ours.public, _seal(key, b"", state))
        return message, TransportKeys(send, receive)


def _respond(
    state: bytes, chain: bytes, ephemeral: bytes, first: bytes, second: bytes, psk: bytes
) -> tuple[bytes, bytes, bytes]:
    """What both sides compute for the second message: hash and chaining key after it, and the key that seals it."""
    state = mixed(state, ephemeral)
    for secret in (ephemeral, first, second):
        (chain,) = kdf(1, chain, secret)
    chain, mark, key = kdf(3, chain, psk)
    return mixed(state, mark), chain, key
