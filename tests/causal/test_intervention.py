from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from cfaug.causal import Intervention, do
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
