"""The distributions under ``examples/``, as somebody else's: built, installed beside pyflannel, tested and used.

They are installed without network into a directory of the test's own, which is on ``PYTHONPATH`` from then on; entry
points are found there as in any site directory. The copy they are built from is thrown away, so that nothing but what
the distributions hold can be what runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.changing import HOST_GW, UDP, USERSPACE, VXLAN, Document, go_round, tour
from tests.waiting import crowd

from pyflannel.lab.servers.etcd import find_etcd

pytest.importorskip("psycopg", reason="the PostgreSQL example's client is missing: pip install 'psycopg[binary]'")

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("examples")]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/pyproject.toml"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples are installed."""
    sources, site = tmp_path_factory.mktemp("examples"), tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".*")
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name, sources / name, ignore=ignored)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site)]
    done = run(*command, *(str(sources / name) for name in EXAMPLES))
    assert done.returncode == 0, done.stdout
    shutil.rmtree(sources)
    return site


@pytest.fixture
def visible(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, for all processes that the test starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return site


@pytest.fixture(params=EXAMPLES)
def tests(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A distribution's tests and what pytest should do with them, without its sources."""
    source = ROOT / "examples" / request.param
    shutil.copytree(source / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", tmp_path)
    return tmp_path


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280 * crowd(),
        check=False,
        cwd=cwd,
    )


def test_there_are_three_examples() -> None:
    assert EXAMPLES == ["pyflannel-etcd-v2", "pyflannel-example-backend-macvlan", "pyflannel-postgresql"]


def test_pyflannel_lists_them_with_their_distributions(visible: Path) -> None:
    listed = run(sys.executable, "-m", "pyflannel", "plugins").stdout
    rows = [line.split() for line in listed.splitlines()]
    for kind, name, distribution in (
        ("backend", "macvlan", "pyflannel-example-backend-macvlan"),
        ("store", "etcd-v2", "pyflannel-etcd-v2"),
        ("store", "postgresql", "pyflannel-postgresql"),
    ):
        (row,) = [row for row in rows if row[:2] == [kind, name]]
        assert row[2] == distribution
        assert row[-1] == "ok"


def test_their_own_tests_pass(visible: Path, tests: Path) -> None:
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tests)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_lab_runs_on_the_backend(visible: Path) -> None:
    words = ["--backend", "macvlan", "--nodes", "3", "--no-throughput"]
    done = run(sys.executable, "-m", "pyflannel", "lab", *words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "PASSED: 3 nodes on macvlan, 6 of 6 container pairs reached"


MACVLAN: Document = {"Type": "macvlan"}


@pytest.mark.parametrize(
    ("versions", "ours"), [((4, 6), [VXLAN, HOST_GW, USERSPACE]), ((4,), [UDP])], ids=["two families", "udp"]
)
def test_a_running_network_changes_to_the_backend_from_each_of_ours_and_back(
    visible: Path, versions: tuple[int, ...], ours: list[Document]
) -> None:
    """It takes part without a line for that."""
    go_round(tour([*ours, MACVLAN], apart=[ours]), "file", versions)


def test_the_lab_runs_on_backend_and_store(visible: Path) -> None:
    etcd = find_etcd()
    if etcd is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    if "--enable-v2" not in run(etcd, "--help").stdout:
        pytest.skip("not applicable: this etcd has no v2 API; 3.5 was the last that had it")
    words = ["--backend", "macvlan", "--store", "etcd-v2", "--nodes", "3", "--no-throughput"]
    done = run(sys.executable, "-m", "pyflannel", "lab", *words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "PASSED: 3 nodes on macvlan, 6 of 6 container pairs reached"
    assert "store etcd-v2" in done.stdout


def need_postgresql() -> None:
    if shutil.which("postgres") is None and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def test_the_lab_starts_a_third_partys_server(visible: Path) -> None:
    need_postgresql()
    done = run(sys.executable, "-m", "pyflannel", "lab", "--store", "postgresql", "--nodes", "2", "--no-throughput")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "PASSED: 2 nodes on vxlan, 2 of 2 container pairs reached"


def test_plugin_test_starts_a_third_partys_server(visible: Path) -> None:
    need_postgresql()
    words = ["plugin-test", "postgresql", "-k", "expires or create_meets or many_watches"]
    done = run(sys.executable, "-m", "pyflannel", *words)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("PASSED: store postgresql: 3 passed, 0 failed, 0 skipped")


def test_a_server_elsewhere_is_refused_by_the_lab_with_what_to_say_instead(visible: Path) -> None:
    done = run(sys.executable, "-m", "pyflannel", "lab", "--store", "postgresql://db.example:5432/flannel")
    assert done.returncode == 3
    assert "that server can't be reached from it; say --store postgresql, and a server is started" in done.stdout
