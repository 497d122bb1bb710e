"""The option table against what is written about it: the reference page and the example file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel.settings.options import OPTIONS, Option
from pyflannel.settings.settings import load

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "contrib" / "pyflannel.toml").read_text(encoding="utf-8")


def row(option: Option) -> str:
    """An option's line in the reference."""
    value = option.kind.metavar.replace("|", "\\|")
    default = f"`{option.default_text}`" if option.default_text else ""
    notes = "" if option.in_file else " Not in the config file."
    return f"| `{option.name}` | {value} | {default} | {option.help}{notes} |"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_in_the_reference(option: Option) -> None:
    section = PAGE.partition(f"### {option.section}\n")[2].partition("\n#")[0]
    assert row(option) in section.splitlines()


def test_the_reference_has_no_other_option() -> None:
    names = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## All settings")[2], flags=re.MULTILINE)
    assert sorted(names) == sorted(option.name for option in OPTIONS)


def test_the_example_is_valid_as_it_is_and_with_every_setting_on(tmp_path: Path) -> None:
    path = tmp_path / "pyflannel.toml"
    path.write_text(EXAMPLE)
    seed = load({"config": str(path)}, {}, daemon=True).settings.read_seed()
    assert seed is not None
    settings_on = re.sub(r"^#(?=[a-zA-Z0-9_-]+ = )", "", EXAMPLE, flags=re.MULTILINE)
    settings_on = settings_on.replace('url = "file:///var/lib/pyflannel"\n', "")
    path.write_text(settings_on)
    wanted = load({"config": str(path)}, {}, daemon=True).settings
    assert wanted.store.scheme == "etcd"
    assert wanted.store.options["password_file"] == "/etc/pyflannel/password"
    assert wanted.iface == ("eth0",)
    assert wanted.read_seed() is not None


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_examples_in_the_reference_are_valid(tmp_path: Path, block: str) -> None:
    path = tmp_path / "pyflannel.toml"
    path.write_text(block)
    load({"config": str(path)}, {}, daemon=True).settings.read_seed()


def test_a_slip_in_the_example_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "pyflannel.toml"
    path.write_text(EXAMPLE.replace("[network]", "[netwrok]"))
    with pytest.raises(ConfigError, match="did you mean 'network'"):
        load({"config": str(path)}, {})
