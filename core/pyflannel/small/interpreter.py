"""Starting another Python process that runs one of our modules, and nothing that happens to lie around.

``python -m`` puts the working directory before everything else that modules are imported from. A daemon that is root
may have been started in any directory, also in one where others can write, and its processes must not import their
``json.py``. So they are started by a line of code that leaves the working directory out and then does what ``-m`` does.
All else is as for the process that starts them, ``PYTHONPATH`` too, for that is where it has its own modules from.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["module_command"]

_RUN: Final = (
    "import sys; sys.path[:] = filter(None, sys.path); del sys.argv[0]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
# With -c the working directory is the empty text in sys.path, put there after everything that Python itself imports
# when it starts; with -P (PYTHONSAFEPATH) it is not there.


def module_command(module: str, *words: str) -> list[str]:
    """The command line that runs ``module`` with our interpreter, as ``python -m`` does, and ``words`` for it."""
    return [sys.executable, "-c", _RUN, module, *words]
