"""Texts that are shown, also on a machine that has no descriptor left, where no codec can be loaded."""

from __future__ import annotations

import subprocess
import sys

from pyflannel.small.text import counted, inert

PROGRAM = """
import resource
from pyflannel.small.text import inert
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(inert("socket:\\x00\\u202e\\U000e0001 too many"))
"""


def test_a_text_is_made_inert_without_a_descriptor() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("socket:\\x00\\u202e\\U000e0001 too many\n", "")


def test_one_thing_is_named_in_the_singular() -> None:
    assert [counted(number, "peer") for number in (0, 1, 2, 11)] == ["0 peers", "1 peer", "2 peers", "11 peers"]


def test_a_name_reads_as_another_one_only_if_it_is_that_one() -> None:
    for char in "\u034f\u115f\u3164\ufe0f\uffa0\U000e0100\u200b\u00ad\u2060":
        assert inert(f"node{char}1") == f"node{ascii(char)[1:-1]}1"
    assert inert("Zürich \u6771\u4eac \u0645") == "Zürich \u6771\u4eac \u0645"
