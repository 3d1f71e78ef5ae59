"""The shuffle without memory: a bijection for every n and key, and one whose order says nothing."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cfaug.causal.row_random import Seeds, stream
from cfaug.errors import UsageError
from cfaug.offline.plan.permutation import permuted


def key(number: int) -> Seeds:
    return np.array([number], dtype=np.uint64)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), number=st.integers(0, 2**64 - 1))
def test_it_is_a_bijection(n: int, number: int) -> None:
    assert sorted(permuted(np.arange(n), n, key(number)).tolist()) == list(range(n))


def test_every_small_length_is_a_bijection() -> None:
    for n in range(1, 400):
        assert sorted(permuted(np.arange(n), n, key(n)).tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2**20, 2**53), number=st.integers(0, 2**64 - 1), data=st.data())
def test_large_lengths_stay_inside_and_repeat_nothing(n: int, number: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1000))
    out = permuted(np.arange(start, start + 1000), n, key(number))
    assert 0 <= out.min() <= out.max() < n
    assert len(set(out.tolist())) == 1000


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), number=st.integers(0, 2**32))
def test_every_place_may_have_its_own_length_and_key(sizes: list[int], number: int) -> None:
    keys = stream(np.arange(len(sizes), dtype=np.uint64), number)
    places = np.concatenate([np.arange(n) for n in sizes])
    which = np.repeat(np.arange(len(sizes)), sizes)
    out = permuted(places, np.array(sizes)[which], keys[which])
    alone = [permuted(np.arange(n), n, keys[i : i + 1]) for i, n in enumerate(sizes)]
    assert out.tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_order_of_a_few_is_as_likely(n: int) -> None:
    keys = stream(np.arange(4000, dtype=np.uint64), 5)
    orders = np.stack([permuted(np.full(len(keys), i), n, keys) for i in range(n)], axis=1)
    counts = Counter(map(tuple, orders.tolist()))
    every = [counts.get(order, 0) for order in itertools.permutations(range(n))]
    assert stats.chisquare(every).pvalue > 1e-4


@pytest.mark.parametrize("n", [1000, 4096, 65_537, 10**8, 2**53])
def test_no_structure_is_left(n: int) -> None:
    """Ranks, neighbours, strides and low bits of 20 000 consecutive places, against what chance does."""
    m = min(n, 20_000)
    out = permuted(np.arange(m), n, key(7)) / n
    assert abs(stats.spearmanr(np.arange(m), out).statistic) < 5 / np.sqrt(m)
    for lag in (1, 2, 16, 256):
        assert abs(np.corrcoef(out[:-lag], out[lag:])[0, 1]) < 5 / np.sqrt(m)
    if n > m:
        assert stats.kstest(out, "uniform").pvalue > 1e-4
        steps = np.diff(out) % 1
        assert stats.kstest(steps, "uniform").pvalue > 1e-4
    bits = permuted(np.arange(m), n, key(7)) % 2
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(m)
    runs = int((np.diff(bits) != 0).sum())
    assert abs(runs - m / 2) < 5 * np.sqrt(m) / 2


def test_another_key_is_another_order() -> None:
    one, two = (permuted(np.arange(5000), 5000, key(k)) for k in (1, 2))
    assert (one == two).sum() < 10
    assert abs(stats.spearmanr(one, two).statistic) < 0.08


def test_places_outside_are_refused() -> None:
    for places in (np.array([-1, 0]), np.array([0, 5])):
        with pytest.raises(UsageError, match="expected places from 0 up to n - 1"):
            permuted(places, 5, key(0))
    with pytest.raises(UsageError):
        permuted(np.arange(3), 2**53 + 1, key(0))
    assert permuted(np.arange(0), 5, key(0)).tolist() == []
