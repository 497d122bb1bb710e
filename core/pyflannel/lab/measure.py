"""What one measures in a lab: reachability of all pairs, loss over time, throughput, the packets themselves.

The tools of :mod:`pyflannel.lab.probe` run inside the namespaces; this module starts them and reads what they print.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final

from pyflannel.lab.sandbox import CommandError, Namespace, Process

__all__ = ["Capture", "Loss", "Matrix", "Pair", "Ping", "Throughput"]

_PROBE: Final = Path(__file__).with_name("probe.py")


def _probe(*words: str) -> list[str]:
    # Isolated and without site: the interpreter starts in 10 ms, and nothing of the caller's environment matters.
    return [sys.executable, "-I", "-S", "-B", str(_PROBE), *words]


@dataclass(frozen=True, slots=True)
class Pair:
    """One direction between two containers: names, the address pinged, milliseconds or ``None`` for no answer."""

    source: str
    target: str
    address: str
    milliseconds: float | None

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4


@dataclass(frozen=True, slots=True)
class Matrix:
    """Who reaches whom."""

    names: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def failed(self) -> tuple[Pair, ...]:
        """The pairs without an answer."""
        return tuple(pair for pair in self.pairs if pair.milliseconds is None)

    @property
    def complete(self) -> bool:
        """Whether there was something to measure and every pair answered."""
        return bool(self.pairs) and not self.failed

    @property
    def versions(self) -> tuple[int, ...]:
        """The address families measured."""
        return tuple(sorted({pair.version for pair in self.pairs}))

    def of(self, version: int) -> Mapping[tuple[str, str], float | None]:
        """(source, target) to milliseconds, in one family."""
        return {(pair.source, pair.target): pair.milliseconds for pair in self.pairs if pair.version == version}


def measure_row(source: Namespace, addresses: Mapping[str, tuple[str, ...]], timeout: float) -> tuple[Pair, ...]:
    """Ping from ``source`` to all addresses of the others, in the families it has; ``addresses`` by name.

    :param timeout: seconds within which an address must have answered one of several pings.
    """
    own_versions = {_version(address) for address in addresses[source.name]}
    targets = {
        address: name
        for name, its in addresses.items()
        for address in its
        if name != source.name and _version(address) in own_versions
    }
    if not targets:
        return ()
    output = source.run(_probe("reach", str(timeout), *targets), timeout=timeout + 60).stdout
    return tuple(Pair(source.name, targets[address], address, answer) for address, answer in json.loads(output).items())


def _version(address: str) -> int:
    return 6 if ":" in address else 4


@dataclass(frozen=True, slots=True)
class Throughput:
    """What one TCP connection carried."""

    source: str
    target: str
    bytes: int
    seconds: float

    @property
    def bits_per_second(self) -> float:
        """The rate, from the first byte's arrival to the last one's."""
        return self.bytes * 8 / self.seconds if self.seconds else 0.0


def measure_throughput(source: Namespace, target: Namespace, address: str, seconds: float) -> Throughput:
    """Send from ``source`` to ``address`` of ``target`` for so many seconds.

    :raises CommandError: no connection, or it broke.
    """
    sink = target.start(_probe("sink"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with sink.proxy:
        try:
            assert sink.proxy.stdout is not None
            if not (port := sink.proxy.stdout.readline().strip()):
                raise CommandError(f"{target.name}: the receiver of the throughput test did not start")
            source.run(_probe("source", address, port, str(seconds)), timeout=seconds + 60)
            output, errors = sink.proxy.communicate(timeout=60)
        except BaseException:
            sink.kill()
            raise
    if sink.returncode:
        raise CommandError(f"{target.name}: the receiver of the throughput test failed: {errors.strip()}")
    result = json.loads(output)
    return Throughput(source.name, target.name, result["bytes"], result["seconds"])


@dataclass(frozen=True, slots=True)
class Loss:
    """The account of a ping: packets sent, answered, lost and answered twice.

    ``longest_gap`` is the longest run of packets lost in a row, ``interval`` the seconds between two of them.
    """

    sent: int
    received: int
    duplicates: int
    longest_gap: int
    interval: float

    @property
    def lost(self) -> int:
        """Packets without an answer."""
        return self.sent - self.received


class Ping:
    """Pings from one machine to one address for as long as one likes. Also a context manager, which stops it."""

    def __init__(self, source: Namespace, address: str, interval: float, log: PurePosixPath) -> None:
        self.source = source
        self.address = address
        self.interval = interval
        self._log = source.sandbox.outside(log)
        with self._log.open("w", encoding="ascii") as output:
            self._process = source.start(
                _probe("ping", str(interval), address), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE
            )
        self._loss: Loss | None = None

    @property
    def replies(self) -> int:
        """Packets answered until now."""
        return len(set(self._sequences()))

    def wait_replies(self, count: int, timeout: float = 30.0) -> None:
        """Wait for ``count`` more answers.

        :raises CommandError: they did not come in time.
        """
        target = self.replies + count
        deadline = time.monotonic() + timeout
        while self.replies < target:
            if time.monotonic() > deadline:
                raise CommandError(
                    f"{self.source.name}: {self.address} answered {self.replies} pings in all, "
                    f"not {target}, after {timeout:g} s"
                )
            time.sleep(self.interval / 2)

    def stop(self) -> Loss:
        """Stop, wait a second for answers under way, and account for every packet. Idempotent.

        :raises CommandError: the ping itself failed.
        """
        if self._loss is None:
            _end_input(self._process)
            sent = 0
            for line in self._log.read_text(encoding="ascii").splitlines():
                if line.startswith("sent "):
                    sent = int(line.split()[1])
            times = Counter(self._sequences())
            self._loss = Loss(
                sent=sent,
                received=len(times),
                duplicates=times.total() - len(times),
                longest_gap=longest_gap(sent, set(times)),
                interval=self.interval,
            )
        return self._loss

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the packets that were lost, counted from 0; stops it."""
        return tuple(sorted(set(range(self.stop().sent)) - set(self._sequences())))

    def _sequences(self) -> list[int]:
        lines = self._log.read_text(encoding="ascii").splitlines(keepends=True)
        return [int(line.split()[1]) for line in lines if line.startswith("reply ") and line.endswith("\n")]

    def __enter__(self) -> Ping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def longest_gap(sent: int, answered: set[int]) -> int:
    longest = current = 0
    for sequence in range(sent):
        current = 0 if sequence in answered else current + 1
        longest = max(longest, current)
    return longest


class Capture:
    """A recording of what passes one interface. Also a context manager, which stops it."""

    def __init__(self, source: Namespace, interface: str, file: PurePosixPath) -> None:
        self.source = source
        self.path = source.sandbox.outside(file)
        """The pcap file, as seen from outside, as long as the lab lives."""
        with self.path.open("w", encoding="latin-1") as output:
            self._process = source.start(
                _probe("capture", interface), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE
            )
        errors = self._process.proxy.stderr
        assert errors is not None
        answer = errors.readline()
        if answer != "ready\n":
            _end_input(self._process, answer)

    def stop(self) -> tuple[bytes, ...]:
        """Stop, and return the frames, each from its Ethernet header on. Idempotent."""
        _end_input(self._process)
        return read_pcap(self.path)

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def read_pcap(path: Path) -> tuple[bytes, ...]:
    """The packets of a pcap file in this machine's byte order."""
    data = path.read_bytes()
    frames = []
    position = 24
    while position < len(data):
        length = struct.unpack_from("=I", data, position + 8)[0]
        frames.append(data[position + 16 : position + 16 + length])
        position += 16 + length
    return tuple(frames)


def _end_input(process: Process, said: str = "") -> None:
    """End a tool's standard input and wait for its end.

    :raises CommandError: it failed.
    """
    if process.proxy.stderr is None or process.proxy.stderr.closed:
        return
    with process.proxy:
        errors = said + process.proxy.communicate(timeout=60)[1]
    if process.returncode:
        raise CommandError(f"{process.where}: {' '.join(process.words)}: {errors.strip()}")
