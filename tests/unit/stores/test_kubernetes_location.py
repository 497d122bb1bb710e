"""Where the API server is and who we are there, as far as it takes no server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError, StoreDeniedError
from pyflannel.store import StoreLocation
from pyflannel_stores._kubernetes_access import Access, ApiServer, ExecPlugin
from pyflannel_stores._kubernetes_location import find_access


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


def access(**options: str) -> Access:
    return find_access(StoreLocation("kubernetes", options=options))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two kubeconfigs that KUBECONFIG names, with one between them that is not there."""
    one = {
        "contexts": [{"name": "x", "context": {"cluster": "near", "user": "me"}}],
        "clusters": [{"name": "near", "cluster": {"server": "https://192.0.2.1:6443"}}],
    }
    two = {
        "current-context": "y",
        "contexts": [
            {"name": "x", "context": {"cluster": "far"}},
            {"name": "y", "context": {"cluster": "far", "user": "me"}},
        ],
        "clusters": [{"name": "far", "cluster": {"server": "https://192.0.2.2:6443", "certificate-authority": "ca"}}],
        "users": [{"name": "me", "user": {"tokenFile": "token"}}],
    }
    for name, document in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_text(json.dumps(document))
    names = [str(tmp_path / name / "config") for name in ("one", "none", "two")]
    monkeypatch.setenv("KUBECONFIG", f":{':'.join(names)}")
    return tmp_path


def test_of_several_kubeconfigs_each_adds_to_those_before_it(files: Path) -> None:
    found = access()
    assert (str(found.endpoint), found.ca_file) == ("https://192.0.2.2:6443", files / "two" / "ca")
    found = access(context="x")
    assert (str(found.endpoint), found.token_file) == ("https://192.0.2.1:6443", files / "two" / "token")


def test_a_kubeconfig_that_is_named_is_the_only_one(files: Path) -> None:
    with pytest.raises(ConfigError, match="no current-context"):
        access(kubeconfig=str(files / "one" / "config"))
    with pytest.raises(ConfigError, match="none: No such file"):
        access(kubeconfig=str(files / "none"))


@pytest.mark.parametrize("host", ["api..example", f"{'x' * 64}.example"])
def test_a_host_that_nobody_can_look_up_is_refused(files: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="can't be a host's name"):
        find_access(StoreLocation("kubernetes", (host,)))
    path = files / "two" / "config"
    path.write_text(path.read_text().replace("192.0.2.2", host))
    with pytest.raises(ConfigError, match="can't be a host's name"):
        access(kubeconfig=str(path))


TOKEN = "a-token-that-is-hidden"


@pytest.mark.parametrize(
    "text",
    [
        f"token: {TOKEN}: x",
        f"token: *{TOKEN}",
        f"token: !{TOKEN} x",
        f"token: '{TOKEN}",
        f"{TOKEN}: [",
        "a: 2026-02-31",
    ],
)
def test_what_is_no_yaml_is_told_without_its_text(files: Path, text: str) -> None:
    (files / "bad").write_text(f"kind: Config\n{text}\n")
    with pytest.raises(ConfigError, match="not valid YAML") as refused:
        access(kubeconfig=str(files / "bad"))
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("url", [f"https://me:{TOKEN}@192.0.2.2", f"https://192.0.2.2?token={TOKEN}"])
def test_a_servers_url_is_told_without_its_password(files: Path, url: str) -> None:
    path = files / "two" / "config"
    path.write_text(path.read_text().replace("https://192.0.2.2:6443", url))
    with pytest.raises(ConfigError, match="is not a URL such as") as refused:
        access(kubeconfig=str(path))
    assert TOKEN not in str(refused.value)


def test_what_an_exec_plugin_gives_is_a_token_or_is_not_shown(tmp_path: Path) -> None:
    program = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "status": {"token": f"{TOKEN}\n{TOKEN}"}}
    (tmp_path / "answer").write_text(json.dumps(answer))
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    program.chmod(0o755)
    found = Access(ApiServer("192.0.2.1", 6443), "kubernetes", plugin=ExecPlugin(str(program)))
    with pytest.raises(StoreDeniedError, match="not a token") as refused:
        found.token()
    assert TOKEN not in str(refused.value)
