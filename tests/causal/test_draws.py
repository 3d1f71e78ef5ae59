"""Draws that belong to the row: uniform, independent between rows, streams and columns, and the same in any batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from cfaug.causal.row_random import gumbels, normals, row_seeds, stream, uniforms
from cfaug.errors import UsageError

KEYS = pd.Index([f"image-{i:05d}" for i in range(20_000)])


def test_the_published_splitmix64_values() -> None:
    # the reference implementation's first outputs for seed 1234567 (Vigna's splitmix64.c)
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    expected = [((z >> 12) + 0.5) / 2**52 for z in reference]
    assert uniforms(np.array([1234567], dtype=np.uint64), 4)[0].tolist() == expected


def test_the_distributions_are_what_they_are_called() -> None:
    seeds = row_seeds(0, KEYS)
    for draw, law in ((uniforms, "uniform"), (gumbels, "gumbel_r"), (normals, "norm")):
        values = draw(seeds, 3)
        assert values.shape == (len(KEYS), 3)
        assert np.isfinite(values).all()
        for column in values.T:
            assert kstest(column, law).pvalue > 1e-3


def test_neighbouring_rows_seeds_and_streams_are_independent() -> None:
    one = row_seeds(7, KEYS)
    pairs = {
        "columns": uniforms(one, 2).T,
        "rows": np.stack([uniforms(one)[:-1, 0], uniforms(one)[1:, 0]]),
        "streams": np.stack([uniforms(stream(one, k))[:, 0] for k in (0, 1)]),
        "seeds": np.stack([uniforms(row_seeds(s, KEYS))[:, 0] for s in (7, 8)]),
        "plain numbers": np.stack([uniforms(row_seeds(range(k, k + 20_000), KEYS))[:, 0] for k in (0, 1)]),
    }
    for what, (x, y) in pairs.items():
        counts = np.histogram2d(x, y, bins=16, range=[[0, 1], [0, 1]])[0]
        assert chisquare(counts.ravel()).pvalue > 1e-4, what


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 199), min_size=1, max_size=20), st.integers(0, 99))
def test_a_row_draws_the_same_in_any_batch(seed: int, rows: list[int], number: int) -> None:
    keys = KEYS[:200]
    whole = uniforms(stream(row_seeds(seed, keys), number), 3)
    assert (uniforms(stream(row_seeds(seed, keys[rows]), number), 3) == whole[rows]).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(UsageError, match="expected a whole number from 0"):
        row_seeds(seed, KEYS[:2])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one seed per row, got 3 seeds for 2 rows"):
        row_seeds([1, 2, 3], KEYS[:2])
