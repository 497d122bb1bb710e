"""The version of this distribution, in a module of its own because asking importlib.metadata takes 40 ms."""

from __future__ import annotations

from typing import Final

__all__ = ["VERSION"]

VERSION: Final = "0.2.0"
