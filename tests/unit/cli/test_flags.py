"""Flags as flannel's users write them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyflannel.cli.flags import FlagCommand, FlagGroup, flags, settings
from pyflannel.settings.settings import Settings

seen: list[tuple[str, Settings]] = []


@click.group(cls=FlagGroup, params=flags("daemon", "store", "node"), invoke_without_command=True)
@click.pass_context
def daemon(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        seen.append(("daemon", settings(ctx, daemon=True)))


@daemon.command(cls=FlagCommand, params=flags("store"))
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def leases(ctx: click.Context, words: tuple[str, ...], as_json: bool) -> None:
    seen.append((" ".join(("leases", *words, "json" if as_json else "table")), settings(ctx)))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen.clear()
    monkeypatch.setattr("pyflannel.settings.settings.DEFAULT_CONFIG", tmp_path / "none.toml")
    monkeypatch.setattr("pyflannel.settings.log.configure", lambda *_: None)


def run(*arguments: str) -> tuple[str, Settings]:
    result = CliRunner().invoke(daemon, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (what,) = seen
    return what


def usage_error(*arguments: str) -> str:
    result = CliRunner().invoke(daemon, arguments)
    assert result.exit_code == 2
    return result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--iface", "eth0", "--iface", "eth1"],
        ["-iface", "eth0", "-iface=eth1"],
        ["--iface=eth0", "-iface", "eth1"],
    ],
)
def test_one_dash_or_two_with_or_without_an_equals_sign(words: list[str]) -> None:
    assert run(*words)[1].iface == ("eth0", "eth1")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--ip-blackhole-route", True),
        ("-ip-blackhole-route", True),
        ("--ip-blackhole-route=true", True),
        ("-ip-blackhole-route=T", True),
        ("--ip-blackhole-route=false", False),
        ("-ip-blackhole-route=0", False),
    ],
)
def test_a_boolean_needs_no_value_and_takes_none_from_the_next_word(word: str, value: bool) -> None:
    assert run(word)[1].blackhole_route is value
    seen.clear()
    assert run(word, "leases", "-store", "file:///x")[0] == "leases table"


def test_the_word_behind_a_boolean_is_no_value() -> None:
    assert "No such command 'false'" in usage_error("--ip-blackhole-route", "false")


@pytest.mark.parametrize("words", [["-v", "10"], ["-v=10"], ["--v", "10"], ["--v=10"]])
def test_verbosity_is_written_in_every_way(words: list[str]) -> None:
    assert run(*words)[1].log_level == "debug"


def test_a_value_may_begin_with_a_dash() -> None:
    assert run("--node-id", "-x")[1].node_id == "-x"
    seen.clear()
    assert run("-node-id=--x")[1].node_id == "--x"


@pytest.mark.parametrize(
    "words",
    [
        ["--store", "file:///x", "leases"],
        ["leases", "--store", "file:///x"],
        ["leases", "-store=file:///x"],
        ["--store", "file:///y", "leases", "--store", "file:///x"],
    ],
)
def test_flags_stand_before_or_behind_the_command_and_the_latter_win(words: list[str]) -> None:
    command, wanted = run(*words)
    assert command == "leases table"
    assert str(wanted.store) == "file:///x"


def test_a_commands_own_flags_take_one_dash_too() -> None:
    assert run("leases", "-json", "a", "-")[0] == "leases a - json"


def test_two_dashes_alone_end_the_flags() -> None:
    assert run("leases", "--", "-json")[0] == "leases -json table"


def test_an_unknown_flag_is_named_with_two_dashes() -> None:
    assert "No such option" in usage_error("-no-such")
    assert "--no-such" in usage_error("-no-such")


def test_a_flag_without_its_value_is_a_usage_error() -> None:
    assert "requires an argument" in usage_error("-iface")


def test_help_shows_flags_with_what_they_take() -> None:
    help_text = CliRunner().invoke(daemon, ["--help"]).output
    assert "--kube-subnet-mgr[=BOOL]" in help_text
    assert "--ip-masq[=BOOL]" in help_text
    assert "--iface TEXT" in help_text


def test_flannelds_own_are_written_as_there() -> None:
    words = ["-vmodule=etcd=4", "-log_backtrace_at", "main.go:60", "-v=-1", "-iptables-resync=0", "-ip-masq=false"]
    _, made = run(*words, "-iface=", "--iface-regex", "")
    assert (made.log_level, made.iptables_resync, made.ip_masq) == ("info", 1.0, False)
    assert (made.iface, made.iface_regex) == ((), ())


@pytest.mark.parametrize("word", ["--logtostderr", "-log_dir=/tmp", "-alsologtostderr"])
def test_what_flanneld_does_not_have_is_refused(word: str) -> None:
    assert word.lstrip("-").partition("=")[0] in usage_error(word)
