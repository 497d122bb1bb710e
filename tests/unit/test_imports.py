"""The direction of imports, read from the source, and what starting up may cost, seen from a fresh interpreter.

Core imports neither of the plugin trees. A plugin tree imports of ours its own package and the public API. Within core
each room imports what its row in CONTRIBUTING.md says, and no modules import each other in a circle. All that holds for
imports inside functions, for those that are for types alone, and for modules named in a constant string, too.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("imports")  # every source is read once

ROOT = Path(__file__).parents[2]
ROOTS = {"pyflannel": "core", "pyflannel_backends": "backends", "pyflannel_stores": "stores"}
API = {"pyflannel.backend", "pyflannel.store", "pyflannel.errors"}
DYNAMIC = {"import_module", "__import__", "run_module", "find_spec"}
HEAVY = {"_hashlib", "cryptography", "etcd3", "google.protobuf", "grpc", "numpy", "pyroute2", "rich", "stevedore"}


@dataclass(frozen=True)
class Named:
    """One name in an import: the dots before it, and whether it stands in a function."""

    line: int
    dots: int
    name: str
    within: bool


@functools.cache
def named(source: str) -> tuple[Named, ...]:
    """All that a source imports; ``from a import b`` is ``a.b``. Read once: no tree stays."""
    found: list[Named] = []
    ahead: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while ahead:
        node, within = ahead.pop()
        within = within or isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.Import):
            found.extend(Named(node.lineno, 0, alias.name, within) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            found.extend(Named(node.lineno, node.level, f"{prefix}{alias.name}", within) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            argument = node.args[0]
            if name in DYNAMIC and isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.append(Named(node.lineno, 0, argument.value, within))
        ahead.extend((child, within) for child in ast.iter_child_nodes(node))
    return tuple(found)


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module's source imports."""
    package = (module if is_package else module.rpartition(".")[0]).split(".")
    for each in named(source):
        base = package[: len(package) - each.dots + 1] if each.dots else []
        yield each.line, ".".join([*base, each.name])


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(package: str, name: str) -> bool:
    """Whether a module of the root ``package`` may import ``name``."""
    ours = [root for root in ROOTS if inside(name, root)]
    if not ours or inside(name, package):
        return True
    return package != "pyflannel" and any(inside(name, module) for module in API)


def violations(package: str, source: str, module: str, is_package: bool = False) -> list[str]:
    return [f"line {line}: {name}" for line, name in imported(source, module, is_package) if not allowed(package, name)]


SOURCES = [
    pytest.param(package, path, id=path.relative_to(ROOT).as_posix())
    for package, root in ROOTS.items()
    for path in sorted((ROOT / root / package).rglob("*.py"))
]


@pytest.mark.parametrize(("package", "path"), SOURCES)
def test_imports_point_from_plugins_to_core(package: str, path: Path) -> None:
    parts = path.relative_to(ROOT / ROOTS[package]).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert violations(package, path.read_text(encoding="utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("pyflannel", "import pyflannel_backends"),
        ("pyflannel", "import os, pyflannel_stores.file"),
        ("pyflannel", "def f():\n    from pyflannel_backends.vxlan import VxlanBackend"),
        ("pyflannel", "import importlib\nimportlib.import_module('pyflannel_stores.file')"),
        ("pyflannel", "from importlib import import_module\nimport_module('pyflannel_stores')"),
        ("pyflannel", "__import__('pyflannel_backends')"),
        ("pyflannel_backends", "import pyflannel"),
        ("pyflannel_backends", "from pyflannel import agent"),
        ("pyflannel_backends", "from pyflannel.kernel.model import Link"),
        ("pyflannel_backends", "import pyflannel.backends_private"),
        ("pyflannel_backends", "import pyflannel_stores"),
        ("pyflannel_backends", "class A:\n    def f(self):\n        import pyflannel.network.lease"),
        ("pyflannel_stores", "from pyflannel_backends import vxlan"),
        ("pyflannel_stores", "from pyflannel.network.lease import Lease"),
        ("pyflannel_stores", "if True:\n    import pyflannel.network.document as n"),
    ],
)
def test_a_wrong_import_is_found(package: str, source: str) -> None:
    assert violations(package, source, f"{package}.x")


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("pyflannel", "import os\nfrom pyflannel.network.lease import Lease\nfrom . import network\nimport pyroute2"),
        ("pyflannel_backends", "from pyflannel.backend import Backend\nfrom pyflannel import backend, errors"),
        ("pyflannel_backends", "from . import udp\nfrom .udp import pump\nimport numpy, pyflannel_backends.udp"),
        ("pyflannel_stores", "from pyflannel.store import Store\nimport grpc\nimport pyflannelish"),
    ],
)
def test_a_right_import_is_no_violation(package: str, source: str) -> None:
    assert violations(package, source, f"{package}.x") == []


# The rooms of core ---------------------------------------------------------------------------------------------------


@functools.cache
def rooms() -> dict[str, set[str]]:
    """Room to the rooms that it may import, as CONTRIBUTING.md has it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| room \|.*\n\|---.*\n((?:\|.*\n)+)", text)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    names = {name.strip("`") for name, _, _ in rows}
    found = {}
    for name, _, allowed in rows:
        named = set(re.findall(r"`(\w+)`", allowed))
        assert named <= names, f"{name}: {named - names} is no room"
        assert named or allowed in ("all", "nothing"), f"{name}: {allowed!r}"
        found[name.strip("`")] = names - named if allowed.startswith("all") else named
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@functools.cache
def core_modules() -> dict[str, tuple[Path, bool]]:
    """Name to file, and whether it is a package's."""
    found = {}
    for path in sorted((ROOT / "core" / "pyflannel").rglob("*.py")):
        parts = path.relative_to(ROOT / "core").with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if is_package else parts)] = path, is_package
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module of core to the modules of core that it names in an import."""
    modules = core_modules()
    found: dict[str, set[str]] = {}
    for module, (path, is_package) in modules.items():
        found[module] = set()
        for _, name in imported(path.read_text(encoding="utf-8"), module, is_package):
            while name and name not in modules:
                name = name.rpartition(".")[0]  # what is imported may be in a module, not one
            if name not in ("", module):
                found[module].add(name)
    return found


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of modules that can be reached from each other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            for module in edges[ahead.pop()] - found:
                found.add(module)
                ahead.append(module)
        return found

    ways = {module: reached(module) for module in edges}
    looped = {module for module, way in ways.items() if module in way}
    return [set(each) for each in {frozenset(o for o in ways[m] if m in ways[o]) for m in looped}]


def test_every_room_has_its_row() -> None:
    assert rooms().keys() == {room_of(module) for module in core_modules()} - {""}


@pytest.mark.parametrize("module", core_modules())
def test_a_room_imports_what_its_row_says(module: str) -> None:
    room = room_of(module)
    others = {room_of(target) for target in graph()[module]} - {room, ""}
    assert others <= rooms().get(room, set())


def test_no_imports_go_in_a_circle() -> None:
    assert circles(graph()) == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert sorted(map(sorted, circles(edges))) == [["b", "c"], ["e"]]


NOT_RUNNING = {"__main__", "cli", "doctor", "lab", "skeleton", "storetools", "testing"}
"""The rooms that a running daemon does without."""


# What is loaded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("package", "path"), SOURCES)
def test_no_module_is_private_to_python(package: str, path: Path) -> None:
    names = {name.partition(".")[0] for _, name in imported(path.read_text(encoding="utf-8"), package, False)}
    assert {name for name in names & sys.stdlib_module_names if name.startswith("_")} <= {"__future__"}


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after ``code``."""
    report = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stderr.split())


@pytest.mark.parametrize(
    "module",
    [
        "pyflannel.daemon.wiring",
        "pyflannel.backend",
        "pyflannel.settings.settings",
        "pyflannel.store",
        "pyflannel_backends.vxlan",
        "pyflannel_stores.file",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["lab", "--help"], ["status", "--help"]])
def test_asking_for_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import runpy\nsys.argv = {['pyflannel', *arguments]!r}\n"
        "try:\n    runpy.run_module('pyflannel', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_by(code) == set()


LATE = {
    "pyflannel.backend": {"pyflannel.kernel.generic"},  # when a backend is made, which is tried again
    "pyflannel.daemon.wiring": {"*"},  # while it starts
    "pyflannel.firewall.keeper": {"pyflannel.firewall.monitor"},  # by a thread that begins anew
    "pyflannel.kernel.rtnl": {"*"},  # before the first link is written, which is tried again
    "pyflannel.plugins": {"*"},  # when a plugin is loaded, which is tried again
    "pyflannel.show.metrics": {"prometheus_client"},  # an extra; a scrape fails alone
}
"""What a daemon imports when it runs already, and why that can't hurt it. An import needs descriptors and memory."""


def within_functions(source: str) -> Iterator[str]:
    """What is imported inside functions."""
    return (each.name for each in named(source) if each.within)


@pytest.mark.parametrize("module", [m for m in core_modules() if room_of(m) not in NOT_RUNNING])
def test_a_running_daemon_has_loaded_what_it_needs(module: str) -> None:
    known = LATE.get(module, set())
    late = set(within_functions(core_modules()[module][0].read_text(encoding="utf-8")))
    assert "*" in known or {name for name in late if not any(inside(name, package) for package in known)} == set()


# Tests ---------------------------------------------------------------------------------------------------------------


def test_no_test_imports_another() -> None:
    found = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for _, name in imported(path.read_text(encoding="utf-8"), "tests", False)
        if re.match(r"tests\b.*\.test_", name)
    }
    assert found == set()
