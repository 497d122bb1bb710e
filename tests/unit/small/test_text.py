"""What is shown of others' texts is the same on a machine that has no descriptor left, where no codec can be loaded."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from pyflannel.small.text import inert
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(inert("socket:\\x00\\u202e\\U000e0001 too many"))
"""


def test_a_text_is_made_inert_without_a_descriptor() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("socket:\\x00\\u202e\\U000e0001 too many\n", "")
