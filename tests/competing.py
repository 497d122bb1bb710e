"""Programs that leave a processor to nobody, for what must hold all the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["competitors"]


@contextmanager
def competitors() -> Iterator[None]:
    """Programs that want every processor several times over, each as a session, which the kernel may share out by."""
    words = ["sh", "-c", "while :; do :; done"]
    burners = [subprocess.Popen(words, start_new_session=True) for _ in range(6 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
