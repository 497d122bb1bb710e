"""``pyflannel store``: move an overlay from one store to another, and find out what is wrong with one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from pyflannel.cli.flags import FlagGroup, flags, settings
from pyflannel.cli.output import duration, say, show_json
from pyflannel.errors import ConfigError, ExitCode
from pyflannel.plugins import open_store
from pyflannel.small.text import counted, cut, inert
from pyflannel.store import StoreLocation

if TYPE_CHECKING:
    from pyflannel.storetools.check import Inspection
    from pyflannel.storetools.migration import Done, Migration

__all__ = ["store"]

_SHOWN = 10
"""Keys that are named for people; ``--json`` has all."""


@click.group(cls=FlagGroup, params=flags())
def store() -> None:
    """Move an overlay to another store, or check one."""


@store.command(params=flags())
@click.option("--from", "source", required=True, metavar="URL", help="The store that the nodes use now.")
@click.option("--to", "target", required=True, metavar="URL", help="The store that they are to use.")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C, both ways, while nodes are restarted one by one.")
@click.option("--until-moved", is_flag=True, help="With --follow: end by itself when every node has moved.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Let the source win over the target's other config options and leases.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; progress goes to standard error.")
@click.pass_context
def migrate(
    ctx: click.Context,
    source: str,
    target: str,
    follow: bool,
    until_moved: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Copy the network config, leases and reservations from one store to another, and verify the copy.

    Nodes go on forwarding meanwhile. Run it again at any time: what is the same is left alone. With --follow it keeps
    both stores alike, so that nodes on the old and on the new one see each other until the last has been restarted.
    """
    settings(ctx)
    if follow and dry_run:
        raise click.UsageError("--dry-run and --follow exclude each other", ctx)
    if until_moved and not follow:
        raise click.UsageError("--until-moved needs --follow", ctx)
    from pyflannel.storetools.migration import Migration

    locations = _location(source), _location(target)
    if str(locations[0]) == str(locations[1]):
        raise ConfigError(f"--from and --to are both {locations[0]}; give two stores")
    with ExitStack() as stack:
        old = stack.enter_context(open_store(locations[0], existing=True))
        new = stack.enter_context(open_store(locations[1], existing=dry_run))
        migration = Migration(old, new, time.monotonic, lambda line: click.echo(inert(line), err=True))
        done = migration.copy(force=force, dry=dry_run)
        if follow:
            click.echo(
                f"copied; now point the nodes at {new.location}, one by one, and end this with Ctrl-C when all have "
                "moved",
                err=True,
            )
            with _ending(migration):
                migration.follow(done, until_moved)
        problems = [] if dry_run else migration.verify()
    return _report(migration, done, problems, dry_run, as_json)


def _report(migration: Migration, done: Done, problems: list[str], dry_run: bool, as_json: bool) -> int:
    old, new = (str(each.location) for each in migration.stores)
    moved, leases = migration.moved
    following = "" if dry_run else _next(new, moved, leases)
    if as_json:
        show_json(
            {
                "from": old,
                "to": new,
                "dry_run": dry_run,
                **done.to_json(),
                "leases": leases,
                "moved": moved,
                "verified": not (dry_run or problems),
                "problems": problems,
                "next": following,
            }
        )
    else:
        arrived = f"{moved} of {leases} nodes are known to work on {new}" if moved < leases and not dry_run else ""
        _tell(done, problems, dry_run, following, f"from {old} to {new}", arrived)
    return ExitCode.CHECK_FAILED if problems else ExitCode.OK


def _tell(done: Done, problems: list[str], dry_run: bool, following: str, way: str, arrived: str) -> None:
    say(f"{'would be written' if dry_run else 'written'} {way}:")
    say(f"  network config: {done.document}")
    for name, keys in (
        ("copied", done.copied),
        ("updated", done.updated),
        ("renewed", done.renewed),
        ("deleted", done.deleted),
        ("left behind, being no leases", done.left_behind),
    ):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            say(f"  {len(keys)} {name}: {', '.join(inert(cut(key)) for key in keys[:_SHOWN])}{more}")
    if not done.changes:
        say("  nothing: both are alike")
    if arrived:
        say(f"  {arrived}")
    for problem in problems:
        say(f"not verified: {inert(problem)}")
    if following and not problems:
        say(f"verified. {following}")


def _next(new: str, moved: int, leases: int) -> str:
    if leases and moved == leases:
        return f"All {leases} nodes work on {new}; the old store can go."
    return (
        f"Next: keep 'store migrate --follow' running, set store = \"{new}\" (or --store) on one node, restart its "
        "daemon, wait for 'pyflannel status' to say ready, and go on to the next node."
    )


@contextmanager
def _ending(migration: Migration) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the following in good order."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: migration.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@store.command(params=flags())
@click.argument("url", required=False)
@click.option("--write", is_flag=True, help="Also try the right to write, with a record that no node uses.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def check(ctx: click.Context, url: str | None, write: bool, as_json: bool) -> int:
    """Check a store (default: the configured one): reachable, rights, latency, and what it holds.

    Ends with exit code 9 if anything is found that keeps nodes from working. Changes nothing, unless --write is given:
    then a record "pyflannel-check-..." is created, changed and deleted again. It is no lease, and lives 10 s at most.
    """
    wanted = settings(ctx)
    from pyflannel.storetools.check import check as run

    report = run(_location(url) if url else wanted.store, write=write)
    if as_json:
        show_json(report.to_json())
    else:
        _show(report)
    return ExitCode.OK if report.ok else ExitCode.CHECK_FAILED


def _show(report: Inspection) -> None:
    say(f"store {report.store}")
    for endpoint in report.endpoints:
        state = f"answers in {endpoint.seconds * 1000:.1f} ms" if not endpoint.error else "fails, see below"
        say(f"  {endpoint.name}: {state}")
    for name, latency in report.latencies.items():
        low, middle, high = (f"{1000 * seconds:.1f}" for seconds in latency)
        say(f"  {name}: {low} / {middle} / {high} ms (min, median, max)")
    if report.latencies:  # else nothing could be read
        say(f"  {counted(report.leases, 'lease')}, {counted(report.reservations, 'reservation')}")
    if report.ends_first is not None:
        say(f"  the first lease ends in {duration(report.ends_first)}")
    for finding in report.findings:
        say(f"{finding.severity.value}: {inert(cut(finding.what, 2000))}")
        say(f"  -> {inert(finding.fix)}")
    say("PASSED" if report.ok else "FAILED")


def _location(url: str) -> StoreLocation:
    return StoreLocation.parse(url)
