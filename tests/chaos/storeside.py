"""The side of a store: its members, its history, and what somebody else does to it.

``python -m tests.chaos.storeside`` runs in the lab, where the servers' addresses are. It obeys commands, one JSON
document a line, and tells what happens in the same way. Members that die without being held down are started again, as
a service manager would. The history is read with neither driver nor client library: what etcd and Consul say over HTTP,
and what is in the directory of a file store. What is written goes through the project's drivers.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import ConflictError, PyflannelError, StoreUnavailableError
from pyflannel.lab.servers.consul import ConsulCluster, ConsulServer
from pyflannel.lab.servers.etcd import EtcdCluster
from pyflannel.plugins import load_store
from pyflannel.store import CALL_TIMEOUT, CONFIG_KEY, Record, StoreLocation
from pyflannel_stores._file_format import decode, key_of

__all__ = ["PREFIX"]

PREFIX: Final = "coreos.com/network"
AGAIN: Final = 2.0
"""Seconds until a member that has died is started again."""
IN_VAIN: Final = 5
"""Starts in a row after which a server of Consul gets an empty disk. One that was killed may find a gap in its Raft log
("log not found"), and never starts with it again; whoever operates it would do the same."""

SIZES: Final = {"etcd": "640m", "consul": "128m", "file": "2m"}
"""Of the file system under the store. Each member of etcd has two files of 64 MB from the beginning."""

_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_PATIENCE: Final = 7.0


def tell(**document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Table:
    """The newest that is known of each key; tells what differs."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def changed(self, key: str, value: str | None) -> None:
        if self._values.get(key) == value:
            return
        if value is None:
            del self._values[key]
        else:
            self._values[key] = value
        tell(key=key, value=value, at=time.monotonic())

    def all_of_it(self, values: Mapping[str, str]) -> None:
        for key in [key for key in self._values if key not in values]:
            self.changed(key, None)
        for key, value in values.items():
            self.changed(key, value)


def _short(key: str) -> str | None:
    """A key as the core knows it; ``None`` for what is neither the document nor a lease."""
    name = key.lstrip("/").removeprefix(PREFIX).lstrip("/")
    return name if name == CONFIG_KEY else name.removeprefix("subnets/") if name.startswith("subnets/") else None


# etcd


def follow_etcd(endpoints: Sequence[str], table: Table) -> None:
    revision, turn = 0, 0
    while True:
        turn += 1
        base = f"http://{endpoints[turn % len(endpoints)]}/v3"
        with suppress(OSError, ValueError, KeyError):
            if not revision:
                revision = _read_etcd(base, table)
            for answer in _watch_etcd(base, revision + 1):
                if "compact_revision" in answer or "error" in answer:
                    revision = 0
                    break
                for event in answer.get("events", ()):
                    _take_event(event, table)
                    revision = max(revision, int(event["kv"]["mod_revision"]))
        time.sleep(0.2)


def _take_event(event: Mapping[str, Any], table: Table) -> None:
    key = _short(b64decode(event["kv"]["key"]).decode())
    if key is not None:
        gone = event.get("type") == "DELETE"
        table.changed(key, None if gone else b64decode(event["kv"].get("value", "")).decode(errors="replace"))


def _read_etcd(base: str, table: Table) -> int:
    answer = json.load(_post(f"{base}/kv/range", _range()))
    pairs = ((_short(b64decode(kv["key"]).decode()), kv.get("value", "")) for kv in answer.get("kvs", ()))
    table.all_of_it({key: b64decode(value).decode(errors="replace") for key, value in pairs if key is not None})
    return int(answer["header"]["revision"])


def _watch_etcd(base: str, revision: int) -> Iterator[Mapping[str, Any]]:
    request = {"create_request": {**_range(), "start_revision": revision}}
    with _post(f"{base}/watch", request) as stream:
        for line in stream:
            answer = json.loads(line)
            yield answer.get("result", answer)


def _range() -> dict[str, str]:
    keys = {"key": f"/{PREFIX}/", "range_end": f"/{PREFIX}0"}
    return {name: b64encode(text.encode()).decode() for name, text in keys.items()}


def _post(url: str, document: Any) -> Any:
    headers = {"Grpc-Metadata-Hasleader": "true"}  # a member without a leader has nothing to say
    return _OPENER.open(urllib.request.Request(url, json.dumps(document).encode(), headers), timeout=_PATIENCE)


# Consul


def follow_consul(hosts: Sequence[str], table: Table) -> None:
    index, turn = "0", 0
    while True:
        turn += 1
        url = f"http://{hosts[turn % len(hosts)]}/v1/kv/{PREFIX}?recurse&index={index}&wait=3s"
        try:
            with _OPENER.open(url, timeout=_PATIENCE) as answer:
                index = answer.headers["X-Consul-Index"]
                pairs = ((_short(one["Key"]), b64decode(one["Value"] or "").decode()) for one in json.load(answer))
                table.all_of_it({key: value for key, value in pairs if key is not None})
        except (OSError, ValueError, KeyError):
            index = "0"
            time.sleep(0.3)


# Files


def follow_files(root: Path, table: Table) -> None:
    while True:
        with suppress(OSError):
            table.all_of_it(dict(_files(root)))
        time.sleep(0.2)


def _files(root: Path) -> Iterator[tuple[str, str]]:
    with suppress(FileNotFoundError):
        yield CONFIG_KEY, decode((root / "config.json").read_bytes(), expiring=False)[0]
    for name in os.listdir(root / "subnets"):
        key = key_of(name)
        if key is not None:
            with suppress(FileNotFoundError):
                value, expires, _ = decode((root / "subnets" / name).read_bytes(), expiring=True)
                if expires is None or expires > time.time():
                    yield key, value


# What is done to the store


class StoreSide:
    """Members, a file system to fill, and somebody who writes."""

    def __init__(self, scheme: str, disk: Path, addresses: Sequence[str]) -> None:
        self.scheme, self.disk = scheme, disk
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZES[scheme]}", "chaos", disk], check=True)
        self.cluster: EtcdCluster | ConsulCluster | None = None
        self.members: list[Any] = []
        self.held: set[int] = set()
        self._died: dict[int, float] = {}
        self._starts: dict[int, int] = {}
        """How often in a row a member was started and soon died."""
        self._launched: dict[int, float] = {}
        self._lock: int | None = None
        self._document = 0
        """The number of the newest document that is to be written: who waits to write an older one gives up."""
        self._documents = threading.Lock()
        self._last: dict[str | None, Future[None]] = {}
        """What was asked for last, by the key that it is done to."""
        self._pool = ThreadPoolExecutor(8)
        self.url = self._start(addresses)

    def _start(self, addresses: Sequence[str]) -> str:
        if self.scheme == "file":
            return f"file://{self.disk}/store"
        data = self.disk / "members"
        data.mkdir()
        if self.scheme == "etcd":
            self.cluster = EtcdCluster(data, len(addresses), host=addresses[0])
            self.members = list(self.cluster.members)
        else:
            self.cluster = ConsulCluster(data, len(addresses), addresses=addresses)
            self.members = list(self.cluster.servers)
        self.cluster.start()
        return f"{self.scheme}://{self.cluster.hosts}"

    def follow(self) -> None:
        """Tell the store's history from now on, from a thread beside."""
        table = Table()
        if self.scheme == "file":
            target = partial(follow_files, self.disk / "store", table)
        elif self.scheme == "etcd":
            target = partial(follow_etcd, [member.endpoint for member in self.members], table)
        else:
            target = partial(follow_consul, [server.host for server in self.members], table)
        threading.Thread(target=target, daemon=True).start()

    def obey(self, command: Mapping[str, Any]) -> None:
        """Do one thing. What may take long is done beside."""
        name = str(command["do"])
        function = getattr(self, f"do_{name.replace('-', '_')}")
        words = {key: value for key, value in command.items() if key != "do"}
        if name in ("put", "delete", "rewrite", "document", "lock", "fill", "empty", "compact", "read-only"):
            before = self._last.get(words.get("key"))
            self._last[words.get("key")] = self._pool.submit(self._after, before, name, function, words)
        else:
            self._try(name, function, words)

    def _after(
        self, before: Future[None] | None, name: str, function: Callable[..., None], words: Mapping[str, Any]
    ) -> None:
        """What is done to one key is done in the order in which it was asked for, however long it takes."""
        if before is not None and "key" in words:
            before.result()
        self._try(name, function, words)

    def _try(self, name: str, function: Callable[..., None], words: Mapping[str, Any]) -> None:
        try:
            function(**words)
        except Exception as error:  # whatever it is: the run has to hear of it
            tell(failed=f"{name}: {type(error).__name__}: {error}", at=time.monotonic())

    def supervise(self) -> None:
        for number, member in enumerate(self.members):
            if member.running or number in self.held:
                self._died.pop(number, None)
                if time.monotonic() - self._launched.get(number, 0.0) > 2 * AGAIN:
                    self._starts.pop(number, None)
            elif time.monotonic() - self._died.setdefault(number, time.monotonic()) > AGAIN:
                self._died.pop(number)
                self._start_again(number, member)

    def _start_again(self, number: int, member: Any) -> None:
        assert self.cluster is not None
        self._starts[number] = self._starts.get(number, 0) + 1
        emptied = isinstance(member, ConsulServer) and self._starts[number] > IN_VAIN
        if emptied:
            for name in ("raft", "serf"):
                shutil.rmtree(member.directory / "data" / name, ignore_errors=True)
            self._starts.pop(number)
        self.cluster.launch(member)
        self._launched[number] = time.monotonic()
        tell(again=number, emptied=emptied, at=time.monotonic())

    def do_kill(self, members: Sequence[int]) -> None:
        for number in members:
            self.held.add(number)
            if self.members[number].running:
                self.members[number].kill()

    def do_release(self, members: Sequence[int]) -> None:
        assert self.cluster is not None
        for number in members:
            self.held.discard(number)
            if not self.members[number].running:
                self.cluster.launch(self.members[number])

    def do_pause(self, members: Sequence[int]) -> None:
        for number in members:
            if self.members[number].running:
                self.members[number].pause()

    def do_resume(self, members: Sequence[int]) -> None:
        for number in members:
            if self.members[number].running:
                self.members[number].resume()

    def do_fill(self) -> None:
        with (self.disk / "fill").open("wb") as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)

    def do_empty(self) -> None:
        while True:
            try:
                return (self.disk / "fill").unlink(missing_ok=True)
            except OSError:  # it is read-only just now
                time.sleep(0.1)

    def do_lock(self) -> None:
        descriptor = os.open(self.disk / "store" / ".work" / "lock", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._lock = descriptor

    def do_unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def do_read_only(self) -> None:
        for _ in range(100):  # it is refused while somebody writes
            if not subprocess.run(["mount", "-o", "remount,ro", self.disk], capture_output=True).returncode:
                return
            time.sleep(0.01)

    def do_writable(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.disk], check=True)

    def do_compact(self) -> None:
        base = f"http://{self.members[0].endpoint}/v3/kv"
        revision = json.load(_post(f"{base}/range", _range()))["header"]["revision"]
        with suppress(urllib.error.HTTPError):  # it has been compacted up to there
            _post(f"{base}/compaction", {"revision": revision, "physical": True}).close()

    # Somebody writes

    def _record(self, store: Any, key: str) -> Record | None:
        return next((record for record in store.snapshot().leases if record.key == key), None)

    def _open(self) -> Any:
        location = StoreLocation.parse(self.url)
        return load_store(location.scheme)(location)

    def _persist(self, what: Callable[[Any], object], idle: Callable[[], bool] = lambda: False) -> None:
        """Do it as soon as the store lets us, unless it has become idle."""
        while not idle():
            try:
                with self._open() as store:
                    what(store)
                return
            except PyflannelError:
                time.sleep(0.5)

    def do_put(self, key: str, value: str, ttl: float | None = None) -> None:
        try:
            with suppress(ConflictError), self._open() as store:
                store.create(key, value, ttl)
        except StoreUnavailableError:
            time.sleep(CALL_TIMEOUT)  # it may be done yet, and whoever takes it away comes after that
            raise

    def do_delete(self, key: str, naming: str) -> None:
        """Delete a lease that has this text in it."""

        def delete(store: Any) -> None:
            record = self._record(store, key)
            if record is not None and naming in record.value:
                store.delete(record)

        self._persist(delete)

    def do_rewrite(self, key: str, value: str, ttl: float) -> None:
        with suppress(ConflictError), self._open() as store:
            record = self._record(store, key)
            if record is not None:
                store.update(record, value, ttl)

    def do_document(self, value: str) -> None:
        self._document = number = self._document + 1
        with self._documents:
            self._persist(lambda store: store.write_config(value, store.read_config()), lambda: number < self._document)

    def stop(self) -> None:
        if self.cluster is not None:
            for member in self.members:
                with suppress(RuntimeError):
                    member.resume()
            self.cluster.stop()


def main(scheme: str, disk: str, addresses: Sequence[str]) -> None:
    """Serve until standard input ends."""
    with ExitStack() as stack:
        side = StoreSide(scheme, Path(disk), addresses)
        stack.callback(side.stop)
        tell(url=side.url)
        side.follow()
        os.set_blocking(0, False)
        left = b""
        while True:
            side.supervise()
            if not select.select([0], [], [], 0.25)[0]:
                continue
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, left = (left + data).split(b"\n")
            for line in lines:
                side.obey(json.loads(line))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
    os._exit(0)
