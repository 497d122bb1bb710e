"""flanneld's flags and variables: all of them, with what flanneld makes of each text."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel.settings import flanneld
from pyflannel.settings.gopattern import compile_pattern
from pyflannel.settings.options import BY_NAME
from pyflannel.settings.settings import FLANNELS_NET_CONFIG, Loaded, resolve

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "flanneld.md").read_text(encoding="utf-8")

FLAGS_0_28_10 = set(
    """
    etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password iface iface-regex
    iface-can-reach subnet-file public-ip public-ipv6 subnet-lease-renew-margin ip-masq ip-masq-fully-random-disable
    kube-subnet-mgr kube-api-url kube-annotation-prefix kubeconfig-file version healthz-ip healthz-port iptables-resync
    iptables-forward-rules ip-blackhole-route net-config-path set-node-network-unavailable v vmodule log_backtrace_at
    """.split()  # noqa: SIM905 - a list would fill a screen
)


def daemon(flags: dict[str, str] | None = None, /, **environ: str) -> Loaded:
    return resolve(flags or {}, environ, daemon=True)


def warning(flags: dict[str, str] | None = None, /, **environ: str) -> str:
    (only,) = daemon(flags, **environ).warnings
    return only


def test_every_flag_of_flanneld_is_known() -> None:
    assert sorted(flag.name for flag in flanneld.FLAGS) == sorted(FLAGS_0_28_10)
    for name in FLAGS_0_28_10 - {"version"}:
        assert f"FLANNELD_{name.upper().replace('-', '_')}" in BY_NAME[name].variables


def test_the_documentation_has_the_table_as_it_is() -> None:
    lines = PAGE.splitlines()
    start = lines.index(flanneld.table()[0])
    assert lines[start : start + len(flanneld.table())] == flanneld.table()
    assert not lines[start + len(flanneld.table())]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10", 10),
        ("+10", 10),
        ("-1", -1),
        ("0x1F", 31),
        ("0b101", 5),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
        ("0x_f", 15),
        ("0", 0),
        ("", None),
        ("1__0", None),
        ("_1", None),
        ("1_", None),
        ("08", None),
        ("0x", None),
        ("1.5", None),
        (" 1", None),
        ("9" * 19, None),
        ("9" * 5000, None),
    ],
)
def test_whole_numbers_are_gos(text: str, number: int | None) -> None:
    assert flanneld.go_integer(text) == number


@pytest.mark.parametrize("text", ["0", "-5", "0x0"])
def test_a_resync_without_a_pause_gets_one(text: str) -> None:
    loaded = daemon({"iptables-resync": text})
    assert loaded.settings.iptables_resync == 1
    assert loaded.warnings[0].startswith("flag --iptables-resync: ")


def test_numbers_below_zero_are_off() -> None:
    assert daemon({"healthz-port": "-1"}).settings.healthz_port == 0
    assert daemon({"v": "-1"}).settings.log_level == "info"
    assert daemon({"v": "-1", "healthz-port": "-1"}).warnings == ()
    assert daemon({"healthz-port": "0x1f90"}).settings.healthz_port == 8080


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("FLANNELD_IP_MASQ", "yes", "ip_masq", False),
        ("FLANNELD_IPTABLES_FORWARD_RULES", "no", "forward_rules", True),
        ("FLANNELD_HEALTHZ_PORT", "http", "healthz_port", 0),
        ("FLANNELD_IPTABLES_RESYNC", "5s", "iptables_resync", 5),
        ("FLANNELD_V", "many", "log_level", "info"),
    ],
)
def test_a_variable_that_flanneld_passes_over_is_named(variable: str, text: str, attribute: str, value: object) -> None:
    loaded = daemon(**{variable: text})
    assert getattr(loaded.settings, attribute) == value
    assert loaded.warnings[0].startswith(f"environment variable {variable}: {text!r} is ")
    ours = variable.replace("FLANNELD", "PYFLANNEL")
    with pytest.raises(ConfigError, match=ours):
        daemon(**{ours: text})


def test_a_margin_that_ends_flanneld_is_refused() -> None:
    for text in ("soon", "0", "1440"):
        with pytest.raises(ConfigError, match="FLANNELD_SUBNET_LEASE_RENEW_MARGIN"):
            daemon(FLANNELD_SUBNET_LEASE_RENEW_MARGIN=text)


@pytest.mark.parametrize(
    "name",
    [
        "etcd-cafile",
        "etcd-keyfile",
        "etcd-username",
        "iface",
        "iface-regex",
        "iface-can-reach",
        "public-ip",
        "public-ipv6",
        "kube-api-url",
        "kubeconfig-file",
    ],
)
def test_an_empty_flag_is_not_given(name: str) -> None:
    given: dict[str, object] = {name: ("",) if BY_NAME[name].repeatable else ""}
    assert resolve(given, {}, daemon=True) == daemon()  # type: ignore[arg-type]


def test_the_health_port_listens_where_flanneld_would() -> None:
    assert daemon({"healthz-ip": ""}).settings.healthz_ip == ip_address("::")
    assert daemon({"healthz-ip": "localhost"}).settings.healthz_ip == ip_address("127.0.0.1")


@pytest.mark.parametrize(
    "given",
    [
        {"kubeconfig-file": "/etc/kc"},
        {"kube-api-url": "https://192.0.2.1"},
        {"kube-annotation-prefix": "example.com"},
        {"set-node-network-unavailable": "true"},
        {"vmodule": "etcd=4,kube*=2"},
        {"log_backtrace_at": "main.go:60"},
    ],
)
def test_what_flanneld_ignores_is_ignored_and_named(given: dict[str, str]) -> None:
    (name,) = given
    loaded = daemon(given)
    assert loaded.settings == daemon().settings
    assert loaded.warnings[0].startswith(f"flag --{name}: ignored")
    assert resolve(given, {}).warnings == ()  # other commands have nothing to say about it


@pytest.mark.parametrize("text", ["etcd=4", "no level", "main.go:60"])
@pytest.mark.parametrize("variable", ["FLANNELD_VMODULE", "FLANNELD_LOG_BACKTRACE_AT"])
def test_a_variable_that_nothing_is_done_with_may_say_anything(variable: str, text: str) -> None:
    """flanneld logs what is wrong in it, and goes on."""
    assert warning(**{variable: text}).startswith(f"environment variable {variable}: ignored: ")


@pytest.mark.parametrize(
    ("name", "text", "attribute"),
    [
        ("public-ip", "192.0.2.7", "public_ip"),
        ("iface", "eth7", "iface"),
        ("iface-regex", "^eth", "iface_regex"),
        ("iface-can-reach", "192.0.2.7", "iface_can_reach"),
        ("etcd-username", "u", "store"),
    ],
)
def test_an_empty_flag_keeps_its_variable_from_being_used(name: str, text: str, attribute: str) -> None:
    """Go's flags that are given, with whatever, are not looked for in the environment."""
    variable = f"FLANNELD_{name.upper().replace('-', '_')}"
    login = {"FLANNELD_ETCD_PASSWORD": "p"}
    assert getattr(daemon(**{variable: text}, **login).settings, attribute) != getattr(
        daemon(**login).settings, attribute
    )
    empty = daemon({name: ""}, **{variable: text}, **login)
    assert getattr(empty.settings, attribute) == getattr(daemon(**login).settings, attribute)
    in_file = resolve({"public-ip": ""}, {}, {"public-ip": "192.0.2.9"}, daemon=True)
    assert in_file.settings.public_ip == ip_address("192.0.2.9")


def test_a_mapped_public_address_is_the_ipv4_one() -> None:
    assert daemon({"public-ip": "::ffff:192.0.2.1"}).settings.public_ip == ip_address("192.0.2.1")


@pytest.mark.parametrize("text", ["a=2147483647", "a=00000000001", "a=-0", ",a=1,,b=+2,"])
def test_klogs_numbers_have_32_bits(text: str) -> None:
    assert warning({"vmodule": text}).startswith("flag --vmodule: ignored")
    assert daemon({"v": "2147483647"}).settings.log_level == "debug"


@pytest.mark.parametrize("text", ["0x1", "1_0", "2147483648", "-2147483649"])
def test_klogs_level_is_decimal(text: str) -> None:
    with pytest.raises(ConfigError, match="flag -v"):
        daemon({"v": text})
    loaded = daemon(FLANNELD_V=text)
    assert loaded.settings.log_level == "info"
    assert loaded.warnings[0].startswith("environment variable FLANNELD_V: ")


@pytest.mark.parametrize("name", ["etcd-endpoints", "etcd-prefix", "etcd-username", "etcd-cafile"])
def test_kubernetes_looks_at_no_flag_of_etcd(name: str) -> None:
    value = "http://192.0.2.1:2379" if name == "etcd-endpoints" else "/x"
    loaded = daemon({"kube-subnet-mgr": "true", name: value})
    assert loaded.settings == daemon({"kube-subnet-mgr": "true"}).settings
    assert loaded.warnings[0].startswith(f"flag --{name}: ignored")


@pytest.mark.parametrize(
    ("name", "text"),
    [("vmodule", "etcd"), ("vmodule", "a=-1"), ("vmodule", "a=2147483648"), ("log_backtrace_at", "main:1"), ("v", "x")],
)
def test_what_flanneld_refuses_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--?{name}"):
        daemon({name: text})


@pytest.mark.parametrize("endpoints", [{}, {"etcd-endpoints": "http://192.0.2.1:2379"}])
@pytest.mark.parametrize("name", ["etcd-cafile", "etcd-certfile", "etcd-keyfile"])
def test_without_tls_its_files_are_not_looked_at(endpoints: dict[str, str], name: str) -> None:
    loaded = daemon({**endpoints, name: "/nonexistent"})
    assert loaded.settings.store.scheme == "etcd"
    assert loaded.settings.store.options == {}
    assert loaded.warnings[0].startswith(f"flag --{name}: ignored")
    over_tls = daemon({"etcd-endpoints": "https://192.0.2.1:2379", name: "/x"})
    assert over_tls.settings.store.options[name.removeprefix("etcd-")] == "/x"
    assert over_tls.warnings == ()


@pytest.mark.parametrize("name", ["etcd-username", "etcd-password"])
def test_half_a_login_is_none(name: str) -> None:
    variable = f"FLANNELD_{name.upper().replace('-', '_')}"
    loaded = daemon(**{variable: "x"})
    assert loaded.settings.store.options == {}
    assert loaded.warnings[0].startswith(f"environment variable {variable}: ignored")


@pytest.mark.parametrize(
    ("text", "path", "prefix"),
    [
        ("/coreos.com/network/", "/coreos.com/network", None),
        ("//a/../b", "/b", None),
        ("flannel/network", "", "flannel/network"),
        ("/", "", "/"),
    ],
)
def test_the_prefix_is_flannelds_to_the_letter(text: str, path: str, prefix: str | None) -> None:
    store = daemon({"etcd-prefix": text}).settings.store
    assert (store.path, store.options.get("prefix")) == (path, prefix)


def test_a_prefix_in_a_flag_completes_a_url() -> None:
    store = daemon({"etcd-prefix": "flannel/network"}, PYFLANNEL_STORE="etcd://192.0.2.1:2379/p").settings.store
    assert (store.hosts, store.path, store.options) == (("192.0.2.1:2379",), "", {"prefix": "flannel/network"})


def test_flannelds_version_variable_is_ignored_with_a_word() -> None:
    assert warning(FLANNELD_VERSION="true").startswith("environment variable FLANNELD_VERSION: ignored")


def test_flannelds_default_for_the_network_file_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    absent = tmp_path / FLANNELS_NET_CONFIG.name
    monkeypatch.setattr("pyflannel.settings.settings.FLANNELS_NET_CONFIG", absent)
    with caplog.at_level(logging.WARNING):
        assert daemon({"net-config-path": str(absent)}).settings.read_seed() is None
    assert str(absent) in caplog.text
    with pytest.raises(ConfigError):
        daemon({"net-config-path": str(tmp_path / "other")}).settings.read_seed()


@pytest.mark.parametrize(
    ("pattern", "matches", "other"),
    [
        (r"^10\.", "10.1.2.3", "110.1.2.3"),
        ("^eth[[:digit:]]+$", "eth10", "ethd"),
        ("^[^[:alpha:]]+$", "10.0.0.1", "eth0"),
        ("(?i)^ETH", "eth0", "ens3"),
        (r"^ens\d+\z", "ens3", "ens3x"),
        (r"^\[[[:xdigit:]]", "[f", "f"),
        ("^e[:dig:]+$", "edig:", "e7"),
        ("^e{,3}$", "e{,3}", "eee"),
        ("^(?<kind>eth|ens)", "eth0", "enp0s3"),
        (r"^\x{65}\164", "eth0", "ens3"),
        (r"^[+*]+$", "+*", "a"),
        (r"^[]a]$", "]", "b"),
    ],
)
def test_patterns_are_gos(pattern: str, matches: str, other: str) -> None:
    compiled = compile_pattern(pattern)
    assert compiled.search(matches)
    assert not compiled.search(other)


@pytest.mark.parametrize("pattern", [r"\pN", r"\Qeth\E", "(?U)e+", "eth(?i)X", "[[:no:]]", "(", "a**"])
def test_what_only_gos_engine_can_do_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a regular expression"):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=e)", "(?!e)", "(?<=e)x", "(?<!e)x", "(?>e)", "(?#e)", r"(e)(?(1)x)", r"(e)\1", "(?P<n>e)(?P=n)"),
        *(r"eth0\Z", r"\u0065", r"\N{DIGIT ONE}", "e*+", "e++", "e?+", "e{2}+", "(?", "(?<>e)", r"\x{ffffff}"),
    ],
)
def test_what_only_pythons_engine_can_do_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a regular expression"):
        compile_pattern(pattern)


@pytest.mark.parametrize("name", ["etcd-endpoints", "store", "kube-api-url"])
@pytest.mark.parametrize("url", ["http://u:hunter2@192.0.2.1:2379", "u:hunter2@192.0.2.1", "ftp://u:hunter2@h"])
def test_a_password_in_a_url_is_refused_and_hidden(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        daemon({name: url, "kube-subnet-mgr": str(name == "kube-api-url").lower()})
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)
