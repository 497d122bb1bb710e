"""How the file store notices changes: a history of keys, and a watch that feeds it.

The idea: the history remembers, for each key, only the version last seen and the number of the change that brought it.
A revision is such a number, so "what changed since" is the tail of one ordered dictionary, and a change costs work for
itself alone. Names to look at come from inotify; where that can't see everything (network file systems, FUSE) or does
not exist, from comparing the directory's signatures at an interval. An expiry is a change at a known time.

inotify is reached by ctypes: three system calls, for which no dependency pays.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import logging
import math
import os
import select
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pyflannel.errors import HistoryGoneError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import Batch, Change, Watch
from pyflannel_stores._file_directory import Directory, Signature, StoredFile, failure

__all__ = ["FileWatch", "History", "sees_all_changes"]

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds after which a watch looks whether the directory is still the same and the clock has been set."""

REAP_TIMEOUT: Final = 0.5
"""Seconds that a watch waits for the lock to remove what has expired; a snapshot or another process does it else."""

KEPT_DELETIONS: Final = 4096
"""Deleted keys that the history remembers; resuming from before the oldest forgotten one is refused."""


@dataclass(slots=True)
class _Seen:
    """A key's state: which change brought it, and what tells it from the next. No version: it is gone."""

    change: int
    version: str | None
    expires: float | None
    signature: Signature | None
    settled: bool


class History:
    """What one store object has seen of its directory, in the order of the last change of each key.

    Shared by the thread that takes snapshots and those that watch: hold ``mutex`` around every use.
    """

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self._origin = os.urandom(6).hex()
        self._latest = 0
        self._forgotten = 0
        self._keys: dict[str, _Seen] = {}
        self._deletions = 0
        self._expiries: list[tuple[float, str]] = []

    @property
    def latest(self) -> int:
        """The number of the last change."""
        return self._latest

    def revision(self) -> str:
        """The revision after the last change."""
        return f"{self._origin}.{self._latest}"

    def number(self, revision: str) -> int | None:
        """The change that a revision stands for, ``None`` if this object never gave it."""
        origin, _, number = revision.partition(".")
        if origin != self._origin or not number.isdecimal() or int(number) > self._latest:
            return None
        return int(number)

    def since(self, number: int) -> list[str]:
        """The keys changed after a change, oldest first.

        :raises HistoryGoneError: some of them are forgotten.
        """
        if number < self._forgotten:
            raise HistoryGoneError(f"file store: deletions after change {number} are forgotten; take a new snapshot")
        keys = []
        for key in reversed(self._keys):
            if self._keys[key].change <= number:
                break
            keys.append(key)
        keys.reverse()
        return keys

    def apply(self, key: str, stored: StoredFile | None, now: float) -> None:
        """Note what a key's file holds now; it is a change if version or permanence differ."""
        seen = self._keys.get(key)
        alive = stored is not None and not stored.expired(now)
        version = stored.version if stored is not None and alive else None
        expires = stored.expires if stored is not None and alive else None
        if seen is None and version is None:
            return
        if seen is None or seen.version != version or (seen.expires is None) != (expires is None):
            self._latest += 1
            self._keys.pop(key, None)
            self._deletions += (version is None) - (seen is not None and seen.version is None)
            self._keys[key] = seen = _Seen(self._latest, None, None, None, False)
        if expires is not None and expires != seen.expires:
            heapq.heappush(self._expiries, (expires, key))
        seen.version, seen.expires = version, expires
        seen.signature = stored.signature if stored is not None else None
        seen.settled = stored is not None and stored.settled
        self._forget()

    def _forget(self) -> None:
        if self._deletions > 2 * KEPT_DELETIONS:
            gone = [key for key, seen in self._keys.items() if seen.version is None]
            for key in gone[:-KEPT_DELETIONS]:
                self._forgotten = self._keys.pop(key).change
            self._deletions = KEPT_DELETIONS
        if len(self._expiries) > 2 * len(self._keys) + 64:  # mostly of records that were renewed since
            self._expiries = [
                (seen.expires, key) for key, seen in self._keys.items() if seen.version and seen.expires is not None
            ]
            heapq.heapify(self._expiries)

    def alive(self) -> set[str]:
        """The keys that are there."""
        return {key for key, seen in self._keys.items() if seen.version is not None}

    def differing(self, signatures: dict[str, Signature]) -> list[str]:
        """The keys whose files must be read again, given what is on disk: the vanished, then in order of change."""
        changed = []
        for key, signature in signatures.items():
            seen = self._keys.get(key)
            if seen is None or seen.signature != signature or not seen.settled:
                changed.append(key)
        changed.sort(key=lambda key: signatures[key][1])
        return [*(self.alive() - signatures.keys()), *changed]

    def due(self, now: float) -> list[str]:
        """The keys whose expiry has come; told until their new state is applied, so that a failed read loses none."""
        due = []
        while (first := self.next_expiry()) is not None and first <= now:
            due.append(heapq.heappop(self._expiries))
        for item in due:
            heapq.heappush(self._expiries, item)
        return list(dict.fromkeys(key for _, key in due))

    def next_expiry(self) -> float | None:
        """When the next record expires, in seconds since 1970."""
        while self._expiries:
            expires, key = self._expiries[0]
            seen = self._keys.get(key)
            if seen is not None and seen.expires == expires:
                return expires
            heapq.heappop(self._expiries)
        return None


class FileWatch(Watch):
    """Changes of one directory after a revision. The first step is always a full comparison of signatures."""

    def __init__(
        self,
        directory: Directory,
        history: History,
        revision: str,
        *,
        inotify: bool | None,
        interval: float,
        clock: Callable[[], float],
        on_close: Callable[[FileWatch], None],
    ) -> None:
        self._directory = directory
        self._history = history
        self._revision = revision
        self._inotify_wanted = inotify
        self._interval = interval
        self._clock = clock
        self._on_close = on_close
        self._source: _Inotify | None = None
        self._identity: tuple[int, int] | None = None
        self._dirty: dict[str, None] | None = None  # in order of the last event; None: anything may have changed
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._state = threading.Lock()
        self._closed = threading.Event()
        self._iterating = self._released = False

    def __next__(self) -> Batch:
        with self._state:
            if self._closed.is_set():
                raise StopIteration
            self._iterating = True
        try:
            return self._next()
        except StoreDeniedError as error:
            self._disconnect()
            raise StoreUnavailableError(str(error)) from None
        except BaseException:
            self._disconnect()
            raise
        finally:
            with self._state:
                self._iterating = False
                if self._closed.is_set():
                    self._release()

    def close(self) -> None:
        with self._state:
            self._closed.set()
            if self._iterating:
                os.eventfd_write(self._wake, 1)
            else:
                self._release()
        self._on_close(self)

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._disconnect()
            os.close(self._wake)

    def _next(self) -> Batch:
        with self._history.mutex:
            number = self._history.number(self._revision)
        if number is None:
            raise HistoryGoneError(
                f"file store: revision {self._revision!r} is not of this object; take a new snapshot"
            )
        self._connect()
        while (batch := self._collect(number)) is None:
            if not self._wait():
                raise StopIteration
            self._connect()
        self._revision = batch.revision
        return batch

    def _connect(self) -> None:
        """Start to look, once; and see whether we still look at the right directory."""
        if self._identity is not None:
            self._directory.require(self._identity)
            return
        identity = self._directory.identity()
        if self._use_inotify():
            self._source = self._open_inotify()
        self._identity, self._dirty = identity, None

    def _disconnect(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = self._identity = None

    def _use_inotify(self) -> bool:
        if self._inotify_wanted is None:
            return sees_all_changes(self._directory.subnets)
        return self._inotify_wanted

    def _open_inotify(self) -> _Inotify | None:
        try:
            return _Inotify((self._directory.root, self._directory.subnets))
        except OSError as error:
            if self._inotify_wanted is None and error.errno in _NO_INOTIFY:
                log.info("file store: no inotify (%s); polling every %g s", error.strerror, self._interval)
                return None
            if error.errno in _INOTIFY_LIMITS:
                raise StoreUnavailableError(
                    f"file store: no more inotify watches for {self._directory.root}: {error.strerror}; raise the "
                    "sysctls fs.inotify.max_user_instances and max_user_watches, or set the option watch=poll"
                ) from None
            raise failure("watch", self._directory.root, error) from None

    def _collect(self, number: int) -> Batch | None:
        """Bring the history up to date and give what changed after ``number``."""
        if self._dirty is None:
            signatures = self._directory.scan()
            with self._history.mutex:
                self._dirty = dict.fromkeys(self._history.differing(signatures))
        now = self._clock()
        with self._history.mutex:
            found = self._look_at({**dict.fromkeys(self._history.due(now)), **self._dirty}, now)
            found.update(self._look_at([key for key in self._history.since(number) if key not in found], now))
            changes = tuple(self._change(key, found[key], now) for key in self._history.since(number))
            revision = self._history.revision()
        self._dirty = {}
        self._directory.reap((stored for stored in found.values() if stored and stored.expired(now)), REAP_TIMEOUT)
        return Batch(revision, changes) if changes else None

    def _look_at(self, keys: Iterable[str], now: float) -> dict[str, StoredFile | None]:
        found = {key: self._directory.load(key) for key in keys}
        if None in found.values():
            self._directory.require(self._identity)
        for key, stored in found.items():
            self._history.apply(key, stored, now)
        return found

    @staticmethod
    def _change(key: str, stored: StoredFile | None, now: float) -> Change:
        return Change(key, None if stored is None or stored.expired(now) else stored.record(now))

    def _wait(self) -> bool:
        """Block until there may be something to do, and note what; false if the watch was closed."""
        with self._history.mutex:
            expiry = self._history.next_expiry()
        limit = TICK if self._source else self._interval
        timeout = limit if expiry is None else max(0.0, min(limit, expiry - self._clock()))
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._source:
            poll.register(self._source.descriptor, select.POLLIN)
        if self._wake in (descriptor for descriptor, _ in poll.poll(math.ceil(timeout * 1000))):
            return False
        events = self._source.read() if self._source else [(None, "")]
        for directory, name in events:
            if directory is None:
                self._dirty = None
                break
            key = self._directory.key_of_event(directory, name)
            if key is not None and self._dirty is not None:
                self._dirty.pop(key, None)
                self._dirty[key] = None
        return True


# inotify(7), <sys/inotify.h>
_IN_CLOSE_WRITE = 0x8
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100  # the second name of a linked file; of a file being written, the end of writing follows
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_UNMOUNT = 0x2000
_IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_IN_ONLYDIR = 0x1000000
_INTEREST = (
    _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_DELETE_SELF
    | _IN_MOVE_SELF
    | _IN_ONLYDIR
)
_ENDED = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT | _IN_IGNORED
_EVENT = struct.Struct("iIII")

_INOTIFY_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC})
_NO_INOTIFY = _INOTIFY_LIMITS | {errno.ENOSYS}


class _Inotify:
    """The changed names of some directories.

    :raises OSError: the kernel gives none.
    """

    def __init__(self, directories: Iterable[str]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._directories: dict[int, str] = {}
        for directory in directories:
            number = libc.inotify_add_watch(self.descriptor, os.fsencode(directory), _INTEREST)
            if number < 0:
                self.close()
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._directories[number] = directory

    def read(self) -> list[tuple[str | None, str]]:
        """Directory and name of what changed since the last call; no directory: the kernel's queue overflowed.

        :raises StoreUnavailableError: a directory was deleted, moved or unmounted.
        """
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        events: list[tuple[str | None, str]] = []
        offset = 0
        while offset < len(data):
            number, mask, _cookie, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            if mask & _ENDED:
                raise StoreUnavailableError(
                    f"file store: {self._directories.get(number)} was deleted, moved or unmounted"
                )
            events.append((None if mask & _IN_Q_OVERFLOW else self._directories[number], os.fsdecode(name)))
        return events

    def close(self) -> None:
        os.close(self.descriptor)


# <linux/magic.h>, statfs(2): file systems that others can change behind this kernel's back
_REMOTE = frozenset(
    {
        0x6969,  # NFS
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2 and later
        0x517B,  # SMB, the old driver
        0x01021997,  # 9P
        0x65735546,  # FUSE; virtiofs too
        0x00C36400,  # Ceph
        0x5346414F,  # AFS
        0x6B414653,  # kAFS
        0x73757245,  # Coda
        0x564C,  # NCP
        0x0BD00BD0,  # Lustre
        0x47504653,  # GPFS
        0x01161970,  # GFS2
        0x7461636F,  # OCFS2
        0x786F4256,  # VirtualBox shared folders
        0xBACBACBC,  # VMware shared folders
    }
)


def sees_all_changes(path: str) -> bool:
    """Whether every change below ``path`` passes through this kernel, so that inotify reports it."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 64)()  # struct statfs begins with f_type, a word (asm-generic/statfs.h)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise failure("find the file system of", path, OSError(number, os.strerror(number)))
    return buffer[0] & 0xFFFFFFFF not in _REMOTE
