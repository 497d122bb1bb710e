"""flanneld's own list of its flags, against ours: none is missing, none is made up, and both refuse the same texts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.servers.flanneld import BINARY, VERSION

from pyflannel.cli import main
from pyflannel.errors import ExitCode
from pyflannel.settings import flanneld
from pyflannel.settings.options import BY_NAME

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "flanneld.md").read_text(encoding="utf-8")


def helped() -> dict[str, str]:
    """Each flag of ``flanneld --help``, and the default that it shows."""
    done = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=60)
    found = re.findall(r"^  -(\S+)[^\n]*\n\s+(.*)$", done.stdout + done.stderr, re.MULTILINE)
    return {name: (re.search(r'\(default "?([^")]*)"?\)', text) or ["", ""])[1] for name, text in found}


def test_every_flag_of_flanneld_s_help_is_in_our_table_and_no_other() -> None:
    theirs = helped()
    assert len(theirs) > 20
    assert sorted(theirs) == sorted(flag.name for flag in flanneld.FLAGS)
    rows = re.findall(r"^\| `--(\S+)` \| `(\S+)` \| \S.* \|$", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted((name, f"FLANNELD_{name.upper().replace('-', '_')}") for name in theirs)


BETTER = {
    "healthz-ip",
    "set-node-network-unavailable",
    "net-config-path",
    "etcd-endpoints",
    "subnet-lease-renew-margin",
}
"""Defaults that are not a text here: what holds without the flag is in the table."""


def test_defaults_are_flanneld_s() -> None:
    theirs = {name: default for name, default in helped().items() if default and name not in BETTER}
    assert theirs == {name: str(BY_NAME[name].default_text) for name in theirs}


TEXTS = [
    ("-ip-masq", False),
    ("--ip-masq=false", False),
    ("-ip-masq=maybe", True),
    ("-iptables-forward-rules=T", False),
    ("-iptables-resync=0x10", False),
    ("-iptables-resync=1_0", False),
    ("-iptables-resync=soon", True),
    ("-healthz-port=8080", False),
    ("-healthz-port=http", True),
    ("-subnet-lease-renew-margin=60m", True),
    ("-v=10", False),
    ("-v=much", True),
    ("-vmodule=a=2", False),
    ("-vmodule=a", True),
    ("-vmodule=a=x", True),
    ("-log_backtrace_at=main.go:10", False),
    ("-log_backtrace_at=main.go", True),
    ("-iface-regex=^eth[[:digit:]]+$", False),
    ("-kube-annotation-prefix=example.com", False),
    ("-healthz-port=", True),
    ("-ip-masq=", True),
    ("-v=", True),
    ("-iface=", False),
    ("-public-ip=", False),
    ("-etcd-cafile=", False),
    ("-nonsense", True),
    ("-logtostderr", True),
    ("-alsologtostderr=true", True),
    ("-log_dir=/tmp", True),
    ("-stderrthreshold=INFO", True),
]


@pytest.mark.parametrize(("word", "refused"), TEXTS)
def test_a_text_is_taken_by_both_or_by_neither(word: str, refused: bool, tmp_path: Path) -> None:
    """``-version`` ends flanneld when it has read its flags; ours then examines a node without a daemon."""
    done = subprocess.run([BINARY, word, "-version"], capture_output=True, text=True, timeout=60)
    assert ("Usage: " in done.stderr) == refused, done.stderr
    assert (f"v{VERSION}" in done.stderr) != refused
    code = main(["doctor", "--no-probes", word, "--run-dir", str(tmp_path), "--store", f"file://{tmp_path}/none"])
    assert (code in (ExitCode.USAGE, ExitCode.CONFIG)) == refused
