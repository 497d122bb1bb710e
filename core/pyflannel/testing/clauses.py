"""A pytest plugin that tells at the end which clauses of a contract were shown, and which were not.

Each test of a kit shows one clause. What it is and where it is written stands beside the test
(:func:`clause`); a failure repeats it, and the summary counts: *shown*, *failed*, *not applicable* (the plugin does not
claim it) and *not tried* (something is missing here, such as a hook, a right, or the test was left out).

The kits bring it along. Only where pytest-xdist spreads the tests, the process that sums up does not see them, and has
to be told: ``addopts = "-p pyflannel.testing.clauses"``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import pytest

__all__ = ["Clause", "Clauses", "clause", "not_applicable", "tell"]

F = TypeVar("F", bound=Callable[..., Any])

_NAME: Final = "pyflannel-clauses"
_CLAUSE: Final = "pyflannel-clause"
_TOLD: Final = "pyflannel-told"
_NOT_APPLICABLE: Final = "not applicable: "
_STRAY: Final = "pyflannel-stray"
_STRAYED: Final = pytest.StashKey[str]()
_LEFT_OUT: Final = "left out of this run"

_NOT_ITS_OWN: Final = """\
This is about no clause of this test. It was noticed while the test ran, and an earlier one may have left it behind:
close() has to close what was opened, and no thread may end with an error."""
_NOTICED: Final = (pytest.PytestUnraisableExceptionWarning, pytest.PytestUnhandledThreadExceptionWarning)

SHOWN, FAILED, LEFT, UNTRIED = "shown", "failed", "not applicable", "not tried"


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that a contract asks for.

    :param where: the documented name under which it is written.
    :param text: what it asks, as a sentence without its end.
    """

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def clause(where: str, text: str) -> Callable[[F], F]:
    """Say which clause a test of a kit shows."""

    def mark(test: F) -> F:
        test.clause = Clause(where, text)  # type: ignore[attr-defined]
        return test

    return mark


def not_applicable(reason: str) -> NoReturn:
    """Skip a test that asks for something the plugin does not claim."""
    pytest.skip(f"{_NOT_APPLICABLE}{reason}")


def tell(request: pytest.FixtureRequest, text: str) -> None:
    """Put a line into the summary that nobody is judged by; ``warning:`` begins one that should be looked at."""
    request.node.user_properties.append((_TOLD, text))


def _own(kit: type[Any]) -> dict[str, Clause]:
    """Test name to clause, of the tests that are a kit's own."""
    return {name: item.clause for name, item in vars(kit).items() if isinstance(getattr(item, "clause", None), Clause)}


def _clause_of(item: Any) -> Clause | None:
    """What a test shows; also one that a subclass has written in the place of the kit's."""
    name = getattr(item, "originalname", None)
    kits = getattr(getattr(item, "cls", None), "__mro__", ())
    return next((own[name] for kit in kits if name in (own := _own(kit))), None)


class Judged:
    """Mixed into a kit: each of its tests says what it shows."""

    @pytest.fixture(autouse=True, scope="session")
    @staticmethod
    def _clauses(request: pytest.FixtureRequest) -> None:
        """Before any other fixture, whose failure is one of the tests that need it."""
        pytest_configure(request.config)


def _entry(item: Any) -> str:
    """Who is judged, by which kits, and by which test: what a report takes to the process that sums up."""
    kits = [f"{kit.__module__}:{kit.__qualname__}" for kit in item.cls.__mro__ if _own(kit)]
    return "|".join([item.cls.__qualname__, ",".join(kits), item.originalname])


class _Strays:
    """Tells :class:`Clauses`, before it judges a test, whether that failed of what pytest noticed meanwhile."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
        item.stash[_STRAYED] = _stray(call.excinfo.value) if call.excinfo is not None else ""
        return (yield)


class Clauses:
    """Listens to the reports of the tests, and sums them up."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, list[tuple[str, str]]]] = {}
        self._told: dict[str, list[str]] = {}
        self._kits: dict[str, set[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Say whose report it is; a failure repeats the clause, unless it is about something else."""
        report = yield
        found = _clause_of(item)
        if found is not None:
            report.user_properties.append((_CLAUSE, _entry(item)))
        if found is not None and report.failed:
            stray = item.stash.get(_STRAYED, "")
            if stray:
                report.user_properties.append((_STRAY, stray))
                report.sections.append(("what happened meanwhile", f"{stray}.\n{_NOT_ITS_OWN}"))
            else:
                report.sections.append(("what the contract asks", f"{found.text}.\nWritten in {found.where}"))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in how a test ended."""
        properties = dict(report.user_properties)
        entry = properties.get(_CLAUSE)
        if entry is None or (report.when != "call" and report.passed):
            return
        subject, kits, name = str(entry).split("|")
        self._kits.setdefault(subject, set()).update(kits.split(","))
        self._seen.setdefault(subject, {}).setdefault(name, []).append(_outcome(report))
        if report.when == "call":
            texts = [str(text) for key, text in report.user_properties if key == _TOLD]
            self._told.setdefault(subject, []).extend(texts)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell it, for each plugin that was tried."""
        for subject, outcomes in self._seen.items():
            terminalreporter.section(f"the contract, as {subject} shows it")
            for line in self._summary(subject, outcomes):
                terminalreporter.line(line)

    def _summary(self, subject: str, outcomes: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
        verdicts = {}
        for name, found in self._clauses(subject).items():
            verdicts[name] = (*_verdict(outcomes.get(name, [])), str(found))
        counts = Counter(state for state, _, _ in verdicts.values())
        yield ", ".join(f"{counts[state]} {state}" for state in (SHOWN, FAILED, LEFT, UNTRIED))
        for state in (FAILED, LEFT, UNTRIED):
            for verdict, reason, text in verdicts.values():
                if verdict == state and reason != _LEFT_OUT:
                    yield f"{state}: {text}" + (f" ({reason})" if reason else "")
        left_out = sum(reason == _LEFT_OUT for _, reason, _ in verdicts.values())
        if left_out:
            clauses = "clauses whose tests were" if left_out > 1 else "clause whose tests were"
            yield f"{UNTRIED}: {left_out} {clauses} {_LEFT_OUT}"
        yield from self._told.get(subject, [])

    def _clauses(self, subject: str) -> dict[str, Clause]:
        from importlib import import_module

        found: dict[str, Clause] = {}
        for kit in sorted(self._kits[subject]):
            module, _, name = kit.partition(":")
            found |= _own(getattr(import_module(module), name))
        return found


def _stray(error: BaseException) -> str:
    """What pytest has noticed while a test ran, if that alone is what it failed of: a socket that nobody has closed, an
    error in a thread. Empty otherwise.
    """
    parts: Sequence[BaseException] = getattr(error, "exceptions", (error,))  # an ExceptionGroup, from Python 3.11 on
    if not all(isinstance(part, _NOTICED) for part in parts):
        return ""
    causes = [part.__cause__ for part in parts]
    first = causes[0] if causes[0] is not None else parts[0]
    more = f", and {len(parts) - 1} more" if len(parts) > 1 else ""
    return f"{type(first).__name__}: {first}{more}"


def _outcome(report: pytest.TestReport) -> tuple[str, str]:
    if report.passed:
        return SHOWN, ""
    if report.failed:
        stray = dict(report.user_properties).get(_STRAY)
        return FAILED, f"not for what it tries: {stray}" if stray else ""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if reason.startswith(_NOT_APPLICABLE):
        return LEFT, reason.removeprefix(_NOT_APPLICABLE)
    return UNTRIED, reason


def _verdict(outcomes: list[tuple[str, str]]) -> tuple[str, str]:
    """What several runs of one test, such as those of its parameters, say together."""
    for state in (FAILED, SHOWN, UNTRIED, LEFT):
        reasons = [reason for found, reason in outcomes if found == state]
        if reasons:
            return state, reasons[0]
    return UNTRIED, _LEFT_OUT


def pytest_configure(config: pytest.Config) -> None:
    """For ``-p pyflannel.testing.clauses``."""
    if not config.pluginmanager.has_plugin(_NAME):
        config.pluginmanager.register(Clauses(), _NAME)
        config.pluginmanager.register(_Strays())
