"""The rules in a real kernel: written once, put back, moved, removed; foreign rules as they were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.firewall.conftest import Host

from pyflannel.errors import KernelError
from pyflannel.firewall import nfnetlink, programs
from pyflannel.firewall.choose import Tools
from pyflannel.firewall.iptables import Variant
from pyflannel.firewall.model import NO_RULES, Mode, Rules, plan
from pyflannel.firewall.nftables import Nft
from pyflannel.firewall.sync import Firewall, find_tools
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Subnets

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

DUAL = NetworkConfig.from_json('{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48"}')
ONLY4 = NetworkConfig.from_json('{"Network": "10.99.0.0/16"}')
SUBNETS = Subnets(IPv4Network("10.244.3.0/24"), IPv6Network("fd00:10:0:3::/64"))
ALL = plan(
    DUAL,
    SUBNETS,
    forward=True,
    masquerade=True,
    entrances=["flannel.1"],
    underlay="eth0",
    exits=["flannel.1"],
    ipsec=True,
)

IPTABLES = {
    "nft": "iptables-nft -A INPUT -s 192.0.2.7 -j DROP; ip6tables-nft -A INPUT -s 2001:db8::7 -j DROP",
    "legacy": "iptables-legacy -A INPUT -s 192.0.2.7 -j DROP; ip6tables-legacy -A INPUT -s 2001:db8::7 -j DROP",
}
"""What makes a host one that uses iptables."""


class Counting:
    """Programs that are counted, and can be made to fail on words in their input."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refused = ""

    def __call__(self, words: list[str], text: str = "") -> str:
        self.calls.append(words[0].rpartition("/")[2])
        if self.refused and self.refused in text:
            raise KernelError(f"refused: {self.refused}")
        return programs.run(words, text)

    @property
    def writes(self) -> list[str]:
        return [name for name in self.calls if name.endswith("-restore")]


def firewall(mode: Mode = Mode.AUTO, rules: Rules = ALL, run: Counting | None = None) -> Firewall:
    tools = find_tools()
    if run is not None:
        tools = Tools(tools.nft, {kind: replace(item, run=run) for kind, item in tools.iptables.items()})
    made = Firewall(tools, mode, run or programs.run)
    made.want(rules)
    return made


def port_of(host: Host, made: Firewall) -> str:
    host.check(made)
    return made.state.port


def test_a_host_without_rules_gets_nftables(host: Host) -> None:
    assert port_of(host, firewall()) == "nftables"
    ruleset = host.sh("nft list ruleset")
    assert "table ip flannel-ipv4" in ruleset
    assert "table ip6 flannel-ipv6" in ruleset
    assert "hook forward" not in ruleset, "nothing drops, so nothing needs an accept"


@pytest.mark.parametrize("kind", IPTABLES)
def test_a_host_with_iptables_gets_iptables_of_its_kind(host: Host, kind: str) -> None:
    host.sh(IPTABLES[kind])
    assert port_of(host, firewall()) == f"iptables-{kind}"
    for program, network in ((f"iptables-{kind}", "10.244.0.0/16"), (f"ip6tables-{kind}", "fd00:10::/48")):
        rules = host.sh("; ".join(f"{program} -t {table} -S" for table in ("filter", "nat", "raw", "mangle")))
        assert f'-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT' in rules
        assert '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD' in rules
        assert '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG' in rules
        assert '-A PREROUTING -m comment --comment "pyflannel overlay sources" -j FLANNEL-SOURCES' in rules
        assert f"-A FLANNEL-SOURCES -s {network} -m rpfilter --invert" in rules
        assert '-A POSTROUTING -m comment --comment "pyflannel overlay exits" -j FLANNEL-EXITS' in rules
        assert f'-A FLANNEL-EXITS -d {network} -m comment --comment "pyflannel overlay exits" -j DROP' in rules
    assert "flannel-ipv4" not in host.sh("nft list tables")


@pytest.mark.parametrize(
    ("mode", "forced", "port"),
    [(Mode.NFTABLES, False, "nftables"), (Mode.AUTO, True, "nftables"), (Mode.IPTABLES, False, "iptables-legacy")],
)
def test_a_flag_or_the_network_config_decides(host: Host, mode: Mode, forced: bool, port: str) -> None:
    host.sh(IPTABLES["legacy"])
    made = firewall(mode)
    made.want(ALL, forced)
    assert port_of(host, made) == port


PORTS = {"nftables": "true", "iptables-nft": IPTABLES["nft"], "iptables-legacy": IPTABLES["legacy"]}


@pytest.mark.parametrize("port", PORTS)
def test_a_second_check_writes_nothing_and_a_restart_neither(host: Host, port: str) -> None:
    host.sh(PORTS[port])
    assert port_of(host, firewall()) == port
    script = "nft -a list ruleset; iptables-legacy-save -t nat | grep -v '^#'; iptables-legacy -t raw -S"
    before = host.sh(script)
    again = firewall()
    host.check(again)
    again.forget()
    host.check(again)
    assert host.sh(script) == before, "the same handles"


LATIN_1 = "$(printf 'B\\374ro')"


@pytest.mark.parametrize(
    "rule",
    [
        f"iptables-nft -A INPUT -m comment --comment {LATIN_1} -j ACCEPT; iptables-nft -S",
        f"ip6tables-legacy -t nat -A OUTPUT -m comment --comment {LATIN_1} -j ACCEPT; ip6tables-legacy -t nat -S",
        f'nft add table x; nft add chain x c; nft "add rule x c accept comment \\"{LATIN_1}\\""; nft list table x',
    ],
    ids=["iptables-nft", "ip6tables-legacy", "nft"],
)
def test_somebody_s_comment_may_be_in_any_alphabet(host: Host, rule: str) -> None:
    """The kernel takes bytes, and the programs print them as they are."""
    assert "B\N{REPLACEMENT CHARACTER}ro" in host.sh(rule)
    made = firewall()
    host.check(made)
    before = host.whole()
    made.forget()
    host.check(made)
    assert host.whole() == before


@pytest.mark.parametrize("port", PORTS)
def test_what_a_check_costs(host: Host, port: str) -> None:
    host.sh(PORTS[port])
    run = Counting()
    made = firewall(run=run)
    host.check(made)
    run.calls.clear()
    assert not host.do(made.legacy_changed)
    host.check(made)
    assert run.calls == [], "nothing changed, no program"
    host.sh("nft add table inet someone; nft add chain inet someone c; nft add rule inet someone c counter")
    made.forget()
    host.check(made)
    assert run.calls == ["nft"], "one look at somebody's change"
    if port == "iptables-legacy":
        host.sh("iptables-legacy -A INPUT -s 192.0.2.8 -j DROP")
        run.calls.clear()
        assert host.do(made.legacy_changed)
        host.check(made)
        assert run.calls == ["iptables-legacy-save"]


DAMAGE = {
    "nftables": [
        "nft flush table ip flannel-ipv4",
        "nft flush chain ip6 flannel-ipv6 sources",
        "nft delete chain ip6 flannel-ipv6 exits",
        "nft delete table ip6 flannel-ipv6",
        "nft flush ruleset",
        "nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list ruleset | sed -n '/4000/{s/.*dle //p;q}')",
        "nft insert rule ip flannel-ipv4 postrtg accept",
        "nft add chain ip flannel-ipv4 x '{ type filter hook forward priority 0; policy drop; }'",
    ],
    "iptables-nft": [
        "iptables-nft -F FLANNEL-FWD",
        "iptables-nft -D FLANNEL-FWD 2",
        "iptables-nft -I FLANNEL-FWD -j DROP",
        "ip6tables-nft -t nat -F",
        "ip6tables-nft -t raw -F",
        "iptables-nft -t raw -F FLANNEL-SOURCES",
        "ip6tables-nft -t mangle -F FLANNEL-EXITS",
        "iptables-nft -t mangle -I POSTROUTING -j ACCEPT; iptables-nft -t mangle -F POSTROUTING",
        "iptables-nft -F FORWARD; iptables-nft -F FLANNEL-FWD; iptables-nft -X FLANNEL-FWD",
        "iptables-nft -t nat -D FLANNEL-POSTRTG 5",
        "iptables-nft -I FORWARD -j FLANNEL-FWD",
        "printf '*filter\\n-A INPUT -s 192.0.2.7 -j DROP\\nCOMMIT\\n' | iptables-nft-restore",
    ],
    "iptables-legacy": [
        "iptables-legacy -F FLANNEL-FWD",
        "ip6tables-legacy -t nat -D FLANNEL-POSTRTG 3",
        "iptables-legacy -t raw -D PREROUTING -m comment --comment 'pyflannel overlay sources' -j FLANNEL-SOURCES",
        "ip6tables-legacy -t mangle -F",
        "iptables-legacy -F FORWARD; iptables-legacy -F FLANNEL-FWD; iptables-legacy -X FLANNEL-FWD",
        "printf '*filter\\n-A INPUT -s 192.0.2.7 -j DROP\\nCOMMIT\\n' | iptables-legacy-restore",
    ],
}


@pytest.mark.parametrize(("port", "damage"), [(port, item) for port, items in DAMAGE.items() for item in items])
def test_damage_is_put_right(host: Host, port: str, damage: str) -> None:
    host.sh(PORTS[port])
    made = firewall(Mode.NFTABLES if port == "nftables" else Mode.AUTO)
    host.check(made)
    before = host.dump()
    host.sh(damage)
    assert host.dump() != before
    made.forget()
    host.do(made.legacy_changed)
    host.check(made)
    assert host.dump() == before
    assert made.state.repaired == 1


@pytest.mark.parametrize("old", PORTS)
@pytest.mark.parametrize("new", ["nftables", "iptables-nft", "iptables-legacy"])
def test_another_port_or_network_leaves_nothing_of_the_old(host: Host, old: str, new: str) -> None:
    host.sh(PORTS[old])
    assert port_of(host, firewall()) == old
    if new != "nftables" and old != new:
        host.sh("iptables-legacy -F INPUT; ip6tables-legacy -F INPUT; iptables-nft -F INPUT; ip6tables-nft -F INPUT")
        host.sh(PORTS[new])
    moved = plan(ONLY4, Subnets(IPv4Network("10.99.7.0/24"), None), forward=True, masquerade=True)
    made = firewall(Mode.NFTABLES if new == "nftables" else Mode.AUTO, moved)
    host.check(made)
    dump = host.dump()
    assert "10.244" not in dump
    assert "fd00:10" not in dump
    assert "FLANNEL-POSTRTG" not in host.sh("ip6tables-nft-save; ip6tables-legacy-save")
    assert dump.count("10.99.7.0/24") == 3, "in one place"


def test_a_kernel_or_program_without_fully_random_ports(host: Host) -> None:
    host.sh(IPTABLES["legacy"])
    run = Counting()
    run.refused = "--random-fully"
    made = firewall(run=run)
    host.check(made)
    rules = host.sh("iptables-legacy -t nat -S FLANNEL-POSTRTG")
    assert rules.count("MASQUERADE") == 2
    assert "random" not in rules


@pytest.mark.parametrize(
    ("port", "lacks"), [("nftables", '"fib"'), *((f"iptables-{kind}", "rpfilter") for kind in IPTABLES)]
)
def test_a_kernel_that_can_t_judge_sources_gets_all_other_rules(host: Host, port: str, lacks: str) -> None:
    host.sh(PORTS[port])
    run = Counting()
    run.refused = lacks
    made = firewall(run=run)
    state = host.do(made.check)
    assert (state.port, state.in_place) == (port, False)
    assert [
        f"the check of sources, which --check-overlay-sources=false leaves out): refused: {lacks}" in error
        for error in state.errors
    ] == [True] * 2
    kind = port.removeprefix("iptables-")
    rules = host.sh("nft list ruleset" if port == kind else f"iptables-{kind} -t nat -S; ip6tables-{kind} -t nat -S")
    assert rules.lower().count("masquerade") == 4
    assert "random" in rules, "that is not what was refused"
    before = len(run.calls)
    made.forget()
    assert host.do(made.check).errors == state.errors
    assert len(run.calls) - before <= 8, "it is not tried without end"
    run.refused = ""
    made.forget()
    host.check(made)


def test_one_locked_table_spoils_nothing_else(host: Host) -> None:
    host.sh(
        "nft add table inet theirs; nft add chain inet theirs f '{ type filter hook forward priority 5; policy drop; }'"
    )
    run = Counting()
    run.refused = '"theirs"'
    made = firewall(Mode.NFTABLES, run=run)
    state = host.do(made.check)
    assert not state.in_place
    assert "nftables table inet theirs: refused" in state.errors[0]
    assert [(drop.table, drop.chain, drop.passed) for drop in state.drops] == [("inet theirs", "f", False)]
    assert "masquerade" in host.sh("nft list table ip flannel-ipv4")
    run.refused = ""
    host.check(made)


def test_without_programs_it_says_what_is_missing(host: Host) -> None:
    bare = Firewall(Tools(None, {}))
    bare.want(ALL)
    assert [error.partition(":")[0] for error in host.do(bare.check).errors] == [
        "what others route past the encryption is let out",
        "no masquerade",
        "packets that others send in the overlay's name are let in",
    ]
    bare.want(plan(DUAL, SUBNETS, forward=True, masquerade=False, entrances=["flannel.1"], underlay="eth0"))
    assert "let in: neither nft nor iptables" in host.do(bare.check).errors[0]
    bare.want(plan(DUAL, SUBNETS, forward=True, masquerade=False))
    assert host.do(bare.check).in_place, "nothing can drop here"
    host.sh("nft add table inet theirs; nft add chain inet theirs f '{ type filter hook forward priority 5; }'")
    assert "neither nft nor iptables" in host.do(bare.check).errors[0]


@pytest.mark.parametrize(
    ("message", "port"),
    [
        ("nft: Error: JSON support not compiled-in", "iptables-nft"),
        ("nft: netlink: Error: cache initialization failed: Protocol not supported", "iptables-legacy"),
    ],
)
def test_an_nft_of_no_use_leaves_iptables(host: Host, message: str, port: str) -> None:
    def run(words: list[str], text: str = "") -> str:
        if words[0].endswith("/nft"):
            raise KernelError(message)
        return programs.run(words, text)

    made = Firewall(find_tools(), Mode.AUTO, run)
    made.want(ALL)
    assert port_of(host, made) == port


def test_iptables_alone_will_do(host: Host) -> None:
    variants: dict[str, Variant] = dict(find_tools().iptables)
    host.sh("iptables-nft -P FORWARD DROP")
    made = Firewall(Tools(None, {"nft": variants["nft"]}))
    made.want(ALL)
    host.check(made)
    assert "FLANNEL-FWD" in host.sh("iptables-nft -S FORWARD")
    made.want(NO_RULES)
    host.check(made)
    assert "FLANNEL" not in host.sh("iptables-nft-save; ip6tables-nft-save")


BASE = "type filter hook forward priority"
FOREIGN = (
    r"""
iptables-nft -P FORWARD DROP
iptables-nft -A FORWARD -i eth9 -j REJECT
iptables-nft -I FORWARD -s 192.0.2.0/24 -j DROP
iptables-nft -A FORWARD -j ACCEPT
ip6tables-nft -A FORWARD -j DROP
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-nft -N MINE; iptables-nft -A MINE -j DROP; iptables-nft -I FORWARD ! -i a -o a -j MINE
iptables-legacy -P FORWARD DROP
iptables-legacy -A FORWARD -p tcp --dport 80 -m comment --comment 'a b' -j REJECT
ip6tables-legacy -A FORWARD -j REJECT
iptables-legacy -t nat -A POSTROUTING -o eth9 -j MASQUERADE
printf 'table inet theirs { \n chain f { \n BASE 10; policy drop; \n } \n }' | nft -f -
printf 'table inet other { \n chain f { \n BASE -5; \n ct state established accept \n reject \n } \n }' | nft -f -
printf 'table ip6 six { \n chain f { \n BASE 0; policy drop; \n ip6 saddr 2001:db8::/32 drop \n } \n }' | nft -f -
printf 'table ip z { \n chain out { \n drop \n } \n chain f { \n BASE 0; \n iifname e9 jump out \n } \n }' | nft -f -
""".replace("BASE", BASE)
    .strip()
    .splitlines()
)
"""Rulesets that somebody else may have: each line a command, any of them in any order."""

EMPTY = [
    "iptables-nft -A FORWARD -j ACCEPT; iptables-nft -D FORWARD -j ACCEPT",
    "ip6tables-nft -t nat -A POSTROUTING -j ACCEPT; ip6tables-nft -t nat -D POSTROUTING -j ACCEPT",
    "nft add table ip nat",
]
"""What others have left behind: it is not ours to delete."""

LEGACY_TABLES = "for p in iptables ip6tables; do for t in filter nat mangle; do $p-legacy -t $t -S; done; done"
"""iptables-legacy's tables can't be unmade once they are there; see the test below."""


@given(
    commands=st.lists(st.sampled_from([*FOREIGN, *EMPTY]), max_size=5, unique=True),
    modes=st.lists(st.sampled_from([Mode.AUTO, Mode.NFTABLES, Mode.IPTABLES]), min_size=1, max_size=2),
    forward=st.booleans(),
    masquerade=st.booleans(),
    exits=st.sampled_from([(), ("flannel-wg",)]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_apply_and_clean_up_leave_the_ruleset_as_it_was(
    commands: list[str], modes: list[Mode], forward: bool, masquerade: bool, exits: tuple[str, ...]
) -> None:
    host = Host()
    try:
        host.sh(LEGACY_TABLES)
        for command in commands:
            host.sh(command)
        before = host.whole()
        rules = plan(DUAL, SUBNETS, forward=forward, masquerade=masquerade, exits=exits)
        for mode in modes:
            made = firewall(mode, rules)
            host.check(made)
            assert all(drop.passed for drop in made.state.drops)
            dump = host.whole()
            assert ("masquerade fully-random" in dump or "--random-fully" in dump) == masquerade
            assert ("FLANNEL-EXITS" in dump or "chain exits" in dump) == bool(exits)
            host.check(firewall(mode, rules))
            assert host.whole() == dump, "a second run changes nothing"
        host.check(firewall(rules=NO_RULES))
        assert host.whole() == before
    finally:
        host.close()


@pytest.mark.parametrize("mode", [Mode.IPTABLES, Mode.AUTO])
def test_what_stays_of_legacy_is_an_empty_table(host: Host, mode: Mode) -> None:
    """The kernel has no way to let go of a table of iptables-legacy while its module is loaded."""
    host.sh("iptables-legacy -A INPUT -s 192.0.2.7 -j DROP")
    made = firewall(mode)
    assert port_of(host, made) == "iptables-legacy"
    host.check(firewall(rules=NO_RULES))
    lines = set(host.whole().splitlines())
    assert lines == {
        *("*filter", "*nat", "*raw", "*mangle", "COMMIT", "-A INPUT -s 192.0.2.7/32 -j DROP"),
        *(f":{name} ACCEPT " for name in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING")),
    }


def test_a_chain_of_ours_that_others_use_stays_while_they_do(host: Host) -> None:
    made = firewall(Mode.IPTABLES)
    assert port_of(host, made) == "iptables-nft"
    assert host.sh("nft list ruleset").count('comment "made by pyflannel"') == 16, "eight tables, a chain in each"
    host.sh("iptables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -s 2001:db8::7 -j DROP")
    host.sh("iptables-nft -t nat -N THEIRS")
    made.want(NO_RULES)
    made.forget()
    host.check(made)
    listing = host.sh("nft -s list ruleset")
    assert re.findall(r"(?m)^table (\S+ \S+)|chain (\S+)", listing) == [
        *(("ip filter", ""), ("", "FORWARD"), ("ip nat", ""), ("", "THEIRS"), ("ip6 filter", ""), ("", "FORWARD")),
    ]
    assert "policy drop" in listing
    host.sh("iptables-nft -P FORWARD ACCEPT; ip6tables-nft -F; iptables-nft -t nat -X THEIRS")
    assert host.do(firewall(rules=NO_RULES).missing) == ("empty chains of iptables-nft",)
    host.check(firewall(rules=NO_RULES))
    assert host.sh("nft list ruleset") == ""


def test_a_chain_that_somebody_begins_to_use_just_then_is_not_deleted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the deletion, a rule comes in."""
    made = firewall(Mode.IPTABLES)
    host.check(made)
    transact = nfnetlink.transact
    meddled: list[str] = []

    def meddle(changes: Sequence[bytes], since: bytes) -> bool:
        if not meddled:
            meddled.append(programs.run(["sh", "-ec", "iptables-nft -A FORWARD -s 192.0.2.9 -j DROP"]))
        return transact(changes, since)

    monkeypatch.setattr(nfnetlink, "transact", meddle)
    made.want(NO_RULES)
    host.check(made)
    assert meddled
    assert host.sh("iptables-nft -S FORWARD; nft list tables") == (
        "-P FORWARD ACCEPT\n-A FORWARD -s 192.0.2.9/32 -j DROP\ntable ip filter\n"
    )


def test_an_iptables_port_is_left_at_a_restart_or_a_reload_only(host: Host) -> None:
    """Who restarts has no rules for a moment; a port that followed would move twice."""
    host.sh(IPTABLES["nft"])
    made = firewall()
    assert port_of(host, made) == "iptables-nft"
    host.sh("for p in iptables ip6tables; do $p-nft -F INPUT; $p-nft -X INPUT; done")
    made.forget()
    assert port_of(host, made) == "iptables-nft"
    made.reconsider()
    assert port_of(host, made) == "nftables"
    assert "chain" not in host.sh("nft list table ip filter; nft list table ip6 filter"), "the tables are the others'"


def test_chains_made_for_our_own_rules_do_not_keep_us_in_iptables(host: Host) -> None:
    assert port_of(host, firewall(Mode.IPTABLES)) == "iptables-nft"
    assert port_of(host, firewall(Mode.AUTO)) == "nftables"
    assert host.sh("nft list tables") == "table ip flannel-ipv4\ntable ip6 flannel-ipv6\n"


def test_chains_of_a_device_are_told_by_their_device(host: Host) -> None:
    host.sh("ip link add d0 type veth peer name d1")
    host.sh("nft 'add table netdev one; add chain netdev one two { type filter hook ingress device d0 priority 0; }'")
    both = "type filter hook ingress devices = { d0, d1 } priority 9;"
    host.sh(f"nft 'add table netdev two; add chain netdev two many {{ {both} }}'")
    host.sh("nft 'add table inet three; add chain inet three four { type filter hook forward priority 0; }'")
    nft = find_tools().nft
    assert nft is not None
    assert host.do(Nft(nft).device_chains) == {
        "d0": ("netdev one two", "netdev two many"),
        "d1": ("netdev two many",),
    }
