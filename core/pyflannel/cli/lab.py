"""``pyflannel lab``: an overlay of several nodes on this machine, brought up, shown, tried out and taken down again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from pyflannel.cli.flags import FlagCommand
from pyflannel.cli.output import show_json
from pyflannel.errors import ConfigError, ExitCode
from pyflannel.network.lease import JSON
from pyflannel.small.streams import answers

if TYPE_CHECKING:
    from rich.console import Console

    from pyflannel.lab.trial import TrialNetwork

__all__ = ["lab_command"]

_PLAIN_WIDTH: Final = 200
"""Columns where there is no terminal to ask; tables are only as wide as they need."""


class _Ended(BaseException):
    """SIGTERM or SIGHUP came; on its way up every ``with`` closes what it opened."""

    def __init__(self, number: int) -> None:
        self.number = number


@click.command("lab", cls=FlagCommand)
@click.option("--nodes", type=click.IntRange(1, 400), default=3, show_default=True, help="How many nodes.")
@click.option("--containers", type=click.IntRange(0, 250), default=1, show_default=True, help="Containers per node.")
@click.option(
    "--routed", type=click.IntRange(0, 200), default=0, help="Put this many nodes, the last ones, behind a router."
)
@click.option("--backend", default="vxlan", show_default=True, metavar="NAME", help="The backend.")
@click.option(
    "--backend-option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A key of the network document's Backend dictionary, such as DirectRouting=true; repeatable.",
)
@click.option(
    "--store", default="file", show_default=True, metavar="file|etcd|consul|URL", help="The store; URL: file://PATH."
)
@click.option("--store-members", type=click.IntRange(1, 7), default=1, show_default=True, help="Servers of the store.")
@click.option("--network", default="10.244.0.0/16", show_default=True, metavar="CIDR", help='"none": no IPv4.')
@click.option("--ipv6-network", metavar="CIDR", help="Give the overlay IPv6 too.")
@click.option("--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True, help="The underlay's MTU.")
@click.option("--change-to", metavar="NAME", help="Then change to this backend while containers ping each other.")
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C, and say how to get a shell on each node.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON; progress goes to standard error.")
@click.option("--no-throughput", is_flag=True, help="Don't measure throughput.")
def lab_command(
    nodes: int,
    containers: int,
    routed: int,
    backend: str,
    options: tuple[str, ...],
    store: str,
    store_members: int,
    network: str,
    ipv6_network: str | None,
    mtu: int,
    change_to: str | None,
    keep: bool,
    as_json: bool,
    no_throughput: bool,
) -> int:
    """Run an overlay of several nodes on this machine.

    Every node is a network namespace with a real daemon and containers behind it. When they are up, every container
    pings every other one. Ends with exit code 9 if anything fails. Nothing outside the lab's own namespaces is touched,
    and nothing is left behind. Needs no root where the system allows user namespaces.
    """
    from rich.console import Console

    from pyflannel.lab.trial import TrialNetwork

    overlay = TrialNetwork(
        backend=backend,
        store=store,
        store_members=store_members,
        network=None if network == "none" else network,
        ipv6_network=ipv6_network,
        options=dict(map(_backend_option, options)),
        change_to=change_to,
    )
    _check(overlay)
    told = sys.stderr if as_json else answers()
    width = (os.get_terminal_size(told.fileno()).columns if told.isatty() else 0) or _PLAIN_WIDTH
    console = Console(file=told, highlight=False, emoji=False, width=width)
    try:
        with _signals():
            return _run(console, overlay, (nodes, containers, routed, mtu), keep, as_json, not no_throughput)
    except _Ended as ended:
        return 128 + ended.number


def _check(overlay: TrialNetwork) -> None:
    """Before anything is built: a backend that is not installed here, or a network that no node would take."""
    from pyflannel.cli.config import checked
    from pyflannel.plugins import load_backend

    for name in filter(None, (overlay.backend, overlay.change_to)):
        load_backend(name)
    checked(json.dumps(overlay.document), "the lab's network")


def _run(
    console: Console,
    overlay: TrialNetwork,
    size: tuple[int, int, int, int],
    keep: bool,
    as_json: bool,
    throughput: bool,
) -> int:
    from rich.text import Text

    from pyflannel.lab import Lab
    from pyflannel.lab.picture import render
    from pyflannel.lab.trial import try_out

    nodes, containers, routed, mtu = size
    with _Progress(console) as progress:
        progress("namespaces")
        lab = Lab(nodes, containers, routed=routed, mtu=mtu)
        with lab:
            report = try_out(lab, overlay, progress=progress, throughput=1.0 if throughput else None)
            progress.end()
            if as_json:
                show_json(report.to_json())
            else:
                console.print()
                for part in render(report):
                    console.print(part, soft_wrap=isinstance(part, Text))
            if keep:
                _stay(console, lab.nodes)
    return ExitCode.OK if report.ok else ExitCode.CHECK_FAILED


class _Progress:
    """One line per step, with its duration when it is done; on a terminal a spinner meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._step = ""
        self._began = 0.0

    def __call__(self, step: str) -> None:
        """A step begins, and the one before it is done."""
        self.end()
        self._step, self._began = step, time.monotonic()
        if self._status is not None:
            self._status.update(f"{step} ...")
            self._status.start()

    def end(self) -> None:
        """The last step is done. Idempotent."""
        if self._status is not None:
            self._status.stop()
        if self._step:
            self._console.print(f"{time.monotonic() - self._began:6.2f} s  {self._step}", style="dim")
            self._step = ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()


def _stay(console: Console, nodes: tuple[Any, ...]) -> None:
    """Say how to get in, and wait for Ctrl-C."""
    console.print("\nThe lab stays up. A shell on a node, from another terminal of the same user:")
    for node in nodes:
        console.print(f"  {node.name}: {node.shell_hint}", soft_wrap=True)
    console.print("Ctrl-C ends it.")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        console.print()


def _backend_option(text: str) -> tuple[str, JSON]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--backend-option {text!r}: must be KEY=VALUE, such as VNI=7")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does."""

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
