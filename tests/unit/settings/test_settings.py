"""Settings: each source, their precedence, and errors that say where a value came from."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConfigError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import MAX_NODE_ID
from pyflannel.settings.options import BOOLEAN, BY_NAME, OPTIONS, Option
from pyflannel.settings.settings import ConflictPolicy, Settings, load, resolve
from pyflannel.store import StoreLocation

FILE = Path("/etc/pyflannel/test.toml")


def settings(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **document: Any) -> Settings:
    return resolve(flags or {}, environ or {}, document, FILE).settings


def refused(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **document: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(flags or {}, environ or {}, document, FILE)
    return str(caught.value)


def test_the_defaults_are_flannels() -> None:
    defaults = settings()
    assert defaults.store == StoreLocation("file", (), "/var/lib/pyflannel")
    assert defaults.subnet_file == Path("/run/flannel/subnet.env")
    assert defaults.lease_ttl == 86400
    assert defaults.renew_margin == 3600
    assert defaults.ip_masq is False
    assert defaults.ip_masq_fully_random is True
    assert defaults.iptables_resync == 5
    assert defaults.healthz_ip == ip_address("0.0.0.0")
    assert defaults.healthz_port == 0
    assert defaults.conflict_policy is ConflictPolicy.REFUSE
    assert defaults.read_seed() is None


# Precedence ----------------------------------------------------------------------------------------------------------

SIMPLE = {
    "backend": ("backend", st.sampled_from(["vxlan", "udp", "host-gw"])),
    "iface-can-reach": ("iface_can_reach", st.ip_addresses().map(str)),
    "public-ip": ("public_ip", st.ip_addresses(v=4).map(str)),
    "public-ipv6": ("public_ipv6", st.ip_addresses(v=6).map(str)),
    "subnet-file": ("subnet_file", st.sampled_from(["/a", "/b/c"])),
    "ip-masq": ("ip_masq", st.sampled_from(["true", "false", "1", "F"])),
    "iptables-resync": ("iptables_resync", st.integers(1, 100).map(str)),
    "ip-blackhole-route": ("blackhole_route", st.sampled_from(["true", "false"])),
    "resync-interval": ("resync_interval", st.integers(1, 1000).map(str)),
    "run-dir": ("run_dir", st.sampled_from(["/a", "/b/c"])),
    "node-id": ("node_id", st.sampled_from(["n1", "n2", "n3"])),
    "healthz-port": ("healthz_port", st.integers(0, 65535).map(str)),
    "log-format": ("log_format", st.sampled_from(["text", "json"])),
}


def as_toml(option: Option, text: str) -> Any:
    value = option.kind.parse(text)
    return value if isinstance(value, bool | int | float) else text


@given(st.data())
def test_any_combination_gives_the_value_of_the_highest_source(data: st.DataObject) -> None:
    flags: dict[str, str] = {}
    environ: dict[str, str] = {}
    document: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for name, (field, values) in SIMPLE.items():
        option = BY_NAME[name]
        layers = [data.draw(st.none() | values, label=f"{name} layer {layer}") for layer in range(4)]
        for text, layer in zip(layers, range(4), strict=True):
            if text is None:
                continue
            if layer == 0:
                document[name] = as_toml(option, text)
            elif layer == 3:
                flags[name] = text
            else:
                environ[option.variables[2 - layer]] = text
            expected[field] = option.kind.parse(text)
    actual = resolve(flags, environ, document, FILE).settings
    defaults = settings()
    for field, _ in SIMPLE.values():
        assert getattr(actual, field) == expected.get(field, getattr(defaults, field)), field


def test_pyflannels_variable_wins_over_flannels() -> None:
    environ = {"PYFLANNEL_BACKEND": "udp", "FLANNELD_BACKEND": "vxlan"}
    assert settings(environ=environ).backend == "udp"


def test_an_empty_variable_is_no_variable() -> None:
    assert settings(environ={"PYFLANNEL_BACKEND": "", "FLANNELD_BACKEND": "vxlan"}).backend == "vxlan"


def test_repeatable_settings_are_replaced_as_a_whole() -> None:
    environ = {"FLANNELD_IFACE": "eth1\neth2"}
    assert settings(environ=environ, iface=["eth3"]).iface == ("eth1", "eth2")
    assert settings({"iface": ("eth0",)}, environ).iface == ("eth0",)
    assert settings(iface="eth3").iface == ("eth3",)


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_booleans_are_written_as_in_go(text: str) -> None:
    assert BOOLEAN.parse(text) is True
    assert settings(environ={"FLANNELD_IP_MASQ": text}).ip_masq is True


# Errors say where ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("public-ip", "2001:db8::1", "must be an IPv4 address"),
        ("public-ipv6", "192.0.2.1", "must be an IPv6 address"),
        ("ip-masq", "yes", "must be true or false"),
        ("healthz-port", "65536", "must be a whole number between 0 and 65535"),
        ("healthz-port", "1__0", "must be a whole number"),
        ("resync-interval", "0", "must be a number of seconds between 1 and 9000000000"),
        ("resync-interval", "nan", "must be a number of seconds"),
        ("lease-ttl", "9000000001", "must be a number of seconds between 1 and 9000000000"),
        ("iptables-resync", "inf", "must be a number of seconds between 1 and 9000000000"),
        ("conflict-policy", "steal", "must be one of refuse, take-over"),
        ("iface-regex", "(", "must be a regular expression"),
        ("network", "10.1.0.0", "must be an IPv4 network"),
        ("network", "10.1.0.1/16", "must be an IPv4 network"),
        ("etcd-endpoints", "ftp://a", "must be addresses such as"),
        ("subnet-file", "", "must not be empty"),
        ("node-id", "", "must not be empty"),
        ("node-id", "n\udcff", "must be UTF-8"),
    ],
)
def test_a_bad_value_names_its_flag(name: str, text: str, rule: str) -> None:
    message = refused({name: text})
    assert message.startswith(f"flag --{name}: {text!r} {rule}")


def test_a_node_id_is_one_that_other_nodes_take() -> None:
    assert "flag --node-id" in refused({"node-id": "x" * (MAX_NODE_ID + 1)})
    assert resolve({"node-id": "x" * MAX_NODE_ID}, {}).settings.node_id == "x" * MAX_NODE_ID


def test_a_bad_value_names_its_variable() -> None:
    message = refused(environ={"FLANNELD_PUBLIC_IP": "nowhere"})
    assert message.startswith("environment variable FLANNELD_PUBLIC_IP: 'nowhere' must be an IPv4 address")


def test_a_bad_value_names_its_file_and_key() -> None:
    document: dict[str, Any] = {"public-ip": "nowhere"}
    message = refused(**document)
    assert message.startswith(f"config file {FILE}: key 'public-ip': 'nowhere' must be an IPv4 address")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ip-masq", "true", "true or false"),
        ("ip-masq", 1, "true or false"),
        ("healthz-port", "80", "a whole number"),
        ("healthz-port", True, "a whole number"),
        ("resync-interval", "60", "a whole number or a number"),
        ("public-ip", 5, "a string"),
        ("iface", 5, "a string, or a list of such"),
        ("network", 5, "a string, or a table"),
    ],
)
def test_a_wrong_type_in_the_file_is_an_error(key: str, value: Any, expected: str) -> None:
    assert refused(**{key: value}) == f"config file {FILE}: key {key!r}: {json.dumps(value)} must be {expected}"


@pytest.mark.parametrize(("key", "near"), [("ip-mask", "ip-masq"), ("public_ip", "public-ip"), ("Iface", "iface")])
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    document: dict[str, Any] = {key: "x"}
    assert refused(**document) == f"config file {FILE}: unknown key {key!r}; did you mean {near!r}?"


def test_an_unknown_key_like_none_lists_the_known() -> None:
    assert "known are: backend, check-overlay-exits, check-overlay-sources, cni-conf" in refused(zzzzzz="x")


def test_a_password_is_never_shown() -> None:
    document: dict[str, Any] = {"etcd-password": 12345}
    assert "12345" not in refused(**document)
    loaded = resolve({"etcd-password": "hunter2"}, {})
    assert "hunter2" not in str(loaded)
    assert "process lists show it" in loaded.warnings[0]
    assert not resolve({}, {"PYFLANNEL_ETCD_PASSWORD": "hunter2"}).warnings


def test_a_slip_in_a_variables_name_is_told_but_foreign_ones_are_not() -> None:
    environ = {"PYFLANNEL_ETCD_ENDPOINT": "x", "PYFLANNEL_PORT": "tcp://10.0.0.1:80", "PYFLANNEL_SERVICE_HOST": "x"}
    (warning,) = resolve({}, environ).warnings
    assert "PYFLANNEL_ETCD_ENDPOINT is not known" in warning
    assert "PYFLANNEL_ETCD_ENDPOINTS" in warning


# Kubernetes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environ"),
    [({"kube-subnet-mgr": "true"}, {}), ({}, {"FLANNELD_KUBE_SUBNET_MGR": "true"}), ({"store": "kubernetes://"}, {})],
)
def test_flannels_switch_means_the_kubernetes_store(flags: dict[str, str], environ: dict[str, str]) -> None:
    assert settings(flags, environ).store == StoreLocation("kubernetes")


def test_flannels_kubernetes_flags_are_options_of_the_store() -> None:
    made = settings(
        {
            "kube-subnet-mgr": "true",
            "kube-api-url": "https://192.0.2.1:6443/base/",
            "kubeconfig-file": "/etc/kc",
            "kube-annotation-prefix": "example.com/mine",
            "net-config-path": "/etc/net.json",
            "set-node-network-unavailable": "false",
        }
    )
    assert (made.store.scheme, made.store.hosts, made.store.path) == ("kubernetes", ("192.0.2.1:6443",), "/base")
    assert made.store.options == {
        "kubeconfig": "/etc/kc",
        "annotation_prefix": "example.com/mine",
        "net_config": "/etc/net.json",
        "set_network_unavailable": "false",
        "tls": "true",
    }
    assert made.net_config_path is None
    assert made.read_seed() is None


@pytest.mark.parametrize(
    ("url", "host", "tls"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "false"),
        ("https://[2001:db8::1]", "[2001:db8::1]:443", "true"),
        ("192.0.2.1:6443", "192.0.2.1:6443", "true"),
    ],
)
def test_an_api_servers_url_is_read(url: str, host: str, tls: str) -> None:
    store = settings({"kube-subnet-mgr": "true", "kube-api-url": url}).store
    assert (store.hosts, store.options["tls"]) == ((host,), tls)


def test_kubernetes_flags_without_it_do_no_harm() -> None:
    quiet = {"kube-subnet-mgr": "false", "kube-api-url": "https://192.0.2.1", "set-node-network-unavailable": "true"}
    assert settings(quiet).store == settings().store


def test_the_stronger_source_chooses_between_kubernetes_and_others() -> None:
    assert settings({"kube-subnet-mgr": "true"}, store="etcd://192.0.2.1:2379").store.scheme == "kubernetes"
    assert settings({"store": "file:///x"}, {"FLANNELD_KUBE_SUBNET_MGR": "true"}).store.scheme == "file"
    assert "keep one of them" in refused({"kube-subnet-mgr": "true", "store": "file:///x"})
    assert "keep one of them" in refused({}, {}, **{"kube-subnet-mgr": True, "etcd-prefix": "/x"})
    assert settings({"etcd-prefix": "/x"}, {}, **{"kube-subnet-mgr": True}).store.scheme == "etcd"
    assert settings({"kube-subnet-mgr": "true", "etcd-prefix": "/x"}).store.scheme == "kubernetes"


def test_a_stores_option_wins_over_a_weaker_flag() -> None:
    table = {"store": {"url": "kubernetes://", "kubeconfig": "/from/file"}}
    assert settings({}, {"FLANNELD_KUBECONFIG_FILE": "/env"}, **table).store.options["kubeconfig"] == "/env"
    given = settings({"store": "kubernetes://?kubeconfig=/url"}, {"FLANNELD_KUBECONFIG_FILE": "/env"})
    assert given.store.options["kubeconfig"] == "/url"


def test_what_has_no_meaning_in_kubernetes_is_refused() -> None:
    assert "--net-config-path" in refused({"kube-subnet-mgr": "true", "network": "10.5.0.0/16"})
    assert "must be a URL" in refused({"kube-subnet-mgr": "true", "kube-api-url": "ftp://x"})


# Durations and levels ------------------------------------------------------------------------------------------------


def test_the_margin_shrinks_with_the_ttl_unless_it_is_given() -> None:
    assert settings({"lease-ttl": "60"}).renew_margin == 20
    assert settings({"lease-ttl": "86400"}).renew_margin == 3600
    assert settings({"lease-ttl": "600", "subnet-lease-renew-margin": "5"}).renew_margin == 300


def test_a_margin_never_leaves_less_than_a_third_of_the_ttl_between_two_renewals() -> None:
    assert settings({"lease-ttl": "61", "subnet-lease-renew-margin": "1"}).renew_margin == pytest.approx(61 * 2 / 3)
    assert settings({"lease-ttl": "90", "subnet-lease-renew-margin": "1"}).renew_margin == 60


def test_a_margin_as_long_as_the_ttl_is_an_error() -> None:
    message = refused({"lease-ttl": "600"}, {"FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "10"})
    assert message == (
        "environment variable FLANNELD_SUBNET_LEASE_RENEW_MARGIN: 10 minutes (600 s) must be shorter than "
        "--lease-ttl (600 s)"
    )


@pytest.mark.parametrize(
    ("flags", "environ", "daemon", "level"),
    [
        ({}, {}, True, "info"),
        ({}, {}, False, "warning"),
        ({"v": "10"}, {}, True, "debug"),
        ({"v": "0"}, {}, True, "info"),
        ({"v": "1", "log-level": "error"}, {}, True, "error"),
        ({"v": "1"}, {"PYFLANNEL_LOG_LEVEL": "error"}, True, "debug"),
        ({"log-level": "error"}, {"FLANNELD_V": "5"}, True, "error"),
    ],
)
def test_the_log_level_comes_from_its_two_flags(
    flags: dict[str, str], environ: dict[str, str], daemon: bool, level: str
) -> None:
    assert resolve(flags, environ, daemon=daemon).settings.log_level == level


# The store -----------------------------------------------------------------------------------------------------------


def test_etcd_flags_mean_the_etcd_store() -> None:
    flags = {
        "etcd-endpoints": "https://192.0.2.1:2379,https://192.0.2.2:2379/",
        "etcd-prefix": "/net/",
        "etcd-cafile": "/ca",
        "etcd-username": "u",
        "etcd-password": "p",
    }
    store = settings(flags).store
    assert (store.scheme, store.hosts, store.path) == ("etcd", ("192.0.2.1:2379", "192.0.2.2:2379"), "/net")
    assert store.options == {"tls": "true", "cafile": "/ca", "username": "u", "password": "p"}


def test_one_etcd_flag_is_enough() -> None:
    store = settings(environ={"FLANNELD_ETCD_USERNAME": "u", "FLANNELD_ETCD_PASSWORD": "p"}).store
    assert (store.hosts, store.path) == (("127.0.0.1:4001", "127.0.0.1:2379"), "/coreos.com/network")
    assert store.options == {"username": "u", "password": "p"}


def test_http_and_https_endpoints_dont_mix() -> None:
    assert "can't be mixed" in refused({"etcd-endpoints": "http://a:1,https://b:1"})


def test_a_store_of_another_kind_contradicts_etcd_flags_of_the_same_source() -> None:
    message = refused({"store": "file:///x", "etcd-prefix": "/p"})
    assert message == "flag --etcd-prefix means the etcd store, but flag --store is file:///x; keep one of them"


def test_a_store_of_another_kind_loses_to_stronger_etcd_flags_and_wins_over_weaker() -> None:
    assert settings({"etcd-prefix": "/p"}, store="file:///x").store.scheme == "etcd"
    assert settings({"store": "file:///x"}, {"FLANNELD_ETCD_PREFIX": "/p"}).store.scheme == "file"


def test_etcd_flags_complete_an_etcd_url() -> None:
    store = settings({"store": "etcd://a:1/p?username=u"}, {"FLANNELD_ETCD_PASSWORD": "x"}).store
    assert (store.hosts, store.path, store.options) == (("a:1",), "/p", {"username": "u", "password": "x"})


@given(st.sampled_from(["flag", "environment"]), st.sampled_from(["flag", "environment", "file"]))
def test_of_an_etcd_url_and_an_etcd_flag_the_stronger_holds(flag_at: str, url_at: str) -> None:
    strength = ("file", "environment", "flag")
    flags, environ, document = {}, {}, {}
    if flag_at == "flag":
        flags["etcd-endpoints"] = "http://f:1"
    else:
        environ["PYFLANNEL_ETCD_ENDPOINTS"] = "http://f:1"
    if url_at == "flag":
        flags["store"] = "etcd://u:1/p"
    elif url_at == "environment":
        environ["PYFLANNEL_STORE"] = "etcd://u:1/p"
    else:
        document["store"] = {"url": "etcd://u:1/p"}
    if flag_at == url_at:
        assert "contradicts" in refused(flags, environ, **document)
    else:
        stronger = strength.index(flag_at) > strength.index(url_at)
        assert settings(flags, environ, **document).store.hosts == (("f:1",) if stronger else ("u:1",))


def test_the_store_table_takes_a_url_or_its_parts() -> None:
    by_url = settings(store={"url": "etcd://a:1,b:2/p", "username": "u", "tls": True}).store
    by_parts = settings(
        store={"scheme": "etcd", "hosts": ["a:1", "b:2"], "path": "p", "username": "u", "tls": True}
    ).store
    assert by_url == by_parts == StoreLocation("etcd", ("a:1", "b:2"), "/p", {"username": "u", "tls": "true"})


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({}, "url is missing"),
        ({"url": 5}, "url must be a string"),
        ({"url": "file:///x", "path": "/y"}, "url and path say the same twice"),
        ({"scheme": "etcd", "hosts": "a"}, "hosts must be a list of strings"),
        ({"url": "nonsense"}, "expected a URL"),
        ({"url": "etcd://a", "username": ["u"]}, "username must be a string"),
    ],
)
def test_a_wrong_store_table_is_an_error(table: dict[str, Any], fault: str) -> None:
    message = refused(store=table)
    assert message.startswith(f"config file {FILE}: table [store]: ")
    assert fault in message


# The network document ------------------------------------------------------------------------------------------------


def test_network_flags_make_a_document() -> None:
    seed = settings(
        {"network": "10.1.0.0/16", "backend": "vxlan", "backend-option": ["VNI=5", "Name=x", "DirectRouting=true"]}
    ).read_seed()
    assert seed is not None
    assert json.loads(seed.document) == {
        "Network": "10.1.0.0/16",
        "Backend": {"Type": "vxlan", "VNI": 5, "Name": "x", "DirectRouting": True},
    }
    assert not seed.binding
    assert seed.source.startswith("network config from flag --network and ")


def test_an_ipv6_network_alone_switches_ipv4_off() -> None:
    seed = settings({"ipv6-network": "fd00::/48"}).read_seed()
    assert seed is not None
    network = NetworkConfig.from_json(seed.document)
    assert network.ipv4 is None
    assert network.ipv6 is not None
    both = settings({"ipv6-network": "fd00::/48", "network": "10.1.0.0/16"}).read_seed()
    assert both is not None
    assert len(NetworkConfig.from_json(both.document).families) == 2


def test_flags_win_over_the_keys_of_the_network_table() -> None:
    table = {"network": "10.1.0.0/16", "SubnetLen": 26, "backend": {"type": "udp", "Port": 99}}
    document = settings({"network": "10.2.0.0/16", "backend": "vxlan"}, network=table).network_document
    assert document is not None
    assert json.loads(document) == {
        "Network": "10.2.0.0/16",
        "SubnetLen": 26,
        "Backend": {"Port": 99, "Type": "vxlan"},
    }


def test_an_unknown_key_of_the_network_table_names_the_nearest() -> None:
    message = refused(network={"Network": "10.1.0.0/16", "SubnetLenght": 24})
    assert message == f"config file {FILE}: table [network]: unknown key 'SubnetLenght'; did you mean 'SubnetLen'?"


def test_backend_options_without_a_backend_are_those_of_the_default_one() -> None:
    document = settings({"network": "10.1.0.0/16", "backend-option": ["VNI=5"]}).network_document
    assert document is not None
    assert json.loads(document)["Backend"] == {"Type": "vxlan", "VNI": 5}
    named = settings({"backend-option": ["Port=9"]}, network={"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}})
    assert named.network_document is not None
    assert json.loads(named.network_document)["Backend"] == {"Type": "udp", "Port": 9}


def test_backend_options_alone_are_no_network() -> None:
    with pytest.raises(ConfigError, match="flag --backend-option: Network is missing"):
        settings({"backend-option": ["VNI=5"]}).read_seed()


def test_a_network_file_is_binding(tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    path.write_text('{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}')
    seed = settings({"net-config-path": str(path)}).read_seed()
    assert seed is not None
    assert seed.binding
    assert seed.source == str(path)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: Backend.Type is 'udp', but --backend is 'vxlan'"):
        settings({"net-config-path": str(path), "backend": "vxlan"}).read_seed()


def test_a_network_file_and_network_flags_contradict_each_other() -> None:
    message = refused({"net-config-path": "/x", "network": "10.1.0.0/16"})
    assert message.startswith("flag --net-config-path and flag --network both give the network config")


def test_a_network_file_that_cant_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--net-config-path .*missing: No such file"):
        settings({"net-config-path": str(tmp_path / "missing")}).read_seed()


# The file itself -----------------------------------------------------------------------------------------------------


def test_the_named_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('iface = ["eth0", "eth1"]\nip-masq = true\n[network]\nNetwork = "10.1.0.0/16"\n')
    for loaded in (load({"config": str(path)}, {}), load({}, {"PYFLANNEL_CONFIG": str(path)})):
        assert loaded.settings.iface == ("eth0", "eth1")
        assert loaded.settings.ip_masq
        assert loaded.settings.network_document == '{"Network": "10.1.0.0/16"}'


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"flag --config: .*x\.toml does not exist"):
        load({"config": str(tmp_path / "x.toml")}, {})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a = ", "not valid TOML"),
        (b"\xef\xbb\xbfbackend = 'vxlan'", "begins with a byte order mark"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"\xff", "is not UTF-8"),
        (None, "Is a directory"),
    ],
    ids=["cut off", "byte order mark", "thousands of brackets", "not text", "a directory"],
)
def test_a_file_that_cant_be_read_is_an_error(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "a.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"config file {re.escape(str(path))}: {fault}"):
        load({"config": str(path)}, {})


def test_an_option_of_thousands_of_brackets_is_a_text() -> None:
    deep = "[" * 100_000
    seed = settings({"network": "10.1.0.0/16", "backend": "vxlan", "backend-option": [f"Name={deep}"]}).read_seed()
    assert seed is not None
    assert json.loads(seed.document)["Backend"]["Name"] == deep


def test_a_password_in_a_file_that_others_can_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('etcd-password = "hunter2"\n')
    path.chmod(0o644)
    (warning,) = load({"config": str(path)}, {}).warnings
    assert "others can read it" in warning
    path.chmod(0o600)
    assert not load({"config": str(path)}, {}).warnings


def test_every_row_can_be_explained() -> None:
    assert len(BY_NAME) == len(OPTIONS)
    for option in OPTIONS:
        assert option.help.endswith("."), option.name
        assert option.section, option.name


# What another process was told ---------------------------------------------------------------------------------------


def test_what_the_daemon_was_told_makes_the_same_settings_again() -> None:
    flags = {"subnet-file": "/x/subnet.env", "iface-regex": ("^eth", "^ens"), "ip-masq": "true", "lease-ttl": "60"}
    environ = {"FLANNELD_ETCD_ENDPOINTS": "https://192.0.2.1:2379", "FLANNELD_ETCD_PASSWORD": "hunter2"}
    told = resolve(flags, {**environ, "FLANNELD_ETCD_USERNAME": "u"}).settings.told
    assert "hunter2" not in json.dumps(told)
    again = resolve({}, {"FLANNELD_ETCD_PASSWORD": "hunter2"}, beneath=json.loads(json.dumps(told))).settings
    assert again == resolve(flags, {**environ, "FLANNELD_ETCD_USERNAME": "u"}).settings


def test_a_table_of_the_store_is_told_without_its_secrets() -> None:
    table = {"store": {"url": "etcd://192.0.2.1:2379/x", "cafile": "/ca", "username": "u", "password": "hunter2"}}
    told = settings(None, None, **table).told
    assert told == {"store": "etcd://192.0.2.1:2379/x?cafile=%2Fca&username=u"}
    assert resolve({}, {}, beneath=told).settings.store.options == {"cafile": "/ca", "username": "u"}


def test_what_is_given_here_wins_over_what_the_daemon_was_told() -> None:
    told = {"store": "file:///daemons", "subnet-file": "/daemons"}
    made = resolve({"etcd-prefix": "/x"}, {"FLANNELD_SUBNET_FILE": "/ours"}, beneath=told).settings
    assert (made.store.scheme, str(made.subnet_file)) == ("etcd", "/ours")
    told = {"etcd-endpoints": "http://192.0.2.1:2379"}
    assert resolve({"store": "file:///ours"}, {}, beneath=told).settings.store.path == "/ours"


FILE_STORE = {"store": {"url": "etcd://192.0.2.1:2379/x", "cafile": "/ca", "password_file": "/pw"}}


def test_what_the_daemon_was_told_counts_for_more_than_the_file_that_it_has_read() -> None:
    file = {**FILE_STORE, "subnet-file": "/file", "iface": ["eth0"]}
    told = resolve({"etcd-endpoints": "http://192.0.2.9:2379", "subnet-file": "/flag"}, {}, file).settings.told
    again = resolve({}, {}, file, beneath=json.loads(json.dumps(told))).settings
    assert (again.store.hosts, again.subnet_file, again.iface) == (("192.0.2.9:2379",), Path("/flag"), ("eth0",))
    assert resolve({"subnet-file": "/here"}, {}, file, beneath=told).settings.subnet_file == Path("/here")


@pytest.mark.parametrize("flag", [{}, {"store": "file:///flags"}])
def test_of_the_same_store_the_file_is_read_with_its_secrets(flag: dict[str, str]) -> None:
    """They are not told; a store that a flag named instead is."""
    told = resolve(flag, {}, FILE_STORE).settings.told
    again = resolve({}, {}, FILE_STORE, beneath=told).settings.store
    assert str(again) == flag.get("store", "etcd://192.0.2.1:2379/x")
    assert again.options == ({} if flag else {"cafile": "/ca", "password_file": "/pw"})


def test_who_names_the_daemon_s_own_store_again_means_all_that_the_daemon_was_told_of_it() -> None:
    told = {"kube-subnet-mgr": "true", "kube-annotation-prefix": "example.com"}
    again = resolve({"kube-subnet-mgr": "true"}, {}, beneath=told).settings.store
    assert again.options == {"annotation_prefix": "example.com"}
    told = {"store": "etcd://192.0.2.1:2379/x", "etcd-cafile": "/ca"}
    assert resolve({"store": told["store"]}, {}, beneath=told).settings.store.options == {"cafile": "/ca"}
    assert resolve({"store": "etcd://192.0.2.2:2379/x"}, {}, beneath=told).settings.store.options == {}


def test_the_networks_secrets_are_not_told() -> None:
    flags = {"network": "10.5.0.0/16", "backend": "wireguard", "backend-option": ("PSK=hunter2",)}
    assert "hunter2" not in json.dumps(resolve(flags, {}).settings.told)
