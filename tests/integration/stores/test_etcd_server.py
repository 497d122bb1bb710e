"""The etcd servers of the lab: anywhere a process can be started, and gone without a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.servers.etcd import MISSING, etcd, etcdctl
from tests.waiting import until

from pyflannel.errors import ConfigError, KernelError, StoreUnavailableError
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.servers import etcd as servers
from pyflannel.lab.servers.etcd import EtcdCluster

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.mark.root
def test_members_in_a_namespace(tmp_path: Path) -> None:
    try:
        box = Sandbox()
    except KernelError as error:
        pytest.skip(str(error))
    with box, EtcdCluster(tmp_path, place=box.namespace, ports=(2379, 2380, 2381)) as cluster:
        (member,) = cluster.members
        assert member.endpoint == "127.0.0.1:2379"

        def ask(*words: str) -> str:
            return box.namespace.run(["etcdctl", *words], env={"ETCDCTL_API": "3"}).stdout

        ask("put", "k", "v")
        member.pause()
        member.resume()
        member.kill()
        assert not member.running
        cluster.start()
        assert ask("get", "k") == "k\nv\n"
        pid = member.pid
    assert not Path(f"/proc/{pid}").exists()


def test_nothing_is_left_of_a_cluster() -> None:
    with etcd(3) as cluster:
        pids = [member.pid for member in cluster.members]
        cluster.members[1].pause()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not cluster.members[0].data.parent.exists()


def test_data_outlive_the_process() -> None:
    with etcd() as cluster:
        etcdctl(cluster, "put", "k", "v")
        cluster.members[0].stop()
        assert not cluster.members[0].running
        cluster.start()
        assert etcdctl(cluster, "get", "k") == "k\nv\n"


def test_member_that_ends_at_once_says_why() -> None:
    with etcd() as first:
        ports = [int(url.rpartition(":")[2]) for url in (first.members[0].client_url, first.members[0].peer_url)]
        taken = (*ports, int(first.members[0].metrics_url.rpartition(":")[2]))
        try:
            with etcd(ports=taken) as other:  # the first one may have answered in its place
                until(lambda: not other.members[0].running, "its end")
                said = other.members[0].last_words()
        except StoreUnavailableError as error:
            said = str(error)
        assert "address already in use" in said


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "find_etcd", lambda: None)
    with pytest.raises(ConfigError, match="apt-get install etcd-server"):
        EtcdCluster(tmp_path)


def test_ports_must_suffice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 members need 9 ports, 3 given"):
        EtcdCluster(tmp_path, 3, ports=(1, 2, 3))
    assert os.listdir(tmp_path) == []
