"""Our way to SHA-256 against the standard library's."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.small.digest import hmac_sha256, sha256


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_digests_are_those_of_the_standard_library(key: bytes, data: bytes) -> None:
    assert sha256(data) == hashlib.sha256(data).digest()
    assert hmac_sha256(key, data) == hmac.digest(key, data, "sha256")


def test_a_daemon_on_vxlan_and_etcd_loads_no_openssl() -> None:
    """What it takes to say who a node is and what its MAC address is, and a driver before it knocks at a member."""
    program = """
import sys, uuid
import pyflannel.daemon.wiring, pyflannel_backends.vxlan, pyflannel_stores.etcd
from pyflannel_stores._etcd_loader import load_etcd3
from pyflannel.backend import stable_mac
from pyflannel.membership.nodeid import machine_specific
load_etcd3(), stable_mac("x"), machine_specific(uuid.UUID(int=1))
print(sorted({"_hashlib", "_ssl"} & sys.modules.keys()))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
