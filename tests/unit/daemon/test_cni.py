"""The conflist: what it says for every family, and that it replaces flannel's and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyflannel.daemon import cni
from pyflannel.errors import ConfigError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets

BOTH = '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48"}'
ONLY_4 = '{"Network":"10.244.0.0/16"}'
ONLY_6 = '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10::/48"}'
KEY = "10.244.0.0-25&fd00:10:0:3::-64"
FLANNELS = {"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {}}]}


def rendered(document: str, mtu: int = 1450, ip_masq: bool = True) -> dict[str, Any]:
    text = cni.render(NetworkConfig.from_json(document), Subnets.from_key(KEY), mtu, ip_masq)
    made: dict[str, Any] = json.loads(text)
    return made


@pytest.mark.parametrize(
    ("document", "subnets", "networks"),
    [
        (ONLY_4, ["10.244.0.0/25"], ["10.244.0.0/16"]),
        (ONLY_6, ["fd00:10:0:3::/64"], ["fd00:10::/48"]),
        (BOTH, ["10.244.0.0/25", "fd00:10:0:3::/64"], ["10.244.0.0/16", "fd00:10::/48"]),
    ],
    ids=["ipv4", "ipv6", "both"],
)
def test_it_has_the_ranges_and_routes_of_the_families_in_use(
    document: str, subnets: list[str], networks: list[str]
) -> None:
    made = rendered(document)
    bridge, portmap = made["plugins"]
    assert made["name"] == "cbr0"
    assert bridge["ipam"]["ranges"] == [[{"subnet": subnet}] for subnet in subnets]
    assert bridge["ipam"]["routes"] == [{"dst": network} for network in networks]
    assert (bridge["type"], bridge["bridge"], bridge["mtu"]) == ("bridge", "cni0", 1450)
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}


@pytest.mark.parametrize("ip_masq", [True, False])
def test_one_of_both_masquerades(ip_masq: bool) -> None:
    assert rendered(ONLY_4, ip_masq=ip_masq)["plugins"][0]["ipMasq"] is not ip_masq


def test_it_is_written_once_and_follows_the_mtu(tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-pyflannel.conflist"
    text = json.dumps(rendered(ONLY_4))
    assert cni.write(path, text)
    before = path.stat().st_ino
    assert not cni.write(path, text)
    assert path.stat().st_ino == before
    assert cni.write(path, json.dumps(rendered(ONLY_4, mtu=8000)))
    assert json.loads(path.read_text())["plugins"][0]["mtu"] == 8000
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["10-flannel.conflist", "05-old.conf"])
def test_flannels_that_would_come_first_is_put_aside_also_when_it_comes_back(tmp_path: Path, name: str) -> None:
    path, rival, text = tmp_path / "10-pyflannel.conflist", tmp_path / name, json.dumps(rendered(ONLY_4))
    for _ in range(2):
        rival.write_text(json.dumps(FLANNELS if name.endswith("list") else FLANNELS["plugins"][0]))
        assert cni.write(path, text)
        assert not rival.exists()
        assert (tmp_path / f"{name}{cni.ASIDE}").exists()
    assert not cni.write(path, text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("10-a.conflist", '{"name":"other","plugins":[{"type":"bridge"}]}'),
        ("10-b.conflist", "no json"),
        ("10-flannel.conflist.bak", json.dumps(FLANNELS)),
        ("90-flannel.conflist", json.dumps(FLANNELS)),
    ],
)
def test_what_is_not_flannels_or_comes_later_stays(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    cni.write(tmp_path / "10-pyflannel.conflist", json.dumps(rendered(ONLY_4)))
    assert (tmp_path / name).read_text() == content


def test_under_flannels_own_name_it_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "10-flannel.conflist"
    path.write_text(json.dumps(FLANNELS))
    assert not cni.remove(path)
    assert cni.write(path, json.dumps(rendered(ONLY_4)))
    assert json.loads(path.read_text())["plugins"][0]["type"] == "bridge"
    assert cni.remove(path)
    assert not path.exists()
    assert not cni.remove(path)


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--cni-conf"):
        cni.write(tmp_path / "file" / "x.conflist", "{}")


def test_after_a_reboot_it_is_taken_away_and_after_a_restart_it_stays(tmp_path: Path) -> None:
    path, rival, subnet_file = (
        tmp_path / "10-pyflannel.conflist",
        tmp_path / "20-other.conflist",
        tmp_path / "subnet.env",
    )
    for each, content in ((path, json.dumps(rendered(ONLY_4))), (rival, json.dumps(FLANNELS))):
        each.write_text(content)
    subnet_file.write_text("FLANNEL_MTU=1450\n")
    cni.remove_after_reboot(path, subnet_file)
    assert path.exists()
    subnet_file.unlink()
    cni.remove_after_reboot(path, subnet_file)
    cni.remove_after_reboot(rival, subnet_file)
    assert not path.exists()
    assert rival.exists(), "it is not ours"
