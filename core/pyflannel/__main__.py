"""``python -m pyflannel`` is ``pyflannel``."""

from __future__ import annotations

import sys

from pyflannel.cli import main

if __name__ == "__main__":
    sys.exit(main())
