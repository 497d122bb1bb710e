"""Conformance kits: the contracts of :mod:`pyflannel.store` and :mod:`pyflannel.backend` as tests, for plugin authors.

Each kit is a class to subclass in a pytest suite of one's own; pytest is needed for nothing else in pyflannel, so a kit
is imported from its module: ``from pyflannel.testing.stores import StoreConformance``.
"""
