from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.small.digest import hmac_sha256, sha256


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_both_agree_with_the_standard_library(key: bytes, message: bytes) -> None:
    assert sha256(message) == hashlib.sha256(message).digest()
    assert hmac_sha256(key, message) == hmac.digest(key, message, "sha256")


def test_openssl_is_not_loaded() -> None:
    code = "import sys, pyflannel.daemon.loop, pyflannel_backends.vxlan; sys.exit('_hashlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
