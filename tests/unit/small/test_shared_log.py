"""A plugin that sets up logging for the whole process silences nobody."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging, logging.config, sys
from pyflannel.settings import log
from pyflannel.small.shared_log import undisturbed
log.configure("info")
speaker = logging.getLogger("pyflannel.daemon.loop")
with undisturbed("store 'acme'"):
    exec(sys.argv[1])
speaker.info("heard")
logging.getLogger("acme").debug("not asked for")
"""

DISTURBANCES = {
    "a configuration of a library's own": "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR'}})",
    "another handler for all": "logging.basicConfig(force=True, stream=sys.stdout)",
    "silence": "logging.disable(logging.CRITICAL)",
    "another level": "logging.getLogger().setLevel(logging.DEBUG)",
}


def spoken(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, code], capture_output=True, text=True, check=True)
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("code", DISTURBANCES.values(), ids=DISTURBANCES)
def test_it_is_undone_and_named(code: str) -> None:
    told = "store 'acme' has set up logging for the whole process, which is left to programs; that is undone"
    assert spoken(code) == [f"warning  {told}", "info     heard"]


@pytest.mark.parametrize(
    "code",
    ["logging.getLogger('acme').disabled = True", "logging.getLogger().addHandler(logging.NullHandler())", "pass"],
    ids=["silence of its own", "a handler besides", "nothing"],
)
def test_what_is_its_own_stays(code: str) -> None:
    assert spoken(code) == ["info     heard"]


def test_settings_that_are_read_meanwhile_hold() -> None:
    assert spoken("log.configure('error')") == []
