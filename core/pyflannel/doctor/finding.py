"""What a check of doctor says: its outcome, what was seen, what it means and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Judgement", "failed", "passed", "skipped", "warned", "worst"]


class Judgement(str, Enum):
    """From best to worst, except that ``skip`` says nothing: it could not be looked at."""

    PASS = "pass"  # noqa: S105 - a word, not a password
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    :param check: what was looked at, in a few words; the same words in every version.
    :param message: what was seen.
    :param meaning: what that means for the overlay; empty for a pass.
    :param fix: a command that mends it, or shows more; empty if there is nothing to mend.
    :param group: the group of checks, set by :func:`pyflannel.doctor.examine`.
    """

    check: str
    outcome: Judgement
    message: str
    meaning: str = ""
    fix: str = ""
    group: str = ""


def passed(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Judgement.PASS, message)


def skipped(check: str, message: str) -> Finding:
    """It can't be looked at, or there is nothing to look at; the message says why."""
    return Finding(check, Judgement.SKIP, message)


def warned(check: str, message: str, meaning: str, fix: str = "") -> Finding:
    """The overlay works, or may work, and somebody should know this."""
    return Finding(check, Judgement.WARN, message, meaning, fix)


def failed(check: str, message: str, meaning: str, fix: str = "") -> Finding:
    """The overlay does not work, or not as it should."""
    return Finding(check, Judgement.FAIL, message, meaning, fix)


def worst(findings: Iterable[Finding]) -> Judgement:
    """The worst of all outcomes; a pass if there is none."""
    order = list(Judgement)
    return max((finding.outcome for finding in findings), key=order.index, default=Judgement.PASS)
