"""The directory under the file store: its layout, its lock, and every system call that reads or writes it.

::

    config.json               the network document
    subnets/<key>.json        one record per lease
    .work/lock                the lock that writers hold alone and snapshots share (flock: the kernel drops a dead
                              holder's)
    .work/gate                where one waits for that lock, so that many snapshots can't keep a writer out
    .work/<random>            a file being written

The idea: a record changes only by one atomic step (rename, link or unlink) made under the lock, after its content is on
the disk. So a reader of one record needs no lock, a killed writer leaves the old record or the new one, and a file in
``.work`` that the lock's holder did not make is a dead writer's and may go.

A version is the file's modification time, which we set ourselves and which a renewal keeps, and a checksum of the
value. It therefore tells a record from an identical one that was deleted and created anew, and notices an edit by hand.
"""

# One system call a line is the point here, and pathlib is too slow for 5,000 files:
# ruff: noqa: PTH101, PTH102, PTH104, PTH105, PTH108, PTH110, PTH112, PTH114, PTH116, PTH118, PTH120, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from pyflannel.errors import StoreAbsentError, StoreDeniedError, StoreError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Record
from pyflannel_stores._file_format import MAX_FILE, decode, encode, file_name, key_of

__all__ = ["Directory", "Signature", "StoredFile", "failure"]

log = logging.getLogger(__name__)

LOCK_TIMEOUT: Final = 4.0
"""Seconds to wait for the lock; below the contract's CALL_TIMEOUT, to leave time for the work itself."""

SETTLED: Final = 2.0
"""Seconds after which a file's time stamps can be trusted to differ if it is changed again (FAT counts in twos)."""

Signature: TypeAlias = tuple[int, int, int, int]
"""Inode, modification and change time in nanoseconds, size: differs whenever a file was replaced or written."""

_NO_FILES = ("/proc/", "/sys/", "/dev/")
"""Where the kernel shows itself as files."""

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_ADVICE = {
    errno.EACCES: "run as the user who owns the directory, or give this user the right",
    errno.EPERM: "run as the user who owns the directory, or give this user the right",
    errno.EROFS: "the file system is mounted read-only; remount it, or choose another path",
    errno.ENOTDIR: "the path, or a part of it, is not a directory; remove it or choose another path",
    errno.ENOSPC: "free some space; the records there are as they were",
    errno.EDQUOT: "raise the quota; the records there are as they were",
    errno.EIO: "the disk or the file server fails; look at the kernel's log",
    errno.ENOENT: "it was deleted or moved, or its file system is not mounted",
    errno.ENOLCK: "the file server gives no locks; mount it with locking",
}


def failure(doing: str, path: str, error: OSError) -> StoreError:
    """The store error for a failed system call, naming the path, the errno and what to do."""
    kind = StoreDeniedError if error.errno in _DENIED else StoreUnavailableError
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    message = f"file store: can't {doing} {path}: {os.strerror(error.errno or 0)} ({name})"
    advice = _ADVICE.get(error.errno or 0)
    return kind(f"{message}; {advice}" if advice else message)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One record as found on disk, expired or not.

    :param expires: seconds since 1970, ``None``: never.
    :param settled: a later change must show in the signature.
    """

    key: str
    value: str
    version: str
    expires: float | None
    signature: Signature
    settled: bool
    created: int = 0
    """When the record came into being, in microseconds since 1970."""

    @property
    def modified(self) -> int:
        """When the value was last changed, in microseconds since 1970."""
        return self.signature[1] // 1000

    def expired(self, now: float) -> bool:
        """Whether it counts as absent."""
        return self.expires is not None and self.expires <= now

    def record(self, now: float) -> Record:
        """What the core sees of it."""
        if self.expires is None:
            return Record(self.key, self.value, self.version, permanent=True, created=self.created)
        return Record(self.key, self.value, self.version, ttl=self.expires - now, created=self.created)


class Directory:
    """The store's directory; every :class:`OSError` leaves it as a :class:`~pyflannel.errors.StoreError`.

    Once the layout has been seen it is never made again: a directory that vanishes is an outage (an unmounted file
    system shows an empty mount point), not an empty store.
    """

    def __init__(self, root: str, create: bool) -> None:
        self.root = root
        self.subnets = os.path.join(root, "subnets")
        self._config = os.path.join(root, "config.json")
        self._work = os.path.join(root, ".work")
        self._lock = os.path.join(self._work, "lock")
        self._gate = os.path.join(self._work, "gate")
        self._create = create
        self._existing = False
        self._seen = False
        self._strange: set[str] = set()

    def expect_existing(self) -> None:
        """Make no layout, and leave no trace by reading."""
        self._create, self._existing = False, True

    def path(self, key: str) -> str:
        """The file of a key.

        :raises StoreDeniedError: no file can have that key.
        """
        if key == CONFIG_KEY:
            return self._config
        try:
            return os.path.join(self.subnets, file_name(key))
        except ValueError as error:
            raise StoreDeniedError(f"file store {self.root}: key {key[:80]!r} can't be stored: {error}") from None

    def identity(self) -> tuple[int, int]:
        """Which directory this is now; another one after it was replaced.

        :raises StoreUnavailableError: it is not there.
        """
        try:
            found = os.stat(self.subnets)
        except OSError as error:
            if self._existing and not self._seen and error.errno == errno.ENOENT:
                raise self._absent() from None
            raise failure("find", self.subnets, error) from None
        return found.st_dev, found.st_ino

    def _absent(self) -> StoreError:
        what = "is not a store: nothing named 'subnets' is in it" if os.path.isdir(self.root) else "does not exist"
        return StoreAbsentError(
            f"file store: the directory {self.root} {what}; correct --store, or let 'pyflannel config set' or a first "
            "daemon make a store there"
        )

    def require(self, identity: tuple[int, int] | None) -> None:
        """See that it still is the directory of this :meth:`identity`: what was not found there may only have moved.

        :raises StoreUnavailableError: it is another one, or not there.
        """
        if self.identity() != identity:
            raise StoreUnavailableError(f"file store: {self.root} was replaced by another directory")

    def prepare(self, reading: bool = False) -> None:
        """Make the layout where it is missing, if we may; afterwards only see that it is still there."""
        if self._seen or not self._create:
            self.identity()
        else:
            self._make(self.root)
            self._make(self.subnets)
        if not (reading and self._existing):
            self._make(self._work)
        self._seen = True

    def _make(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        try:
            if not os.path.exists(parent):
                self._make(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                os.chmod(path, 0o700)  # whatever the umask
                _sync_directory(parent)
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, "", path)
        except OSError as error:
            raise failure("make the directory", path, error) from None

    @contextlib.contextmanager
    def locked(self, shared: bool = False, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the lock, alone or with other readers.

        :raises StoreUnavailableError: it can't be had in time.
        """
        if shared and self._existing:
            self.prepare(reading=True)
            if not (os.path.exists(self._gate) and os.path.exists(self._lock)):  # nobody has written with a lock yet
                yield
                return
        descriptor = self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + timeout)
        try:
            yield
        finally:
            _unlock(descriptor)

    def _acquire(self, kind: int, deadline: float) -> int:
        while True:
            self.prepare(reading=kind == fcntl.LOCK_SH)
            gate = self._lock_file(self._gate, kind, deadline)
            try:
                descriptor = self._lock_file(self._lock, kind, deadline)
            finally:
                _unlock(gate)
            if _same_file(descriptor, self._lock):
                return descriptor
            _unlock(descriptor)  # the directory was replaced while we waited: that lock guards nothing now

    def _lock_file(self, path: str, kind: int, deadline: float) -> int:
        # NFS wants a descriptor open for writing for LOCK_EX (flock(2)); a read-only file system gives only the other.
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_RDONLY if kind == fcntl.LOCK_SH else os.O_RDWR)
        try:
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                descriptor = os.open(path, flags | os.O_CREAT, 0o600)
                os.fchmod(descriptor, 0o600)
        except OSError as error:
            raise failure("open the lock", path, error) from None
        try:
            _wait_for_lock(descriptor, path, kind, deadline)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def load(self, key: str) -> StoredFile | None:
        """Read one record, expired or not; ``None`` if there is no file."""
        return self._read(self.path(key), key)

    def _read(self, path: str, key: str) -> StoredFile | None:
        try:
            place = self._file_of(path)
            if place is None:
                return None
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    return None
                data = _read_all(descriptor, found.st_size)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket since we looked: no record
                return None
            raise failure("read", path, error) from None
        value, expires, created = decode(data, expiring=key != CONFIG_KEY)
        return StoredFile(
            key,
            value,
            _version(found.st_mtime_ns, value),
            expires,
            _signature(found),
            time.time_ns() - found.st_ctime_ns > SETTLED * 1e9,
            round(created * 1_000_000) if created is not None else found.st_mtime_ns // 1000,
        )

    def _file_of(self, path: str) -> str | None:
        """Where the record at ``path`` is: there, or where a link leads; ``None``, named once, if that is no file.

        It is looked at before it is opened, which alone may do something to a device; and what the kernel shows as
        files, such as its log, is none.

        :raises FileNotFoundError: nothing is there.
        """
        mode, target = os.lstat(path).st_mode, path
        if stat.S_ISLNK(mode):
            target = os.path.realpath(path)
            mode = 0 if os.path.islink(target) or target.startswith(_NO_FILES) else os.stat(target).st_mode
        if stat.S_ISREG(mode):
            return target
        if path not in self._strange:
            self._strange.add(path)
            log.warning("file store: %s is not a file and does not lead to one; ignored", path)
        return None

    def load_leases(self) -> Iterator[StoredFile]:
        """Read every lease. Hold the lock: a listing may miss a file that is replaced meanwhile."""
        prefix = self.subnets + "/"
        for name in self._names():
            key = self._key_of(name)
            if key is not None:
                stored = self._read(prefix + name, key)
                if stored is not None:
                    yield stored

    def scan(self) -> dict[str, Signature]:
        """The signature of every record's file, the network document's included.

        Needs no lock if the caller looks again at what seems to be missing.
        """
        signatures: dict[str, Signature] = {}
        try:
            with os.scandir(self.subnets) as entries:
                for entry in entries:
                    key = self._key_of(entry.name)
                    if key is not None:
                        self._note(signatures, key, entry)
            self._note(signatures, CONFIG_KEY, self._config)
        except OSError as error:
            raise failure("list", self.subnets, error) from None
        return signatures

    def _note(self, signatures: dict[str, Signature], key: str, place: os.DirEntry[str] | str) -> None:
        """Add the signature of a record's file, if there is one."""
        with contextlib.suppress(FileNotFoundError):  # gone by now
            if isinstance(place, os.DirEntry) and place.is_file(follow_symlinks=False):
                signatures[key] = _signature(place.stat(follow_symlinks=False))
            elif (file := self._file_of(os.fspath(place))) is not None:
                signatures[key] = _signature(os.stat(file))

    def newest(self) -> float:
        """When the newest record was written, by its writer's clock; 0 if there is none. Changes nothing.

        :raises StoreUnavailableError: the directory can't be read.
        """
        times = [modified for _, modified, *_ in self.scan().values()]
        return max(times, default=0) / 1e9

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.subnets)
        except OSError as error:
            raise failure("list", self.subnets, error) from None

    def _key_of(self, name: str) -> str | None:
        key = key_of(name)
        if key is not None and key != CONFIG_KEY:
            return key
        if not name.startswith(".") and not name.endswith("~") and name not in self._strange:
            self._strange.add(name)
            log.warning(
                "file store: %s is not named as a lease would be (<key>.json); ignored", self.subnets + "/" + name
            )
        return None

    def key_of_event(self, directory: str, name: str) -> str | None:
        """The key that a changed file in ``directory`` belongs to."""
        if directory == self.root:
            return CONFIG_KEY if name == "config.json" else None
        return self._key_of(name)

    def write(
        self,
        key: str,
        value: str,
        expires: float | None,
        *,
        replace: bool,
        modified: int | None = None,
        created: int | None = None,
    ) -> StoredFile | None:
        """Write a record under the lock. It is on the disk when this returns.

        :param replace: put it in place of what is there; otherwise give ``None`` if there is something.
        :param modified: its modification time in microseconds since 1970; now, if ``None``.
        :param created: when it came into being, in the same unit; when it was modified, if ``None``.
        """
        path = self.path(key)
        expiring = key != CONFIG_KEY
        since = created / 1_000_000 if created not in (None, modified) and expiring else None
        data = encode(value, expires, expiring, since)
        if len(data) > MAX_FILE:
            raise StoreDeniedError(f"file store: {path} would have {len(data)} bytes, the limit is {MAX_FILE}")
        self._clear_work()
        temporary = os.path.join(self._work, os.urandom(8).hex())
        try:
            _write_file(temporary, data, time.time_ns() // 1000 if modified is None else modified)
            if replace:
                os.replace(temporary, path)
            elif not _link(temporary, path):
                return None
            _sync_directory(os.path.dirname(path))
        except OSError as error:
            if replace:
                raise failure("write", path, error) from None
            # Who tries again may do so with another key: that is the same trouble, and is not to be told as a new one.
            raise failure("write to", os.path.dirname(path), error) from None
        finally:
            with contextlib.suppress(OSError):  # it is in its place; or the next writer removes it
                os.unlink(temporary)
        return self._read(path, key)

    def _clear_work(self) -> None:
        """Remove what dead writers have left. What can't be, such as a directory, is in nobody's way."""
        try:
            left = set(os.listdir(self._work)) - {"gate", "lock"}
        except OSError as error:
            raise failure("clean", self._work, error) from None
        for name in left:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._work, name))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete records under the lock."""
        try:
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(key))
            _sync_directory(self.subnets)
        except OSError as error:
            raise failure("delete from", self.subnets, error) from None

    def reap(self, expired: Iterable[StoredFile], timeout: float) -> None:
        """Remove records that were seen to be expired, if they are still the same.

        Whether they are expired was decided when they were seen; the clock is not asked again, so that it can't
        bring back what somebody has been told is gone. Failing does no harm: an expired record counts as absent
        wherever it is met, and whoever meets it tries again.
        """
        left = [] if self._existing else [stored for stored in expired if self._unchanged(stored)]
        if left:
            with contextlib.suppress(StoreError), self.locked(timeout=timeout):
                self.remove(stored.key for stored in left if self._unchanged(stored))

    def _unchanged(self, stored: StoredFile) -> bool:
        found = self.load(stored.key)
        return found is not None and (found.version, found.expires) == (stored.version, stored.expires)


def _version(modified_ns: int, value: str) -> str:
    return f"{modified_ns // 1000:x}-{zlib.crc32(value.encode('utf-8', 'surrogatepass')):08x}"


def _signature(found: os.stat_result) -> Signature:
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _wait_for_lock(descriptor: int, path: str, kind: int, deadline: float) -> None:
    delay = 0.0005
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise failure("lock", path, error) from None
        if time.monotonic() > deadline:
            raise StoreUnavailableError(
                f"file store: {path} is locked by other processes for too long; see who they are with 'fuser -v {path}'"
            )
        time.sleep(delay)
        delay = min(2 * delay, 0.008)


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a forked child's copy
    os.close(descriptor)


def _same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _read_all(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, min(size, MAX_FILE) + 1)
    if len(data) <= size:
        return data
    chunks = [data]  # it grew since we asked for its size
    length = len(data)
    while length <= MAX_FILE and (data := os.read(descriptor, 65536)):
        chunks.append(data)
        length += len(data)
    return b"".join(chunks)


def _write_file(path: str, data: bytes, modified: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.utime(descriptor, ns=(modified * 1000, modified * 1000))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: str, path: str) -> bool:
    """Give ``temporary`` its place unless it is taken. A link does that even where locks don't reach other hosts."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):  # no hard links here (FAT, some FUSE): the lock has to do
            return False
        os.rename(temporary, path)
    return True


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
