"""What pyflannel plugin-test refuses before it runs anything, and the server that it starts for a store."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.sites import install

from pyflannel.cli.plugin import _fitting, _serving
from pyflannel.errors import ConfigError, ExitCode, PluginError, PyflannelError, StoreUnavailableError
from pyflannel.network.lease import JSON
from pyflannel.skeleton import write_project
from pyflannel.small.interpreter import module_command


@pytest.mark.parametrize(
    ("kind", "key", "value", "reason"),
    [
        ("backend", "no_such", 1, "--set no_such: the kit for a backend has no such attribute; it has carries_traffic"),
        ("backend", "backend", 1, "--set backend: the kit for a backend has no such attribute"),
        ("store", "variants", [], "--set variants: the kit for a store has no such attribute; it has call_timeout, "),
        ("store", "racers", "8", '--set racers: "8" must be of the kind of 32'),
        ("store", "keeps_history", 1, "--set keeps_history: 1 must be of the kind of false"),
        ("backend", "variants", {}, r"--set variants: \{\} must be of the kind of \[\{\}\]"),
    ],
)
def test_an_attribute_that_the_kit_has_not(kind: str, key: str, value: JSON, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _fitting(kind, key, value)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("store", "minimum_ttl", 10), ("store", "odd_keys", ["a"]), ("backend", "variants", [{"Port": 1}])],
)
def test_an_attribute_that_it_has(kind: str, key: str, value: JSON) -> None:
    assert _fitting(kind, key, value) == value


SERVE = """\
import os
from contextlib import contextmanager
from pyflannel.errors import ConfigError, StoreUnavailableError

@contextmanager
def serve(directory, addresses):
    print("starting")
"""


def site(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that starts a server in this way; returns an empty directory."""
    for name in ("site", "work"):
        (folder / name).mkdir()
    about = folder / "site" / "acme_kv-1.dist-info"
    about.mkdir()
    (folder / "site" / "acme_kv.py").write_text(SERVE + code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-kv\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.lab.servers]\nacme = acme_kv:serve\n")
    install(monkeypatch, folder / "site")
    return folder / "work"


def test_a_store_s_server_has_a_process_that_ends_with_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = site("    yield f'{addresses[0]}:{os.getpid()}'\n    (directory / 'ended').touch()\n", tmp_path, monkeypatch)
    with _serving("acme", work) as url:
        assert url.startswith("acme://127.0.0.1:")
        process = Path("/proc", url.rpartition(":")[2])
        assert process.exists()
        assert os.stat(process) != os.stat("/proc/self")
    assert not process.exists()
    assert (work / "server" / "ended").exists()


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("    raise ConfigError('no acmed here')\n    yield", ConfigError, "did not come up: starting\nno acmed here"),
        (
            "    raise StoreUnavailableError('deaf')\n    yield",
            StoreUnavailableError,
            "did not come up: starting\ndeaf",
        ),
        ("    yield 7", PluginError, "did not come up: starting\nlab server 'acme' gives 7: must be"),
        ("    os._exit(5)\n    yield", StoreUnavailableError, "the server of store 'acme' did not come up"),
        (
            "    yield '127.0.0.1:7'\n    1 / 0",
            PluginError,
            "did not end well: starting\nlab server",
        ),
    ],
)
def test_a_store_s_server_that_fails_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[PyflannelError], said: str
) -> None:
    work = site(code, tmp_path, monkeypatch)
    with pytest.raises(kind) as failed, _serving("acme", work):
        pass
    assert type(failed.value) is kind
    assert said in str(failed.value)


OLD = """\
import threading
import warnings
from pyflannel.backend import Backend

def chatter():
    while True:
        print("late")
        threading.Event().wait(0.001)

class Old(Backend):
    api_version = 1
    name = "old"

    def mtu(self, underlay):
        return underlay.mtu

    def describe(self, node):
        threading.Thread(target=chatter, name="chatter", daemon=False).start()
        warnings.warn("old() will be removed; use new()", DeprecationWarning, stacklevel=2)
        return {}
"""


def test_what_is_deprecated_fails_the_kit_whose_report_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that the plugin leaves behind neither writes into the report nor keeps the command from ending."""
    about = tmp_path / "old_backend-1.dist-info"
    about.mkdir()
    (tmp_path / "old_backend.py").write_text(OLD)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: old-backend\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.backends]\nold = old_backend:Old\n")
    install(monkeypatch, tmp_path)
    words = module_command("pyflannel", "plugin-test", "old", "--no-lab", "-k", "describes_itself")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CHECK_FAILED, done.stdout
    assert "DeprecationWarning: old() will be removed; use new()" in done.stdout
    report = done.stdout[done.stdout.index("short test summary info") :]
    assert report.splitlines()[-1] == "FAILED: backend old: 0 passed, 1 failed, 0 skipped, 0 not applicable"
    assert "late" not in report.splitlines()
    assert "late" in done.stderr.splitlines()
    assert "the thread 'chatter' of a plugin did not end and is left behind" in done.stderr


@pytest.mark.parametrize("kind", ["backend", "store"])
def test_what_is_deprecated_fails_the_tests_of_a_new_project(kind: str, tmp_path: Path) -> None:
    write_project(kind, "acme", tmp_path)
    assert '\nfilterwarnings = ["error"]\n' in (tmp_path / "pyproject.toml").read_text()
