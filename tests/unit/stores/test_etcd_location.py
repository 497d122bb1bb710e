"""What a location of the etcd store may say, and what the driver makes of it without touching the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation
from pyflannel_stores import _etcd_cluster
from pyflannel_stores._etcd_access import Access
from pyflannel_stores.etcd import EtcdStore


def access(url: str, **environment: str) -> Access:
    return Access.of(StoreLocation.parse(url), environment)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: tmp_path / name for name in ("cafile", "certfile", "keyfile", "password_file")}
    for name, path in paths.items():
        path.write_text(f"{name} content\n")
    return {name: str(path) for name, path in paths.items()}


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("etcd://", ["127.0.0.1:2379"]),
        ("etcd:///coreos.com/network", ["127.0.0.1:2379"]),
        ("etcd://h1:2379,h2:4001,[::1]:2379/x", ["h1:2379", "h2:4001", "[::1]:2379"]),
        (
            "etcd://192.0.2.1,[2001:db8::1],etcd.example/x",
            ["192.0.2.1:2379", "[2001:db8::1]:2379", "etcd.example:2379"],
        ),
    ],
)
def test_endpoints(url: str, endpoints: list[str]) -> None:
    assert [str(endpoint) for endpoint in access(url).endpoints] == endpoints


@pytest.mark.parametrize(
    "host", ["h1:", "h1:0", "h1:65536", "h1:http", "2001:db8::1", "[::1", "[]:2379", ":2379", "a b"]
)
def test_what_is_no_endpoint(host: str) -> None:
    with pytest.raises(ConfigError, match="is not an address such as"):
        Access.of(StoreLocation("etcd", (host,)), {})


@pytest.mark.parametrize("host", ["h1..example:2379", ".example", f"{'x' * 64}.example"])
def test_what_is_no_name_of_a_host(host: str) -> None:
    with pytest.raises(ConfigError, match="can't be a host's name"):
        Access.of(StoreLocation("etcd", (host,)), {})


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("", "/coreos.com/network"),
        ("/", "/coreos.com/network"),
        ("/coreos.com/network/", "/coreos.com/network"),
        ("//a//b", "/a/b"),
        ("/a b", "/a b"),
    ],
)
def test_prefix(path: str, prefix: str) -> None:
    assert Access.of(StoreLocation("etcd", (), path), {}).prefix == prefix


@pytest.mark.parametrize(
    ("written", "config"),
    [
        ("flannel/network", "flannel/network/config"),
        ("flannel//network/", "flannel/network/config"),
        ("a/../b", "b/config"),
        ("/", "/config"),
        ("///", "/config"),
        ("/coreos.com/network", "/coreos.com/network/config"),
        ("//a//b/", "/a/b/config"),
    ],
)
def test_the_prefix_to_the_letter(written: str, config: str) -> None:
    assert Access.of(StoreLocation("etcd", (), "", {"prefix": written}), {}).prefix + "/config" == config


@pytest.mark.parametrize(("path", "written"), [("", ""), ("", "."), ("", "../x"), ("/a", "b")])
def test_a_prefix_that_is_none_is_refused(path: str, written: str) -> None:
    with pytest.raises(ConfigError, match="option prefix"):
        Access.of(StoreLocation("etcd", (), path, {"prefix": written}), {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("certfile", "keyfile"), "certfile without cafile, which would mean no TLS at all"),
        (("cafile", "certfile"), "certfile without keyfile"),
        (("cafile", "keyfile"), "keyfile without certfile"),
        (("password_file",), "password_file without username"),
    ],
)
def test_half_of_a_pair_is_refused(files: dict[str, str], given: tuple[str, ...], message: str) -> None:
    options = {name: files[name] for name in given}
    with pytest.raises(ConfigError, match=message):
        EtcdStore(StoreLocation("etcd", (), "", options))


@pytest.mark.parametrize("name", ["cafile", "certfile", "keyfile", "password_file"])
def test_file_that_is_not_there(files: dict[str, str], name: str) -> None:
    options = {**files, "username": "node", name: "/nowhere/at-all"}
    with pytest.raises(ConfigError, match=f"option {name}: can't read /nowhere/at-all: No such file"):
        EtcdStore(StoreLocation("etcd", (), "", options))


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE"])
def test_tls_alone_trusts_the_cas_of_the_system(
    files: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", files["cafile"])
    own = {"certfile": files["certfile"], "keyfile": files["keyfile"]}
    assert Access.of(StoreLocation("etcd", (), "", {"tls": text, **own}), {}).cafile == files["cafile"]


def test_tls_off(files: dict[str, str]) -> None:
    assert access("etcd://h?tls=false").cafile is None
    with pytest.raises(ConfigError, match="cafile with tls=false"):
        Access.of(StoreLocation("etcd", (), "", {"tls": "no", "cafile": files["cafile"]}), {})
    with pytest.raises(ConfigError, match="expected true or false"):
        access("etcd://h?tls=maybe")


def test_password_sources(files: dict[str, str]) -> None:
    both = {"PYFLANNEL_ETCD_PASSWORD": "stronger", "FLANNELD_ETCD_PASSWORD": "weaker"}
    user = {"username": "node"}
    from_file = Access.of(StoreLocation("etcd", (), "", {**user, "password_file": files["password_file"]}), both)
    assert from_file.password() == "password_file content"
    assert Access.of(StoreLocation("etcd", (), "", user), both).password() == "stronger"
    assert access("etcd://h?username=node", FLANNELD_ETCD_PASSWORD="weaker").password() == "weaker"
    with pytest.raises(ConfigError, match="no password for 'node'"):
        access("etcd://h?username=node")


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xff", "not UTF-8")])
def test_password_file_without_a_password(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        EtcdStore(StoreLocation("etcd", (), "", {"username": "node", "password_file": str(path)}))


def test_password_is_never_shown() -> None:
    found = access("etcd://h?username=node", PYFLANNEL_ETCD_PASSWORD="hunter2")
    assert found.password() == "hunter2"
    assert "hunter2" not in f"{found!r} {found}"


def test_unknown_option() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cafile'"):
        EtcdStore(StoreLocation.parse("etcd://h?ca-file=x"))


def test_opening_a_store_imports_no_client() -> None:
    """gRPC costs a tenth of a second, and a command that only checks its options should not pay it."""
    program = (
        "import sys; from pyflannel.store import StoreLocation; from pyflannel_stores.etcd import EtcdStore; "
        "EtcdStore(StoreLocation.parse('etcd://h')).close(); "
        "print(sorted({'grpc', 'etcd3', 'google.protobuf', 'ssl', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_without_a_descriptor_to_load_openssl_there_is_no_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyflannel_stores._etcd_refusal", None)
    where = access("etcd://192.0.2.1:2379/x")
    assert _etcd_cluster._refusal(where, where.endpoints[0], 1.0) is None
