from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from cfaug.causal import Intervention, do, flip, resample, scale, shift, uniform
from cfaug.data import Attribute, Schema


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


def test_changes_that_suit_the_attribute_pass() -> None:
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
