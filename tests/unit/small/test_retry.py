"""Pauses between tries."""

from __future__ import annotations

import random

from pyflannel.small.retry import Backoff


def test_pauses_grow_and_differ() -> None:
    nodes = [Backoff(random.Random(seed)) for seed in range(100)]
    first = [backoff.next() for backoff in nodes]
    later = [[backoff.next() for _ in range(10)][-1] for backoff in nodes]
    assert all(0.25 <= pause <= 0.5 for pause in first)
    assert all(pause <= 15 for pause in later)
    assert max(later) - min(later) > 10, "spread over the whole range"
    nodes[0].reset()
    assert nodes[0].next() <= 0.5
