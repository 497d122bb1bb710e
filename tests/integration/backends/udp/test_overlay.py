"""Two nodes on real kernels: packets get through as they were; whatever dies comes back, the overlay stays."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.competing import competitors
from tests.integration.backends.udp.conftest import MakeOverlay, Node, Overlay, run
from tests.integration.backends.udp.transfer import MEBIBYTE, Transfer
from tests.waiting import until

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "options",
    [{}, {"Offload": False}, {"Workers": 2}, {"extensions": False}, {"Offload": False, "extensions": False}],
    ids=["offload", "plain", "two-workers", "python", "python-plain"],
)
def test_packets_of_every_size_get_through(make_overlay: MakeOverlay, options: dict[str, Any]) -> None:
    overlay = make_overlay(**options)
    first, second = overlay.nodes
    for size in (0, 1, 56, 1443, 1444, 1445, 3000, 20001):
        assert first.ping(size=size), size
    assert second.ping(size=1444, options=("-M", "do"))
    Transfer(overlay, 20 * MEBIBYTE).finish()


def test_a_stream_travels_in_super_packets(overlay: Overlay) -> None:
    _first, second = overlay.nodes
    before = second.counters()
    Transfer(overlay, 100 * MEBIBYTE).finish()
    until(lambda: second.counters()["received_bytes"] > 100 * MEBIBYTE, "the counters of the whole stream")
    after = second.counters()
    received = after["received_packets"] - before["received_packets"]
    assert received / (after["received_calls"] - before["received_calls"]) > 8
    assert after["joined_packets"] - before["joined_packets"] > 0.9 * received


@pytest.mark.parametrize("offload", [True, False])
def test_a_stream_loses_nothing_on_its_way(make_overlay: MakeOverlay, offload: bool) -> None:
    """What TCP sends again may be due to a busy machine's timers; so count the packets at each step.

    One connection has no more under way than the device's queue holds, 2,000 packets without offload. Else a worker
    that doesn't get a processor at once would be enough for a loss.
    """
    overlay = make_overlay(Offload=offload)
    first, second = overlay.nodes
    run(*first.command("sh", "-c", f"echo 4096 16384 {MEBIBYTE} >/proc/sys/net/ipv4/tcp_wmem"))
    unread = [_dropped(node) for node in overlay.nodes]  # what the kernel sent before a worker was there
    Transfer(overlay, 100 * MEBIBYTE if offload else 40 * MEBIBYTE).finish()
    assert [_dropped(node) for node in overlay.nodes] == unread

    def arrived(source: Node, target: Node) -> bool:
        sent, received = source.counters()["sent_packets"], target.counters()["received_packets"]
        return received > 100 and 0 <= sent - received < 5  # the first pings came before everything was ready

    for source, target in ((first, second), (second, first)):
        until(functools.partial(arrived, source, target), "every packet that was sent to have been received")
    for counters in (first.counters(), second.counters()):
        drops = {name for name, count in counters.items() if name.startswith("drop_") and count}
        assert drops <= {"drop_other_family"}


def _dropped(node: Node) -> int:
    """Packets that found the device's queue full."""
    (device,) = json.loads(node.ip("-json", "-statistics", "link", "show", "flannel0"))
    return int(device["stats64"]["tx"]["dropped"])


@pytest.mark.parametrize("offload", [True, False])
def test_ipv6_inside(make_overlay: MakeOverlay, offload: bool) -> None:
    overlay = make_overlay(dual_stack=True, Offload=offload)
    first, second = overlay.nodes

    def ping(*words: str) -> str:
        done = first.command("ping", "-n", "-c", "1", "-W", "2", *words)
        return subprocess.run(done, capture_output=True, text=True, check=False).stdout

    for size in (8, 1424, 1425, 20001):
        assert " 0% packet loss" in ping("-s", str(size), "fd00:5:2::1"), size
    assert "From fd00:5:1:: icmp_seq=1 Time exceeded: Hop limit" in ping("-t", "1", "fd00:5:2::1")
    assert "From fd00:5:1:: icmp_seq=1 Destination unreachable: No route" in ping("fd00:5:99::1")
    before = second.counters()
    Transfer(overlay, 20 * MEBIBYTE, "fd00:5:2::1").finish()
    until(lambda: second.counters()["received_bytes"] > 20 * MEBIBYTE, "the counters of the whole stream")
    after = second.counters()
    received = after["received_packets"] - before["received_packets"]
    assert (after["joined_packets"] - before["joined_packets"] > 0.5 * received) == offload
    first.ip("route", "add", "192.0.2.2/32", "dev", "under", "mtu", "1400")
    assert "mtu=1372" in ping("-M", "do", "-s", "1400", "fd00:5:2::1").replace("mtu: ", "mtu=").replace(
        "mtu = ", "mtu="
    )


def test_ipv6_inside_over_a_path_that_carries_less_than_ipv6_needs(make_overlay: MakeOverlay) -> None:
    """No sender takes word of less than 1280, so nothing else would end a stream's stalling."""
    overlay = make_overlay(dual_stack=True)
    first, _ = overlay.nodes
    first.ip("route", "add", "192.0.2.2/32", "dev", "under", "mtu", "1200")
    Transfer(overlay, MEBIBYTE, "fd00:5:2::1").finish()
    until(lambda: first.counters()["sent_bytes"] > MEBIBYTE, "the counters of the whole stream")
    counters = first.counters()
    assert counters["drop_too_big"] > 0
    assert counters["drop_send_failed"] == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_packets_go_before_programs_that_they_would_wait_for_where_a_cpu_is_left_to_these(
    make_overlay: MakeOverlay,
) -> None:
    """All beside one crowd: those that may not go first have as much reason to as those that may, and longer."""
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "off": {"Realtime": False},
        "no CPU left": {"Workers": len(os.sched_getaffinity(0))},
    }
    overlays = {name: make_overlay(**each) for name, each in options.items()}
    workers = {name: [pid for node in each.nodes for pid in node.workers()] for name, each in overlays.items()}
    seen: dict[str, set[int]] = {name: set() for name in options}

    def look() -> bool:
        for name, overlay in overlays.items():
            overlay.nodes[0].ping(size=1000)
            seen[name].update(map(os.sched_getscheduler, workers[name]))
        return os.SCHED_RR in seen["default"]

    def transfer() -> None:
        for each in [Transfer(overlay, 4 * MEBIBYTE) for overlay in overlays.values()]:
            each.finish()

    with competitors():
        transfer()
        until(look, "workers with the priority that they may have")
        transfer()
        look()
    assert seen.pop("default") <= {os.SCHED_RR, os.SCHED_OTHER}
    assert seen == {"off": {os.SCHED_OTHER}, "no CPU left": {os.SCHED_OTHER}}


def test_a_killed_worker_is_replaced_under_load(overlay: Overlay) -> None:
    first, second = overlay.nodes
    transfer = Transfer(overlay, 300 * MEBIBYTE)
    for node in (first, second):
        _kill_worker(node)
    transfer.finish()
    assert first.tell("check") == second.tell("check") == {}


def _kill_worker(node: Node) -> None:
    (worker,) = node.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: set(node.workers()) - {worker}, "another worker")


def test_a_killed_daemon_leaves_packets_flowing_and_the_next_one_takes_over(overlay: Overlay) -> None:
    first, _second = overlay.nodes
    workers = first.workers()
    transfer = Transfer(overlay, 300 * MEBIBYTE)
    first.kill_driver()
    assert first.ping(count=5)
    first.start_driver()
    first.put_peer()
    transfer.finish()
    assert first.workers() == workers
    until(lambda: first.counters().get("sent_packets"), "counters of the worker taken over")
    assert first.tell("check") == {}


def test_peers_that_left_while_no_daemon_ran_are_forgotten_with_the_first_check_only(overlay: Overlay) -> None:
    first, _ = overlay.nodes
    first.kill_driver()
    first.start_driver()
    first.tell("put", "10.5.9.0-24", "192.0.2.9")
    until(lambda: first.counters().get("sent_packets"), "the worker to be taken over")
    assert first.ping(count=3)
    first.tell("check")
    until(lambda: not first.ping(), "the peer to be forgotten")


def test_a_worker_writes_its_errors_where_its_daemon_does_and_keeps_nobodys_pipe(overlay: Overlay) -> None:
    """``pyflannel ... 2>&1 | tee`` ended with the worker, and not with the daemon."""
    first, _ = overlay.nodes
    (worker,) = first.workers()

    def errors(pid: int) -> str:
        return os.readlink(f"/proc/{pid}/fd/2")

    first.kill_driver()
    until(lambda: errors(worker) == os.devnull, "the worker to let go of it")
    first.start_driver()
    first.put_peer()
    assert first.driver is not None
    theirs = errors(first.driver.pid)
    until(lambda: errors(worker) == theirs != os.devnull, "the worker to write where the next one does")
    assert list(first.workers()) == [worker]
    assert first.ping(count=3)


def test_a_worker_that_no_daemon_will_find_again_leaves_the_packets_to_the_next(overlay: Overlay) -> None:
    """As when a daemon is killed after it started a worker, and before that one listens."""
    first, _ = overlay.nodes
    (lost,) = first.workers()
    first.kill_driver()
    (first.state_dir / "udp-worker-0.sock").unlink()
    first.start_driver()
    first.put_peer()
    until(lambda: len(first.workers()) == 1 and lost not in first.workers(), "the lost worker to end")
    until(lambda: first.ping(count=5), "the next worker to move packets")


def test_a_worker_that_is_configured_otherwise_is_replaced_without_a_gap(overlay: Overlay) -> None:
    first, _ = overlay.nodes
    (worker,) = first.workers()
    transfer = Transfer(overlay, 200 * MEBIBYTE)
    first.kill_driver()
    first._options["Offload"] = False
    first.start_driver()
    first.put_peer()
    until(lambda: first.workers() and worker not in first.workers(), "the old worker to end")
    assert first.ping(count=5)
    transfer.finish()


def test_stop_leaves_the_worker_and_end_ends_it(overlay: Overlay) -> None:
    first, _ = overlay.nodes
    first.tell("stop")
    assert first.ping(count=3)
    assert len(first.workers()) == 1
    first.tell("stop")
    first.tell("end")
    until(lambda: not first.workers(), "the worker to end")


def test_the_table_follows_what_the_core_puts_and_removes(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    first.tell("remove", "10.5.2.0-24")
    until(lambda: not first.ping(), "no route")
    until(lambda: first.counters()["drop_no_route"], "a counted drop")
    first.tell("put", "10.5.2.0-24", "192.0.2.77")
    first.tell("put", "10.5.2.0-24", "192.0.2.2")
    until(first.ping, "the route again")


def test_an_unknown_destination_is_answered_with_host_unreachable(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    done = subprocess.run(
        first.command("ping", "-n", "-c", "1", "-W", "2", "10.5.200.1"), capture_output=True, text=True, check=False
    )
    assert "From 10.5.1.0 icmp_seq=1 Destination Host Unreachable" in done.stdout


def test_a_ttl_that_runs_out_is_answered(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    words = ("ping", "-n", "-c", "1", "-W", "2", "-t", "1", "10.5.2.1")
    done = subprocess.run(first.command(*words), capture_output=True, text=True, check=False)
    assert "From 10.5.1.0 icmp_seq=1 Time to live exceeded" in done.stdout


def test_a_device_that_was_deleted_and_made_anew_is_attached_to_again(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    assert first.ping(count=3)
    workers = first.workers()
    first.ip("link", "del", "flannel0")
    until(lambda: "10.5.2.0-24" in first.tell("check"), "check to tell that the device is gone")
    first.make_device()
    until(first.ping, "a ping through the new device")
    until(lambda: first.tell("check") == {}, "check to be content")
    assert first.workers() == workers


def test_a_device_that_was_moved_away_is_left_for_the_one_that_has_its_name(
    either_overlay: Overlay, request: pytest.FixtureRequest
) -> None:
    """Its descriptor still works, in another network namespace."""
    first, _ = either_overlay.nodes
    workers, elsewhere = first.workers(), f"{first.namespace}-elsewhere"
    run("ip", "netns", "add", elsewhere)
    request.addfinalizer(lambda: run("ip", "netns", "del", elsewhere))
    first.ip("link", "set", "flannel0", "netns", elsewhere)
    first.make_device()
    until(first.ping, "a ping through the new device")
    assert first.workers() == workers


def test_a_worker_without_daemon_and_device_ends(overlay: Overlay) -> None:
    first, _ = overlay.nodes
    first.tell("stop")
    first.ip("link", "del", "flannel0")
    until(lambda: not first.workers(), "the orphan to end")


def test_a_path_with_a_smaller_mtu_is_learnt_and_told(either_overlay: Overlay) -> None:
    first, _ = either_overlay.nodes
    assert first.ping(size=1400, count=3)
    first.ip("route", "add", "192.0.2.2/32", "dev", "under", "mtu", "1300")
    assert first.ping(size=4000)
    words = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "1400", "10.5.2.1")
    done = subprocess.run(first.command(*words), capture_output=True, text=True, check=False)
    assert "mtu = 1272" in done.stdout or "mtu=1272" in done.stdout, done.stdout
    Transfer(either_overlay, 10 * MEBIBYTE).finish()


def test_memory_stays_flat_under_load(overlay: Overlay) -> None:
    _first, _second = overlay.nodes
    Transfer(overlay, 50 * MEBIBYTE).finish()
    before = {node.number: _resident(node) for node in overlay.nodes}
    for _ in range(4):
        Transfer(overlay, 100 * MEBIBYTE).finish()
    for node in overlay.nodes:
        assert _resident(node) < before[node.number] + 2048


def _resident(node: Node) -> int:
    """KiB of the worker."""
    (worker,) = node.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def test_a_stopped_node_costs_the_others_nothing_but_its_packets(overlay: Overlay) -> None:
    """The worker never waits for its daemon: one that is stopped in the middle is only missed."""
    first, _ = overlay.nodes
    assert first.driver is not None
    os.kill(first.driver.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        until(lambda: time.monotonic() > started + 2.5 and first.ping(count=3), "pings for several status periods")
    finally:
        os.kill(first.driver.pid, signal.SIGCONT)
    assert first.tell("check") == {}
