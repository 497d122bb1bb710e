"""What tells two machines apart, and how a lease carries it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.network.lease import LeaseAttributes
from pyflannel.network.marks import MOST_CARDS, NO_MARKS, Kinship, Marks

SAME, OTHER, UNKNOWN = Kinship.SAME, Kinship.OTHER, Kinship.UNKNOWN
HERE = Marks("run", "product", frozenset({"card", "second card"}))

texts = st.text(max_size=64)
marks = st.builds(Marks, texts, texts, st.frozensets(texts.filter(bool), max_size=4))


@pytest.mark.parametrize(
    ("other", "kinship"),
    [
        (HERE, SAME),
        (Marks("another run", "product", HERE.cards), SAME),
        (Marks("another run", "", HERE.cards), SAME),
        (Marks("another run", "product", frozenset({"second card", "new card"})), SAME),
        (Marks("another run", "product"), SAME),
        (Marks("run", "", frozenset({"new card"})), SAME),
        (Marks("another run", "another product", HERE.cards), OTHER),
        (Marks("run", "another product", HERE.cards), OTHER),
        (Marks("another run", "", frozenset({"its card"})), OTHER),
        (Marks("another run", "product", frozenset({"its card"})), OTHER),
        (Marks("another run"), UNKNOWN),
        (NO_MARKS, UNKNOWN),
    ],
)
def test_whose_marks_they_are(other: Marks, kinship: Kinship) -> None:
    assert HERE.kinship(other) is kinship
    assert other.kinship(HERE) is kinship


@given(marks, marks)
def test_it_is_mutual_and_nobody_is_another_than_itself(one: Marks, other: Marks) -> None:
    assert one.kinship(other) is other.kinship(one)
    assert one.kinship(one) is (UNKNOWN if one == NO_MARKS else SAME)


@given(marks)
def test_a_lease_carries_them(one: Marks) -> None:
    attributes = LeaseAttributes(node_id="n", marks=one, twin_of="m")
    assert LeaseAttributes.from_json(attributes.to_json()) == attributes


def test_a_lease_without_marks_has_no_word_of_them() -> None:
    assert "Machine" not in LeaseAttributes(node_id="n").to_json()
    assert "TwinOf" not in LeaseAttributes(node_id="n").to_json()


@pytest.mark.parametrize(
    "document",
    [None, "x", 7, [], {}, {"Run": 7, "Product": [], "Cards": "x"}, {"Run": "x" * 65, "Cards": [7, None, "y" * 65]}],
)
def test_what_is_of_another_form_is_not_known(document: Any) -> None:
    assert Marks.from_document(document) == NO_MARKS


def test_what_others_write_has_a_bound() -> None:
    many = {"Cards": [str(number) for number in range(10_000)]}
    assert len(Marks.from_document(many).cards) == MOST_CARDS
