"""The laws of the draw: a pure function of (seed, epoch, index), whatever part of an epoch is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.learn.match import Matches
from cfaug.learn.policies import Append, Replace, Uniforms
from cfaug.learn.policy_groups import Independent, fit_independent


def matches(counterfactuals: list[int], nulls: list[int]) -> Matches:
    """Source i has rows 100 i, 100 i + 1, ...: counterfactuals first."""
    total = np.add(counterfactuals, nulls)
    rows = np.concatenate([np.arange(n) + 100 * i for i, n in enumerate(total)] or [[]]).astype(np.uint32)
    reader: Any = SimpleNamespace(by_key=SimpleNamespace(rows=rows if len(rows) else np.zeros(1, np.uint32)))
    start = np.concatenate([[0], np.cumsum(total)[:-1]])
    return Matches(reader, "by_key", *(np.asarray(x, dtype=np.int32) for x in (start, counterfactuals, nulls)))


counts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40)
shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 500), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_numbers_of_an_index_do_not_depend_on_where_reading_starts(
    seed: int, epoch: int, first: int, count: int
) -> None:
    whole = np.random.default_rng([seed, epoch]).random((first + count + 3, 2))  # the definition in the docstring
    u, v = Uniforms(seed)(epoch, first, count)
    assert np.array_equal(np.stack([u, v], axis=1), whole[first : first + count])


@given(counts, shares, st.sampled_from(["replace", "append"]), st.integers(0, 5), st.integers(0, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_laws_of_replace_and_append(
    numbers: list[tuple[int, int]], share: tuple[float, float], name: str, seed: int, epoch: int, data: st.DataObject
) -> None:
    counterfactuals, nulls = (list(x) for x in zip(*numbers))
    found = matches(counterfactuals, nulls)
    p, null_p = share[0], share[1] * (1 - share[0])
    policy = (Replace if name == "replace" else Append)(found, Uniforms(seed), p, null_p)
    whole = policy.draw(epoch, 0, policy.length)
    # any part is the part of the whole
    first = data.draw(st.integers(0, policy.length - 1))
    part = policy.draw(epoch, first, 1)
    assert [int(column[0]) for column in part] == [int(column[first]) for column in whole]
    for source, kind, row in zip(*(column.tolist() for column in whole)):
        # a row of the source itself, of the kind that is said
        assert (kind == 0) == (row == -1)
        if row >= 0:
            assert row // 100 == source
            assert (row % 100 >= counterfactuals[source]) == (kind == 2)
    if name == "replace":
        assert whole.sources.tolist() == list(range(len(numbers)))
    else:
        n = len(numbers)
        assert whole.sources[:n].tolist() == list(range(n))
        assert not whole.kinds[:n].any()
        added = np.bincount(whole.kinds[n:], minlength=3)
        assert added.tolist() == [
            0,
            round(p * np.count_nonzero(counterfactuals)),
            round(null_p * np.count_nonzero(nulls)),
        ]


def test_append_spreads_over_the_sources() -> None:
    policy = Append(matches([1] * 1000, [0] * 1000), Uniforms(0), 0.3, 0.0)
    shown = [policy.draw(epoch, 1000, 300).sources for epoch in range(40)]
    assert all(
        len(np.unique(sources)) >= 290 for sources in shown
    )  # neighbouring parts may share an image at their border
    often = np.bincount(np.concatenate(shown), minlength=1000)
    assert often.mean() == pytest.approx(12)
    assert often.max() < 30
    assert often.min() > 0
    assert not np.array_equal(shown[0], shown[1])


def test_the_ends_of_the_unit_interval_stay_inside() -> None:
    """What rounding does there must not reach the next source, nor a place behind the last."""
    for u in (0.0, np.nextafter(1.0, 0.0)):
        uniforms: Any = lambda epoch, first, count, u=u: (np.full(count, u), np.full(count, u))  # noqa: E731
        drawn = Append(matches([2] * 1000, [1] * 1000), uniforms, 1.0, 1.0).draw(0, 1000, 2000)
        assert drawn.sources[[999, 1999]].tolist() == [999, 999]
        assert np.array_equal(drawn.rows // 100, drawn.sources)
        policy = object.__new__(Independent)
        n = 2000
        weights = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], n).reshape(-1)
        policy.uniforms, policy.null_p, policy.length = uniforms, 0.0, n
        policy._having, policy._rows = np.arange(n), np.repeat(np.arange(n), 3)
        policy._edges, policy._cumulative = 3 * np.arange(n + 1), np.cumsum(weights)
        assert np.array_equal(policy.draw(0, 0, n).rows, np.arange(n))


def test_the_fit_begins_with_equal_weights_of_the_cells_that_a_source_reaches() -> None:
    weights, _ = fit_independent(np.repeat([0, 1], 3), np.array([0, 0]), np.array([0, 1, 1, 1, 0, 0]))
    assert weights == pytest.approx([0.5, 0.25, 0.25] * 2)


@given(st.integers(0, 30), st.integers(2, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_fitted_options_make_class_and_cell_independent(seed: int, values: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    n = 300
    classes = rng.integers(0, 3, n)
    classes[:3] = [0, 1, 2]
    factual = np.where(rng.random(n) < 0.8, classes % values, rng.integers(0, values, n))
    # every value can be reached by every source: its own, and a counterfactual for each of the others, some of them twice
    options = [[f, *(a for a in range(values) if a != f), *rng.integers(0, values, extra)] for f in factual]
    source = np.repeat(np.arange(n), [len(o) for o in options])
    cells = np.concatenate(options).astype(np.int64)
    weights, residual = fit_independent(source, classes, cells)
    assert residual < 1e-4
    assert weights.min() >= 0
    assert np.bincount(source, weights) == pytest.approx(np.ones(n))
    shown = np.zeros((3, values))
    np.add.at(shown, (classes[source], cells), weights)
    share = np.bincount(factual, minlength=values) / n
    assert shown / shown.sum(axis=1, keepdims=True) == pytest.approx(np.tile(share, (3, 1)), abs=2e-4)


def test_what_cannot_be_reached_is_reported() -> None:
    classes = np.repeat([0, 1], 50)
    factual = classes  # every image of class 1 has attribute 1, and no source has a counterfactual of another value
    weights, residual = fit_independent(np.arange(100), classes, factual.astype(np.int64))
    assert weights.tolist() == [1.0] * 100
    assert residual == pytest.approx(0.5)
