"""Rules for every test: no deadlines for properties, and under CI nothing is skipped."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings
from tests.waiting import SLOWNESS, crowd

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("pyflannel", deadline=None, print_blob=True)
settings.load_profile("pyflannel")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is collected stays to the end: the collector of garbage need not look at it, again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test's time limit is for what hangs: on a busy machine it is as many times longer as a test may need there."""
    if item.config.getoption("timeout") == 0:  # whoever runs it has a limit for all of it
        item.add_marker(pytest.mark.timeout(0), append=False)
        return (yield)
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0]) if marker is not None else float(item.config.getini("timeout") or 0)
    if seconds:
        item.add_marker(pytest.mark.timeout(seconds * crowd()), append=False)
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def _slow_machine() -> Iterator[None]:
    """The kits wait longer, and ping less often, in a machine that takes its time for everything."""
    with pytest.MonkeyPatch.context() as patch:
        if SLOWNESS > 1:
            from pyflannel.testing import _live as live

            for name in ("PATIENCE", "PACE", "ENDING"):
                patch.setattr(live, name, getattr(live, name) * SLOWNESS)
        yield


IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """A test that skips (see :func:`_refuse_skip`), or whose log names what is no text, such as a file ``\\xff``.

    pytest-xdist can't pass on the second: its workers would end.
    """
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """A whole module that skips; see :func:`_refuse_skip`."""
    return _refuse_skip((yield))


def _refuse_skip(report: Any) -> Any:
    """Under CI what is skipped has failed: a missing right or server there is a fault of the set-up.

    Not so where a conformance kit asks for what a plugin does not claim, nor where the kernel is too old for what goes
    without.
    """
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(reason).startswith("Skipped: not applicable: "):
            return report
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, and under CI nothing may be: {reason}"
    return report
