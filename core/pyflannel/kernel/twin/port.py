"""The port of the twin: what the tracker sees of its kernel, in which order writes are done, and what goes wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pyflannel.errors import KernelError
from pyflannel.kernel.links import in_order
from pyflannel.kernel.model import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    KernelObject,
    Key,
    Kind,
    Link,
    Sysctl,
)
from pyflannel.kernel.port import (
    NOTHING,
    SEVERAL,
    ForeignLink,
    ForeignRoute,
    KernelPort,
    Notice,
    Scope,
    Surroundings,
    Write,
    apart,
    following,
    rule_order,
)
from pyflannel.kernel.refusal import (
    refusal,
)
from pyflannel.kernel.twin.others import Others
from pyflannel.kernel.twin.ours import Ours
from pyflannel.network.lease import IPAddress
from pyflannel.network.underlay import Question, Way

__all__ = ["TwinPort"]


class TwinPort(Ours, Others, KernelPort):
    """A kernel port without a kernel; see the package's docstring.

    :param links: the devices that are there from the start, all up unless they say otherwise.
    :param addresses: their addresses.
    :param sysctls: the kernel parameters that exist; writing another fails.
    """

    def __init__(
        self,
        links: Iterable[Link] = (),
        addresses: Iterable[Address] = (),
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(links, addresses, sysctls)
        self.dead: str | None = None
        self.dumps = 0
        """How many dumps were asked for."""
        self.writes: list[Write] = []
        """Every write that was asked for, in the order of the calls."""
        self.refused = 0
        """How many of them were refused because :meth:`fail_next` said so."""
        self._failing: dict[Kind | Key, list[int]] = defaultdict(list)
        self._interrupts = 0

    # the port

    def dump(self, scope: Scope, known: Mapping[Key, KernelObject] = NOTHING) -> dict[Key, KernelObject]:
        self._require_life()
        self.dumps += 1
        self._scope = scope
        if self._interrupts:
            self._interrupts -= 1
            raise KernelError("the kernel's tables changed during each attempt to read them")
        self._pending.changes.clear()
        self._pending.resync = False
        found: dict[Key, KernelObject] = {
            link.key: self._reported(link) for link in self.links.values() if self._in_scope(link)
        }
        found.update((key, item) for key, item in self.addresses.items() if self._owns(item.link))
        found.update((key, item) for key, item in self.neighbours.items() if self._owns(item.link))
        found.update((key, _seen(ways)) for key, ways in self.fdb.items() if self._owns(ways[0].link))
        found.update((key, entry.route) for key, entry in self.routes.items() if self._is_ours(entry))
        found.update((key, rule) for (key, protocol), rule in self.rules.items() if protocol == ROUTE_PROTOCOL)
        found.update((key, route) for key, (route, protocol) in self.labels.items() if protocol == ROUTE_PROTOCOL)
        found.update((key, seen) for key in self.qdiscs if (seen := self._seen_qdisc(key)) is not None)
        found.update((key, item) for key, item in self.wireguard.items() if self._sets(item.link))
        found.update(self.policies)
        for path in scope.sysctls & self.sysctls.keys():
            item = Sysctl(path, self.sysctls[path])
            found[item.key] = item
        return found

    def apply(self, writes: Sequence[Write]) -> Mapping[Key, KernelError]:
        self.writes.extend(writes)
        failures: dict[Key, KernelError] = {}
        creations = [write for write in writes if write.new is not None]
        deletions, last = apart((write for write in writes if write.new is None), creations)
        self._each(_sorted([*deletions, *creations]), failures)
        last = following(last, creations, failures)
        self._each(last, failures)
        self._pending.resync |= bool(last)
        self._announce()
        return failures

    def _each(self, writes: Iterable[Write], failures: dict[Key, KernelError]) -> None:
        for write in writes:
            try:
                self._require_life()
                self._fail_on_request(write)
                self._write(write)
            except KernelError as error:
                failures[write.key] = error
            self.progress()

    def look_around(self) -> Surroundings:
        self._require_life()
        routes = tuple(
            ForeignRoute(entry.route, entry.protocol)
            for entry in self.routes.values()
            if not self._is_ours(entry) and self._in_a_space(entry.route)
        )
        links = []
        for link in self.links.values():
            addresses = tuple(item.interface for item in self.addresses.values() if item.link == link.name)
            near = any(address.ip in space for address in addresses for space in self._scope.spaces)
            if near and not self._in_scope(link):
                links.append(ForeignLink(link, addresses))
        return Surroundings(routes, tuple(links))

    def ask_ways(self, questions: Sequence[Question]) -> list[Way | str]:
        """By the main table alone: nobody has rules here."""
        self._require_life()
        return [self._way(question.address) for question in questions]

    def _way(self, address: IPAddress) -> Way | str:
        routes = [entry.route for entry in self.routes.values() if entry.route.table == MAIN_TABLE]
        fitting = [route for route in routes if address in route.destination]
        best = min(fitting, key=lambda route: (-route.destination.prefixlen, route.effective_metric), default=None)
        if best is None:
            return "unreachable"
        return best.type or "blackhole" if best.link is None else Way(best.link, None, MAIN_TABLE)

    def clear(self, found: Iterable[ForeignRoute | ForeignLink]) -> tuple[KernelError, ...]:
        for item in found:
            if isinstance(item, ForeignLink):
                self._lose_link(item.link.name)
            else:
                self.routes.pop(item.route.key, None)
        self._announce()
        return ()

    def fileno(self) -> int:
        return self._wakeup.fileno()

    def poll(self) -> Notice:
        self._require_life()
        self._wakeup.drain()
        notice, self._pending = self._pending, Notice()
        return notice

    def close(self) -> None:
        """Nothing is open."""

    # what goes wrong

    def fail_next(self, what: Kind | Key, number: int, times: int = 1) -> None:
        """Refuse the next writes of a kind, or under a key, with this errno."""
        self._failing[what].extend([number] * times)

    def lose_notifications(self) -> None:
        """Lose what was not polled yet, as a full socket buffer does; a new dump is asked for."""
        self._pending = Notice(interfaces=set(self.links), resync=True)
        self._announce()

    def interrupt_dumps(self, times: int) -> None:
        """Have the next dumps fail."""
        self._interrupts += times

    def _require_life(self) -> None:
        if self.dead is not None:
            raise KernelError(self.dead)

    def _fail_on_request(self, write: Write) -> None:
        for what in (write.key, write.key[0]):
            numbers = self._failing.get(what)
            if numbers:
                self.refused += 1
                raise refusal(write, numbers.pop(0))


def _sorted(writes: Sequence[Write]) -> Iterator[Write]:
    links = in_order([write for write in writes if isinstance(write.new, Link)], _wanted_link)
    rules = sorted((write for write in writes if write.key[0] is Kind.RULE), key=rule_order)
    others = [write for write in writes if not isinstance(write.new, Link) and write.key[0] is not Kind.RULE]
    yield from sorted([*links, *others, *rules], key=_order)


def _wanted_link(write: Write) -> Link:
    assert isinstance(write.new, Link)
    return write.new


def _order(write: Write) -> tuple[int, int]:
    """Deletions backwards, then creations; addresses, WireGuard's peers and rules go only after others were added."""
    kind = write.key[0]
    if write.new is None and kind not in (Kind.ADDRESS, Kind.WIREGUARD_PEER, Kind.RULE):
        return (0, -kind)
    return (1, 2 * kind + (1 if write.new is None else 0))


def _seen(ways: tuple[FdbEntry, ...]) -> FdbEntry:
    return ways[0] if len(ways) == 1 else replace(ways[0], remote=SEVERAL)
