"""A Python process that we start imports what its parent would, and nothing from the working directory."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from pyflannel.small.interpreter import module_command

ROOT = Path(__file__).parents[3]
SOURCES = [path for tree in ("core", "backends", "stores") for path in sorted((ROOT / tree).rglob("*.py"))]


@pytest.mark.parametrize("name", ["json", "runpy", "click", "pyflannel", "pkgutil"])
def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    done = subprocess.run(module_command("pyflannel", "plugins"), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "vxlan" in done.stdout


@pytest.mark.parametrize("safe", ["", "1"])
def test_words_and_path_are_those_of_the_parent(tmp_path: Path, safe: str) -> None:
    """With ``PYTHONSAFEPATH``, too, where Python itself leaves the working directory out."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shown.py").write_text("import sys; print(*sys.argv[1:], sys.path.count(''), __name__)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "mine"), "PYTHONSAFEPATH": safe}
    done = subprocess.run(
        module_command("shown", "-x", "a b"), env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "-x a b 0 __main__\n"


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_no_process_is_started_in_another_way(path: Path) -> None:
    """``-I`` is for what needs nothing but the standard library."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
            assert ast.unparse(node.elts[1]) == "'-I'" or path.name == "interpreter.py", ast.unparse(node)
