from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from cfaug.causal import Intervention, do, flip, resample, scale, shift, uniform
from cfaug.data import Attribute, Schema
from cfaug.errors import UsageError


def test_an_intervention_is_a_printable_hashable_value() -> None:
    one = do(background="water", age=3)
    assert str(one) == "do(age=3, background=water)"
    assert one == do({"background": "water"}, age=3)
    assert len({one, do(age=3, background="water"), do()}) == 2
    assert one.assignments == {"age": 3, "background": "water"}
    assert Intervention.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert do({"hair colour": np.int64(3)}).to_json() == {"hair colour": 3}
    assert do().is_null
    assert str(do()) == "do()"
    assert do().to_json() == {}
    with pytest.raises(TypeError):
        one.assignments["age"] = 4  # type: ignore[index]


def test_values_become_canonical_through_the_schema() -> None:
    schema = Schema([Attribute("digit", values=("3", "4")), Attribute("age", "continuous")])
    assert do(digit=3.0, age=2).check(schema) == do(digit="3", age=2.0)
    for wrong, word in [(do(digit=5), "allowed: 3, 4"), (do(dig=3), "did you mean digit"), (do(age="old"), "finite")]:
        with pytest.raises(UsageError, match=word):
            wrong.check(schema)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, ["a"], np.float64("nan")])
def test_values_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"do\(x="):
        do(x=value)


def test_the_image_and_nameless_things_cannot_be_set() -> None:
    for call in (lambda: do(image="x"), lambda: do({"": 1}), lambda: do({"a": 1}, a=2), lambda: do("a")):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            call()


EVERYTHING = do(a="x", b=shift(0.5), c=scale(-2), d=flip(), e=resample(), f=uniform())


def test_changes_are_printed_serialised_and_told_from_values() -> None:
    assert str(EVERYTHING) == "do(a=x, b=shift(0.5), c=scale(-2), d=flip(), e=resample(), f=uniform())"
    assert EVERYTHING.names == ("a", "b", "c", "d", "e", "f")
    assert EVERYTHING.assignments == {"a": "x"}
    assert list(EVERYTHING.changes) == ["b", "c", "d", "e", "f"]
    plain = json.loads(json.dumps(EVERYTHING.to_json()))
    assert plain == {
        "a": "x", "b": {"shift": 0.5}, "c": {"scale": -2.0}, "d": {"flip": True}, "e": {"resample": True}, "f": {"uniform": True},
    }  # fmt: skip
    assert Intervention.from_json(plain) == EVERYTHING
    assert hash(Intervention.from_json(plain)) == hash(EVERYTHING)
    assert pickle.loads(pickle.dumps(EVERYTHING)) == EVERYTHING
    assert not do(a=flip()).is_null


@pytest.mark.parametrize("make", [shift, scale])
@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf, None, "1", True])
def test_an_amount_is_a_finite_number(make: Callable[[object], object], amount: object) -> None:
    with pytest.raises(UsageError, match="expected a finite number"):
        make(amount)


@pytest.mark.parametrize(
    "data", [{}, {"shift": 1, "scale": 2}, {"flip": 1}, {"flip": False}, {"shift": math.nan}, {"jump": True}]
)
def test_a_mapping_that_is_no_change_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(UsageError) as e:
        do(x=data)
    assert "expected" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_change_must_suit_the_attribute() -> None:
    schema = Schema(
        [
            Attribute("sex", values=("f", "m")),
            Attribute("colour", values=("r", "g", "b")),
            Attribute("grade", "ordinal", values=("low", "mid", "high")),
            Attribute("age", "continuous"),
        ]
    )
    for fine in (do(sex=flip()), do(grade=shift(-1)), do(age=scale(2)), do(age=shift(0.1)), do(colour=uniform())):
        assert fine.check(schema) == fine
    for wrong, word in [
        (do(colour=flip()), "two values, got 3"),
        (do(age=flip()), "'age' is continuous, expected categorical or ordinal"),
        (do(colour=shift(1)), "'colour' is categorical, expected ordinal or continuous"),
        (do(grade=scale(2)), "expected continuous"),
        (do(grade=shift(0.5)), "whole ranks, got 0.5"),
        (do(hair=uniform()), "got 'hair'"),
    ]:
        with pytest.raises(UsageError, match=word):
            wrong.check(schema)
    with pytest.raises(UsageError, match="do\\(x=0\\)"):
        scale(0)
