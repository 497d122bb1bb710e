"""What iptables-restore is fed, for what iptables-save printed; recordings of flanneld's rules among it."""

from __future__ import annotations

import re

import pytest
from tests.recordings import GOLDEN, network

from pyflannel.daemon.subnet_env import read_previous
from pyflannel.firewall.chains import first_drop
from pyflannel.firewall.iptables import find_variants, in_use, parse, script
from pyflannel.firewall.model import NO_RULES, FamilyRules, plan
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets

RECORDINGS = sorted(path.parent.name for path in GOLDEN.glob("*/iptables.txt"))


def planned(name: str, version: int) -> FamilyRules:
    subnets = read_previous(GOLDEN / name / "subnet.env").subnets
    assert subnets is not None
    return plan(network(name), subnets, forward=True, masquerade=True).of(version)


def saved(name: str, version: int) -> str:
    return (GOLDEN / name / ("iptables.txt" if version == 4 else "ip6tables.txt")).read_text()


CASES = [(name, 4) for name in RECORDINGS] + [("vxlan-dualstack", 6)]


@pytest.mark.parametrize(("name", "version"), CASES)
def test_our_rules_look_like_flanneld_s(name: str, version: int) -> None:
    """All of an older flanneld's lines are ours too, but the one that newer ones have split in two."""
    theirs = {line for line in saved(name, version).splitlines() if line.startswith("-A ")}
    if not any("FLANNEL" in line for line in theirs):
        pytest.skip("recorded without rules")
    whole = str(network(name).family(version).network)  # type: ignore[union-attr]
    split = f'-A FLANNEL-POSTRTG -s {whole} -d {whole} -m comment --comment "flanneld masq" -j RETURN'
    ours = set(script({}, planned(name, version)).splitlines())
    assert split in theirs
    assert theirs - {split} <= ours
    assert len(ours & theirs) == len(theirs) - 1


@pytest.mark.parametrize(("name", "version"), CASES)
def test_what_flanneld_left_is_replaced_in_place(name: str, version: int) -> None:
    text = script(parse(saved(name, version), version), planned(name, version))
    assert "FORWARD" not in text, "its forward rules are ours"
    assert "POSTROUTING" not in text, "its jump stays where it is"
    assert text.startswith("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -m mark")
    assert text.endswith("COMMIT\n")


@pytest.mark.parametrize(("name", "version"), CASES)
def test_what_flanneld_left_is_removed_whole(name: str, version: int) -> None:
    text = script(parse(saved(name, version), version), NO_RULES.of(version))
    for table, base, chain in (("filter", "FORWARD", "FLANNEL-FWD"), ("nat", "POSTROUTING", "FLANNEL-POSTRTG")):
        block = re.search(rf"\*{table}\n(.*?)COMMIT", text, flags=re.DOTALL)
        assert block is not None
        lines = block[1].splitlines()
        assert lines[0].startswith(f"-D {base} ")
        assert lines[1:] == [f"-F {chain}", f"-X {chain}"]


EXITS = {
    version: plan(
        NetworkConfig.from_json('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}'),
        Subnets.from_key("10.5.7.0-24&fd00:5:0:7::-64"),
        forward=False,
        masquerade=False,
        exits=["flannel-wg"],
        ipsec=True,
    ).of(version)
    for version in (4, 6)
}
WORDS = '-m comment --comment "pyflannel overlay exits" -j'


@pytest.mark.parametrize(
    ("version", "whole", "first", "own"),
    [(4, "10.5.0.0/16", "10.5.0.0/24", "10.5.7.0/24"), (6, "fd00:5::/48", "fd00:5::/64", "fd00:5:0:7::/64")],
)
def test_what_may_leave_is_judged_before_all_else(version: int, whole: str, first: str, own: str) -> None:
    table = "*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j ACCEPT\nCOMMIT\n"
    text = script(parse(table, version), EXITS[version])
    rules = [
        f"-A FLANNEL-EXITS -o flannel-wg {WORDS} RETURN",
        f"-A FLANNEL-EXITS -o lo {WORDS} RETURN",
        f"-A FLANNEL-EXITS -d {own} {WORDS} RETURN",
        f"-A FLANNEL-EXITS -d {first} {WORDS} RETURN",
        f"-A FLANNEL-EXITS -m policy --dir out --pol ipsec {WORDS} RETURN",
        f"-A FLANNEL-EXITS -d {whole} {WORDS} DROP",
    ]
    assert text.splitlines() == [
        *("*mangle", ":FLANNEL-EXITS - [0:0]", *rules),
        *(f"-I POSTROUTING 1 {WORDS} FLANNEL-EXITS", "COMMIT"),
    ]
    jump = f"-A POSTROUTING {WORDS} FLANNEL-EXITS\n"
    there = "\n".join(
        ["*mangle", ":POSTROUTING ACCEPT [0:0]", ":FLANNEL-EXITS - [0:0]", f"{jump}{rules[0]}", *rules[1:]]
    )
    assert script(parse(f"{there}\nCOMMIT\n", version), EXITS[version]) == ""
    assert script(parse(f"{there}\nCOMMIT\n", version), NO_RULES.of(version)).splitlines() == [
        *("*mangle", f"-D POSTROUTING {WORDS} FLANNEL-EXITS", "-F FLANNEL-EXITS", "-X FLANNEL-EXITS", "COMMIT"),
    ]


RULES = planned("vxlan", 4)
JUMP = '-m comment --comment "flanneld forward" -j FLANNEL-FWD'
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [7:840]\n:OUTPUT ACCEPT [0:0]\n"


def forward(*rules: str, chains: str = "") -> list[str]:
    """The commands for FORWARD when it has these rules."""
    lines = "\n".join(f"-A {rule}" for rule in rules)
    text = script(parse(f"{FILTER}{chains}{lines}\nCOMMIT\n"), RULES)
    return [line for line in text.splitlines() if " FORWARD " in line]


@pytest.mark.parametrize(
    ("rules", "place"),
    [
        ([], None),
        (["FORWARD -s 192.0.2.0/24 -j DROP"], None),
        (["FORWARD -j DROP"], 1),
        (["FORWARD -s 192.0.2.0/24 -j DROP", "FORWARD -i eth0 -j REJECT --reject-with icmp-port-unreachable"], 2),
        (["FORWARD -i docker0 -o br-1 -j DROP"], None),
        (["FORWARD ! -i docker0 -o docker0 -j DROP"], 1),
        (["FORWARD -p tcp -j DROP", 'FORWARD -m comment --comment "the end" -j DROP'], 2),
        (["FORWARD -j A", "A -s 192.0.2.0/24 -j DROP"], None),
        (["FORWARD -j A", "A -o docker0 -j B", "B -j DROP"], 1),
        (["FORWARD -j A", "A -j B", "B -j A"], None),
        (
            [
                "FORWARD -j DOCKER-ISOLATION-STAGE-1",
                "DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j B",
                "B -j DROP",
            ],
            None,
        ),
    ],
)
def test_the_jump_stands_before_what_drops_all_and_behind_the_rest(rules: list[str], place: int | None) -> None:
    names = {rule.split()[0] for rule in rules} - {"FORWARD"}
    chains = "".join(f":{name} - [0:0]\n" for name in sorted(names))
    assert forward(*rules, chains=chains) == [f"-A FORWARD {JUMP}" if place is None else f"-I FORWARD {place} {JUMP}"]


def test_a_jump_in_a_good_place_stays_and_others_go() -> None:
    chain = ":FLANNEL-FWD - [0:0]\n"
    assert forward(f"FORWARD {JUMP}", "FORWARD -j DROP", chains=chain) == []
    assert forward("FORWARD -s 192.0.2.1/32 -j DROP", f"FORWARD {JUMP}", chains=chain) == []
    assert forward("FORWARD -j DROP", f"FORWARD {JUMP}", chains=chain) == [
        f"-D FORWARD {JUMP}",
        f"-I FORWARD 1 {JUMP}",
    ]
    assert forward("FORWARD -j FLANNEL-FWD", f"FORWARD {JUMP}", chains=chain) == [
        "-D FORWARD -j FLANNEL-FWD",
        f"-D FORWARD {JUMP}",
        f"-A FORWARD {JUMP}",
    ]


def test_a_rule_s_comment_is_not_taken_for_a_match() -> None:
    tables = parse(FILTER + '-A FORWARD -m comment --comment "a -j ACCEPT b" -j DROP\nCOMMIT\n')
    (rule,) = tables["filter"].chains["FORWARD"].rules
    assert (rule.broad, rule.drops, rule.comment) == (True, True, "a -j ACCEPT b")
    assert first_drop(tables["filter"], [rule]) == 0


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("", False),
        ("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", False),
        (FILTER + "COMMIT\n", True),
        ("*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER - [0:0]\nCOMMIT\n", True),
        ("*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n", True),
        (
            f"*filter\n:FORWARD ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD {JUMP}\nCOMMIT\n",
            False,
        ),
    ],
)
def test_who_uses_iptables(text: str, used: bool) -> None:
    assert in_use(parse(text)) is used


@pytest.mark.parametrize(
    ("version", "kind"),
    [("iptables-restore v1.8.9 (nf_tables)", "nft"), ("iptables v1.8.4 (legacy)", "legacy"), ("v1.6.1", "legacy")],
)
def test_a_system_with_one_kind_of_iptables_only(version: str, kind: str) -> None:
    installed = {name: f"/sbin/{name}" for name in ("iptables-save", "iptables-restore")}
    variants = find_variants(installed.get, lambda words: version)
    assert list(variants) == [kind]
    assert variants[kind].paths == {4: ("/sbin/iptables-save", "/sbin/iptables-restore")}
