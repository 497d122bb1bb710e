"""Reading what iproute2 prints with ``-j``."""

from __future__ import annotations

import json
from typing import Any


def parse(printed: str) -> Any:
    """Its JSON; nothing printed is an empty list.

    Ubuntu's has a patch that writes words of its own into what it tells of a tunnel device (6.1: ``"id":2fan-map ,``).
    """
    return json.loads(printed.replace("fan-map ", "") or "[]")
