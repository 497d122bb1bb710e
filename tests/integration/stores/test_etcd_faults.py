"""The etcd driver while a cluster of three fails in every way it can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import IO

import pytest
from tests.servers.etcd import MISSING, etcd, etcdctl, leases
from tests.servers.following import Follower
from tests.servers.lossy import LossyProxy

from pyflannel.errors import HistoryGoneError, StoreUnavailableError
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.lab.servers.process import HERE, Running
from pyflannel.store import CALL_TIMEOUT, Change, Record, StoreLocation
from pyflannel_stores.etcd import EtcdStore, EtcdWatch

pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(60)]

KEY = "172.16.68.0-24"

_numbers = count()


@pytest.fixture(scope="module")
def three() -> Iterator[EtcdCluster]:
    with etcd(3) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: EtcdCluster) -> Iterator[EtcdCluster]:
    """Three members, in good health before and after each test."""
    yield three
    for member in three.members:
        if member.running:
            member.resume()
    three.start()


@pytest.fixture
def prefix() -> str:
    return f"/faults/{next(_numbers)}"


@pytest.fixture
def store(cluster: EtcdCluster, prefix: str) -> Iterator[EtcdStore]:
    with closing(open_store(cluster.hosts, prefix)) as opened:
        yield opened


def open_store(hosts: str, prefix: str) -> EtcdStore:
    return EtcdStore(StoreLocation.parse(f"etcd://{hosts}{prefix}"))


def retrying(call: Callable[[], Record], attempts: int = 40) -> Record:
    """As the core does it: again while the store is unavailable."""
    for _ in range(attempts):
        try:
            return call()
        except StoreUnavailableError:
            continue
    return call()


def create_many(store: EtcdStore, number: int, meanwhile: dict[int, Callable[[], None]]) -> list[str]:
    """Create reservations one by one, doing something before some of them; returns their keys."""
    keys = []
    for index in range(number):
        meanwhile.get(index, lambda: None)()
        key = f"10.0.{index}.0-24"
        record = retrying(lambda key=key: store.create(key, "x", None))  # type: ignore[misc]
        keys.append(record.key)
    return keys


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_kill_of_any_member(cluster: EtcdCluster, store: EtcdStore, victim: int) -> None:
    """Whichever of the three it is: the watch's, the writer's, the leader; each is among them."""
    with Follower(store) as follower:
        keys = create_many(
            store,
            30,
            {
                10: cluster.members[victim].kill,
                20: lambda: cluster.launch(cluster.members[victim]),
            },
        )
        changes = follower.until(lambda changes: len(changes) >= len(keys))
    assert [change.key for change in changes] == keys
    assert sorted(record.key for record in store.snapshot().leases) == sorted(keys)


def test_calls_move_on_from_a_member_that_does_not_answer(cluster: EtcdCluster, prefix: str) -> None:
    silent = cluster.members[0]
    silent.pause()
    for _ in range(6):
        # Each begins with a member of its own choice.
        with closing(open_store(cluster.hosts, prefix)) as store:
            record = retrying(lambda: store.write_config("{}", store.read_config()))
            assert store.snapshot().config == record
            endpoint = store._cluster.access.endpoints[store._cluster.preferred]
            assert str(endpoint) != silent.endpoint


def test_watch_moves_on_from_a_member_that_does_not_answer(cluster: EtcdCluster, prefix: str) -> None:
    """The connection stays open and silent, so that only the keepalive shows it."""
    writing = cluster.members[2].endpoint
    with (
        closing(open_store(",".join(member.endpoint for member in cluster.members[:2]), prefix)) as watching,
        closing(open_store(writing, prefix)) as writer,
        Follower(watching) as follower,
    ):
        retrying(lambda: writer.create("first", "x", None))
        follower.until(lambda changes: len(changes) == 1)
        assert isinstance(follower._watch, EtcdWatch)
        silent = cluster.members[follower._watch._position]
        silent.pause()
        retrying(lambda: writer.create("second", "x", None))
        changes = follower.until(lambda changes: len(changes) == 2)
        silent.resume()
    assert [change.key for change in changes] == ["first", "second"]


class Apart:
    """A place with mounts of its own, and a file system in a file on which writes can be made to hang."""

    def __init__(self, image: Path, mounted: Path) -> None:
        mounted.mkdir()
        self._mounted = mounted
        with image.open("wb") as file:
            file.truncate(400 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        self._holder = subprocess.Popen(["unshare", "--mount", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(b"!")
        self._holder.stdin.flush()
        assert self._holder.stdout.read(1) == b"!", "it has mounts of its own now"
        self.run("mount", "-o", "loop", str(image), str(mounted))
        self.run("chmod", "700", str(mounted))
        self.run("rmdir", str(mounted / "lost+found"))

    def _words(self, words: Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *words]

    def start(
        self, words: Sequence[str | os.PathLike[str]], *, stdout: int | IO[str] | None, stderr: int | IO[str] | None
    ) -> Running:
        return HERE.start(self._words(words), stdout=stdout, stderr=stderr)

    def run(self, *words: str) -> None:
        subprocess.run(self._words(words), check=True)

    def hang(self) -> None:
        self.run("fsfreeze", "--freeze", str(self._mounted))

    def go_on(self) -> None:
        self.run("fsfreeze", "--unfreeze", str(self._mounted))

    def close(self) -> None:
        self._holder.communicate()


NO_DISK = os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists()


@pytest.mark.root
@pytest.mark.skipif(NO_DISK, reason="needs root, mkfs.ext4 and loop devices")
def test_watch_moves_on_from_a_member_whose_disk_hangs(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the keepalive and keeps the stream, and hears of nothing: only a question shows that."""
    monkeypatch.setattr("pyflannel_stores.etcd._ASKED", (1.0, 1.0))
    with ExitStack() as stack:
        apart = Apart(tmp_path / "disk", tmp_path / "m0")
        stack.callback(apart.close)
        cluster = stack.enter_context(EtcdCluster(tmp_path, 3, place=apart))
        deaf, well, writing = (member.endpoint for member in cluster.members)
        watching = stack.enter_context(closing(open_store(f"{deaf},{well}", prefix)))
        writer = stack.enter_context(closing(open_store(writing, prefix)))
        watching._cluster.preferred = 0
        follower = stack.enter_context(Follower(watching))
        retrying(lambda: writer.create("first", "x", None))
        follower.until(lambda changes: len(changes) == 1)
        assert isinstance(follower._watch, EtcdWatch)
        assert follower._watch._position == 0
        apart.hang()
        stack.callback(apart.go_on)
        retrying(lambda: writer.create("second", "x", None))
        changes = follower.until(lambda changes: len(changes) == 2)
    assert [change.key for change in changes] == ["first", "second"]


def test_without_a_majority_nothing_is_written_and_nothing_lost(cluster: EtcdCluster, store: EtcdStore) -> None:
    record = store.create(KEY, "x", 60)
    with Follower(store) as follower:
        cluster.members[0].kill()
        cluster.members[1].kill()
        calls: list[Callable[[], object]] = [
            lambda: store.create("10.0.0.0-24", "x", 60),
            lambda: store.renew(record, 60),
            store.snapshot,
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError):
                call()
        cluster.launch(cluster.members[0])
        renewed = retrying(lambda: store.renew(record, 60))
        updated = retrying(lambda: store.update(renewed, "y", 60))
        changes = follower.until(bool)
    assert [(change.key, change.record and change.record.value) for change in changes] == [(KEY, "y")]
    assert [(found.value, found.version) for found in store.snapshot().leases] == [("y", updated.version)]


def test_whole_cluster_down_and_back(cluster: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    with Follower(store) as follower:
        before = create_many(store, 3, {})
        follower.until(lambda changes: len(changes) == 3)
        for member in cluster.members:
            member.kill()
        with pytest.raises(StoreUnavailableError, match="refused"):
            store.snapshot()
        cluster.start()
        with closing(open_store(cluster.hosts, prefix)) as other:
            retrying(lambda: other.create("after", "x", None))
        changes = follower.until(lambda changes: len(changes) >= 4)
    assert [change.key for change in changes] == [*before, "after"]


def test_compaction_while_the_watch_was_cut_off(cluster: EtcdCluster, store: EtcdStore, prefix: str) -> None:
    direct = cluster.members[0].endpoint
    with LossyProxy(direct) as proxy:
        cut_off = open_store(proxy.endpoint, prefix)
        follower = Follower(cut_off)
        retrying(lambda: store.create("seen", "x", None))
        follower.until(bool)
    try:
        # The proxy is gone, and the follower keeps trying.
        missed = retrying(lambda: store.create("missed", "x", None))
        retrying(lambda: store.update(missed, "y", None))
        etcdctl(cluster, "compact", store.snapshot().revision)
        watch = store.watch(follower.revision)
        with closing(watch), pytest.raises(HistoryGoneError, match="compacted"):
            next(watch)
        assert follower.changes == [Change("seen", follower.changes[0].record)]
    finally:
        cut_off.close()
        follower.close()


def test_a_silent_server_is_given_up_in_time(tmp_path: Path) -> None:
    with etcd() as alone, closing(open_store(alone.hosts, "/silent")) as store:
        record = store.create(KEY, "x", 60)
        before, revision = leases(alone), store.snapshot().revision
        alone.members[0].pause()
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            store.create("10.0.0.0-24", "x", 60)
        with closing(store.watch(revision)) as watch, pytest.raises(StoreUnavailableError, match="no answer in time"):
            next(watch)
        alone.members[0].resume()
        store.create("10.0.0.0-24", "x", 60)
        assert store.renew(record, 60) == record
        store.delete(record)
        assert len(leases(alone) - before) == 1, "an etcd lease was leaked"


def test_cluster_that_was_made_anew_is_noticed() -> None:
    with etcd() as alone, closing(open_store(alone.hosts, "/anew")) as store:
        record = store.create(KEY, "0", None)
        for number in range(1, 20):
            record = store.update(record, str(number), None)
        revision = store.snapshot().revision
        alone.members[0].kill()
        for path in sorted(alone.members[0].data.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        alone.start()
        with closing(store.watch(revision)) as watch, pytest.raises(HistoryGoneError, match="begun anew, or restored"):
            next(watch)
        assert store.snapshot().leases == ()


def test_other_cluster_that_has_come_further_is_noticed(tmp_path: Path) -> None:
    with etcd() as first:
        store = open_store(first.hosts, "/other")
        revision = store.snapshot().revision
        (member,) = first.members
        urls = (member.client_url, member.peer_url, member.metrics_url)
        ports = [int(url.rpartition(":")[2]) for url in urls]
    with closing(store), etcd(ports=ports, arguments=["--initial-cluster-token=other"]) as second:
        for number in range(5):
            etcdctl(second, "put", "/other/config", str(number))
        with closing(store.watch(revision)) as watch, pytest.raises(HistoryGoneError, match="another cluster"):
            next(watch)
        with Follower(store) as follower:
            store.create(KEY, "x", 60)
            assert [change.key for change in follower.until(bool)] == [KEY]


def test_watch_that_never_lasts_is_reported() -> None:
    with etcd() as alone, LossyProxy(alone.hosts) as proxy, closing(open_store(proxy.endpoint, "/short")) as store:
        watch = store.watch(store.snapshot().revision)
        over = threading.Event()

        def cut_what_opens() -> None:
            while not over.wait(0.01):
                if watch._responses is not None:
                    proxy.cut()

        cutting = threading.Thread(target=cut_what_opens)
        cutting.start()
        with closing(watch), pytest.raises(StoreUnavailableError, match="the watch broke"):
            next(watch)
        over.set()
        cutting.join()


def test_disk_quota_used_up() -> None:
    with etcd(arguments=["--quota-backend-bytes=3000000"]) as full, closing(open_store(full.hosts, "/full")) as store:
        record = store.create(KEY, "x", 60)
        for number in range(10):
            etcdctl(full, "put", f"/other/{number}", "x" * 100_000, check=False)
            if "NOSPACE" in etcdctl(full, "alarm", "list"):
                break
            for _ in range(10):
                etcdctl(full, "put", f"/other/{number}", text=b"x" * 1_000_000, check=False)
        before = leases(full)
        calls: list[Callable[[], object]] = [
            lambda: store.create("10.0.0.0-24", "x", 60),
            lambda: store.create("10.0.0.0-24", "x", None),
            lambda: store.update(record, "y", 60),
            lambda: store.write_config("{}", None),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError, match="alarm disarm"):
                call()
        assert leases(full) == before
        assert store.renew(record, 60) == record, "leases must be kept alive all the same"
        assert [found.key for found in store.snapshot().leases] == [KEY]
        etcdctl(full, "del", "--prefix", "/other/")
        etcdctl(full, "compact", store.snapshot().revision)
        etcdctl(full, "defrag")
        etcdctl(full, "alarm", "disarm")
        assert store.update(record, "y", 60).value == "y"


def test_nothing_is_printed_and_the_error_says_what_to_do(prefix: str) -> None:
    program = f"""
import os
from pyflannel.errors import StoreUnavailableError
from pyflannel.store import StoreLocation
from pyflannel_stores.etcd import EtcdStore
store = EtcdStore(StoreLocation.parse("etcd://127.0.0.1:1,[::1]:1,nowhere.invalid:1{prefix}"))
watch = store.watch("1")
for call in (store.snapshot, lambda: next(watch)):
    try:
        call()
    except StoreUnavailableError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=4 * CALL_TIMEOUT
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        for endpoint in ("127.0.0.1:1", "[::1]:1", "nowhere.invalid:1"):
            assert endpoint in line
        assert "Connection refused" in line
        assert "check that etcd runs there" in line
    assert len(done.stdout.splitlines()) == 2
