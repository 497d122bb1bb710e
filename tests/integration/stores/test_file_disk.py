"""What is the file store's own matter: the disk, its rights and its failures, hand-made files, the clock, inotify."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.errors import ConflictError, HistoryGoneError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Record, Store, StoreLocation
from pyflannel.testing.stores import KEY, OTHER, VALUE, Follower, contents, eventually
from pyflannel_stores import _file_watch
from pyflannel_stores._file_directory import Directory
from pyflannel_stores.file import FileStore


class Clock:
    """Wall clock time as a test wants it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def open_store(root: Path, options: str = "", clock: Clock | None = None) -> FileStore:
    location = StoreLocation.parse(f"file://{root}{options}")
    return FileStore(location, clock=clock) if clock else FileStore(location)


@pytest.fixture
def store(root: Path) -> Iterator[FileStore]:
    store = open_store(root)
    store.snapshot()
    yield store
    store.close()


def leases(store: Store) -> dict[str, Record]:
    return {record.key: record for record in store.snapshot().leases}


# rights and refusals


@pytest.mark.parametrize("mask", [0, 0o777])
def test_only_the_owner_may_look_whatever_the_umask(root: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        with open_store(root / "deeper") as store:
            store.write_config("{}", None)
            store.update(store.create(KEY, VALUE, 60.0), OTHER, 60.0)
    finally:
        os.umask(old)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}
    assert {path: mode for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_a_file_in_the_directorys_place_is_refused(root: Path) -> None:
    root.write_text("mine")
    with open_store(root) as store:
        for call in (store.snapshot, store.read_config, lambda: store.create(KEY, VALUE, 60.0)):
            with pytest.raises(StoreDeniedError, match=rf"{root}.*ENOTDIR.*not a directory"):
                call()
    assert root.read_text() == "mine"


def test_a_missing_directory_is_waited_for_with_create_no(root: Path) -> None:
    with open_store(root, "?create=no") as store:
        with pytest.raises(StoreUnavailableError, match=rf"{root}.*mounted"):
            store.snapshot()
        assert not root.exists()
        open_store(root).snapshot()
        assert store.snapshot().leases == ()


def test_a_record_too_large_for_the_store_is_refused(store: FileStore) -> None:
    with pytest.raises(StoreDeniedError, match="limit"):
        store.create(KEY, "x" * (1 << 20), 60.0)
    with pytest.raises(StoreDeniedError, match="bytes"):
        store.create("x" * 300, VALUE, 60.0)
    with pytest.raises(ConflictError, match="network document"):
        store.create(CONFIG_KEY, VALUE, 60.0)
    assert store.snapshot().leases == ()


SCRIPT = """
    import os, subprocess, sys
    from pyflannel.errors import *
    from pyflannel.store import StoreLocation
    from pyflannel_stores.file import FileStore
    from pyflannel.testing.stores import Follower, contents, KEY, VALUE, OTHER
    root = sys.argv[1]
    def opened(options=""):
        return FileStore(StoreLocation.parse(f"file://{root}{options}"))
    def refused(call, kind, *said):
        try:
            call()
        except kind as error:
            assert all(text in str(error) for text in said), error
        else:
            raise AssertionError(f"{kind} was not raised")
"""


def in_namespace(body: str, root: Path, *flags: str) -> None:
    """Run a script in a mount namespace of its own, with what unprivileged user namespaces allow."""
    command = ["unshare", "--mount", *flags] if os.geteuid() == 0 else ["unshare", "-Ur", "--mount", *flags]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a mount namespace: neither root nor user namespaces")
    root.mkdir()
    script = textwrap.dedent(SCRIPT) + textwrap.dedent(body)
    done = subprocess.run(
        [*command, sys.executable, "-c", script, str(root)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_a_full_disk_loses_nothing(root: Path) -> None:
    in_namespace(
        """
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", root], check=True)
        with opened() as store:
            made = {}
            try:
                for number in range(1000):
                    key = f"10.5.{number}.0-24"
                    made[key] = store.create(key, VALUE, 3600.0)
            except StoreUnavailableError as error:
                assert f"{root}/subnets: " in str(error) and "ENOSPC" in str(error), error
                # Who looks for a subnet tries another one: to the log, that is no other trouble.
                refused(lambda: store.create("10.5.9.0-29", VALUE, 3600.0), StoreUnavailableError, str(error))
            assert 10 < len(made) < 1000
            first = made["10.5.0.0-24"]
            refused(lambda: store.update(first, OTHER, 60.0), StoreUnavailableError, "ENOSPC")
            refused(lambda: store.renew(first, 7200.0), StoreUnavailableError, "ENOSPC")
            expected = {record.key: (record.value, record.version, False) for record in made.values()}
            assert contents(store.snapshot()) == expected
            assert sorted(os.listdir(f"{root}/.work")) == ["gate", "lock"]
            last = made.popitem()[1]
            store.delete(last)
            store.renew(first, 7200.0)
            del expected[last.key]
            assert contents(store.snapshot()) == expected
        """,
        root,
    )


@pytest.mark.root
def test_a_read_only_file_system_can_be_read_and_refuses_writing(root: Path) -> None:
    in_namespace(
        """
        subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
        with opened() as store:
            record = store.create(KEY, VALUE, 3600.0)
            brief = store.create("10.5.1.0-24", VALUE, 0.001)
            subprocess.run(["mount", "-o", "remount,ro", root], check=True)
            assert [found.key for found in store.snapshot().leases] == [KEY]
            for call in (
                lambda: store.create("10.5.2.0-24", VALUE, 60.0),
                lambda: store.update(record, OTHER, 60.0),
                lambda: store.renew(record, 60.0),
                lambda: store.delete(record),
                lambda: store.write_config("{}", None),
            ):
                refused(call, StoreDeniedError, root, "EROFS", "read-only")
        root += "/new"
        with opened() as store:
            refused(store.snapshot, StoreDeniedError, root, "EROFS")
        """,
        root,
    )


@pytest.mark.root
def test_a_mount_that_comes_and_goes_is_an_outage_and_not_an_empty_store(root: Path) -> None:
    in_namespace(
        """
        subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
        with opened() as store, opened() as other:
            record = store.create(KEY, VALUE, 3600.0)
            other.snapshot()
            with Follower(store, store.snapshot()) as follower:
                subprocess.run(["umount", "--lazy", root], check=True)
                refused(store.snapshot, StoreUnavailableError, "not mounted")
                refused(lambda: other.create("10.5.1.0-24", VALUE, 60.0), StoreUnavailableError, "not mounted")
                assert os.listdir(root) == []
                follower.until(lambda: follower.interruptions, "the outage")
                subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
                with opened() as third:
                    new = third.create("10.5.2.0-24", VALUE, 3600.0)
                follower.until(lambda: set(follower.state) == {new.key}, "what the other file system holds")
        """,
        root,
    )


@pytest.mark.root
def test_a_file_system_mounted_over_the_directory_is_noticed(root: Path) -> None:
    in_namespace(
        """
        subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
        root, above = f"{root}/store", f"{root}/above"
        with FileStore(StoreLocation.parse(f"file://{above}")) as other:
            new = other.create("10.5.1.0-24", VALUE, 3600.0)
        with opened("?watch=inotify") as store:
            store.create(KEY, VALUE, 3600.0)
            with Follower(store, store.snapshot()) as follower:
                last = store.create("10.5.2.0-24", VALUE, 3600.0)
                follower.until(lambda: last.key in follower.state, "a change: the watch runs")
                subprocess.run(["mount", "--bind", above, root], check=True)
                follower.until(lambda: set(follower.state) == {new.key}, "what is there now")
        """,
        root,
    )


@pytest.mark.root
def test_without_inotify_it_polls_unless_told_not_to(root: Path) -> None:
    in_namespace(
        """
        open("/proc/sys/user/max_inotify_instances", "w").write("0")
        with opened("?poll=0.02") as store, opened("?watch=inotify") as strict:
            with strict.watch(strict.snapshot().revision) as watch:
                refused(lambda: next(watch), StoreUnavailableError, "fs.inotify", "watch=poll")
            with Follower(store, store.snapshot()) as follower:
                strict.create(KEY, VALUE, 60.0)
                follower.until(lambda: KEY in follower.state, "the change")
                assert not follower.interruptions
        """,
        root,
        "--user",
        "--map-root-user",
    )


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Be nobody for a while: the kernel withholds root's rights as long."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused() -> None:
    place = Path(tempfile.mkdtemp(prefix="pyflannel-"))  # where another user can come
    try:
        place.chmod(0o755)
        with open_store(place / "store") as store:
            store.create(KEY, VALUE, 3600.0)
        with another_user():
            for name in ("store", "another"):
                with open_store(place / name) as store:
                    for call in (store.snapshot, lambda: store.create(KEY, VALUE, None)):
                        with pytest.raises(StoreDeniedError, match=rf"{place}/{name}.*EACCES.*right"):
                            call()
    finally:
        shutil.rmtree(place)


@pytest.mark.root
def test_rights_withdrawn_while_watching_are_an_outage() -> None:
    place = Path(tempfile.mkdtemp(prefix="pyflannel-"))
    try:
        os.chown(place, 65534, 65534)
        with another_user(), open_store(place / "store", "?poll=0.02&watch=poll") as store:
            store.create(KEY, VALUE, 3600.0)
            with Follower(store, store.snapshot()) as follower:
                (place / "store").chmod(0)
                follower.until(lambda: bool(follower.interruptions), "the outage")
                assert KEY in follower.state
                (place / "store").chmod(0o700)
                record = store.create("10.5.1.0-24", VALUE, 3600.0)
                follower.until(lambda: record.key in follower.state, "the change after")
                assert follower.of(KEY) == []
    finally:
        shutil.rmtree(place)


# crashes

WRITER = """
import json, os, random, sys
from pyflannel.errors import ConflictError
from pyflannel.store import StoreLocation
from pyflannel_stores.file import FileStore
store = FileStore(StoreLocation.parse("file://" + sys.argv[1]))
rng = random.Random(int(sys.argv[2]))
held = {record.key: record for record in store.snapshot().leases}
def say(*words):
    os.write(1, (json.dumps(words) + "\\n").encode())
for step in range(1_000_000):
    key = f"10.5.{rng.randrange(6)}.0-24"
    value = json.dumps({"step": f"{sys.argv[2]}-{step}", "padding": "x" * rng.randrange(6000)}, separators=(",", ":"))
    if key not in held:
        say("begin", key, value)
        held[key] = store.create(key, value, 3600.0)
    elif rng.random() < 0.2:
        say("begin", key, None)
        store.delete(held.pop(key))
        value = None
    elif rng.random() < 0.3:
        held[key] = store.renew(held[key], 7200.0)
        continue
    else:
        say("begin", key, value)
        held[key] = store.update(held[key], value, 3600.0)
    say("done", key, value)
"""


def test_kill_9_leaves_no_lost_and_no_broken_lease(root: Path, store: FileStore) -> None:
    rng = random.Random(1)
    known: dict[str, str] = {}
    for run in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), str(run)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer.stdout as said:
            lines = [said.readline() for _ in range(rng.randrange(1, 60))]
            assert writer.poll() is None, "it ended by itself"
            writer.kill()
            writer.wait()
            lines += said.read().splitlines(keepends=True)
        if not lines[-1].endswith("\n"):
            lines.pop()  # it was killed while it spoke, and has not gone on
        begun: dict[str, str | None] = {}
        for line in lines:
            word, key, value = json.loads(line)
            begun = {key: value} if word == "begin" else {}
            if word == "done":
                known[key] = value
                if value is None:
                    del known[key]
        found = {key: record.value for key, record in leases(store).items()}
        for key in known.keys() | found.keys():
            assert found.get(key) == known.get(key) or (key in begun and found.get(key) == begun[key]), key
        known = found
        for path in (root / "subnets").iterdir():
            assert "Expires" in json.loads(path.read_text()), path
        # No lock and no rest of a dead writer stands in the way of the next.
        store.delete(store.create("10.9.9.0-24", VALUE, 60.0))
        assert sorted(os.listdir(root / ".work")) == ["gate", "lock"]


def test_what_somebody_puts_among_the_files_being_written_is_in_nobody_s_way(root: Path, store: FileStore) -> None:
    record = store.create(KEY, VALUE, 60.0)
    (root / ".work" / "kept").mkdir()
    (root / ".work" / "left").write_text("of a dead writer")
    assert store.renew(record, 90.0).version == record.version
    assert sorted(os.listdir(root / ".work")) == ["gate", "kept", "lock"]


def test_a_lock_held_for_too_long_is_said(root: Path, store: FileStore) -> None:
    first, second = Directory(str(root), create=True), Directory(str(root), create=True)
    with first.locked(shared=True), second.locked(shared=True, timeout=0.01):
        pass
    with first.locked(), pytest.raises(StoreUnavailableError, match=r"fuser"), second.locked(timeout=0.01):
        pass
    with second.locked(timeout=0.01):
        pass


# files that people make


def test_a_config_and_leases_written_by_hand(root: Path, store: FileStore) -> None:
    subnets = root / "subnets"
    with Follower(store, store.snapshot()) as follower:
        (root / "config.json").write_text('{\n  "Network": "10.5.0.0/16"\n}\n')
        (subnets / "10.5.1.0-24.json").write_text('{ "PublicIP": "192.0.2.1" }')
        (subnets / "10.5.2.0-24.json").write_text('{"PublicIP": "192.0.2.2", "Expires": "2099-01-01T00:00:00+01:00"}')
        (subnets / "10.5.3.0-24.json").write_text("PublicIP = 192.0.2.3\n")
        (subnets / "10.5.4.0-24.json").write_bytes(b"\xff\xfe\0")
        (subnets / "10.5.5.0-24.json").write_text("")
        (subnets / "10.5.6.0-24.json").write_text('{"PublicIP": "192.0.2.6", "Expires": "tomorrow"}')
        (root / "elsewhere").write_text('{"PublicIP":"192.0.2.7"}')
        (subnets / "10.5.7.0-24.json").symlink_to(root / "elsewhere")
        found = leases(store)
        assert {key: (record.value, record.permanent) for key, record in found.items()} == {
            "10.5.1.0-24": ('{"PublicIP":"192.0.2.1"}', True),
            "10.5.2.0-24": ('{"PublicIP":"192.0.2.2"}', False),
            "10.5.3.0-24": ("PublicIP = 192.0.2.3\n", True),
            "10.5.4.0-24": ("\ufffd\ufffd\0", True),
            "10.5.5.0-24": ("", True),
            "10.5.6.0-24": ('{"PublicIP":"192.0.2.6","Expires":"tomorrow"}', True),
            "10.5.7.0-24": ('{"PublicIP":"192.0.2.7"}', True),
        }
        config = store.read_config()
        assert config is not None
        assert config.value == '{"Network":"10.5.0.0/16"}'
        follower.until(lambda: follower.state == contents(store.snapshot()), "all of them in the watch")
        # what we don't write stays as it was written
        assert (subnets / "10.5.3.0-24.json").read_text() == "PublicIP = 192.0.2.3\n"
        record = store.update(found["10.5.3.0-24"], VALUE, 60.0)
        assert record.permanent
        store.delete(found["10.5.7.0-24"])
        assert (root / "elsewhere").exists()


def test_an_edit_by_hand_is_a_change(root: Path, store: FileStore) -> None:
    record = store.create(KEY, VALUE, 3600.0)
    path = root / "subnets" / f"{KEY}.json"
    with Follower(store, store.snapshot()) as follower:
        path.write_text(path.read_text().replace("192.0.2.1", "192.0.2.2"))
        follower.until(lambda: follower.state[KEY][0] == OTHER, "the edit")
        with pytest.raises(ConflictError):
            store.update(record, VALUE, 3600.0)
        edited = leases(store)[KEY]
        assert not edited.permanent
        document = json.loads(path.read_text())
        del document["Expires"]
        path.write_text(json.dumps(document))
        follower.until(lambda: follower.state[KEY][2], "a reservation now")
        assert store.renew(leases(store)[KEY], 60.0).permanent
        path.unlink()
        follower.until(lambda: KEY not in follower.state, "the deletion")
        assert store.create(KEY, VALUE, 60.0).value == VALUE


def test_other_files_are_no_leases_and_stay(root: Path, store: FileStore, caplog: pytest.LogCaptureFixture) -> None:
    subnets = root / "subnets"
    (subnets / "README").write_text("by hand")
    (subnets / "config.json").write_text("{}")
    (subnets / ".10.5.1.0-24.json.swp").write_text("editor")
    (subnets / "10.5.1.0-24.json~").write_text("{}")
    (subnets / "10.5.2.0-24.json").mkdir()
    os.mkfifo(subnets / "10.5.3.0-24.json")
    (subnets / "10.5.4.0-24.json").symlink_to("10.5.4.0-24.json")
    (subnets / "10.5.5.0-24.json").symlink_to("nowhere")
    (subnets / "%31.json").write_text("{}")
    Path(os.fsdecode(bytes(subnets) + b"/\xff.json")).write_text("{}")
    before = sorted(os.listdir(subnets))
    with Follower(store, store.snapshot()) as follower:
        record = store.create(KEY, VALUE, 60.0)
        follower.until(lambda: set(follower.state) == {KEY}, "the one lease")
        assert list(leases(store)) == [KEY]
        for taken in ("10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24", "10.5.5.0-24"):
            with pytest.raises(ConflictError):
                store.create(taken, VALUE, 60.0)
        store.delete(record)
    assert sorted(os.listdir(subnets)) == before
    warned = [message for message in caplog.messages if "ignored" in message]
    # README, config.json, %31.json, \xff.json, the directory, the pipe, the link to itself; once each
    assert len(warned) == len(set(warned)) == 7


@pytest.mark.parametrize("target", ["/proc/kmsg", "/proc/self/mem", "/dev/zero", "/dev/tty", "/sys/kernel/profiling"])
@pytest.mark.parametrize("name", ["subnets/10.5.6.0-24.json", "config.json"])
def test_a_link_to_what_the_kernel_shows_as_a_file_is_no_record(
    root: Path, store: FileStore, name: str, target: str
) -> None:
    with Follower(store, store.snapshot()) as follower:
        (root / name).symlink_to(target)
        store.create(KEY, VALUE, 60.0)
        follower.until(lambda: set(follower.state) == {KEY}, "the one lease")
        assert list(leases(store)) == [KEY]
        assert store.read_config() is None


def test_a_planted_link_at_the_lock_is_not_followed(root: Path, store: FileStore, tmp_path: Path) -> None:
    store.snapshot()
    victim = tmp_path / "victim"
    for name in ("lock", "gate"):
        (root / ".work" / name).unlink()
        (root / ".work" / name).symlink_to(victim)
    with pytest.raises(StoreDeniedError, match="ELOOP"):
        store.create(KEY, VALUE, 60.0)
    assert not victim.exists()


def test_a_huge_file_is_one_bad_record(root: Path, store: FileStore) -> None:
    with (root / "subnets" / "10.5.6.0-24.json").open("w") as huge:
        huge.truncate(1 << 40)
    store.create(KEY, VALUE, 60.0)
    found = leases(store)
    assert found[KEY].value == VALUE
    assert len(found["10.5.6.0-24"].value) <= 1 << 21


@pytest.mark.parametrize("depth", [200, 500, 900])
def test_what_is_nested_deeply_is_renewed_as_small_as_it_is(root: Path, store: FileStore, depth: int) -> None:
    """Each level of an indented list takes more than the one before: 2 kB would become 2 MB."""
    value = '{"PublicIP":"192.0.2.1","New":' + depth * "[" + depth * "]" + "}"
    record = store.create(KEY, value, 60.0)
    assert store.renew(record, 120.0).value == value
    assert (root / "subnets" / f"{KEY}.json").stat().st_size < 5000 + 4 * len(value)
    assert leases(store)[KEY].value == value


@pytest.mark.parametrize("key", [".", "..", "../config", "\n", "\0", "\ud800", "-rf *", "CON", "a" * 250])
def test_hostile_keys(root: Path, store: FileStore, key: str) -> None:
    outside = sorted(root.parent.rglob("*"))
    record = store.create(key, VALUE, 60.0)
    assert list(leases(store)) == [key]
    record = store.update(record, OTHER, 60.0)
    assert leases(store)[key].value == OTHER
    assert [path.parent for path in set(root.parent.rglob("*")) - set(outside)] == [root / "subnets"]
    store.delete(record)
    assert sorted(root.parent.rglob("*")) == outside


# the clock


def test_whoever_notices_an_expiry_removes_the_file(root: Path) -> None:
    clock = Clock()
    with open_store(root, clock=clock) as store:
        record = store.create(KEY, VALUE, 60.0)
        kept = store.create("10.5.1.0-24", VALUE, 120.0)
        clock.now += 60
        assert list(leases(store)) == [kept.key]
        assert os.listdir(root / "subnets") == [f"{kept.key}.json"]
        clock.now += 60
        with open_store(root, "?watch=poll&poll=0.02", clock) as other:
            other_snapshot = other.snapshot()
            assert other_snapshot.leases == ()
        assert os.listdir(root / "subnets") == []
        store.delete(record)


def test_an_expired_record_counts_as_absent_while_its_file_is_there(root: Path) -> None:
    clock = Clock()
    with open_store(root, clock=clock) as store:
        record = store.create(KEY, VALUE, 60.0)
        clock.now += 60
        with pytest.raises(ConflictError, match="expired"):
            store.update(record, OTHER, 60.0)
        with pytest.raises(ConflictError, match="expired"):
            store.renew(record, 60.0)
        assert os.listdir(root / "subnets") == [f"{KEY}.json"]
        assert store.create(KEY, OTHER, 60.0).version != record.version
        clock.now += 60
        store.delete(record)  # the file is another's by now, but that one has expired too
        assert leases(store) == {}


def test_a_clock_set_forward_is_noticed_by_a_waiting_watch(root: Path) -> None:
    clock = Clock()
    with open_store(root, clock=clock) as store:
        store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            clock.now += 3600
            follower.until(lambda: KEY not in follower.state, "the expiry")
            eventually(lambda: os.listdir(root / "subnets") == [], "the file's removal")


def test_a_clock_set_back_neither_revives_nor_loses_a_lease(root: Path) -> None:
    clock = Clock()
    with open_store(root, clock=clock) as store:
        store.create(KEY, VALUE, 60.0)
        kept = store.create("10.5.1.0-24", VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            clock.now += 60
            follower.until(lambda: KEY not in follower.state, "the expiry")
            eventually(lambda: os.listdir(root / "subnets") == [f"{kept.key}.json"], "the file's removal")
            clock.now -= 86400
            assert list(leases(store)) == [kept.key]
            kept = store.renew(kept, 3600.0)
            assert kept.ttl == pytest.approx(3600)  # from the time as it is now, not the one it was
            again = store.create(KEY, OTHER, 60.0)
            follower.until(lambda: follower.state.get(KEY) == contents(store.snapshot())[KEY], "the new lease")
            clock.now += 60
            follower.until(lambda: KEY not in follower.state, "its expiry")
            with pytest.raises(ConflictError):
                store.renew(again, 60.0)
            assert list(leases(store)) == [kept.key]


def test_a_ttl_beyond_all_calendars(store: FileStore) -> None:
    record = store.renew(store.create(KEY, VALUE, 1e18), float("inf"))
    assert not record.permanent
    assert leases(store)[KEY].version == record.version


# the watch


@pytest.mark.parametrize("options", ["?watch=inotify", "?watch=poll&poll=0.02"])
def test_one_change_among_many_reads_one_file(root: Path, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(root, options) as store, open_store(root) as other:
        store.snapshot()
        past = 1_700_000_000
        for number in range(500):
            path = root / "subnets" / f"10.6.{number}.0-24.json"
            path.write_text(VALUE)
            os.utime(path, (past, past))
        monkeypatch.setattr("pyflannel_stores._file_directory.SETTLED", 0.0)  # no need to wait for files to get old
        with Follower(store, store.snapshot()) as follower:
            other.create("10.5.1.0-24", VALUE, 60.0)
            follower.until(lambda: len(follower.changes) == 1, "the first change")
            read: list[str] = []
            load = Directory.load

            def counted(self: Directory, key: str) -> object:
                if self.root == store.location.path and threading.current_thread() is follower.thread:
                    read.append(key)
                return load(self, key)

            monkeypatch.setattr(Directory, "load", counted)
            other.create("10.5.2.0-24", VALUE, 60.0)
            follower.until(lambda: len(follower.changes) == 2, "the second change")
            assert set(read) <= {"10.5.1.0-24", "10.5.2.0-24"}


@pytest.mark.parametrize("options", ["?watch=inotify", "?watch=poll&poll=0.02"])
def test_a_replaced_directory_is_an_interruption_and_then_the_truth(root: Path, options: str) -> None:
    with open_store(root, options) as store:
        store.create(KEY, VALUE, 3600.0)
        same = store.create("10.5.1.0-24", VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            shutil.copytree(root, root.with_name("new"))
            (root.with_name("new") / "subnets" / f"{KEY}.json").unlink()
            root.rename(root.with_name("old"))
            root.with_name("new").rename(root)
            with open_store(root) as other:
                new = other.create("10.5.2.0-24", VALUE, 3600.0)
            follower.until(lambda: set(follower.state) == {same.key, new.key}, "the new directory's content")
            assert all(isinstance(error, StoreUnavailableError) for error in follower.interruptions)
            assert follower.of(same.key) == []


@pytest.mark.parametrize("back", ["empty", "gone"])
def test_a_directory_that_goes_while_it_is_read_has_not_lost_what_was_in_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    """Its files can't be found any more, which is not to say that somebody has deleted them."""
    listed = Directory._names

    def moved(directory: Directory) -> list[str]:
        names = listed(directory)
        root.rename(root.with_name("away"))
        if back == "empty":
            (root / "subnets").mkdir(parents=True)
        return names

    with open_store(root) as store:
        record = store.create(KEY, VALUE, 3600.0)
        before = store.snapshot()
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "_names", moved)
            with pytest.raises(StoreUnavailableError):
                store.snapshot()
        shutil.rmtree(root, ignore_errors=True)
        root.with_name("away").rename(root)
        after = store.snapshot()
        assert after.revision == before.revision, "nothing has changed"
        assert [each.version for each in after.leases] == [record.version]


@pytest.mark.parametrize("options", ["?watch=inotify", "?watch=poll&poll=0.02"])
def test_a_deleted_directory_is_an_outage_until_it_is_back(root: Path, options: str) -> None:
    with open_store(root, options) as store:
        store.create(KEY, VALUE, 3600.0)
        with Follower(store, store.snapshot()) as follower:
            root.rename(root.with_name("doomed"))
            shutil.rmtree(root.with_name("doomed"))
            follower.until(lambda: bool(follower.interruptions), "the outage")
            with pytest.raises(StoreUnavailableError):
                store.create("10.5.1.0-24", VALUE, 3600.0)
            assert not root.exists()
            with open_store(root) as other:  # a daemon that starts anew may make it
                new = other.create("10.5.2.0-24", VALUE, 3600.0)
            follower.until(lambda: set(follower.state) == {new.key}, "the new directory's content")
            assert store.create("10.5.1.0-24", VALUE, 3600.0).value == VALUE


def test_an_overflow_of_the_kernels_queue_loses_nothing(root: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with open_store(root, "?watch=inotify") as store, contextlib.ExitStack() as stack:
        revision = store.snapshot().revision
        watch = stack.enter_context(store.watch(revision))
        store.create(KEY, VALUE, 3600.0)
        assert [change.key for change in next(watch).changes] == [KEY]
        first, second = root / "subnets" / "a~", root / "subnets" / "b~"
        first.write_text("")
        for _ in range(limit // 4 + 1):  # two events each way; nobody reads meanwhile
            first.rename(second)
            second.rename(first)
        last = store.create("10.5.1.0-24", VALUE, 3600.0)
        assert [change.key for change in next(watch).changes] == [last.key]


def test_forgotten_deletions_end_a_resume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file_watch, "KEPT_DELETIONS", 4)
    with open_store(root) as store:
        revisions = [store.snapshot().revision]
        for number in range(30):
            record = store.create(f"10.5.{number}.0-24", VALUE, 60.0)
            revisions.append(store.snapshot().revision)
            store.delete(record)
            revisions.append(store.snapshot().revision)
        with store.watch(revisions[0]) as watch, pytest.raises(HistoryGoneError, match="snapshot"):
            next(watch)
        with store.watch(revisions[-3]) as watch:
            assert [change.key for change in next(watch).changes] == ["10.5.29.0-24"]


def test_nothing_stays_open(root: Path) -> None:
    def opened() -> set[str]:
        return {
            os.readlink(f"/proc/self/fd/{number}")
            for number in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{number}")
        }

    before = opened()
    with open_store(root) as store:
        with Follower(store, store.snapshot()) as follower:
            store.create(KEY, VALUE, 60.0)
            follower.until(lambda: KEY in follower.state, "a change")
            assert "anon_inode:inotify" in opened() - before
        store.watch("never iterated")
    assert opened() - before == set()


def test_a_local_file_system_is_watched_by_inotify(tmp_path: Path) -> None:
    assert _file_watch.sees_all_changes(str(tmp_path))
    with pytest.raises(StoreUnavailableError, match=errno.errorcode[errno.ENOENT]):
        _file_watch.sees_all_changes(str(tmp_path / "missing"))
