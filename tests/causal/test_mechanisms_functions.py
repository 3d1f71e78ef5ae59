"""Mechanisms that the user writes: what is checked, and what is said when they are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.causal.row_random import row_seeds
from cfaug.errors import DataError, UsageError

TABLE = pd.DataFrame({"t": [1.0, 2.0, 3.0, 4.0], "v": [2.5, 1.0, 7.0, 9.5]}, index=["a", "b", "c", "d"])
GIVEN: dict[str, Any] = {
    "predict": lambda u, table: 2 * table["t"].to_numpy() + u[:, 0],
    "abduct": lambda v, table: (v - 2 * table["t"]).to_numpy()[:, None],
    "version": "1",
}


def mechanism(**other: Any) -> FunctionMechanism:
    return FunctionMechanism("v", ["t"], **(GIVEN | other))


def test_the_counterfactual_is_the_users_own() -> None:
    m = mechanism(monotone=True).fit(TABLE["v"], TABLE[["t"]])
    noise = m.abduct(TABLE["v"], TABLE[["t"]])
    assert m.predict(noise, TABLE[["t"]].assign(t=0.0)) == pytest.approx(TABLE["v"] - 2 * TABLE["t"])
    assert m.parameters == 0
    assert "strictly increases" in m.convention
    assert "version 1" in m.convention
    for name, low, high in (("uniform", 0, 1), ("normal", -9, 9), ("gumbel", -9, 60)):
        drawn = mechanism(noise=name).draw(row_seeds(0, TABLE.index))
        assert drawn.shape == (4, 1)
        assert ((drawn > low) & (drawn < high)).all()


def test_functions_must_be_inverses_of_each_other() -> None:
    off = mechanism(predict=lambda u, table: 2 * table["t"].to_numpy() + u[:, 0] + (np.arange(len(u)) == 2) * 1e-3)
    with pytest.raises(DataError, match=r"^mechanism of 'v', row 'c': .* expected .*7\.0.*, got .*7\.001") as caught:
        off.fit(TABLE["v"], TABLE[["t"]])
    assert "\n" not in str(caught.value)
    close = mechanism(predict=lambda u, table: 2 * table["t"].to_numpy() + u[:, 0] + 1e-6)
    close.fit(TABLE["v"], TABLE[["t"]])  # within 1e-5 of a standard deviation
    texts = pd.Series(["x", "y", "x", "y"], index=TABLE.index, dtype=object)
    ok: dict[str, Any] = {
        "predict": lambda u, table: np.where(u[:, 0] > 0, "y", "x"),
        "abduct": lambda v, table: np.where(v == "y", 1.0, -1.0)[:, None],
    }
    assert list(mechanism(**ok).fit(texts, TABLE[["t"]]).predict(np.array([[2.0], [-2.0]]), TABLE[["t"]][:2])) == [
        "y",
        "x",
    ]
    with pytest.raises(DataError, match="row 'b'"):
        mechanism(**ok | {"predict": lambda u, table: np.full(len(u), "x", dtype=object)}).fit(texts, TABLE[["t"]])
    with pytest.raises(UsageError, match="predict of 'v': expected numbers"):
        mechanism(**ok).fit(TABLE["v"], TABLE[["t"]])
    with pytest.raises(DataError, match="empty table"):
        mechanism().fit(TABLE["v"][:0], TABLE[["t"]][:0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"abduct": lambda v, table: v.to_numpy()},
            r"^abduct of 'v': expected an array of shape \(4, 1\), got \(4,\)$",
        ),
        ({"predict": lambda u, table: u}, r"^predict of 'v': expected an array of shape \(4,\), got \(4, 1\)$"),
        ({"predict": lambda u, table: u[:, 0] * np.nan}, r"^predict of 'v': .*nan.* for row 0; correct the function$"),
        ({"abduct": lambda v, table: np.log(v - 1).to_numpy()[:, None]}, r"^abduct of 'v': .*-?inf.* for row 1"),
        ({"abduct": lambda v, table: np.full((4, 1), "u")}, r"^abduct of 'v': expected numbers, got an array of"),
        ({"predict": lambda u, table: np.array(["x", None, "y", "x"], dtype=object)}, r"^predict of 'v': .* for row 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_the_functions_return_is_checked(other: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mechanism(**other).fit(TABLE["v"], TABLE[["t"]])


def test_a_density_is_there_only_when_given() -> None:
    with pytest.raises(UsageError, match="expected log_prob=, a function of"):
        mechanism().log_prob(TABLE["v"], TABLE[["t"]])
    some = mechanism(log_prob=lambda v, table: np.where(v > 5, -np.inf, -1.0))
    assert list(some.log_prob(TABLE["v"], TABLE[["t"]])) == [-1.0, -1.0, -np.inf, -np.inf]
    with pytest.raises(UsageError, match=r"^log_prob of 'v'"):
        mechanism(log_prob=lambda v, table: v.to_numpy() * np.nan).log_prob(TABLE["v"], TABLE[["t"]])


def test_only_the_same_object_is_taken_again() -> None:
    state, arrays = mechanism().state()
    assert (state, arrays) == ({"kind": "function", "name": "v", "parents": ["t"], "version": "1"}, {})
    same = mechanism()
    assert same.restore(state, arrays) is same
    with pytest.raises(UsageError, match=r"the version it was saved with, '1', got '2'; pass the same"):
        mechanism(version="2").restore(state, arrays)
    with pytest.raises(UsageError, match="the parents it was saved with"):
        FunctionMechanism("v", [], **GIVEN).restore(state, arrays)


def test_a_constant_column_is_given_back_to_rounding() -> None:
    values = pd.Series([7.3] * 120)  # whose standard deviation comes out as 1e-15, not as 0
    assert 0 < values.to_numpy().std() < 1e-14
    own = FunctionMechanism(
        "v",
        predict=lambda u, _: 0.1 + u[:, 0] * 3,
        abduct=lambda v, _: ((v.to_numpy() - 0.1) / 3)[:, None],
        version="1",
    )
    assert own.predict(own.abduct(values, pd.DataFrame(index=values.index)), pd.DataFrame(index=values.index))[0] != 7.3
    own.fit(values, pd.DataFrame(index=values.index))
