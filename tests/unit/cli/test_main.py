"""The process as a whole: exit codes, one-line errors, and where settings come from."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import termios
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.waiting import PATIENCE, until

from pyflannel import cli
from pyflannel.cli import COMMANDS
from pyflannel.version import VERSION

from .conftest import CommandLine


def test_the_version_is_the_distributions(pyflannel: CommandLine) -> None:
    assert metadata.version("pyflannel") == VERSION
    for words in (["version"], ["--version"], ["-version"], ["-version=true"], ["--version=1"]):
        result = pyflannel(*words)
        assert (result.code, result.out, result.err) == (0, f"pyflannel {VERSION}\n", "")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from pyflannel.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"pyroute2", "grpc", "cryptography", "rich", "numpy", "stevedore", "asyncio", "importlib.metadata"}
    assert heavy.isdisjoint(result.stderr.split())
    assert "Commands:" in result.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli.pyflannel, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--no-such-flag"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
        (["config"], 2, "Missing command (see: pyflannel config --help)"),
        (["plugin"], 2, "Missing command (see: pyflannel plugin --help)"),
        (["wireguard"], 2, "Missing command (see: pyflannel wireguard --help)"),
        (["--firewall", "pf"], 3, "flag --firewall: 'pf' must be one of auto, nftables, iptables, none"),
        (["--public-ip", "x"], 3, "flag --public-ip: 'x' must be an IPv4 address"),
        (["leases", "--config", "/no/such/file"], 3, "flag --config: /no/such/file does not exist"),
        (["leases", "-kube-subnet-mgr"], 3, "where is the API server?"),
        (["config", "get"], 4, "does not exist; correct --store"),
        (["leases", "--store", "nosuch://x"], 7, "no store 'nosuch' is installed"),
        (["plugin-test", "file", "--store", "x"], 3, "store 'x': expected a URL such as"),
        (["plugin-test", "file", "--store", "etcd://h"], 3, "--store etcd://h: that is a place of store 'etcd'"),
        (["status"], 8, "no daemon answers"),
    ],
)
def test_an_error_is_one_line_and_a_code(pyflannel: CommandLine, words: list[str], code: int, message: str) -> None:
    result = pyflannel(*words)
    assert result.code == code
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("pyflannel: error: ")
    assert message in line


def test_an_error_has_an_end(pyflannel: CommandLine, tmp_path: Path) -> None:
    """Whoever wrote the network config may have written anything."""
    path = tmp_path / "net-conf.json"
    path.write_text(
        json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": {"x": ["y" * 300] * 300}}})
    )
    result = pyflannel("config", "validate", str(path))
    assert result.code == 3
    assert "Backend.MTU is {" in result.err
    assert len(result.err) < 1_000


def test_debug_shows_where_an_error_came_from(pyflannel: CommandLine) -> None:
    result = pyflannel("-v=10", "config", "get")
    assert result.code == 4
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("pyflannel: error: ")


def test_a_fault_of_our_own_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def torn(*_: object, **__: object) -> None:
        raise RuntimeError("torn")

    monkeypatch.setattr(cli.pyflannel, "make_context", torn)
    assert cli.main(["version"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1] == (
        "pyflannel: error: internal error: RuntimeError: torn; please report it with the lines above"
    )


def test_ctrl_c_ends_quietly(pyflannel: CommandLine) -> None:
    with pyflannel.popen(["config", "set", "-"]) as process:
        assert process.stdin is not None
        process.stdin.write("{")
        process.stdin.flush()
        wait_until_read(process.stdin.fileno())  # and it goes on reading, as long as the pipe is open
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)  # before the pipe is closed: that would be the end of the document
        error = process.communicate()[1]
    assert process.returncode == 130
    assert error.strip() == ""


def wait_until_read(pipe: int) -> None:
    until(lambda: not any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))), "nobody reads")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plugins", "--help"]], ids=" ".join)
def test_nobody_need_read_help(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pyflannel", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_leaves_is_no_error(pyflannel: CommandLine) -> None:
    document = {"Network": "10.1.0.0/16", "Comment": "x" * 200_000}  # more than a pipe holds
    assert pyflannel("config", "set", "-", stdin=json.dumps(document)).code == 0
    with pyflannel.popen(["config", "get"]) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        process.wait()
    assert process.returncode == 141
    assert error == ""


RUN = "import os, sys; {}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
CLOSED = RUN.format("[os.close(number) for number in range(3)]")
BROKEN = RUN.format("ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 2)")
FULL = RUN.format("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)")


@pytest.mark.parametrize("streams", [CLOSED, BROKEN, FULL], ids=["closed", "a broken pipe", "a full disk"])
@pytest.mark.parametrize(("words", "code"), [(["version"], 0), (["config", "get"], 4), (["--no-such-flag"], 2)])
def test_where_nothing_can_be_told_the_exit_code_tells_it(
    pyflannel: CommandLine, streams: str, words: list[str], code: int
) -> None:
    command = [sys.executable, "-c", streams, "-m", "pyflannel", *words]
    environ = {**os.environ, "PYFLANNEL_STORE": pyflannel.store}
    assert subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=False, timeout=60).returncode == code


def test_an_output_that_can_t_be_written_is_named(pyflannel: CommandLine) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pyflannel", "version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 6
    assert done.stderr == "pyflannel: error: the output can't be written: No space left on device; make room for it\n"


SOURCES = ("flag", "PYFLANNEL", "FLANNELD", "file")


@pytest.mark.parametrize(("stronger", "weaker"), list(itertools.combinations(SOURCES, 2)))
def test_of_two_sources_the_stronger_holds(pyflannel: CommandLine, stronger: str, weaker: str) -> None:
    words, environ = ["leases", "--json"], {}
    for source in (stronger, weaker):
        url = f"file://{pyflannel.directory}/{source}"
        (pyflannel.directory / source / "subnets").mkdir(parents=True)
        if source == "flag":
            words += ["-store", url]
        elif source == "file":
            path = pyflannel.directory / "config.toml"
            path.write_text(f'store = "{url}"\n')
            words += ["-config", str(path)]
        else:
            environ[f"{source}_STORE"] = url
    result = pyflannel(*words, environ=environ, bare=True)
    assert result.code == 0, result.err
    assert json.loads(result.out)["store"] == f"file://{pyflannel.directory}/{stronger}"


def test_completion_comes_with_click(pyflannel: CommandLine) -> None:
    environ = {"_PYFLANNEL_COMPLETE": "bash_complete", "COMP_WORDS": "pyflannel -iface eth0 le", "COMP_CWORD": "3"}
    assert pyflannel(environ=environ).out == "plain,leases\n"
