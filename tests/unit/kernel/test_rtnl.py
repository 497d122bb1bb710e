"""The slim import of pyroute2's message classes, each case in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
from pyflannel.kernel.rtnl import messages
message = messages().link()
message["index"] = 7
message["attrs"] = [("IFLA_IFNAME", "flannel.1")]
message.encode()
again = messages().link(bytes(message.data))
again.decode()
assert (again["index"], dict(again["attrs"])) == (7, {"IFLA_IFNAME": "flannel.1"})
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rest_of_pyroute2_is_not_imported() -> None:
    python(USE + "import sys; assert not {'asyncio', 'pyroute2', 'pyroute2.iproute'} & sys.modules.keys()")


def test_a_later_import_gets_the_real_package() -> None:
    python(USE + "import pyroute2; pyroute2.IPRoute; pyroute2.netlink; from pyroute2.netlink import rtnl" + USE)


def test_a_package_that_is_imported_already_is_used() -> None:
    python("import pyroute2" + USE + "import pyroute2.netlink.rtnl.ifinfmsg as m; assert messages().link is m.ifinfmsg")


def test_where_the_slim_way_fails_the_plain_import_is_used() -> None:
    python(
        "import pyflannel.kernel.rtnl as r\n"
        "def broken(): raise AttributeError('another layout')\n"
        "r._load_slim = broken" + USE + "import sys; assert 'pyroute2.iproute' in sys.modules"
    )


@pytest.mark.parametrize("module", ["netlink", "twin", "links"])
def test_importing_the_port_imports_no_pyroute2(module: str) -> None:
    python(f"import pyflannel.kernel.{module}, sys; assert not any(m.startswith('pyroute2') for m in sys.modules)")
