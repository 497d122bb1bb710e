"""What the stability page says has tests: each row of its table names those that show it, and what it promises of the
public interface is compared with a record of it.

The record, ``public-api.txt``, has a line for each public function and class with what must be given to
it, and one for each method. What is new may come, with a default; what is there stays. Before a release, or with a new
version of a contract, it is written anew: ``python -m tests.unit.test_stability``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from tests.interface import functions

from pyflannel import backend, plugins
from pyflannel.errors import PluginError
from pyflannel.kernel.model import desired
from pyflannel.membership import machine
from pyflannel.membership.state import KeeperOptions
from pyflannel.planning import guard
from pyflannel.plugins import _keeps_contract
from pyflannel.skeleton import write_project
from pyflannel.small import guarded

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("public-api.txt")
CONTRACTS = ("pyflannel.backend", "pyflannel.store", "pyflannel.errors", "pyflannel.lab.servers")
KITS = (
    "pyflannel.testing.backends",
    "pyflannel.testing.stores",
    "pyflannel.testing.assigned",
    "pyflannel.testing.clauses",
)
PAGE = (ROOT / "docs" / "plugins" / "stability.md").read_text(encoding="utf-8")

SHOWN = {
    "does not load, or has async methods": [
        "unit/test_plugins.py::test_a_broken_plugin_is_reported_and_harms_nobody_else"
    ],
    "hangs in a call": [
        "integration/test_hanging_plugins.py::test_a_daemon_names_the_call_once_and_goes_on_when_it_comes_back",
        "integration/test_hanging_plugins.py::test_a_command_names_the_call_while_it_waits",
    ],
    "never finishes importing": [
        "unit/test_plugins.py::test_an_import_that_does_not_end_is_left_behind_and_costs_one_thread",
        "unit/membership/test_keeper.py::test_a_lease_is_renewed_although_the_next_backend_never_loads",
    ],
    "prints, or writes to descriptor 1; reads standard input": [
        "unit/test_plugins.py::test_what_a_module_prints_is_no_output_of_ours",
        "unit/cli/test_noise.py::test_json_stays_json",
        "unit/cli/test_noise.py::test_text_stays_what_it_is",
        "unit/cli/test_noise.py::test_completion_stays_completion",
        "unit/cli/test_noise.py::test_a_daemon_has_no_answer",
    ],
    "sets up logging for the whole process, when it is imported or made": [
        "unit/small/test_shared_log.py::test_it_is_undone_and_named",
        "unit/daemon/test_wiring.py::test_a_store_that_sets_up_logging_silences_no_daemon",
    ],
    "raises `SystemExit`, `KeyboardInterrupt`, or whatever else": [
        "unit/planning/test_guard.py::test_whatever_a_plugin_raises_is_named_and_goes_no_further",
        "unit/planning/test_guard.py::test_in_another_thread_an_interrupt_is_the_plugins",
        "unit/daemon/test_loop.py::test_a_call_that_fails_for_a_while",
    ],
    "leaves threads behind that are no daemons": [
        "unit/cli/test_noise.py::test_what_a_plugin_leaves_behind_keeps_no_command_from_its_end",
        "integration/test_ending.py::test_with_a_backend_that_hangs",
    ],
    "raises for one peer, or plans what is not its own for it": [
        "unit/planning/test_isolation.py::test_nonsense_for_one_peer_costs_that_peer",
        "unit/daemon/test_loop.py::test_a_call_that_fails_for_a_while",
    ],
    "plans endlessly": ["unit/planning/test_isolation.py::test_nonsense_for_one_peer_costs_that_peer"],
    "raises for the node": [
        "unit/planning/test_isolation.py::test_nonsense_for_the_node_is_an_error_and_nothing_is_planned",
        "integration/test_isolation.py::test_it_is_named_and_the_lease_is_renewed",
    ],
    "hangs while planning": [
        "unit/daemon/test_loop.py::test_a_call_that_hangs",
        "integration/test_isolation.py::test_it_is_named_and_the_lease_is_renewed",
        "integration/test_systemd_boot.py::test_a_daemon_that_hangs_is_replaced_and_forwarding_goes_on",
    ],
    "hangs in `publish` or its constructor": [
        "unit/planning/test_isolation.py::test_a_publish_that_hangs_is_left_behind_and_costs_one_thread",
        "unit/daemon/test_loop.py::test_a_call_that_hangs",
    ],
    "has a data plane that raises": [
        "unit/planning/test_feed.py::test_a_call_that_fails_is_made_up_for",
        "integration/test_isolation.py::test_it_is_named_and_the_lease_is_renewed",
    ],
    "is a store that returns values its contract doesn't allow": [
        "plugins/test_bad_stores.py::test_it_is_named_and_the_daemon_goes_on",
        "unit/membership/test_keeper.py::test_what_a_driver_raises_is_named_and_ends_nothing",
    ],
    "is a store whose watch reports changes without pause, or can't be closed": [
        "plugins/test_bad_stores.py::test_a_lease_is_renewed_and_the_daemon_ends_when_it_is_told_to",
        "unit/membership/test_keeper.py::test_a_watch_without_a_pause_is_read_no_further_than_it_is_taken_in",
    ],
    "is missing after a change of the network config": [
        "unit/membership/test_keeper.py::test_a_backend_that_is_missing_after_a_change_leaves_the_network_in_force",
    ],
}
"""What a plugin does to a daemon, as the page has it, to the tests that do it."""


def rows() -> list[str]:
    """The first cells of the table of what a plugin can do."""
    table = PAGE.partition("## What a plugin can do to a daemon")[2]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    return [cell for cell in cells if cell != "it"]


def test_every_row_has_tests() -> None:
    assert rows() == list(SHOWN)


@pytest.mark.parametrize(("row", "test"), [(row, test) for row, tests in SHOWN.items() for test in tests])
def test_the_tests_are_there(row: str, test: str) -> None:
    path, _, name = test.partition("::")
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"what shows that a plugin that {row!r} is contained?"


def test_the_times_and_numbers_are_those_of_the_code() -> None:
    for row, said in {
        "hangs in a call": f"after {guarded.PATIENCE:g} s (a store in the daemon after {machine.NAMED_AFTER:g} s)",
        "never finishes importing": f"a command waits {plugins.IMPORT_TIMEOUT:g} s",
        "plans endlessly": "is stopped at a million objects",
        "hangs in `publish` or its constructor": f"is abandoned after {guard.PUBLISH_TIMEOUT:g} s",
    }.items():
        assert re.search(rf"^\| {re.escape(row)} \| .*{re.escape(said)}", PAGE, re.MULTILINE), said
    loading = {field.name: field.default for field in fields(KeeperOptions)}["load_timeout"]
    assert loading == guard.PUBLISH_TIMEOUT
    assert round(desired.MOST_OBJECTS, -5) == 1_000_000


def test_the_public_modules_are_those_that_are_kept() -> None:
    said = PAGE.partition("## The public interface")[2].partition("All of it is typed")[0]
    assert tuple(sorted(re.findall(r"`(pyflannel\.[\w.]+)`", said))) == tuple(sorted((*CONTRACTS, *KITS)))


def test_a_plugin_for_another_version_is_refused_in_the_pages_words() -> None:
    class Acme(backend.Backend[backend.NoOptions]):
        api_version = 1
        name = "acme"

    contract: Any = backend.Backend
    who = "backend 'acme' of pyflannel-acme (pyflannel_acme:AcmeBackend)"
    with pytest.raises(PluginError) as refused:
        _keeps_contract(Acme, contract, "name", 2, "acme", who)
    assert f"\n{refused.value}\n" in PAGE


# the public interface


def imported(source: str) -> Iterator[str]:
    """Everything of pyflannel's that a module imports, with the module that it is in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "pyflannel")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "pyflannel":
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_what_authors_read_uses_nothing_but_the_public_interface(tmp_path: Path) -> None:
    """The examples, and what `plugin new` writes; a backend's tests may also have a lab, of which the page says so."""
    public = {f"{name}.{each}" for name in (*CONTRACTS, *KITS) for each in importlib.import_module(name).__all__}
    lab = {f"pyflannel.lab.{each}" for each in importlib.import_module("pyflannel.lab").__all__}
    for kind in ("backend", "store"):
        write_project(kind, "acme", tmp_path / kind)
    sources = [*ROOT.glob("examples/**/*.py"), *tmp_path.glob("**/*.py")]
    assert len(sources) > 10
    for source in sources:
        used = set(imported(source.read_text(encoding="utf-8")))
        assert used <= (public | lab if source.parent.name == "tests" else public), source


def described() -> Iterator[str]:
    """A line for everything public: its name, what can be given to it, ``=`` where that has a default."""
    for module in map(importlib.import_module, (*CONTRACTS, *KITS)):
        for name in module.__all__:
            value = getattr(module, name)
            where = f"{module.__name__}.{name}"
            if inspect.isclass(value) and issubclass(value, Enum):
                yield f"{where} {' '.join(member.name for member in value)}"
            elif inspect.isclass(value) or inspect.isfunction(value):
                yield f"{where} {parameters(value)}".rstrip()
                yield from (
                    f"{module.__name__}.{method} {parameters(each)}".rstrip() for method, each in methods(value)
                )
                yield from (f"{where}.{each}" for each in sorted(said(value)) if name.endswith("Conformance"))
            else:
                yield where


def methods(value: Any) -> Iterator[tuple[str, Any]]:
    """What plugins call or define; a kit's tests are neither. Who must define one is told by a mark."""
    for where, function in functions(value) if inspect.isclass(value) else ():
        name = where.rpartition(".")[2]
        if name != "__init__" and not name.startswith("test_"):
            yield f"{where}{'!' if getattr(function, '__isabstractmethod__', False) else ''}", function


def said(kit: Any) -> set[str]:
    """What an author says of a plugin in attributes of a kit's class."""
    parts = kit.__mro__ if inspect.isclass(kit) else ()
    return {name for part in parts for name in vars(part).get("__annotations__", ())}


def parameters(value: Any) -> str:
    try:
        found = inspect.signature(value).parameters.values()
    except ValueError:  # a class of the interpreter's own making
        return ""
    return " ".join(
        f"{each.name}{'=' if each.default is not each.empty else ''}" for each in found if each.name != "self"
    )


def test_what_the_interface_has_it_keeps() -> None:
    """Names, parameters in their order, and nothing more that must be given or defined."""
    now = {line.partition(" ")[0]: line.split()[1:] for line in described()}
    for line in RECORD.read_text(encoding="utf-8").splitlines():
        name, *had = line.split()
        assert name in now, f"{name} is gone, or must be defined now or no more"
        have = now.pop(name)
        assert have[: len(had)] == had, f"{name} had the parameters {had} and has {have}"
        assert all(each.endswith("=") or each[0].isupper() for each in have[len(had) :]), (
            f"{name} needs more than before"
        )
    assert not [name for name in now if name.endswith("!")], "methods that plugins must define"


if __name__ == "__main__":
    RECORD.write_text("".join(f"{line}\n" for line in sorted(described())), encoding="utf-8")
