"""``plugin new`` writes projects that install and whose tests are green; ``plugin-test`` judges what is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


def run(*words: str | Path, cwd: Path, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run a command; returns what it said. No index can be asked: what is needed must be here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(env or {})}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


class Site:
    """A clean environment that sees this one's packages, with a project written and installed."""

    def __init__(self, work: Path, kind: str, name: str) -> None:
        self.work = work
        self.project = work / f"pyflannel-{name}"
        run(sys.executable, "-m", "pyflannel", "plugin", "new", kind, name, cwd=work)
        run(sys.executable, "-m", "venv", "--without-pip", work / "venv", cwd=work)
        self.python = work / "venv" / "bin" / "python"
        (packages,) = (work / "venv").glob("lib/python*/site-packages")
        (packages / "outer.pth").write_text(
            "".join(f"import site; site.addsitedir({path!r})\n" for path in _packages())
        )
        # --target, because pip would else look for the build backend in this environment, not in the clean one.
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
        run(*pip, "--target", packages, self.project, cwd=work)

    def python_m(self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None, code: int = 0) -> str:
        return run(self.python, "-m", *words, cwd=cwd or self.work, env=env, code=code)


def _packages() -> list[str]:
    """Where this interpreter finds what is installed."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("backend"), "backend", "acme-gw")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("store"), "store", "acme-sql")


def test_a_new_backends_own_tests_are_green(backend: Site) -> None:
    said = backend.python_m("pytest", "-q", cwd=backend.project)
    assert "passed" in said
    assert "no lab" not in said
    assert "not installed" not in said, "the lab has run"


def test_a_new_stores_own_tests_are_green_and_show_the_whole_contract(store: Site) -> None:
    said = store.python_m("pytest", "-q", cwd=store.project)
    assert "passed" in said
    assert " 0 failed, 0 not applicable, 0 not tried" in said, said


def test_a_new_backend_is_listed_and_carries_packets_in_the_lab(backend: Site) -> None:
    listed = json.loads(backend.python_m("pyflannel", "plugins", "--json"))["backends"]
    (found,) = [plugin for plugin in listed if plugin["name"] == "acme-gw"]
    assert (found["distribution"], found["loads"]) == ("pyflannel-acme-gw", True)
    assert "PASSED" in backend.python_m("pyflannel", "lab", "--backend", "acme-gw", "--no-throughput")


def test_a_new_store_works_from_the_command_line(store: Site) -> None:
    url = f"acme-sql://{store.work}/leases.sqlite"
    document = store.work / "net.json"
    document.write_text('{"Network": "10.244.0.0/16"}')
    store.python_m("pyflannel", "config", "set", str(document), "--store", url)
    assert "10.244.0.0/16" in store.python_m("pyflannel", "config", "get", "--store", url)


def test_a_new_store_carries_an_overlay_in_the_lab(store: Site) -> None:
    said = store.python_m("pyflannel", "lab", "--store", "acme-sql", "--nodes", "2", "--no-throughput")
    assert "PASSED: 2 nodes on vxlan" in said


def test_plugin_test_runs_the_kit_of_an_installed_plugin(backend: Site, store: Site) -> None:
    said = backend.python_m("pyflannel", "plugin-test", "acme-gw", "--no-lab")
    assert "PASSED: backend acme-gw: " in said
    assert " 0 failed" in said
    said = store.python_m(
        "pyflannel", "plugin-test", "acme-sql", "--set", "racers=4", "--set", "minimum_ttl=0.5", "-k", "conf or expires"
    )
    assert "PASSED: store acme-sql: " in said
    assert " 0 passed" not in said


def test_plugin_test_ends_with_9_where_the_contract_is_broken(backend: Site, tmp_path: Path) -> None:
    """The same backend with an MTU that nothing carries."""
    (source,) = backend.project.glob("src/*/__init__.py")
    package = tmp_path / "site" / source.parent.name
    package.mkdir(parents=True)
    broken = source.read_text().replace("return underlay.mtu", "return underlay.mtu + 1")
    assert broken != source.read_text()
    (package / "__init__.py").write_text(broken)
    said = backend.python_m(
        "pyflannel", "plugin-test", "acme-gw", "--no-lab", env={"PYTHONPATH": str(tmp_path / "site")}, code=9
    )
    assert "test_the_mtu_fits_the_underlay" in said
    assert "FAILED: backend acme-gw: " in said


def test_plugin_test_names_a_plugin_that_ends_the_process(backend: Site, tmp_path: Path) -> None:
    (source,) = backend.project.glob("src/*/__init__.py")
    package = tmp_path / "site" / source.parent.name
    package.mkdir(parents=True)
    leaving = source.read_text().replace("return underlay.mtu", "__import__('os')._exit(5)")
    assert leaving != source.read_text()
    (package / "__init__.py").write_text(leaving)
    said = backend.python_m(
        "pyflannel", "plugin-test", "acme-gw", "--no-lab", env={"PYTHONPATH": str(tmp_path / "site")}, code=7
    )
    assert "backend 'acme-gw': the kit ended before it could report, with exit code 5" in said


def test_plugin_test_says_what_it_can_not_run(backend: Site, tmp_path: Path) -> None:
    said = backend.python_m("pyflannel", "plugin-test", "no-such", code=7)
    assert "no backend and no store 'no-such' is installed" in said
    said = backend.python_m("pyflannel", "plugin-test", "acme-gw", "--set", "racers=many", code=3)
    assert "is not JSON" in said
    said = backend.python_m("pyflannel", "plugin-test", "acme-gw", "--no-lab", "--set", "no_such=1", code=3)
    assert "--set no_such: the kit for a backend has no such attribute; it has carries_traffic, " in said
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text("import sys\nsys.modules['pytest'] = None\n")
    said = backend.python_m("pyflannel", "plugin-test", "acme-gw", env={"PYTHONPATH": str(tmp_path)}, code=3)
    assert "need pytest" in said
    assert "pip install 'pyflannel[test]'" in said
