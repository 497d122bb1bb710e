"""pyflannel plugins, with a broken distribution on the import path."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import CommandLine


def install_broken(path: Path) -> dict[str, str]:
    about = path / "acme-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[pyflannel.stores]\nacme = acme_missing:Store\n")
    return {"PYTHONPATH": str(path)}


def test_the_broken_one_is_listed_among_the_others(pyflannel: CommandLine, tmp_path: Path) -> None:
    environ = install_broken(tmp_path)
    lines = pyflannel("plugins", environ=environ).out.splitlines()
    assert lines[0].split() == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "TARGET", "STATE"]
    (vxlan,) = [line for line in lines if line.split()[1] == "vxlan"]
    assert vxlan.split()[::5] == ["backend", "ok"]
    (acme,) = [line for line in lines if line.split()[1] == "acme"]
    assert "does not load: ModuleNotFoundError: No module named 'acme_missing'" in acme


def test_as_json(pyflannel: CommandLine, tmp_path: Path) -> None:
    document = json.loads(pyflannel("plugins", "--json", environ=install_broken(tmp_path)).out)
    assert {plugin["name"]: plugin["loads"] for plugin in document["stores"]}.items() >= {
        "file": True,
        "acme": False,
    }.items()
    (vxlan,) = [plugin for plugin in document["backends"] if plugin["name"] == "vxlan"]
    assert vxlan["target"] == "pyflannel_backends.vxlan:VxlanBackend"
    assert vxlan["problem"] is None


def test_the_daemon_names_the_broken_one_if_it_is_asked_for(pyflannel: CommandLine, tmp_path: Path) -> None:
    result = pyflannel("leases", "--store", "acme://x", environ=install_broken(tmp_path))
    assert result.code == 7
    assert "store 'acme' of acme (acme_missing:Store) does not load" in result.err
    store = tmp_path / "store"
    (store / "subnets").mkdir(parents=True)
    assert pyflannel("leases", "--store", f"file://{store}", environ={"PYTHONPATH": str(tmp_path)}).code == 0
