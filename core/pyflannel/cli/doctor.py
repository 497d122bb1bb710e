"""``pyflannel doctor``: what is well with this node's overlay, what is not, what that means and what mends it."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import click

from pyflannel.cli.flags import FlagCommand, flags, settings
from pyflannel.cli.output import say, show_json
from pyflannel.errors import ConfigError, ExitCode
from pyflannel.small.text import inert
from pyflannel.version import VERSION

__all__ = ["doctor"]


@click.command(cls=FlagCommand, params=flags("daemon", "store", "node"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--no-probes", is_flag=True, help="Only look; send no packets to peers.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="TEXT",
    help="Probe only peers whose subnet or address contains this text.",
)
@click.option("--all", "everything", is_flag=True, help="Also list the checks that pass.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, no_probes: bool, peers: tuple[str, ...], everything: bool) -> int:
    """Check this node and its path to every peer, and say what to do about problems.

    Changes nothing. It uses the settings of the daemon that runs here; if none runs, give it that daemon's flags, or
    run it where the daemon's config file is. It ends with 9 if a check fails; a warning alone is not a failure.
    """
    wanted = settings(ctx)
    from pyflannel.doctor import Judgement, examine, worst
    from pyflannel.doctor.facts import gather, told_to_daemon

    told = told_to_daemon(wanted.run_dir)
    with suppress(ConfigError):  # of another version: what was given here has to do
        wanted = settings(ctx, beneath=told)

    findings = list(examine(gather(wanted), not no_probes, peers))
    outcome = worst(findings)
    if as_json:
        show_json(
            {
                "version": VERSION,
                "worst": outcome.value,
                "findings": [
                    {
                        "group": finding.group,
                        "check": finding.check,
                        "verdict": finding.outcome.value,
                        "message": finding.message,
                        "meaning": finding.meaning,
                        "fix": finding.fix,
                    }
                    for finding in findings
                ],
            }
        )
    else:
        for finding in findings:
            if everything or finding.outcome in (Judgement.WARN, Judgement.FAIL):
                say(f"{finding.outcome.value.upper():<5} {finding.check}: {inert(finding.message)}")
                for label, text in (("means", finding.meaning), ("try", finding.fix)):
                    if text:
                        say(f"      {label + ':':<6} {inert(text)}")
        counts = Counter(finding.outcome for finding in findings)
        say(", ".join(f"{counts[kind]} {kind.value}" for kind in reversed(Judgement) if counts[kind]))
    return ExitCode.CHECK_FAILED if outcome is Judgement.FAIL else ExitCode.OK
