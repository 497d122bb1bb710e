"""Docker's options: byte for byte what a shell script makes of the same subnet.env, and what that script lets pass."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.cli.docker_opts import docker_opts
from pyflannel.daemon.docker_opts import docker_options, render
from pyflannel.errors import ConfigError

SUBNET_ENV = """\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
"""
EACH = """\
DOCKER_OPT_BIP="--bip=10.1.74.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
"""
DROP_IN = Path(__file__).parents[3] / "contrib" / "docker.service.d" / "pyflannel.conf"
PROGRAM = "/opt/pyflannel/bin/pyflannel"
ALL = 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], EACH + ALL),
        (["-i"], EACH),
        (["-c"], ALL),
        (["-ic"], EACH + ALL),
        (["-k", "CUSTOM"], EACH + ALL.replace("DOCKER_OPTS", "CUSTOM")),
        (["-c", "-kCUSTOM"], ALL.replace("DOCKER_OPTS", "CUSTOM")),
        (["-mc"], 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'),
    ],
)
def test_the_options_do_what_flannel_s_script_does(tmp_path: Path, words: list[str], text: str) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    arguments = ["-f", str(tmp_path / "subnet.env"), "-d", str(tmp_path / "docker.env"), *words]
    result = CliRunner().invoke(docker_opts, arguments, catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "docker.env").read_text() == text


def test_docker_masquerades_when_the_daemon_does_not_and_only_then() -> None:
    assert docker_options("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", "x")["DOCKER_OPT_IPMASQ"] == "--ip-masq=false"


def test_a_subnet_env_may_export_its_variables() -> None:
    exported = "".join(f"export {line}\n" for line in SUBNET_ENV.splitlines())
    assert docker_options(exported, "x") == docker_options(SUBNET_ENV, "x")


def test_what_the_environment_has_stays_in() -> None:
    environ = {
        "DOCKER_OPT_BIP": "--bip=old",
        "DOCKER_OPT_DNS": "--dns=192.0.2.53",
        "DOCKER_OPTS": "--debug",
        "HOME": "/",
    }
    text = render({"DOCKER_OPT_BIP": "--bip=10.1.74.1/24"}, environ, True, "DOCKER_OPTS")
    assert text.splitlines() == [
        'DOCKER_OPT_BIP="--bip=10.1.74.1/24"',
        'DOCKER_OPT_DNS="--dns=192.0.2.53"',
        'DOCKER_OPTS="--debug  --bip=10.1.74.1/24 --dns=192.0.2.53"',
    ]


def test_docker_s_second_start_has_the_options_of_the_first_no_more(tmp_path: Path) -> None:
    """systemd gives the file's variables, from the second start on, to the command that writes it, too."""
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    target = tmp_path / "docker.env"
    (command,) = re.findall("^ExecStartPre=(.*)$", DROP_IN.read_text(), flags=re.MULTILINE)
    (file,) = re.findall("^EnvironmentFile=-(.*)$", DROP_IN.read_text(), flags=re.MULTILINE)
    command = command.replace(file, str(target)).replace(PROGRAM, f"{sys.executable} -m pyflannel")
    environ = dict(os.environ)
    for _ in range(2):
        subprocess.run([*shlex.split(command), "-f", str(tmp_path / "subnet.env")], env=environ, check=True)
        assert target.read_text() == ALL.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS")
        name, _, value = target.read_text().rstrip('"\n').partition('="')
        environ[name] = value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FLANNEL_SUBNET=10.1.74.1\n", "FLANNEL_SUBNET is '10.1.74.1', which is not an address/length"),
        ("FLANNEL_SUBNET=10.1.74.1/24 --debug\n", "which is not an address/length"),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=big\n", "FLANNEL_MTU is 'big'"),
        ("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=yes\n", "FLANNEL_IPMASQ is 'yes', which is not true or false"),
        ("", "names neither FLANNEL_SUBNET nor FLANNEL_MTU"),
    ],
)
def test_a_bad_subnet_env_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        docker_options(text, "subnet.env")


def test_a_missing_subnet_env_writes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(docker_opts, ["-f", str(tmp_path / "no"), "-d", str(tmp_path / "docker.env")])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "docker.env").exists()


def test_a_place_that_can_t_be_written_is_named_with_its_own_option(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "docker.env"
    result = CliRunner().invoke(docker_opts, ["-f", str(tmp_path / "subnet.env"), "-d", str(target)])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"Docker's options {target}: can't be written: Not a directory; ")
    assert "another place with -d," in str(result.exception)


def test_a_key_that_is_no_variable_is_refused() -> None:
    assert "must be a variable's name" in CliRunner().invoke(docker_opts, ["-k", "A=1;B"]).output


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r", exclude_categories=["Cs"]), max_size=12))
def test_a_shell_reads_back_any_value(value: str) -> None:
    text = render({"DOCKER_OPT_X": value}, {}, True, None)
    script = text.removesuffix("\n") + '; printf %s "$DOCKER_OPT_X"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout == value.encode()
