"""Nothing that a plugin raises gets further than its own call, and its publish and act never run at one time."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from pyflannel.backend import Backend, NetworkConfig, Node, PeerRejected, Published, Subnets, Underlay
from pyflannel.errors import ConfigError, ConflictError, DaemonError, KernelError, PluginError, PyflannelError
from pyflannel.planning import guard
from pyflannel.planning.guard import Bounded, Publisher, checked_mtu, examined, exclusive, guarded

PATIENCE = 60.0
NODE = Node(
    "node-1",
    NetworkConfig.from_json('{"Network": "10.5.0.0/16", "Backend": {"Type": "odd"}}'),
    Underlay("eth0", 1500, IPv4Address("192.0.2.1"), public_ipv4=IPv4Address("192.0.2.1")),
    Subnets(IPv4Network("10.5.1.0/24")),
)


class Odd(Backend[Any]):
    """Its publish does what a test says."""

    name = "odd"

    def __init__(self, publish: Callable[[], Published] = Published) -> None:
        super().__init__(None)
        self.on_publish = publish

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu

    def publish(self, node: Node) -> Published:
        return self.on_publish()


class Mute(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise SystemExit("not even this")


def raising(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


JUNK: dict[str, tuple[BaseException, str]] = {
    "an exception": (ZeroDivisionError("oops"), "ZeroDivisionError: oops"),
    "exit": (SystemExit(3), "SystemExit: 3"),
    "a generator's end": (GeneratorExit(), "GeneratorExit"),
    "an iterator's end": (StopIteration(), "StopIteration"),
    "a text that can't be made": (Mute(), "Mute: its text can't be made"),
    "a long text": (ValueError("x" * 9999), "x..."),
}


@pytest.mark.parametrize(("error", "reason"), JUNK.values(), ids=JUNK.keys())
@pytest.mark.parametrize("call", [guarded, Bounded(PATIENCE)], ids=["in this thread", "in its own"])
def test_whatever_a_plugin_raises_is_named_and_goes_no_further(call: Any, error: BaseException, reason: str) -> None:
    with pytest.raises(PluginError) as caught:
        call("odd", "renew", raising(error), "store")
    said = str(caught.value)
    assert said.startswith("store 'odd' failed in renew: ")
    assert said.endswith(reason)
    assert len(said) < 600


@pytest.mark.parametrize("error", [PeerRejected("no"), KernelError("no"), ConfigError("no"), PluginError("no")])
@pytest.mark.parametrize("call", [guarded, Bounded(PATIENCE)], ids=["in this thread", "in its own"])
def test_what_the_contract_knows_passes_as_it_is(call: Any, error: PyflannelError) -> None:
    with pytest.raises(PyflannelError) as caught:
        call("odd", "publish", raising(error))
    assert caught.value is error


class MuteRejection(Mute, PeerRejected):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MuteRejection("no"), PeerRejected, "MuteRejection: its text can't be made"),
        (PeerRejected("no" * 99999), PeerRejected, f"{'no' * 2000}..."),
        (ConflictError(Mute()), ConflictError, "ConflictError: its text can't be made"),
    ],
    ids=["its class can't tell its text", "a text without end", "what it was given can't tell its text"],
)
def test_what_the_contract_knows_is_told_whatever_its_text(
    error: PyflannelError, kind: type[PyflannelError], said: str
) -> None:
    with pytest.raises(PyflannelError) as caught:
        guarded("odd", "plan_peer", raising(error))
    assert type(caught.value) is kind
    assert str(caught.value) == said


def test_an_operators_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        guarded("odd", "plan_peer", raising(KeyboardInterrupt()))


def test_in_another_thread_an_interrupt_is_the_plugins() -> None:
    with pytest.raises(PluginError, match=r"^backend 'odd' failed in plan_peer: KeyboardInterrupt$"):
        Bounded(PATIENCE)("odd", "plan_peer", raising(KeyboardInterrupt()))


def test_one_reason_has_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, guarded.__module__)
    for text in ("a", "a", "b", "b"):
        with pytest.raises(PluginError):
            guarded("odd one", "check", raising(ValueError(text)))
    assert [record.getMessage()[-1] for record in caplog.records] == ["a", "b"]
    assert all(record.exc_info and record.levelno == logging.DEBUG for record in caplog.records)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_an_action_is_refused_while_publish_runs(gate: threading.Event) -> None:
    inside = threading.Event()

    def hang() -> Published:
        inside.set()
        gate.wait(PATIENCE)
        return Published("done")

    backend, answers = Odd(hang), []
    thread = threading.Thread(target=lambda: answers.append(Publisher(PATIENCE)(backend, NODE)))
    thread.start()
    assert inside.wait(PATIENCE)
    with (
        pytest.raises(DaemonError, match="rotate has to wait: backend 'odd' has not come back from publish"),
        exclusive(backend, "rotate", patience=0.01),
    ):
        pytest.fail("both at one time")
    with exclusive(Odd(), "rotate", patience=0.01):
        pass  # another backend is not held up
    gate.set()
    thread.join(PATIENCE)
    assert answers == [Published("done")]
    with exclusive(backend, "rotate", patience=0.01):
        pass


def test_publish_waits_for_an_action() -> None:
    events = []

    def publish() -> Published:
        events.append("publish")
        return Published()

    backend = Odd(publish)
    with exclusive(backend, "rotate"):
        with pytest.raises(PluginError, match="has not come back from publish"):
            Publisher(timeout=0.01)(backend, NODE)
        events.append("acted")
    with exclusive(backend, "another"):
        pass
    Publisher(PATIENCE)(backend, NODE)
    assert events[0] == "acted"


@pytest.mark.parametrize("beats", [True, False])
def test_who_comes_a_step_further_is_waited_for_as_long_again(beats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps take 45 s each by the clock; the limit is 60 s."""
    now, steps, done = [1000.0], threading.Semaphore(0), threading.Semaphore(0)
    bounded = Bounded(60)

    def work() -> str:
        for _ in range(5):
            assert steps.acquire(timeout=PATIENCE)
            if beats:
                bounded.beat()
            done.release()
        return "done"

    class Stepping(guard._Call):
        def join(self, timeout: float | None = None) -> None:
            now[0] += 45
            steps.release()
            assert done.acquire(timeout=PATIENCE)
            if now[0] >= 1225:
                super().join(PATIENCE)

    monkeypatch.setattr(guard, "_Call", Stepping)
    monkeypatch.setattr("pyflannel.planning.guard.time.monotonic", lambda: now[0])
    if beats:
        assert bounded("odd", "planning", work) == "done"
    else:
        with pytest.raises(PluginError, match=r"^backend 'odd' has not come back from planning for 90 s$"):
            bounded("odd", "planning", work)
        steps.release(5)


def test_a_backend_that_is_gone_leaves_nothing_behind() -> None:
    gc.collect()  # what other tests have left
    before = len(guard._turns)
    backend = Odd()
    with exclusive(backend, "rotate"):
        assert len(guard._turns) == before + 1
    del backend
    gc.collect()
    assert len(guard._turns) == before


class Untold:
    """What has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Undone(dict[str, int]):
    """An object of JSON to look at, and no more."""

    def items(self) -> Any:
        raise LookupError("nothing here")


@pytest.mark.parametrize(("answer", "said"), [(Untold(), "a Untold whose text can't be made"), ("x" * 9999, "xxx...")])
def test_an_answer_that_is_none_is_named_whatever_its_text(answer: Any, said: str) -> None:
    for call in (
        lambda: checked_mtu("odd", answer),
        lambda: examined("odd", (answer,), NODE, ()),
        lambda: Publisher()(Odd(lambda: answer), NODE),
    ):
        with pytest.raises(PluginError) as caught:
            call()
        assert said in str(caught.value)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("data", "said"), [(Untold(), "TypeError: Object of type Untold"), (Undone(a=1), "LookupError: nothing here")]
)
def test_what_is_published_and_is_no_json_is_named(data: Any, said: str) -> None:
    with pytest.raises(PluginError, match=f"^backend 'odd' published what is not JSON: {said}"):
        Publisher()(Odd(lambda: Published(data)), NODE)
