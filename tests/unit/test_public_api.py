"""What plugin authors import is typed and documented, and the versions of the contract are kept."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pyflannel import backend, store

ROOT = Path(__file__).parents[2]
MODULES = (
    "pyflannel.backend",
    "pyflannel.store",
    "pyflannel.errors",
    "pyflannel.testing.backends",
    "pyflannel.testing.stores",
    "pyflannel.testing.clauses",
    "pyflannel.testing.simulation.agenda",
    "pyflannel.testing.simulation.cluster",
    "pyflannel.testing.simulation.faults",
    "pyflannel.testing.simulation.judge",
    "pyflannel.testing.simulation.plane",
    "pyflannel.testing.simulation.planning",
    "pyflannel.testing.simulation.running",
    "pyflannel.testing.simulation.stores",
    "pyflannel.lab.servers",
)
FOREIGN = {"JSON", "IPAddress", "IPNetwork", "KernelObject"}
"""Aliases; what they stand for is said where they are defined."""


def exported() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in module.__all__:
            if attribute not in FOREIGN:
                yield pytest.param(module, attribute, id=f"{name}.{attribute}")


def functions(value: Any) -> Iterator[tuple[str, Any]]:
    """A function, or the public ones that a class itself defines."""
    if inspect.isfunction(value):
        yield value.__name__, value
    elif inspect.isclass(value) and not issubclass(value, Enum):
        for name, member in vars(value).items():
            inner = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            if inspect.isfunction(inner) and (not name.startswith("_") or name == "__init__"):
                yield f"{value.__name__}.{name}", inner


def is_generated(value: Any, name: str) -> bool:
    """Whether a dataclass made this method."""
    return name.endswith("__init__") and dataclasses.is_dataclass(value)


@pytest.mark.parametrize(("module", "name"), list(exported()))
def test_everything_public_is_documented(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        source = inspect.getsource(module)
        assert re.search(rf'^{name}\b.*=.*(\n[ )}}].*)*\n"""\S', source, re.MULTILINE), f"{name} has no text below it"
        return
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    assert not (value.__doc__ or "").startswith(f"{name}("), f"{name} has only what dataclass writes"
    for where, function in functions(value):
        is_test = where.rpartition(".")[2].startswith("test_")
        if where.endswith("__init__") or is_test:
            continue  # the class says it; a kit's test is called what it checks
        inherited = inspect.getdoc(getattr(value, function.__name__, function))
        assert (inherited or "").strip(), f"{where} has no docstring"


@pytest.mark.parametrize(("module", "name"), list(exported()))
def test_everything_public_is_typed(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        assert name in module.__annotations__, f"{name} is not annotated"
        return
    for where, function in functions(value):
        is_protocols = where.endswith("__init__") and getattr(value, "_is_protocol", False)
        if is_generated(value, where) or is_protocols or hasattr(function, "hypothesis"):
            continue
        parameters = list(inspect.signature(function).parameters.values())
        untyped = [
            each.name
            for number, each in enumerate(parameters)
            if each.annotation is inspect.Parameter.empty and not (number == 0 and each.name in ("self", "cls"))
        ]
        assert not untyped, f"{where}: {untyped}"
        assert "return" in function.__annotations__, f"{where} does not say what it returns"


def test_exports_are_sorted_and_exist() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert all(hasattr(module, attribute) for attribute in module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)


def test_the_versions_are_written_down() -> None:
    page = (ROOT / "docs" / "plugins" / "stability.md").read_text(encoding="utf-8")
    assert f"| `pyflannel.backend` | {backend.API_VERSION} |" in page
    assert f"| `pyflannel.store` | {store.API_VERSION} |" in page


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/plugins/*.md")), ids=lambda page: page.name)
def test_examples_in_the_guide_are_right(page: Path) -> None:
    results = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_the_guide_has_examples() -> None:
    pages = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/plugins/*.md")]
    assert sum(text.count(">>> ") for text in pages) > 10
