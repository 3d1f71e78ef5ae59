"""do() as words: templates, ranges, tokens, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfaug.data import Attribute, Schema
from cfaug.decode.editors.words import Words
from cfaug.errors import UsageError

PARENTS = ("species", "place", "age")
SCHEMA = Schema(
    [
        Attribute("species", values=("duck", "crow")),
        Attribute("place", values=("water", "dry_land")),
        Attribute("age", "continuous", mean=0.0, std=1.0),
        Attribute("hidden", values=("a",)),
    ],
    target="species",
    spurious=["place", "age"],
)
WORDS = {"place": {"water": "on the open sea"}, "age": {"..2": "young", "2..": "old"}}
ROW = {"species": "duck", "place": "water", "age": 1.5}


def words(template: str | None = None, given: Any = WORDS, **more: Any) -> Words:
    return Words(SCHEMA, PARENTS, template, given, **more)


@pytest.mark.parametrize(
    ("template", "row", "changed", "said"),
    [
        ("a photo of a {age} {species}, {place}", {}, {"place"}, "a photo of a young duck, on the open sea"),
        ("a photo of a {species}, {place}", {"place": "dry_land"}, {"place"}, "a photo of a duck, dry land"),
        ("a {species}, {place}", {"place": None}, {"age"}, "a duck"),
        (None, {}, {"place"}, "on the open sea"),
        (None, {"age": 2.0}, {"place", "age"}, "on the open sea, old"),
    ],
)
def test_a_row_is_said(template: str | None, row: dict[str, Any], changed: set[str], said: str) -> None:
    assert words(template).prompt({**ROW, **row}, changed) == said


def test_tokens_stand_for_categories() -> None:
    made = words("a {species} {place}", as_tokens=True)
    assert made.prompt(ROW, {"place"}) == "a <species-duck> <place-water>"
    assert made.tokens()["<place-water>"] == "on the open sea"
    assert set(made.tokens()) == {"<species-duck>", "<species-crow>", "<place-water>", "<place-dry_land>"}


@given(st.floats(-1e6, 1e6))
def test_every_number_has_one_range(value: float) -> None:
    assert words().of("age", value) == ("young" if value < 2 else "old")


@given(st.sampled_from(["duck", "crow"]), st.sampled_from(["water", "dry_land"]), st.floats(-9, 9))
def test_no_prompt_is_longer_than_the_longest(species: str, place: str, age: float) -> None:
    made = words("a {age} {species}, {place}")
    assert len(made.prompt({"species": species, "place": place, "age": age}, {"place"})) <= len(made.longest({"place"}))


@pytest.mark.parametrize(
    ("template", "given", "error"),
    [
        ("a {speces}", WORDS, "template: expected parents of the image, got 'speces'; did you mean species"),
        ("a {hidden}", WORDS, "template: expected parents of the image, got 'hidden'"),
        ("a {species", WORDS, r"template: expected \{attribute\} in braces"),
        (None, {"place": {"watr": "x"}}, "words.place: expected values of place, got 'watr'; did you mean water"),
        (None, {"age": {"young": "x"}}, "words.age: expected ranges such as"),
        (None, {"age": {"5..2": "x"}}, "words.age: expected a range whose end is above its start, got '5..2'"),
    ],
)
def test_what_cannot_be_said_is_refused(template: str | None, given: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        words(template, given)


def test_what_is_intervened_on_must_be_said() -> None:
    with pytest.raises(UsageError, match=r"expected \{place\}, which is intervened on, got 'a \{species\}'"):
        words("a {species}").check(["place"])
    with pytest.raises(UsageError, match=r"words.age: expected named ranges of a continuous attribute"):
        words("a {age}", {}).check(["age"])
    with pytest.raises(UsageError, match=r"expected a range that holds 3, got none"):
        words(None, {"age": {"..2": "young"}}).of("age", 3.0)
