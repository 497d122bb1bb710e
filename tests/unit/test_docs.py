"""The documentation says what is so: its links lead somewhere, its example plans, its tables match the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import click
import pytest

from pyflannel import backend, errors, lab, store
from pyflannel.backend import DesiredState, Route, forwarding
from pyflannel.cli import pyflannel
from pyflannel.cli.lab import lab_command
from pyflannel.errors import ExitCode
from pyflannel.lab import servers, trial
from pyflannel.plugins import load_backend, load_store
from pyflannel.show import status
from pyflannel.storetools.check import Inspection
from pyflannel.storetools.migration import Done
from pyflannel.testing import assigned, backends, clauses, stores
from pyflannel.testing.backends import BackendPlanning
from pyflannel.version import VERSION
from pyflannel_stores import _file_directory, _file_format, _file_watch

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_every_page_is_linked_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_every_decision_has_its_number_a_status_and_its_title_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/decisions/*.md"):
        title, blank, status, *_ = page.read_text(encoding="utf-8").splitlines()
        assert re.match(rf"# {int(page.name[:4])}\. \w", title), page.name
        assert not blank, page.name
        assert re.match(r"Status: (accepted|superseded)\b", status), page.name
        assert f"- [{title[2:]}](decisions/{page.name})\n" in index


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for version in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.+)$", version, flags=re.MULTILINE)
        order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
        assert sections == sorted(set(sections), key=order.index)


def test_the_backend_in_the_readme_is_complete(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    kit = type("Kit", (BackendPlanning,), {"backend": names["PlainBackend"]})()
    scene = kit.example(tmp_path, (4,), {})
    peer = scene.leases[1]
    assert isinstance(peer.subnets.ipv4, IPv4Network)
    assert scene.backend.plan_peer(scene.nodes[0], peer) == DesiredState(
        [Route(peer.subnets.ipv4, scene.nodes[0].underlay.interface, gateway=peer.attributes.public_ip)]
    )
    assert scene.backend.plan_node(scene.nodes[0]) == DesiredState([forwarding(4)])
    assert scene.backend.mtu(scene.nodes[0].underlay) == 1500
    kit.test_a_peer_behind_a_router_is_planned_or_rejected(tmp_path)


def test_changelog_and_debian_package_are_about_the_version_that_is_next() -> None:
    changes = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert changes[0] == VERSION
    packaged = (ROOT / "contrib" / "debian" / "changelog").read_text(encoding="utf-8")
    assert packaged.startswith(f"pyflannel ({VERSION}) ")


@pytest.mark.parametrize("scheme", ["consul", "etcd", "file", "kubernetes"])
def test_every_option_of_a_store_is_documented(scheme: str) -> None:
    page = (ROOT / "docs" / "stores" / f"{scheme}.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| option \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    named = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(load_store(scheme).options)


def test_how_each_option_of_a_backend_changes_is_documented() -> None:
    """But for those that have nothing to change, and for ipsec, whose options are one row."""
    page = (ROOT / "docs" / "network-change.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| option \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    named: dict[tuple[str, str], bool] = {}
    for row in table.splitlines():
        _, options, how, _ = (cell.strip() for cell in row.split("|"))
        for group in options.split("; "):
            backend, *_ = group.replace(",", "").split()
            for option in re.findall(r"`(\w+)`", group):
                named[backend, option] = "each node alone" in how
    known = {
        (name, str(option.metadata["key"])): bool(option.metadata.get("local"))
        for name in ("vxlan", "wireguard", "udp", "ipip", "gre")
        for option in dataclasses.fields(load_backend(name).Options)
    }
    assert named == known


def test_the_limits_of_the_file_store_are_documented() -> None:
    page = (ROOT / "docs" / "stores" / "file.md").read_text(encoding="utf-8")
    limits = dict(re.findall(r"^\| (.+?) \| (.+) \|$", page.partition("## Limits")[2], flags=re.MULTILINE))
    assert limits["a record's file"].startswith(f"{_file_format.MAX_FILE >> 20} MiB;")
    assert limits["a key's file name, encoded, with `.json`"] == f"{_file_format.MAX_NAME} bytes"
    assert limits["waiting for the lock"].startswith(f"{_file_directory.LOCK_TIMEOUT:g} seconds,")
    assert f"after more than {_file_watch.KEPT_DELETIONS:,} deletions" in limits["resuming a watch"]


def test_whatever_is_public_is_on_the_page_of_the_contracts() -> None:
    """What a module itself defines is there with the module; all else by name."""
    page = (ROOT / "docs" / "plugins" / "contracts.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    for module in (backend, store, servers):
        assert f".. automodule:: {module.__name__}\n" in page
        told = set(re.findall(r"^(?:class|def) (\w+)|^(\w+): Final", inspect.getsource(module), flags=re.MULTILINE))
        elsewhere = set(module.__all__) - {name for pair in told for name in pair} - set(errors.__all__)
        assert elsewhere <= words
    for kit in (backends, stores, assigned, clauses):
        (named,) = re.findall(rf"^\.\. automodule:: {kit.__name__}\n   :members: ([^:]+)", page, re.MULTILINE)
        assert set(kit.__all__) <= {*re.findall(r"\w+", named), "not_applicable"}


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", page, flags=re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_what_the_page_of_the_lab_names_is_there() -> None:
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    owners = {"lab": lab.Lab, "node": lab.Node, "machine": lab.Machine, "node.daemon": lab.Daemon}
    table = page.partition("| to | use |")[2]
    named = {*re.findall(r"`(lab|node\.daemon|node|machine)\.(\w+)\(", table)}
    named |= {("node.daemon", name) for name in re.findall(r"`\.(\w+)\(", table)}  # with which a row goes on
    assert {owner for owner, _ in named} == set(owners)
    assert [pair for pair in named if not hasattr(owners[pair[0]], pair[1])] == []
    for name in re.findall(r"(\w+)\(", table.partition("`pyflannel.lab.trial.")[2].partition("`")[0]):
        assert hasattr(trial, name), name
    assert re.findall(r"`Matrix` with `\.(\w+)` and `\.(\w+)`", table) == [("complete", "failed")]


def test_the_options_of_the_lab_are_those_of_its_command() -> None:
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8").partition("## Options")[2].partition("## ")[0]
    cells = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    told = {name for cell in cells for name in re.findall("--[a-z0-9-]+", cell)}
    assert told == {opt for option in lab_command.params for opt in option.opts}
    defaults = {option.name: option.default for option in lab_command.params}
    assert f"nodes ({defaults['nodes']}), containers behind each ({defaults['containers']})" in page
    assert f"the underlay's MTU ({defaults['mtu']})" in page


def command_line(heading: str) -> tuple[str, set[str]]:
    """A section of the page, and what it names."""
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else page.partition("\n## ")[0]
    return text, {*re.findall(r"`(\w+)(?:\[\])?`", text)}


def test_every_command_is_in_the_table() -> None:
    told = re.findall(r"^\| `([a-z-]+(?: [a-z-]+)?)", command_line("")[0], flags=re.MULTILINE)
    commands: list[str] = []
    context = click.Context(pyflannel)
    for name in pyflannel.list_commands(context):
        found = pyflannel.get_command(context, name)
        within = found.list_commands(click.Context(found)) if isinstance(found, click.Group) else ()
        commands += [f"{name} {each}" for each in within] or [name]
    assert sorted(told) == sorted(commands)


def test_every_key_of_the_status_is_documented() -> None:
    _, named = command_line("status")
    kinds = [kind for kind in vars(status).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert status.Status in kinds
    keys = {field.name for kind in kinds if kind.__module__ == status.__name__ for field in dataclasses.fields(kind)}
    assert keys - named == set()


def test_every_key_about_a_checked_or_moved_store_is_documented() -> None:
    _, named = command_line("store")
    assert set(Inspection("file:///x").to_json()) - named == set()
    assert set(Done().to_json()) - named == set()
