"""Conformance kits: the contracts of :mod:`pyflannel.store` and :mod:`pyflannel.backend` as tests, for plugin authors.

Each kit is a class to subclass in a pytest suite of one's own; pytest is needed for nothing else in pyflannel, so a kit
is imported from its module: ``from pyflannel.testing.stores import StoreConformance``. At the end of a run pytest tells
which clauses of the contract were shown (:mod:`pyflannel.testing.clauses`).
"""

import pkgutil
import sys

if "pytest" in sys.modules:  # whose assertions in the kits then show what they compared, as those of a test module do
    import pytest

    pytest.register_assert_rewrite(*(f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)))
