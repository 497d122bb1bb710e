"""The measuring tools that run inside a lab's namespaces; a script, started by path, that needs only the interpreter.

Each tool is one subcommand. Those that go on until told otherwise end when their standard input ends, so that they
can't outlive whoever started them.

* ``reach SECONDS ADDRESS...``: ping all addresses side by side until each has answered or the time is over; prints a
  JSON object of address to round-trip time in milliseconds, or null.
* ``ping INTERVAL ADDRESS``: ping until stopped; prints ``reply SEQUENCE`` for every answer and at the end
  ``sent COUNT``, after waiting a second for answers under way. The sequence numbers don't wrap: they travel as
  payload.
* ``sink``: print a TCP port of all addresses, accept one connection, read it to its end, print the count of bytes and
  the seconds from the first byte to the last as JSON.
* ``source ADDRESS PORT SECONDS``: send zeros to it for so long.
* ``capture INTERFACE``: print ``ready`` on standard error, then packets to standard output as a pcap file.

ICMP and ICMPv6 echo: RFC 792, RFC 4443. The pcap file format: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

GRACE = 1.0
"""Seconds to wait for answers under way when a ping is stopped."""

RETRY = 0.25
"""Seconds between requests of ``reach`` to an address that has not answered."""

BUFFER = 4 << 20
"""Bytes for answers that wait for this process to get its turn, which on a busy machine may take a second."""

_ICMP_FILTER = 1  # of linux/icmp.h and linux/icmpv6.h: a bit for each type, set for those that are not wanted
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3
_LINKTYPE_ETHERNET = 1
_SNAPLEN = 262144


class Echo:
    """Echo requests and replies of one address family, told from other processes' by a random token."""

    def __init__(self, version: int) -> None:
        self.version = version
        if version == 4:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self._request, self._reply = 8, 0
            level, types = 255, 1  # SOL_RAW; words of 32 types
        else:
            self.socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self._request, self._reply = 128, 129
            level, types = socket.IPPROTO_ICMPV6, 8
        words = [0xFFFFFFFF & ~(1 << self._reply >> 32 * word) for word in range(types)]
        self.socket.setsockopt(level, _ICMP_FILTER, struct.pack(f"={types}I", *words))
        make_room(self.socket)
        self.socket.setblocking(False)
        self._token = time.monotonic_ns() ^ id(self)

    def send(self, address: str, sequence: int) -> None:
        """Send one request. A refusal (no route, buffer full) is a lost packet, which the missing reply shows."""
        payload = struct.pack("!QQ", self._token & 0xFFFFFFFFFFFFFFFF, sequence)
        packet = struct.pack("!BBHHH", self._request, 0, 0, self._token & 0xFFFF, sequence & 0xFFFF) + payload
        if self.version == 4:  # the kernel fills in ICMPv6's checksum, which covers the addresses
            packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        try:
            self.socket.sendto(packet, (address, 0))
        except OSError:
            return

    def replies(self) -> Iterator[tuple[str, int]]:
        """Address and sequence number of every reply that waits to be read."""
        while True:
            try:
                packet, sender = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about an earlier request
                continue
            if self.version == 4:
                packet = packet[(packet[0] & 15) * 4 :]
            if len(packet) < 24 or packet[0] != self._reply:
                continue
            token, sequence = struct.unpack_from("!QQ", packet, 8)
            if token == self._token & 0xFFFFFFFFFFFFFFFF:
                yield str(sender[0]), sequence


def make_room(receiving: socket.socket) -> None:
    """Let a socket keep what comes while this process waits for its turn."""
    try:
        receiving.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
    except PermissionError:  # not the machine's root
        receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[position : position + 2], "big") for position in range(0, len(data), 2))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def version_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def reach(seconds: float, addresses: list[str]) -> dict[str, float | None]:
    """Ping all addresses until each has answered or ``seconds`` are over."""
    echoes = {version: Echo(version) for version in {version_of(address) for address in addresses}}
    times: dict[str, float | None] = dict.fromkeys(addresses)
    sent: dict[tuple[str, int], float] = {}
    end = time.monotonic() + seconds
    attempt = 0
    while waiting := [address for address, answer in times.items() if answer is None]:
        now = time.monotonic()
        if now >= end:
            break
        for address in waiting:
            sent[address, attempt] = time.monotonic()
            echoes[version_of(address)].send(address, attempt)
        attempt += 1
        until = min(end, now + RETRY)
        while None in times.values() and (left := until - time.monotonic()) > 0:
            readable, _, _ = select.select([echo.socket for echo in echoes.values()], [], [], left)
            arrived = time.monotonic()
            for echo in echoes.values():
                if echo.socket in readable:
                    for address, number in echo.replies():
                        if times.get(address, 0.0) is None and (address, number) in sent:
                            times[address] = (arrived - sent[address, number]) * 1000
    return times


def ping(interval: float, address: str) -> None:
    """Ping until standard input ends, writing down every reply."""
    echo = Echo(version_of(address))
    sent = 0
    due = time.monotonic()
    end = None
    while end is None or time.monotonic() < end:
        now = time.monotonic()
        if end is None and now >= due:
            echo.send(address, sent)
            sent += 1
            due = max(due + interval, now)
        watched = [echo.socket, *([sys.stdin] if end is None else [])]
        readable, _, _ = select.select(watched, [], [], max(0.0, (due if end is None else end) - time.monotonic()))
        if sys.stdin in readable:
            end = time.monotonic() + GRACE
        for _, sequence in echo.replies():
            sys.stdout.write(f"reply {sequence}\n")
            sys.stdout.flush()
    sys.stdout.write(f"sent {sent}\n")


def sink() -> dict[str, float]:
    """Count what one connection brings."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        connection, _ = server.accept()
    buffer = bytearray(1 << 20)
    received = 0
    first = last = 0.0
    with connection:
        while count := connection.recv_into(buffer):
            last = time.monotonic()
            first = first or last
            received += count
    return {"bytes": received, "seconds": last - first}


def source(address: str, port: int, seconds: float) -> None:
    """Send zeros for ``seconds``; gives up on a peer that takes nothing for as long again."""
    block = bytes(1 << 18)
    with socket.create_connection((address, port), timeout=seconds + 5) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.sendall(block)


def capture(interface: str) -> None:
    """Write a pcap file of what passes ``interface`` until standard input ends."""
    output = sys.stdout.buffer
    output.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET))
    output.flush()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as packets:
        make_room(packets)
        packets.bind((interface, _ETH_P_ALL))
        packets.setblocking(False)
        sys.stderr.write("ready\n")
        sys.stderr.flush()
        stopping = False
        while True:
            # What was there before the end of the input still belongs to the capture.
            watched = [packets] if stopping else [packets, sys.stdin]
            readable, _, _ = select.select(watched, [], [], 0 if stopping else None)
            stopping = stopping or sys.stdin in readable
            if packets not in readable:
                if stopping:
                    return
                continue
            packet = packets.recv(_SNAPLEN)
            seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
            output.write(struct.pack("=IIII", seconds, nanoseconds // 1000, len(packet), len(packet)) + packet)
            output.flush()


def main(tool: str, arguments: list[str]) -> None:
    """Run one tool; see the module's docstring."""
    if tool == "reach":
        json.dump(reach(float(arguments[0]), arguments[1:]), sys.stdout)
    elif tool == "ping":
        ping(float(arguments[0]), arguments[1])
    elif tool == "sink":
        json.dump(sink(), sys.stdout)
    elif tool == "source":
        source(arguments[0], int(arguments[1]), float(arguments[2]))
    elif tool == "capture":
        capture(arguments[0])
    else:
        raise SystemExit(f"no such tool: {tool}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
