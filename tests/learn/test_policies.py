"""The policies: draws that depend on (seed, epoch, index) alone, and through the wrapper, what stands where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.coloured_shards import N, source
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cfaug.data import ArrayDataset, pixel_digest
from cfaug.learn import CounterfactualDataset
from cfaug.learn import dataset as mixing
from cfaug.learn.match import Matches
from cfaug.learn.policies import Append, Replace, Uniforms, fit_independent
from cfaug.offline import write_shard
from cfaug.offline.read import Sample
from cfaug.train.in_memory import materialise


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
def test_numbers_of_an_index_are_the_same_from_any_start(seed: int, epoch: int, first: int, count: int) -> None:
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
    for owner, kind, row in zip(*(column.tolist() for column in whole)):
        # a row of the source itself, of the kind that is said
        assert (kind == 0) == (row == -1)
        if row >= 0:
            assert row // 100 == owner
            assert (row % 100 >= counterfactuals[owner]) == (kind == 2)
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


def test_the_fit_begins_with_equal_weights_of_the_cells() -> None:
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


def test_an_unreachable_cell_is_reported() -> None:
    classes = np.repeat([0, 1], 50)
    factual = classes  # every image of class 1 has attribute 1, and no source has a counterfactual of another value
    weights, residual = fit_independent(np.arange(100), classes, factual.astype(np.int64))
    assert weights.tolist() == [1.0] * 100
    assert residual == pytest.approx(0.5)


def same(one: Any, other: Any) -> bool:
    return one[1] == other[1] and np.array_equal(np.asarray(one[0]), np.asarray(other[0]))


def test_append_adds_to_all_real_images(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5, null_p=1.0, policy="append")
    assert len(mixed) == N + N // 2 + N
    assert all(same(mixed[i], base[i]) for i in range(N))
    for i in range(N, len(mixed)):
        draw = mixed.provenance(i)
        assert draw.kind == ("counterfactual" if i < N + N // 2 else "null")
        assert draw.row is not None
        assert mixed.reader.record(draw.row)["source_key"] == base.key(draw.source)
        assert np.array_equal(np.asarray(mixed[i][0]), mixed.reader.image(draw.row))
        assert mixed[i][1] == base[draw.source][1]  # the label of its own source
    assert same(mixed[-1], mixed[len(mixed) - 1])
    with pytest.raises(IndexError):
        mixed[len(mixed)]


def test_pairs_show_both_side_by_side(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, policy="pairs")
    assert len(mixed) == N
    for i in range(N):
        factual, counterfactual = mixed[i]
        row = mixed.provenance(i).row
        assert same(factual, base[i])
        assert row is not None
        assert counterfactual[1] == factual[1]
        assert np.array_equal(np.asarray(counterfactual[0]), mixed.reader.image(row))
    tensors = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, policy="pairs", null_p=0.3)
    (images, targets), (images_cf, targets_cf) = next(iter(DataLoader(tensors, 8)))
    assert images.shape == images_cf.shape == (8, 3, 8, 8)
    assert targets.tolist() == targets_cf.tolist()
    assert {tensors.provenance(i).kind for i in range(N)} == {"counterfactual", "null"}


def confounded(directory: Path, n: int = 400, every: int = 1) -> ArrayDataset:
    """Colour follows the digit in nine of ten images; every image (or every n-th) has counterfactuals of both colours and two
    nulls. Thickness follows the digit too, and is 4.5 more in the counterfactual of digit 0, 4.5 less in that of 1."""
    from cfaug.data import Attribute, Schema

    rng = np.random.default_rng(0)
    digit = rng.integers(0, 2, n)
    colour = np.where(rng.random(n) < 0.9, digit, 1 - digit)
    table = pd.DataFrame(
        {
            "digit": digit.astype(str),
            "colour": np.array(["red", "blue"])[colour],
            "thickness": 5 * digit + rng.normal(size=n),
        },
        index=pd.Index([f"k{i:03d}" for i in range(n)], dtype=object),
    )
    schema = Schema(
        [Attribute("digit"), Attribute("colour"), Attribute("thickness", "continuous")], "digit", ["colour"]
    )
    schema = schema.fit(table)
    data = ArrayDataset(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), table, schema)
    samples = []
    for i in range(0, n, every):
        factual = {name: value if isinstance(value, str) else float(value) for name, value in table.iloc[i].items()}
        other = {"thickness": float(factual["thickness"] + (4.5 if factual["digit"] == "0" else -4.5))}
        interventions = ({"colour": "red"}, {"colour": "blue"}, {}, {}) if directory.name != "thick" else (other, {})
        for r, do in enumerate(interventions):
            key = f"train-{i:06d}-{r}"
            record = {
                "schema": 1, "key": key, "source_key": data.key(i), "source_digest": pixel_digest(data.image(i)),
                "split": "train", "do": do, "attributes": {**factual, **do}, "factual": factual,
                "target": factual["digit"], "seed": i, "replica": r, "model": "m" * 64, "quality": {"change_l1": 0.0},
            }  # fmt: skip
            samples.append(Sample(key, np.full((8, 8, 3), r, np.uint8), record))
    write_shard(directory, "cf-train-000000.tar", samples, "p" * 64, "m" * 64)
    return data


def dependence(mixed: CounterfactualDataset, data: ArrayDataset, epochs: int = 20) -> float:
    """Largest difference between the share of red in a class and in all, over what some epochs show."""
    shown = pd.DataFrame(
        [(data.table["digit"].iloc[i], mixed.attributes(i, epoch)["colour"]) for epoch in range(epochs) for i in range(len(data))],
        columns=["digit", "colour"],
    )  # fmt: skip
    red = shown["colour"] == "red"
    return float((red.groupby(shown["digit"]).mean() - red.mean()).abs().max())


def test_groups_make_target_and_attribute_independent(tmp_path: Path) -> None:
    data = confounded(tmp_path)
    balanced = CounterfactualDataset(data, tmp_path, policy="groups", null_p=0.5)
    mixture = CounterfactualDataset(data, tmp_path, p=0.5)
    assert dependence(mixture, data, 5) > 0.15  # half of the images still follow the shortcut
    assert dependence(balanced, data) < 0.02  # 0.006 is one standard deviation of so many draws
    kinds = np.concatenate([balanced.draws(epoch)[0] for epoch in range(20)])
    share = np.bincount(kinds, minlength=3) / len(kinds)
    assert share[0] == pytest.approx(share[2], abs=0.02)  # half of the real images come as reconstructions
    assert share[1] > 0.2
    fast = materialise(balanced)
    images, _, _ = next(iter(fast.batches(0, [torch.arange(20)])))
    assert all(np.array_equal(images[i].permute(1, 2, 0).numpy(), np.asarray(balanced[i][0])) for i in range(20))


def test_every_null_intervention_of_a_source_is_shown(tmp_path: Path) -> None:
    balanced = CounterfactualDataset(confounded(tmp_path, n=40), tmp_path, policy="groups", null_p=0.6)
    shown = np.concatenate([balanced.draws(epoch)[1] for epoch in range(100)])
    often = np.bincount(shown[shown >= 0] % 4, minlength=4)  # rows 2 and 3 of every source
    assert often[2] == pytest.approx(often[3], rel=0.1)


def test_groups_balance_quartiles_of_a_continuous_attribute(tmp_path: Path) -> None:
    data = confounded(tmp_path / "thick")
    balanced = CounterfactualDataset(data, tmp_path / "thick", policy="groups")
    edges = np.quantile(data.table["thickness"], [0.25, 0.5, 0.75])
    table = pd.DataFrame(
        [(data.table["digit"].iloc[i], np.searchsorted(edges, balanced.attributes(i, epoch)["thickness"]))
         for epoch in range(10) for i in range(len(data))],
        columns=["digit", "quartile"],
    )  # fmt: skip
    shares = pd.crosstab(table["digit"], table["quartile"], normalize="index")
    assert shares.shape == (2, 4)
    assert float((shares.loc["0"] - shares.loc["1"]).abs().max()) < 0.06
    assert float(np.abs(shares.to_numpy() - 0.25).max()) < 0.06


def test_groups_tell_of_images_without_counterfactual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CounterfactualDataset(confounded(tmp_path, n=40, every=2), tmp_path, policy="groups")
    assert "20 of 40 images have no counterfactual sample: they stay real, and their attributes follow" in caplog.text


def test_groups_warn_where_a_class_cannot_reach_a_value(
    base: ArrayDataset, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    # do(colour=red) only: class 1 has blue images that can turn red, class 0 has none that are blue
    CounterfactualDataset(base, make(base, kinds=("cf",)), policy="groups")
    assert "target and attributes stay dependent" in caplog.text


def test_large_data_sets_draw_item_by_item_the_same(
    base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for policy in ("replace", "append", "pairs", "groups"):
        small = CounterfactualDataset(base, shards, policy=policy, null_p=0.2)
        large = CounterfactualDataset(base, shards, policy=policy, null_p=0.2)
        for epoch in (0, 1):
            expected = [small.provenance(i, epoch) for i in range(len(small))]
            with monkeypatch.context() as patched:
                patched.setattr(mixing, "DRAWN_TOGETHER", 0)
                assert [large.provenance(i, epoch) for i in range(len(large))] == expected
                assert large.provenance(-1, epoch) == small.provenance(-1, epoch) == expected[-1]
    assert large._drawn is None  # nothing of the epoch's size was made
