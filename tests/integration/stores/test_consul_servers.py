"""The servers that the other tests rely on: found, started, told apart from ones that don't start, and ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.servers.consul import MISSING, consul, put

from pyflannel.errors import ConfigError, StoreUnavailableError
from pyflannel.lab.servers.consul import ConsulCluster, find_consul


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_server_keeps_address_and_data_until_it_is_wiped() -> None:
    with consul() as cluster:
        (server,) = cluster.servers
        put(cluster, "/v1/kv/kept", b"1")
        server.stop()
        assert not server.running
        assert server.get("/v1/status/leader") is None
        cluster.start()
        assert server.get("/v1/kv/kept")[0]["Value"] == "MQ=="
        assert cluster.leader() is server
        server.kill()
        server.wipe()
        cluster.start()
        assert server.get("/v1/kv/kept") is None
    assert not server.running


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    cluster = ConsulCluster(tmp_path, config={"no_such_key": 1})
    with pytest.raises(StoreUnavailableError, match="no_such_key"):
        cluster.start()
    assert not cluster.servers[0].running


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_configuration_is_for_its_owner_alone(tmp_path: Path) -> None:
    cluster = ConsulCluster(tmp_path, acl=True)
    assert cluster.token is not None
    assert cluster.token in cluster.servers[0].config_file.read_text()
    assert cluster.servers[0].config_file.stat().st_mode & 0o077 == 0


def test_where_consul_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYFLANNEL_CONSUL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYFLANNEL_CACHE", str(tmp_path / "cache"))
    assert find_consul() is None
    with pytest.raises(ConfigError, match="tools/fetch-consul"):
        ConsulCluster(tmp_path)
    fetched = tmp_path / "cache/consul-1.8.7/usr/bin/consul"
    for program in (tmp_path / "bin/consul", fetched, tmp_path / "own"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
        if program.name == "own":
            monkeypatch.setenv("PYFLANNEL_CONSUL", str(program))
        assert find_consul() == program
    monkeypatch.setenv("PYFLANNEL_CONSUL", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="PYFLANNEL_CONSUL"):
        find_consul()
