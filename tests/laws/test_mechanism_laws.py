"""Laws that every mechanism keeps, whatever its parents, its table and its weights are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cfaug.causal.mechanisms import flows, spline
from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.causal.mechanisms.registry import MECHANISMS, mechanism_named
from cfaug.causal.row_random import row_seeds, stream
from cfaug.data import Attribute, Schema
from cfaug.errors import UsageError

PARENTS = ("c", "o", "x", "z")
DISCRETE = ("categorical", "ordinal")
PRIORS = {"categorical": "gumbel_r", "ordinal": "uniform"}


@pytest.fixture(autouse=True, scope="module")
def _short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # the laws hold however well a flow has learned, but it should have left its start
        patch.setattr(flows, "STEPS", 40)
        patch.setattr(spline, "EVERY", 5)
        yield


@dataclass(frozen=True)
class World:
    mechanism: Mechanism
    schema: Schema
    values: pd.Series
    parents: pd.DataFrame

    @property
    def discrete(self) -> bool:
        return self.schema["v"].kind != "continuous"

    def fresh(self) -> Mechanism:
        m = self.mechanism
        return m if isinstance(m, FunctionMechanism) else mechanism_named(m.kind, self.schema, "v", m.parents)

    def distance(self, a: Any, b: Any) -> float:
        """The largest difference in standard deviations; of categories, the share of different ones."""
        if self.discrete:
            return float(np.mean(np.asarray(a) != np.asarray(b)))
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) / self.schema["v"].scale[1]


def user_function(parents: list[str]) -> FunctionMechanism:
    def centre(table: pd.DataFrame) -> np.ndarray:
        return sum((np.tanh(table[p].to_numpy(float)) for p in table if p in "xz"), np.zeros(len(table)))

    return FunctionMechanism(
        "v",
        parents,
        predict=lambda u, table: centre(table) + 2 * u[:, 0],
        abduct=lambda v, table: ((v.to_numpy() - centre(table)) / 2)[:, None],
        log_prob=lambda v, table: -(((v - centre(table)) / 2) ** 2) / 2 - np.log(2 * np.sqrt(2 * np.pi)),
        version="1",
        monotone=True,
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    kind = draw(st.sampled_from([*MECHANISMS, "function"]))
    names = draw(st.lists(st.sampled_from(PARENTS), unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.sampled_from([3, 12, 60, 120]))
    table = pd.DataFrame(
        {
            "c": rng.choice(list("pqr"), n),
            "o": rng.integers(0, 4, n),
            "x": rng.normal(5, 2, n),
            "z": rng.choice([0.0, 1.0, 100.0], n) * draw(st.sampled_from([1.0, 0.0])),
        },
        index=[f"k{i}" for i in range(n)],
    )
    score = rng.normal(size=n) + table["x"] * (table["c"] == "p")
    if kind in DISCRETE:
        table["v"] = np.clip(score.round(), 0, 3).astype(int)
        attribute = Attribute("v", kind, values=("0", "1", "2", "3", "never"))
    else:
        shape = draw(st.sampled_from(["smooth", "ties", "constant", "skewed"]))
        table["v"] = {"smooth": score, "ties": score.round(), "constant": 0 * score + 7.3, "skewed": np.exp(score)}[
            shape
        ]
        attribute = Attribute("v", "continuous")
    others = [Attribute("c", values=("p", "q", "r", "s")), Attribute("o", "ordinal", values=tuple("01234"))]
    schema = Schema([*others, Attribute("x", "continuous"), Attribute("z", "continuous"), attribute]).fit(table)
    table = schema.canonical(table)
    weights = draw(st.sampled_from([None, rng.uniform(0.1, 5, n)]))
    made = user_function(names) if kind == "function" else mechanism_named(kind, schema, "v", names)
    fitted = made.fit(table["v"], table[names], weights, draw(st.integers(0, 2**31 - 1)))
    return World(fitted, schema, table["v"], table[names])


def elsewhere(world: World, rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Parents that training has not seen: other values, other combinations, far away."""
    table = pd.DataFrame(
        {
            "c": rng.choice(list("pqrs"), n),
            "o": rng.choice(list("01234"), n),
            "x": rng.normal(5, 20, n),
            "z": rng.normal(50, 50, n),
        }
    )
    return table[list(world.parents)].set_axis([f"e{i}" for i in range(n)])


def any_values(world: World, rng: np.random.Generator, n: int) -> pd.Series:
    """Values that training has not seen, up to forty standard deviations away."""
    index = [f"e{i}" for i in range(n)]
    if world.discrete:
        return pd.Series(rng.choice(world.schema["v"].categories, n), index=index, dtype=object)
    mean, std = world.schema["v"].scale
    return pd.Series(mean + std * rng.choice([0.1, 1, 5, 40], n) * rng.normal(size=n).clip(-1, 1), index=index)


def law_predict_inverts_abduct(world: World, rng: np.random.Generator) -> None:
    for values, parents in (
        (world.values, world.parents),
        (any_values(world, rng, 64), elsewhere(world, rng, 64)),
    ):
        noise = world.mechanism.abduct(values, parents, row_seeds(1, values.index))
        assert noise.shape == (len(values), world.mechanism.width)
        assert np.isfinite(noise).all()
        back = world.mechanism.predict(noise, parents)
        assert world.distance(back, values) <= (0 if world.discrete else 1e-5)


def law_sample_is_predict_of_draw(world: World, rng: np.random.Generator) -> None:
    parents = elsewhere(world, rng, 32)
    seeds = row_seeds(2, parents.index)
    drawn = world.mechanism.draw(seeds)
    assert drawn.shape == (32, world.mechanism.width)
    assert np.array_equal(world.mechanism.sample(parents, seeds), world.mechanism.predict(drawn, parents))


def law_noise_of_samples_has_the_priors_distribution(world: World, rng: np.random.Generator) -> None:
    from scipy.stats import kstest

    parents = elsewhere(world, rng, 1500)
    seeds = row_seeds(int(rng.integers(2**40)), parents.index)
    values = pd.Series(world.mechanism.sample(parents, stream(seeds, 0)), index=parents.index)
    noise = world.mechanism.abduct(values, parents, stream(seeds, 1))
    prior = PRIORS.get(world.mechanism.kind, "norm")
    for column in noise.T:
        assert kstest(column, prior).pvalue > 1e-6
    if noise.shape[1] > 1:  # and they are independent of one another
        off = np.corrcoef(np.exp(-np.exp(-noise.T))) - np.eye(noise.shape[1])
        assert np.abs(off).max() < 0.15


def law_a_restored_mechanism_is_the_same_to_the_bit(world: World, rng: np.random.Generator) -> None:
    state, arrays = world.mechanism.state()
    again = world.fresh().restore(json.loads(json.dumps(state)), arrays)
    parents, values = elsewhere(world, rng, 16), any_values(world, rng, 16)
    seeds = row_seeds(3, parents.index)
    assert np.array_equal(again.abduct(values, parents, seeds), world.mechanism.abduct(values, parents, seeds))
    assert np.array_equal(again.sample(parents, seeds), world.mechanism.sample(parents, seeds))
    assert np.array_equal(again.log_prob(values, parents), world.mechanism.log_prob(values, parents))
    assert again.state()[0] == state
    assert again.parameters == world.mechanism.parameters


def law_a_row_does_not_depend_on_its_batch(world: World, rng: np.random.Generator) -> None:
    parents, values = elsewhere(world, rng, 40), any_values(world, rng, 40)
    seeds = row_seeds(4, parents.index)
    rows = rng.permutation(40)[: rng.integers(1, 40)]
    noise = world.mechanism.abduct(values, parents, seeds)
    some = world.mechanism.abduct(values.iloc[rows], parents.iloc[rows], seeds[rows])
    assert some == pytest.approx(noise[rows], rel=1e-9, abs=1e-9)
    sampled = world.mechanism.sample(parents, seeds)
    assert world.distance(world.mechanism.sample(parents.iloc[rows], seeds[rows]), sampled[rows]) < 1e-9


def law_probabilities_sum_to_one(world: World, rng: np.random.Generator) -> None:
    parents = elsewhere(world, rng, 3)
    for row in range(3):
        if world.discrete:
            k = world.schema["v"].categories
            one = parents.iloc[[row] * len(k)]
            total = np.exp(world.mechanism.log_prob(pd.Series(k, index=one.index, dtype=object), one)).sum()
            assert total == pytest.approx(1, abs=1e-9)
        else:  # p(v) dv = phi(u) du at every u, and phi integrates to one
            u = rng.normal(size=(400, 1)) * 2
            one = parents.iloc[[row] * 400]
            low, high = (world.mechanism.predict(u + h, one) for h in (-1e-6, 1e-6))
            value = pd.Series(world.mechanism.predict(u, one), index=one.index)
            # a difference that is more than rounding: of v = mean + std (...), which may come out near 0 itself
            mean, std = world.schema["v"].scale
            sure = (high - low) > 1e-11 * np.maximum(np.abs(value.to_numpy()), abs(mean) + std)
            expected = -0.5 * u[:, 0] ** 2 - 0.5 * np.log(2 * np.pi) - np.log(np.where(sure, high - low, 1) / 2e-6)
            off = np.abs(world.mechanism.log_prob(value, one)[sure] - expected[sure]) > 1e-2
            assert off.sum() <= 2  # a difference across a kink is the slope of neither side


def law_monotone_where_declared(world: World, rng: np.random.Generator) -> None:
    one = elsewhere(world, rng, 1)
    noise = np.linspace(-9, 9, 500) if not world.discrete else np.linspace(0.001, 0.999, 500)
    if world.mechanism.monotone:
        assert world.mechanism.width == 1
        assert (np.diff(world.mechanism.predict(noise[:, None], one.iloc[[0] * 500])) > 0).all()
    elif world.mechanism.kind == "ordinal":
        levels = world.schema.index("v", pd.Series(world.mechanism.predict(noise[:, None], one.iloc[[0] * 500])))
        assert (np.diff(levels) >= 0).all()


def law_one_seed_per_row(world: World, rng: np.random.Generator) -> None:
    for seeds in (row_seeds(0, world.values.index)[1:], [], list(range(len(world.values)))):
        with pytest.raises(UsageError, match="one uint64 seed"):
            world.mechanism.sample(world.parents, seeds)  # type: ignore[arg-type]
        if world.discrete:
            with pytest.raises(UsageError, match="one uint64 seed"):
                world.mechanism.abduct(world.values, world.parents, seeds)  # type: ignore[arg-type]


LAWS = [law for name, law in sorted(globals().items()) if name.startswith("law_")]


# no shrinking: each smaller example would be fitted anew
BUSY = [HealthCheck.too_slow]  # a world is a fit: on a busy machine drawing one is slow, not wrong


@settings(
    deadline=None, max_examples=15, suppress_health_check=BUSY, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(worlds(), st.integers(0, 2**32))
def test_every_mechanism_keeps_every_law(world: World, seed: int) -> None:
    for law in LAWS:
        law(world, np.random.default_rng(seed))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(DISCRETE), st.lists(st.sampled_from(("c", "o")), unique=True), st.integers(0, 2**32))
def test_a_weight_is_a_number_of_repetitions(kind: str, names: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([(c, o) for c in "pq" for o in "012"] * 3, columns=["c", "o"])
    table["v"] = rng.integers(0, 3, len(table))
    schema = Schema([Attribute("c"), Attribute("o", "ordinal"), Attribute("v", kind, values=("0", "1", "2"))]).fit(
        table
    )
    table = schema.canonical(table)
    times = rng.integers(1, 4, len(table))
    many = table.loc[table.index.repeat(times)]
    weighted = mechanism_named(kind, schema, "v", names).fit(table["v"], table[names], times.astype(float))
    repeated = mechanism_named(kind, schema, "v", names).fit(many["v"], many[names])
    assert weighted.state() == repeated.state()


@pytest.mark.parametrize(
    "kind", [k if k in (*DISCRETE, "linear") else pytest.param(k, marks=pytest.mark.slow) for k in MECHANISMS]
)
def test_weights_act_like_repetitions_in_every_regression(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "STEPS", 150)
    rng = np.random.default_rng(0)
    n = 2000
    table = pd.DataFrame({"x": rng.normal(size=n)})
    table["v"] = table["x"] + rng.normal(size=n)
    if kind in DISCRETE:
        table["v"] = (table["v"] > 0).astype(int)
    schema = Schema([Attribute("x", "continuous"), Attribute("v", kind if kind in DISCRETE else "continuous")]).fit(
        table
    )
    table = schema.canonical(table)
    high = (table["v"] == "1" if kind in DISCRETE else table["v"] > 0).to_numpy()
    times = np.where(high, 8, 1)  # the law itself moves, by more than two fits differ
    many = table.loc[table.index.repeat(times)]
    fits = [
        mechanism_named(kind, schema, "v", ["x"]).fit(t["v"], t[["x"]], w).log_prob(table["v"], table[["x"]])
        for t, w in ((table, times.astype(float)), (many, None), (table, None))
    ]
    same, moved = np.median(np.abs(fits[0] - fits[1])), np.median(np.abs(fits[0] - fits[2]))
    assert same < 0.3 * moved
