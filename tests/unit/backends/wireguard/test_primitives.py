"""The primitives that the protocol is made of, as we call them, against published test vectors."""

from __future__ import annotations

from hashlib import blake2s

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pyflannel_backends.wireguard import noise
from pyflannel_backends.wireguard.cookie import hchacha20, xchacha20poly1305
from pyflannel_backends.wireguard.noise import CHAIN, PROLOGUE, StaticKeys, kdf
from pyflannel_backends.wireguard.session import nonce

LADIES = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip "
    b"for the future, sunscreen would be it."
)
RANGE_80 = bytes(range(0x80, 0xA0))
AAD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")


def test_blake2s() -> None:
    """RFC 7693, appendix B, and the first of the reference implementation's keyed vectors."""
    abc = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert blake2s(b"abc").hexdigest() == abc
    keyed = "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"
    assert blake2s(b"", key=bytes(range(32))).hexdigest() == keyed


@pytest.mark.parametrize(
    ("scalar", "point", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519(scalar: str, point: str, product: str) -> None:
    """RFC 7748, section 5.2."""
    shared = StaticKeys(bytes.fromhex(scalar)).shared(bytes.fromhex(point))
    assert shared is not None
    assert shared.hex() == product


def test_x25519_exchange() -> None:
    """RFC 7748, section 6.1."""
    alice = StaticKeys(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = StaticKeys(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.shared(bob.public) == bob.shared(alice.public) == secret


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_x25519_has_no_secret_with_a_degenerate_point(point: bytes) -> None:
    assert StaticKeys(bytes(range(32))).shared(point) is None


def test_chacha20poly1305() -> None:
    """RFC 8439, section 2.8.2."""
    key = ChaCha20Poly1305(RANGE_80)
    sealed = key.encrypt(bytes.fromhex("070000004041424344454647"), LADIES, AAD)
    assert sealed.hex() == (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b29"
        "05d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b"
        "6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )


def test_an_older_library_seals_the_same() -> None:
    """Before version 47, ``cryptography`` can't write where it is told."""
    key, number = bytes(range(32)), nonce(7)
    plain, buffer, back = b"packet" * 9, memoryview(bytearray(54 + 16)), memoryview(bytearray(54))
    copying = noise._CopyingCipher(key)
    assert copying.encrypt_into(number, plain, None, buffer) == 70
    assert bytes(buffer) == ChaCha20Poly1305(key).encrypt(number, plain, None) == copying.encrypt(number, plain, None)
    assert copying.decrypt_into(number, buffer, None, back) == 54
    assert bytes(back) == plain
    buffer[3] ^= 1
    with pytest.raises(InvalidTag):
        copying.decrypt_into(number, buffer, None, back)


def test_nonce_is_zeros_and_the_number_with_its_lowest_byte_first() -> None:
    assert nonce(0x0102030405060708).hex() == "000000000807060504030201"


def test_hchacha20() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    derived = hchacha20(bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927"))
    assert derived.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_xchacha20poly1305() -> None:
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    cipher, short = xchacha20poly1305(RANGE_80, bytes(range(0x40, 0x58)))
    sealed = cipher.encrypt(short, LADIES, AAD)
    assert sealed.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216"
        "cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13"
        "b52e"
        "c0875924c1c7987947deafd8780acf49"
    )
    damaged = bytes([sealed[0] ^ 1]) + sealed[1:]
    with pytest.raises(InvalidTag):
        cipher.decrypt(short, damaged, AAD)


def test_handshakes_begin_with_the_constants_of_the_specification() -> None:
    """As the kernel's and wireguard-go's sources have them precomputed."""
    assert CHAIN.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    assert PROLOGUE.hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


def test_kdf() -> None:
    """Vectors of wireguard-go's test of the same function (device/kdf_test.go)."""
    cases = [
        (
            "746573742d6b6579",
            "746573742d696e707574",
            "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
            "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
            "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
        ),
        (
            "776972656775617264",
            "776972656775617264",
            "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
            "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
            "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
        ),
        (
            "",
            "",
            "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
            "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
            "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
        ),
    ]
    for key, data, *expected in cases:
        for count in (1, 2, 3):
            derived = kdf(count, bytes.fromhex(key), bytes.fromhex(data))
            assert [block.hex() for block in derived] == expected[:count]
