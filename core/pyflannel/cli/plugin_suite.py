"""The process of ``pyflannel plugin-test``: pytest, whose report nobody else writes to.

While a test runs, pytest keeps what is printed for the report of a failure. Between two tests, and once it has summed
up, it does not, and a thread that a plugin has left behind still prints. So all but the report goes to standard error
here, as in every command (:mod:`pyflannel.small.streams`), and such a thread does not keep the process from ending.

It is no module of ``pyflannel.testing``, for those are imported once pytest is there to rewrite their assertions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import pytest

from pyflannel.cli import end_in_time
from pyflannel.small.streams import answers, apart, keep_apart

__all__ = ["main"]


class _First:
    """Before pytest's reporter is made, which keeps what is standard output then."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Have it write to the answer."""
        sys.stdout = answers()


class _Last:
    """When it has been made."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """Everybody else is kept out again."""
        sys.stdout = sys.stderr


_AROUND_THE_REPORTER: Final = (_First(), _Last())


def main(words: Sequence[str]) -> int:
    """Run pytest with these words and return its exit code."""
    keep_apart()
    with apart(lasting=True):
        code = int(pytest.main(list(words), plugins=_AROUND_THE_REPORTER))
    end_in_time(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
