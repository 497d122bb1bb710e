"""``pyflannel plugin new`` writes a plugin's project, ``pyflannel plugin-test`` tries an installed plugin out."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import click

from pyflannel.cli.flags import FlagCommand, FlagGroup
from pyflannel.cli.output import say
from pyflannel.errors import ConfigError, ExitCode, PluginError, PyflannelError, StoreUnavailableError
from pyflannel.lab.serve import has_server
from pyflannel.lab.served import url_of, why_not
from pyflannel.network.lease import JSON
from pyflannel.small.entry_points import entry_points
from pyflannel.small.interpreter import module_command
from pyflannel.small.streams import answers, given
from pyflannel.store import StoreLocation

__all__ = ["plugin", "plugin_test"]

KINDS: Final = click.Choice(["backend", "store"])

_END_TIMEOUT: Final = 60.0
"""Seconds after which a server that does not end is killed."""

_UNSERVED: Final[Mapping[int, type[PyflannelError]]] = {ExitCode.CONFIG: ConfigError, ExitCode.PLUGIN: PluginError}
"""What the end of a server's process with this exit code is; all else is a store that is not there."""


@click.group("plugin", cls=FlagGroup)
def plugin() -> None:
    """Start a plugin of your own."""


@plugin.command("new")
@click.argument("kind", type=KINDS)
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write it; default: pyflannel-NAME.",
)
def new(kind: str, name: str, directory: Path | None) -> None:
    """Write a project for a backend or store: typed, tested, and working as it is.

    NAME is what Backend.Type, or the store's URL scheme, will be.
    """
    from pyflannel.skeleton import write_project

    target = directory or Path(f"pyflannel-{name}")
    for path in write_project(kind, name, target):
        say(str(target / path))
    say(
        f"\nA working {kind}. Next:\n"
        f"  cd {target}\n"
        "  python3 -m venv .venv\n"
        "  .venv/bin/pip install --editable '.[test]'\n"
        "  .venv/bin/pytest",
    )


@click.command("plugin-test", cls=FlagCommand)
@click.argument("name")
@click.option("--kind", type=KINDS, help="Which one, if a backend and a store have this name.")
@click.option(
    "--store",
    "url",
    metavar="URL",
    help="Where a store is tried: '{}' in it, or else a path added to it, is another empty place for each test. "
    "Default: a server that the store's distribution starts for it, or else a temporary directory.",
)
@click.option(
    "--set",
    "attributes",
    multiple=True,
    metavar="NAME=JSON",
    help="An attribute of the kit, such as minimum_ttl=10, carries_traffic=false or 'variants=[{}, {\"Port\": 1}]'; "
    "repeatable.",
)
@click.option("--no-lab", is_flag=True, help="Test only a backend's planning, which needs no privileges.")
@click.option("-k", "expression", metavar="EXPRESSION", help="Only tests that match; as pytest's -k.")
@click.option("--verbose", is_flag=True, help="Name each test.")
def plugin_test(
    name: str,
    kind: str | None,
    url: str | None,
    attributes: tuple[str, ...],
    no_lab: bool,
    expression: str | None,
    verbose: bool,
) -> int:
    """Run the conformance kit on an installed plugin.

    Ends with exit code 9 if anything fails. What the plugin does not claim is listed as not applicable; what this
    machine has no rights for, as skipped.
    """
    _need_pytest()
    found = _kind_of(name, kind)
    with tempfile.TemporaryDirectory(prefix="pyflannel-plugin-test-") as work:
        said = {key: _fitting(found, key, value) for key, value in map(_attribute, attributes)}
        task = {"kind": found, "name": name, "lab": not no_lab, "attributes": said}
        report = Path(work, "report.xml")
        words = ["-q", "-rfEs", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull]
        words += ["--rootdir", work, "--junitxml", str(report), "-o", "python_files=*.py", "-o", "python_classes=Test*"]
        words += ["-o", "markers=root: needs root, or user namespaces", "--import-mode=importlib", "-W", "error"]
        words += ["-v"] * (2 * verbose) + (["-k", expression] if expression else [])
        suite = importlib.util.find_spec("pyflannel.testing._plugin_suite")
        assert suite is not None
        assert suite.origin is not None
        with _place(name, url, work) if found == "store" else nullcontext() as place:
            task["url"] = place
            done = subprocess.run(
                module_command("pyflannel.cli.plugin_suite", *words, suite.origin),
                check=False,
                cwd=work,
                stdin=given(),
                stdout=answers(),
                env={**os.environ, "PYFLANNEL_PLUGIN_TEST": json.dumps(task), "HYPOTHESIS_STORAGE_DIRECTORY": work},
            )
        if done.returncode < 0:
            raise PluginError(f"{found} {name!r}: pytest was ended by signal {-done.returncode}")
        if not report.exists():
            raise PluginError(
                f"{found} {name!r}: the kit ended before it could report, with exit code {done.returncode}; pytest's "
                "message is above, or the plugin has ended the process (os._exit)"
            )
        counts = _counts(report)
    return _verdict(f"{found} {name}", counts, done.returncode == 0)


def _need_pytest() -> None:
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the conformance kits need {' and '.join(missing)}: {sys.executable} -m pip install 'pyflannel[test]'"
        )


def _kind_of(name: str, kind: str | None) -> str:
    """Whether ``name`` is a backend or a store; loads it, so that a broken one is told at once."""
    from pyflannel.plugins import BACKENDS, STORES, load_backend, load_store

    groups = {"backend": BACKENDS, "store": STORES}
    kinds = [kind] if kind else [each for each, group in groups.items() if entry_points(group, name)]
    if len(kinds) > 1:
        raise ConfigError(f"{name!r} is a backend and a store: say which with --kind")
    if not kinds:
        raise PluginError(f"no backend and no store {name!r} is installed (see: pyflannel plugins)")
    (load_backend if kinds[0] == "backend" else load_store)(name)
    return kinds[0]


@contextmanager
def _place(name: str, url: str | None, work: str) -> Iterator[str]:
    """The URL of places for single tests, with ``{}`` for what differs; on the store's own server if any."""
    if url is not None:
        scheme = StoreLocation.parse(url).scheme
        if scheme != name:
            raise ConfigError(f"--store {url}: that is a place of store {scheme!r}: must be one of {name!r}")
        yield _with_mark(url)
    elif has_server(name):
        with _serving(name, Path(work)) as served:
            yield _with_mark(served)
    else:
        yield f"{name}://{work}/{{}}"


@contextmanager
def _serving(name: str, work: Path) -> Iterator[str]:
    """The URL of the store's own server, whose code has a process of its own, as in a lab.

    :raises PyflannelError: it does not come up; says what it said last.
    """
    words = module_command("pyflannel.lab.serve", name, str(work / "server"), "127.0.0.1")
    log = work / "server.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is ours: it ends with its standard input
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            url = url_of(process.stdout, log, process.kill)
            if url:
                yield url
        status = _ended(process)
        if status or not url:
            told = "did not end well" if url else "did not come up"
            kind = _UNSERVED.get(status, StoreUnavailableError)
            raise kind(f"the server of store {name!r} {told}: {why_not(log)}")


def _ended(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _with_mark(url: str) -> str:
    if "{}" in url:
        return url
    base, question, query = url.partition("?")
    return f"{base.rstrip('/')}/{{}}{question}{query}"


def _attribute(text: str) -> tuple[str, JSON]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--set {text!r}: must be NAME=JSON, such as racers=8")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        raise ConfigError(f"--set {key}: {value!r} is not JSON; true, 8 and '\"text\"' are") from None


def _fitting(kind: str, key: str, value: JSON) -> JSON:
    """An attribute's value, if the kit has such an attribute, and with such values."""
    from pyflannel.testing._store_subject import StoreSubject
    from pyflannel.testing._subject import Subject

    kit: type = Subject if kind == "backend" else StoreSubject
    known = {name: getattr(kit, name) for name in kit.__annotations__ if hasattr(kit, name)}
    if key not in known:
        raise ConfigError(f"--set {key}: the kit for a {kind} has no such attribute; it has {', '.join(sorted(known))}")
    want = list if isinstance(known[key], tuple | frozenset) else type(known[key])
    if type(value) is not want and not (want is float and type(value) is int):
        raise ConfigError(f"--set {key}: {json.dumps(value)} must be of the kind of {json.dumps(_plain(known[key]))}")
    return value


def _plain(value: Any) -> JSON:
    return list(value) if isinstance(value, tuple | frozenset) else value


def _counts(report: Path) -> Counter[str]:
    """How many tests ended how, from pytest's JUnit report."""
    from xml.etree import ElementTree as ET

    counts: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own file
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            counts["passed"] += 1
        elif outcome.tag != "skipped":
            counts["failed"] += 1
        elif "not applicable:" in outcome.get("message", ""):
            counts["not applicable"] += 1
        else:
            counts["skipped"] += 1
    return counts


def _verdict(who: str, counts: Counter[str], ok: bool) -> int:
    shown = ", ".join(f"{counts[what]} {what}" for what in ("passed", "failed", "skipped", "not applicable"))
    say(f"\n{'PASSED' if ok else 'FAILED'}: {who}: {shown}")
    return ExitCode.OK if ok else ExitCode.CHECK_FAILED
