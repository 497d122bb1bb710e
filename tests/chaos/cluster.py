"""The lab of a run: nodes with real daemons on a real store, the traffic between them, and what both are told.

A daemon that ends is started again after a moment, as a service manager would; containers follow their node's subnet,
as a container runtime would. Everything that happens is put down in a :class:`~.record.History`.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tests.chaos import looks, memory
from tests.chaos.clock import Clock, build
from tests.chaos.plan import ONE_FAMILY, Plan
from tests.chaos.record import ALL, Change, Claim, Death, Hindrance, History, Mood, Outage, Sample

from pyflannel.errors import DaemonError, PyflannelError
from pyflannel.lab import CommandError, Lab, Node, Process
from pyflannel.network.lease import JSON
from pyflannel.show.status import query
from pyflannel.small.interpreter import module_command
from pyflannel.store import CONFIG_KEY

__all__ = ["Cluster", "Member", "document"]

TTL: Final = 180
"""Seconds that a lease lives; it is renewed a minute before its end."""

AGAIN: Final = 1.0
"""Seconds until a daemon that has ended is started again."""

MEMBERS: Final = 3
ASK: Final = 1.5
"""Seconds that a daemon may take to say how it is before it counts as silent."""

MACHINES: Final = 8
"""How many machines in a node's place have addresses of their own; a lease of one that is gone names its address."""

ELSEWHERE: Final = 100
"""What is added to a node's host number when it gets another underlay address."""


def document(backend: str) -> dict[str, JSON]:
    """The network document of a run: both families, where the backend has them."""
    both = {} if backend in ONE_FAMILY else {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    return {"Network": "10.244.0.0/16", **both, "Backend": {"Type": backend}}


class Reader:
    """The lines of a process that runs beside, as documents."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        stream = self.process.proxy.stdout
        assert stream is not None
        for line in stream:
            self._lines.put(json.loads(line))
        self._lines.put({"ended": self.process.words})

    def first(self, timeout: float) -> Mapping[str, Any]:
        return self._lines.get(timeout=timeout)

    def all(self) -> Iterator[Mapping[str, Any]]:
        with suppress(queue.Empty):
            while True:
                document = self._lines.get_nowait()
                if "ended" in document:
                    raise RuntimeError(f"{document['ended']} has ended")
                yield document

    def tell(self, **command: Any) -> None:
        stream = self.process.proxy.stdin
        assert stream is not None
        stream.write(json.dumps(command) + "\n")
        stream.flush()


@dataclass(slots=True, eq=False)
class Member:
    """One node of the run over several lives and machines.

    :param repaired: the life of its daemon, and how many objects that one has put right.
    :param held: faults that keep its daemon down. ``stopped``: that have it stopped.
    :param machines: how many machines there were in its place.
    """

    number: int
    node: Node
    joined: bool = False
    held: int = 0
    stopped: int = 0
    machines: int = 1
    life: int = 0
    ended: float | None = None
    attached: str = ""
    key: str = ""
    foreign: str = ""
    firewall: tuple[str, str] = ("", "")
    repaired: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def node_id(self) -> str:
        """The machine's."""
        return self.name if self.machines == 1 else f"{self.name}-{self.machines}"

    @property
    def netns(self) -> Path:
        return self.node.sandbox.outside(PurePosixPath("/run/netns") / self.name)

    @property
    def alive(self) -> bool:
        """Whether its daemon runs and nothing keeps it from working."""
        return self.joined and not self.held and not self.stopped and self.node.daemon.running


class Cluster:
    """A context manager; :meth:`turn` is to be called all the time."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.history = History(plan)
        self.document = document(plan.backend)
        self.versions = (4, 6) if "IPv6Network" in self.document else (4,)
        self.table: dict[str, str] = {}
        """What the store holds, as its own side tells."""
        self._say = say
        self._begin = time.monotonic()
        self.behind = 0.0
        """Seconds that the plan has waited, so that its faults come one after the other as drawn."""
        self._polled = self._sampled = 0.0
        self._open: tuple[float, list[Any]] = (0.0, [])
        self.pool = ThreadPoolExecutor(6)
        self._pings: Reader | None = None
        self.memory = memory.own()
        """The cgroup below which there are others for daemons."""
        self.groups: list[memory.Group] = []
        self.lab = Lab(nodes=plan.nodes)
        try:
            self.members = [Member(number, node) for number, node in enumerate(self.lab.nodes)]
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def now(self) -> float:
        """Seconds from the beginning of the run."""
        return time.monotonic() - self._begin

    @property
    def planned(self) -> float:
        """The time by the plan."""
        return self.now - self.behind

    def say(self, what: str) -> None:
        """Put down that something happens."""
        self._say(f"{self.now:7.1f} s  {what}")

    @property
    def pings(self) -> Reader:
        """The traffic."""
        assert self._pings is not None
        return self._pings

    # Setting up

    def _start(self) -> None:
        scheme, members = self.plan.store, 0 if self.plan.store == "file" else MEMBERS
        place = self.lab.add_server("store", max(1, members))
        number = int(str(place.ipv4.ip).rpartition(".")[2])
        self.store_addresses = [str(place.ipv4.ip + index) for index in range(max(1, members))]
        assert number + members <= 254
        place.ip(f"address add {address}/24 dev eth0" for address in self.store_addresses[1:])
        disk = place.directory / "disk"
        self.lab.outside(disk).mkdir()
        self._library = place.directory / "clock.so"
        build(self.lab.outside(self._library))
        wrapper = self.clock(self.members[0]).wrapper if scheme == "file" else ()
        words = module_command("tests.chaos.storeside", scheme, str(disk), *self.store_addresses[:members])
        self.store = self._beside(place, [*wrapper, *words], place.directory / "store.log")
        self.disk = self.lab.outside(disk)
        self.url = str(self.store.first(60.0)["url"])
        self._pings = Reader(_python_here(module_command("tests.chaos.pings")))
        self.store.tell(do="document", value=json.dumps(self.document))
        late = {node for node, _ in self.plan.joins}
        there = [member for member in self.members if member.number not in late]
        for member in self.members:
            looks.plant(member.node)
            member.foreign = looks.foreign(member.node)
        for member in there:
            self.join(member)
        for member in there:
            member.node.daemon.wait_ready(peers=len(there) - 1, timeout=90)
        self._begin = time.monotonic()
        self._poll()
        self.history.stored.append(self.stored())

    def _beside(self, place: Node, words: Sequence[str], log: PurePosixPath) -> Reader:
        with self.lab.outside(log).open("w", encoding="utf-8") as said:
            process = place.start(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env={"PYTHONPATH": python_path()}
            )
        return Reader(process)

    def join(self, member: Member) -> None:
        """Start a node's daemon for the first time, or that of the machine in its place."""
        member.joined = True
        member.life += 1
        arguments = ["--lease-ttl", str(TTL), "--subnet-lease-renew-margin", "1"]
        wrapper = self.clock(member).wrapper
        member.node.start_daemon(self.url, None, arguments=arguments, node_id=member.node_id, wrapper=wrapper)

    def clock(self, member: Member) -> Clock:
        """A node's wall clock; all have one where a lease ends by the clock of whoever looks."""
        name = "clock" if self.plan.store == "file" else f"clock-{member.name}"
        shift = self._library.with_name(name)
        clock = Clock(self._library, shift, self.lab.outside(shift))
        if not clock.outside.exists():
            clock.set(0.0)
        return clock

    # What goes on

    def turn(self) -> None:
        """Hear, ask and supervise whatever is due."""
        self.hear_store()
        self._hear_pings()
        for member in self.members:
            self._supervise(member)
        if self.now - self._polled > 2.0:
            self._polled = self.now
            self._poll()
        if self.now - self._sampled > 10.0:
            self._sampled = self.now
            self.history.samples += self.samples()
            self._look_for_hostile()

    def hear_store(self) -> None:
        """Take in what has become of the store."""
        for told in self.store.all():
            if "key" in told:
                self.history.changes.append(Change(told["at"] - self._begin, told["key"], told["value"]))
                if told["value"] is None:
                    self.table.pop(told["key"], None)
                else:
                    self.table[told["key"]] = told["value"]
            elif "failed" in told:
                self.say(f"on the store's side: {told['failed']}")
            elif "again" in told:
                how = " with an empty disk" if told["emptied"] else ""
                self.say(f"member {told['again']} of the store had ended, and is started again{how}")

    def _hear_pings(self) -> None:
        for told in self.pings.all():
            if "lost" in told:
                self._put_down(told["lost"], told["lost"][4] - self._begin)
            else:
                self._open = told["at"] - self._begin, told["open"]
                self.history.figures |= {"packets": told["sent"], "pinging": told["cpu"] / max(self.now, 1.0)}

    def _put_down(self, gap: Sequence[Any], end: float) -> None:
        source, target, version, begin = gap[:4]
        lost = gap[5] if len(gap) > 5 else round((end + self._begin - begin) / 0.2)
        self.history.outages.append(Outage(source, target, version, begin - self._begin, end, lost))

    def _supervise(self, member: Member) -> None:
        if not member.joined or member.held or member.node.daemon.running:
            member.ended = None
        elif member.ended is None:
            member.ended = self.now
            status = member.node.daemon.process.returncode
            self.say(f"{member.name}: the daemon has ended with status {status}")
            self.history.deaths.append(Death(self.now, member.name, status if status is not None else 0))
        elif self.now - member.ended > AGAIN:
            member.ended = None
            self.start_again(member)

    def start_again(self, member: Member) -> None:
        """Another life of a daemon."""
        member.life += 1
        with suppress(DaemonError):
            member.node.daemon.start()

    def ask(self, member: Member) -> Mapping[str, JSON] | None:
        """A node's status; ``None`` if it says nothing."""
        try:
            return query(member.node.sandbox.outside(member.node.daemon.run_directory), ASK)
        except (PyflannelError, OSError):
            return None

    def _poll(self) -> None:
        asked = [member for member in self.members if member.joined]
        for member, status in zip(asked, self.pool.map(self.ask, asked), strict=True):
            self._take_status(member, status)

    def _take_status(self, member: Member, status: Mapping[str, JSON] | None) -> None:
        state, message = ("silent", "") if status is None else (str(status["state"]), str(status["message"]))
        message = re.sub(r"\d+(\.\d+)? s\b", "... s", message)
        last = next((mood for mood in reversed(self.history.moods) if mood.node == member.name), None)
        if last is None or (last.state, last.message) != (state, message):
            self.history.moods.append(Mood(self.now, member.name, state, message))
        if status is None:
            return
        self._count_repairs(member, int(status["repaired"]) + int(status["firewall"]["repaired"]))
        if status["lease"] is None:
            return
        lease = status["lease"]
        if state != "conflict" and (lease["expires_in"] is None or lease["expires_in"] > 0):
            self.history.claims.append(Claim(self.now, member.name, str(status["node_id"]), lease["key"]))
        member.key = lease["key"]
        self._attach(member)

    def _count_repairs(self, member: Member, repaired: int) -> None:
        before = member.repaired[1] if member.repaired[0] == member.life else 0
        member.repaired = member.life, repaired
        if repaired > before:
            self.history.repairs.append((self.now, member.name, repaired - before))

    def _attach(self, member: Member) -> None:
        """Let the containers follow their node's subnet."""
        try:
            network = member.node.daemon.container_network()
        except (PyflannelError, OSError):
            return
        if str(network) == member.attached:
            return
        try:
            member.node.attach_containers(network)
        except CommandError as error:
            self.say(f"{member.name}: {error}")
            return
        member.attached = str(network)
        container = member.node.containers[0]
        netns = self.lab.outside(PurePosixPath("/run/netns") / container.name)
        addresses = [str(address.ip) for address in container.addresses]
        self.pings.tell(name=member.name, netns=str(netns), addresses=addresses)

    def _look_for_hostile(self) -> None:
        for member in self.members:
            if member.joined:
                self.history.looks += looks.hostile(member.netns, member.name, self.now, self.document)

    def samples(self) -> Iterator[Sample]:
        """What each daemon needs now."""
        for member in self.members:
            if member.alive:
                with suppress(OSError, KeyError):  # it has ended
                    yield _sample(member, self.now)

    def stored(self) -> tuple[float, int, int]:
        """When, how many keys the store has, and how many bytes of its disk are in use."""
        self.hear_store()
        disk = os.statvfs(self.disk)
        return self.now, len(self.table), (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    # Faults

    def hinder(self, member: Member | None, kind: str, what: str, note: str = "") -> int:
        """Something begins to hinder a node, or everybody; the number says what, for :meth:`over`."""
        node = ALL if member is None else member.name
        self.history.hindrances.append(Hindrance(node, kind, what, self.now, float("inf"), note))
        return len(self.history.hindrances) - 1

    def over(self, number: int) -> None:
        """It has ended."""
        self.history.hindrances[number] = replace(self.history.hindrances[number], end=self.now)

    def move(self, member: Member) -> None:
        """Give a node another underlay address: one of two that each machine has for itself."""
        node, host = member.node, member.node.host
        home = host.number + self.plan.nodes * ((member.machines - 1) % MACHINES)
        number = home + (ELSEWHERE if node.ipv4 == host.segment.ipv4_of(home) else 0)
        node.set_address(IPv4Interface(host.segment.ipv4_of(number)))
        node.set_address(IPv6Interface(host.segment.ipv6_of(number)))

    def renew_machine(self, member: Member) -> None:
        """Another machine in a node's place: nothing of ours in its kernel, nothing on its disk, another id."""
        member.node.daemon.kill()
        for worker in workers(member.netns):
            with suppress(ProcessLookupError):
                os.kill(worker, 9)
        member.node.detach_containers()
        member.attached = ""
        looks.wipe(member.node)
        for directory in (member.node.daemon.state_directory, member.node.daemon.run_directory):
            shutil.rmtree(self.lab.outside(directory), ignore_errors=True)
        self.lab.outside(member.node.subnet_file).unlink(missing_ok=True)
        member.machines += 1
        self.move(member)
        self.join(member)

    # The end

    def finish(self) -> History:
        """What was seen, with what goes on still."""
        self.hear_store()
        self._hear_pings()
        at, gaps = self._open
        for gap in gaps:
            self._put_down(gap, at)
        self._open = at, []
        self.history.ended = self.now
        self.history.hindrances = [replace(one, end=min(one.end, self.now)) for one in self.history.hindrances]
        return self.history

    def close(self) -> None:
        """End all that runs."""
        self.pool.shutdown(cancel_futures=True)
        self.lab.close()
        for group in self.groups:
            group.give_back()
        if self._pings is not None:
            self._pings.process.proxy.kill()
            self._pings.process.proxy.wait()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def leases(self) -> dict[str, str]:
        """The leases in the store."""
        return {key: value for key, value in self.table.items() if key != CONFIG_KEY}


def python_path() -> str:
    """Where this tree is, for processes that start elsewhere."""
    root = Path(__file__).parents[2]
    return os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def _python_here(words: Sequence[str]) -> Process:
    """A process that sees the lab's files as this one does."""
    proxy = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": python_path()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Process(proxy, words, "pings")


def _sample(member: Member, now: float) -> Sample:
    process = Path("/proc") / str(member.node.daemon.process.pid)
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    memory = int(fields["VmRSS"].split()[0]) << 10
    descriptors = len(os.listdir(process / "fd"))
    return Sample(now, member.name, member.life, memory, descriptors, int(fields["Threads"]))


def workers(netns: Path) -> list[int]:
    """The processes of data planes in a namespace."""
    inode = netns.stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino == inode and b".worker\0" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return sorted(found)
