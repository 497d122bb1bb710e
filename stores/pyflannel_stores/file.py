"""The file store: a directory of JSON files, for one host or a shared file system. The embedded default.

Nothing runs but the daemons themselves: the file system is the server. Three private modules hold the parts:
``_file_format`` how a record is spelled, ``_file_directory`` the atomic steps on disk and the lock, ``_file_watch`` how
changes are noticed. What is left here is the contract: check under the lock, then take one step.

Time is the wall clock, because an expiry must outlive processes and mean the same on every host. What follows from
that, and everything else an operator must know, is in ``docs/stores/file.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from pyflannel.errors import ConfigError, ConflictError
from pyflannel.store import API_VERSION, CONFIG_KEY, Record, Snapshot, Store, StoreLocation, StoreTime, Watch
from pyflannel_stores._file_directory import LOCK_TIMEOUT, Directory, StoredFile
from pyflannel_stores._file_format import LATEST

if TYPE_CHECKING:
    from pyflannel_stores._file_watch import FileWatch, History

__all__ = ["FileStore"]

FORM: Final = "file:///var/lib/pyflannel"


class FileStore(Store):
    """A store in a directory of this host, or of a file system that all nodes share.

    :param clock: seconds since 1970, as :func:`time.time` tells them.
    """

    api_version: ClassVar[int] = API_VERSION
    scheme: ClassVar[str] = "file"
    node_clocks: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str]] = {
        "create": "make the directory if it is missing: yes (default), or no to wait for a mount",
        "poll": "seconds between two looks at the directory where inotify can't tell of changes (default 1.0)",
        "watch": "how to notice changes: inotify, poll, or auto (default: poll on network file systems)",
    }

    def __init__(self, location: StoreLocation, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(location)
        self._directory = Directory(_path(location), create=_create(location))
        self._inotify = _inotify(location)
        self._interval = _interval(location)
        self._clock = clock
        self._history_made: History | None = None
        self._watches: set[FileWatch] = set()

    @property
    def _history(self) -> History:
        # Made when first needed: its module loads ctypes, which a mere read or write does without.
        if self._history_made is None:
            from pyflannel_stores._file_watch import History

            self._history_made = History()
        return self._history_made

    def expect_existing(self) -> None:
        """Make no directory, no lock and no ``.work`` by reading, and remove nothing that has expired."""
        self._directory.expect_existing()

    def read_config(self) -> Record | None:
        """The network document as ``config.json`` holds it."""
        self._directory.prepare(reading=True)
        stored = self._directory.load(CONFIG_KEY)
        return stored.record(self._clock()) if stored else None

    def write_config(self, value: str, expected: Record | None) -> Record:
        """Write ``config.json``, under the lock."""
        with self._directory.locked():
            stored = self._directory.load(CONFIG_KEY)
            if expected is None:
                return self._create(CONFIG_KEY, value, None, stored)
            return self._replace(self._unchanged(expected, stored), value, None)

    def snapshot(self) -> Snapshot:
        """Read every file while writers wait; what has expired is removed."""
        history = self._history
        with self._directory.locked(shared=True), history.mutex:
            now, identity = self._clock(), self._directory.identity()
            config = self._directory.load(CONFIG_KEY)
            found = list(self._directory.load_leases())
            self._directory.require(identity)
            history.apply(CONFIG_KEY, config, now)
            leases: list[Record] = []
            expired: list[StoredFile] = []
            missing = history.alive() - {CONFIG_KEY}
            for stored in found:
                history.apply(stored.key, stored, now)
                missing.discard(stored.key)
                if stored.expired(now):
                    expired.append(stored)
                else:
                    leases.append(stored.record(now))
            for key in missing:
                history.apply(key, None, now)
            revision = history.revision()
        self._directory.reap(expired, LOCK_TIMEOUT / 8)
        return Snapshot(revision, config.record(now) if config else None, tuple(leases))

    def create(self, key: str, value: str, ttl: float | None) -> Record:
        """Write a new file, by a link that fails if the name is taken."""
        self._check_lease_key(key)
        with self._directory.locked():
            return self._create(key, value, self._expiry(ttl), self._directory.load(key))

    def update(self, record: Record, value: str, ttl: float | None) -> Record:
        """Replace the file if version and life are as the caller knows them."""
        with self._directory.locked():
            stored = self._unchanged(record, self._directory.load(record.key))
            return self._replace(stored, value, None if stored.expires is None else self._expiry(ttl))

    def renew(self, record: Record, ttl: float) -> Record:
        """Replace the file by one with the same value, version and a later ``Expires``."""
        with self._directory.locked():
            stored = self._unchanged(record, self._directory.load(record.key))
            if stored.expires is None:
                return record
            # The old modification time makes it the old version: nobody need be told.
            return self._replace(stored, stored.value, self._expiry(ttl), modified=stored.modified)

    def delete(self, record: Record) -> None:
        """Remove the file if its version is the known one."""
        with self._directory.locked():
            stored = self._directory.load(record.key)
            if stored is None:
                return
            if stored.version != record.version and not stored.expired(self._clock()):
                raise ConflictError(f"file store: {self._directory.path(record.key)} was changed by somebody else")
            self._directory.remove([record.key])

    def watch(self, revision: str) -> Watch:
        """Follow the directory from a revision of this object."""
        from pyflannel_stores._file_watch import FileWatch

        watch = FileWatch(
            self._directory,
            self._history,
            revision,
            inotify=self._inotify,
            interval=self._interval,
            clock=self._clock,
            on_close=self._watches.discard,
        )
        self._watches.add(watch)
        return watch

    def time_to_live(self, records: Iterable[Record]) -> Mapping[str, float | None]:
        """Read ``Expires`` of each record again."""
        now = self._clock()
        left: dict[str, float | None] = {}
        for record in records:
            stored = self._directory.load(record.key)
            left[record.key] = None if stored is None or stored.expires is None else stored.expires - now
        return left

    def clock(self) -> StoreTime | None:
        """Not earlier than the newest file: a writer's clock stood there. ``None`` for a directory without files."""
        newest = self._directory.newest()
        return StoreTime(newest, None, "a lease or the network config that a node wrote") if newest else None

    def close(self) -> None:
        """End all watches; nothing else is held between calls."""
        for watch in tuple(self._watches):
            watch.close()

    def _create(self, key: str, value: str, expires: float | None, stored: StoredFile | None) -> Record:
        """Write a record where ``stored`` was found under the lock."""
        free = stored is None or stored.expired(self._clock())
        written = self._directory.write(key, value, expires, replace=stored is not None) if free else None
        if written is None:
            raise ConflictError(f"file store: {self._directory.path(key)} exists")
        return written.record(self._clock())

    def _replace(self, stored: StoredFile, value: str, expires: float | None, modified: int | None = None) -> Record:
        """Write over ``stored``, which was found under the lock."""
        if modified is None:
            modified = max(time.time_ns() // 1000, stored.modified + 1)
        written = self._directory.write(
            stored.key, value, expires, replace=True, modified=modified, created=stored.created
        )
        if written is None:
            raise ConflictError(f"file store: {self._directory.path(stored.key)} was deleted by hand")
        return written.record(self._clock())

    def _unchanged(self, record: Record, stored: StoredFile | None) -> StoredFile:
        """``stored``, if it is what the caller knows."""
        path = self._directory.path(record.key)
        if stored is None or stored.expired(self._clock()):
            raise ConflictError(f"file store: {path} was deleted or has expired")
        if stored.version != record.version:
            raise ConflictError(f"file store: {path} was changed by somebody else")
        return stored

    def _expiry(self, ttl: float | None) -> float | None:
        return None if ttl is None else min(self._clock() + ttl, LATEST)

    def _check_lease_key(self, key: str) -> None:
        if key == CONFIG_KEY:
            raise ConflictError(
                f"file store: no lease can have the key {CONFIG_KEY!r}, which is the network document's"
            )


def _path(location: StoreLocation) -> str:
    if location.hosts:
        raise ConfigError(f"store {location}: a file store has a path and no host; write it as {FORM}")
    path = location.path.rstrip("/")
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"store {location}: expected the absolute path of a directory, as in {FORM}")
    return path


def _create(location: StoreLocation) -> bool:
    text = location.options.get("create", "yes")
    if text in ("yes", "true", "1"):
        return True
    if text in ("no", "false", "0"):
        return False
    raise ConfigError(f"store {location}: create is {text!r}, expected yes or no")


def _inotify(location: StoreLocation) -> bool | None:
    text = location.options.get("watch", "auto")
    try:
        return {"auto": None, "inotify": True, "poll": False}[text]
    except KeyError:
        raise ConfigError(f"store {location}: watch is {text!r}, expected inotify, poll or auto") from None


def _interval(location: StoreLocation) -> float:
    text = location.options.get("poll", "1.0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.01 <= seconds <= 3600:
        raise ConfigError(f"store {location}: poll is {text!r}, expected seconds between 0.01 and 3600")
    return seconds
