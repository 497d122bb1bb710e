"""The plugin tutorial as a reader has it: every line of its shell blocks, in order, from a wheel and no checkout.

``python3 -m venv`` makes environments that also see the packages of this one, and no index is asked: what is needed
must be here. That aside, one shell runs what the page says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.xdist_group("tutorial")]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins" / "tutorial.md").read_text(encoding="utf-8")

VENV = """#!/bin/sh
# python3 for somebody with an empty machine; an environment that it makes also sees these packages.
{python} "$@" || exit
if [ "$1 $2" = "-m venv" ]; then
    for packages in "$3"/lib/python*/site-packages; do
        cp {outer} "$packages/outer.pth"
        rm -rf "$packages"/setuptools* "$packages"/pkg_resources "$packages"/_distutils_hack "$packages"/distutils-*
    done
    printf '#!/bin/sh\nexec python -m pytest "$@"\n' > "$3/bin/pytest"  # a script that no index was asked for
    chmod 755 "$3/bin/pytest"
fi
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` makes, but for the piece of C."""
    source, dist = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "junit")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", dist, source], check=True, env={**os.environ, "PYFLANNEL_PURE": "1"})
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the python3 that comes first in PATH."""
    directory = tmp_path_factory.mktemp("machine")
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    outer = directory / "outer.pth"
    outer.write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in packages))
    python = directory / "python3"
    python.write_text(VENV.format(python=sys.executable, outer=outer))
    python.chmod(0o755)
    return directory


def lines(wheel: Path) -> list[str]:
    """The page's commands; pyflannel comes from the wheel, as the page says for now."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    found = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert found.count("pip install pyflannel") == 1
    install = f"pip install --no-deps --force-reinstall {wheel}"
    return [install if line == "pip install pyflannel" else line for line in found]


def test_every_line_of_the_tutorial_works(wheel: Path, machine: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment.pop("PYTHONPATH", None)
    environment |= {
        "PATH": f"{machine}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    script = "set -ex\n" + "\n".join(lines(wheel)) + "\npython -c 'import pyflannel; print(pyflannel.__file__)'\n"
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert str(tmp_path / "work") in done.stdout.splitlines()[-1], "it was the wheel that ran"
    assert "PASSED: 3 nodes on acme" in done.stdout
    assert "PASSED: backend acme: " in done.stdout
    assert "PASSED: store acme-sql: " in done.stdout


def test_the_test_module_that_the_page_shows_is_the_one_that_is_written(tmp_path: Path) -> None:
    from pyflannel.skeleton import write_project

    write_project("backend", "acme", tmp_path)
    (shown,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "BackendConformance" in block
    )
    written = (tmp_path / "tests" / "test_pyflannel_acme.py").read_text()
    for line in shown.splitlines():
        assert not line.strip() or line.strip() in written or "import" in line
