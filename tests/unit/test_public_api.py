"""What plugin authors import is typed and documented, and the versions of the contract are kept."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.interface import MODULES, functions

from pyflannel import backend, store
from pyflannel.testing.simulation.node import SimulatedNode

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("core/pyflannel/**/*.py"))


def exported() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in module.__all__:
            yield pytest.param(module, attribute, id=f"{name}.{attribute}")


def definition(name: str) -> str:
    """How a constant or alias is defined, wherever that is: with its type, and the text below it."""
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        found = re.search(rf"^{name}: [^\n]*=.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        if found is not None:
            return found[0]
    return ""


def types_in(annotation: Any) -> Iterator[type]:
    """The classes of pyflannel's that an annotation names, at any depth."""
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        if annotation.__module__.partition(".")[0] == "pyflannel":
            yield annotation
        return
    for part in typing.get_args(annotation):
        for each in part if isinstance(part, list) else [part]:
            yield from types_in(each)


def named_by(value: Any) -> Iterator[tuple[str, type]]:
    """What a public function, class, alias or constant says about types of pyflannel's, and where."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        yield from (("what it stands for", each) for each in types_in(value))
        return
    annotated: list[tuple[str, Any]] = [(value.__name__, value), *functions(value)]
    for where, each in annotated:
        if is_pytest_s(value, where):
            continue
        for name, annotation in typing.get_type_hints(each).items():
            if not name.startswith("_"):
                yield from ((f"{where}: {name}", found) for found in types_in(annotation))


def is_pytest_s(value: Any, where: str) -> bool:
    """Whether a method is a kit's test or fixture, which pytest alone calls."""
    name = where.rpartition(".")[2]
    member = inspect.getattr_static(value, name, None)
    return name.startswith("test_") or type(member).__module__.startswith("_pytest")


PUBLIC_TYPES = {
    value
    for module in map(importlib.import_module, MODULES)
    for value in (getattr(module, name) for name in module.__all__)
    if inspect.isclass(value)
}


HANDLES = {SimulatedNode}
"""What one public call gives for another to take, and nobody makes or looks into."""


@pytest.mark.parametrize(("module", "name"), list(exported()))
def test_every_type_that_a_public_one_names_is_public(module: ModuleType, name: str) -> None:
    named = named_by(getattr(module, name))
    hidden = {(where, found.__qualname__) for where, found in named if found not in PUBLIC_TYPES | HANDLES}
    assert not hidden, f"{module.__name__}.{name} names what nobody can import: {sorted(hidden)}"


def is_generated(value: Any, name: str) -> bool:
    """Whether a dataclass made this method."""
    return name.endswith("__init__") and dataclasses.is_dataclass(value)


@pytest.mark.parametrize(("module", "name"), list(exported()))
def test_everything_public_is_documented(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        assert re.search(r'^"""\S', definition(name), re.MULTILINE), f"{name} has no text below it"
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
        assert definition(name), f"{name} is not annotated"
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
