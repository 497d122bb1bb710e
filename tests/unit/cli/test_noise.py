"""What plugins print is no part of any answer: at import, in calls, from threads and child processes, at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.sites import install
from tests.unit.cli.conftest import CommandLine

from pyflannel import cli

NOISE = "NOISE"

HEAD = """\
import atexit, os, sys, threading, time

def noise(*_):
    print("NOISE printed")
    sys.__stdout__.write("NOISE written\\n")
    sys.__stdout__.flush()
    os.write(1, b"NOISE by C\\n")
    os.system("echo NOISE of a child")

def endless():
    while True:
        print("NOISE of a thread", flush=True)
        os.write(1, b"NOISE of a thread, by C\\n")
        time.sleep(0.001)

if sys.stdin.read() or os.read(0, 1):
    print("NOISE: this was for somebody else")
noise()
atexit.register(noise)
threading.Thread(target=endless, daemon=True).start()

def noisy(kind):
    def wrap(name):
        def call(*given, **named):
            noise()
            return getattr(kind, name)(*given, **named)
        return call
    return {name: wrap(name) for name in dir(kind) if callable(getattr(kind, name)) and not name.startswith("_")}
"""

STORE = (
    HEAD
    + """
from pyflannel_stores.file import FileStore

class Noisy(FileStore):
    scheme = "noisy"
    vars().update(noisy(FileStore))

    def __init__(self, location):
        noise()
        super().__init__(location)
"""
)

BACKEND = (
    HEAD
    + """
from dataclasses import dataclass
from pyflannel.backend import Backend, DesiredState, Route, option

class Plain(Backend):
    name = "noisy"
    actions = {"turn": "turn around"}

    def mtu(self, underlay):
        return underlay.mtu

    def plan_peer(self, node, peer):
        return DesiredState([Route(peer.subnets.ipv4, node.underlay.interface, gateway=peer.attributes.public_ip)])

class Noisy(Plain):
    @dataclass(frozen=True)
    class Options:
        metric: int = option("Metric", 0, "of routes", minimum=0)

        def __post_init__(self):
            noise()

    def __init__(self, options):
        noise()
        super().__init__(options)

    def mtu(self, underlay):
        noise()
        return super().mtu(underlay)

    def plan_peer(self, node, peer):
        noise()
        return super().plan_peer(node, peer)
"""
)

DOCUMENT = '{"Network": "10.244.0.0/16", "Backend": {"Type": "noisy"}}'
LEASE = '{"PublicIP": "192.0.2.7", "BackendType": "noisy"}'

JSON = {
    "doctor": "doctor --json --no-probes",
    "leases": "leases --json",
    "network change": "network change --backend noisy --backend-option Metric=5 --dry-run --json",
    "plugins": "plugins --json",
    "store check": "store check --json",
    "store migrate": "store migrate --from {store} --to {store}-2 --json",
}
"""Every command with ``--json`` that calls plugins, and how it is run."""

WITHOUT_PLUGINS = {"lab", "status"}
"""Those whose plugins do their work elsewhere: in the lab's own processes, in the daemon."""

TEXTS = {
    "cleanup --dry-run --lease": "",
    "config get": "10.244.0.0/16",
    "config set -": "written to",
    "config validate -": "backend noisy",
    "leases": "SUBNET",
    "noisy --help": "turn around",
    "plugins": "KIND",
    "store check": "PASSED",
    "version": "pyflannel 0",
}


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, text in (("store", STORE), ("backend", BACKEND)):
        (tmp_path / f"noisy_{kind}.py").write_text(text)
        about = tmp_path / f"noisy_{kind}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: noisy-{kind}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[pyflannel.{kind}s]\nnoisy = noisy_{kind}:Noisy\n")
    install(monkeypatch, tmp_path)


@pytest.fixture
def noisy(pyflannel: CommandLine, tmp_path: Path) -> dict[str, str]:
    """A noisy store that holds the document of a noisy backend, and a lease."""
    leases = tmp_path / "store" / "subnets"
    leases.mkdir(mode=0o700, parents=True)
    leases.parent.chmod(0o700)
    store = {"PYFLANNEL_STORE": f"noisy://{tmp_path}/store"}
    assert pyflannel("config", "set", "-", stdin=DOCUMENT).out == f"written to {pyflannel.store}\n"
    (leases / "10.244.7.0-24.json").write_text(LEASE)
    return store


def with_json(command: click.Command, name: str = "") -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from with_json(found, f"{name} {each}".strip())
    elif any("--json" in parameter.opts for parameter in command.params):
        yield name


def test_the_table_has_every_command_with_json() -> None:
    assert set(with_json(cli.pyflannel)) == JSON.keys() | WITHOUT_PLUGINS


@pytest.mark.parametrize("name", JSON)
def test_json_stays_json(pyflannel: CommandLine, noisy: dict[str, str], name: str) -> None:
    words = [word.format(store=noisy["PYFLANNEL_STORE"]) for word in JSON[name].split()]
    result = pyflannel(*words, environ=noisy)
    assert result.code in (0, 9), result.err
    assert NOISE in result.err
    documents = result.out.splitlines() if name == "network change" else [result.out]
    for document in documents:
        json.loads(document)
    assert documents


@pytest.mark.parametrize("words", TEXTS)
def test_text_stays_what_it_is(pyflannel: CommandLine, noisy: dict[str, str], words: str) -> None:
    result = pyflannel(*words.split(), environ=noisy, stdin=DOCUMENT)
    assert result.code == 0, result.err
    assert TEXTS[words] in result.out
    assert NOISE not in result.out
    assert (NOISE in result.err) is (words != "version")


def test_completion_stays_completion(pyflannel: CommandLine) -> None:
    asked = {"_PYFLANNEL_COMPLETE": "bash_complete", "COMP_WORDS": "pyflannel noisy t", "COMP_CWORD": "2"}
    result = pyflannel(environ=asked)
    assert result.out == "plain,turn\n"
    assert NOISE in result.err


def all_commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from all_commands(found, *words, each)


def test_the_help_of_each_command_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Others' standard output is standard error by then."""
    for words in all_commands(cli.pyflannel):
        capsys.readouterr()
        assert cli.main([*words, "--help"]) == 0
        assert capsys.readouterr().out.startswith(" ".join(["Usage: pyflannel", *words, ""]))


def test_a_daemon_has_no_answer(pyflannel: CommandLine) -> None:
    result = pyflannel("--iface=lo", environ={"PYFLANNEL_STORE": "noisy://relative"})
    assert result.code == 3
    assert NOISE in result.err
    assert not result.out


@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("threading.Thread(target=endless, name='of\\x07 it', daemon=False).start()", "the thread 'of\\x07 it'"),
        ("atexit.register(time.sleep, 3600)", "a function for the process's end"),
    ],
    ids=["a thread", "at the exit"],
)
def test_what_a_plugin_leaves_behind_keeps_no_command_from_its_end(
    pyflannel: CommandLine, tmp_path: Path, code: str, left: str
) -> None:
    with (tmp_path / "noisy_store.py").open("a") as module:
        module.write(f"{code}\n")
    result = pyflannel("plugins", "--json")
    assert result.code == 0
    assert "noisy" in [item["name"] for item in json.loads(result.out)["stores"]]
    assert f"pyflannel: {left} of a plugin did not end and is left behind" in result.err


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_may_be_named_as_a_file(pyflannel: CommandLine, name: str) -> None:
    result = pyflannel("config", "set", name, stdin=DOCUMENT)
    assert (result.out, result.code) == (f"written to {pyflannel.store}\n", 0), result.err
    settings = f'store = "{pyflannel.store}"'
    result = pyflannel("config", "get", "--config", name, stdin=settings, bare=True)
    assert json.loads(result.out) == json.loads(DOCUMENT), result.err
