"""Laws of the whole SCM, for random graphs over categorical, ordinal and continuous attributes and every kind of do().

Continuous values that are computed anew may differ from what they were in the last digits: 1e-5 of a standard deviation.
What is not computed anew is the same bit by bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cfaug.causal import SCM, CausalGraph, Intervention, do, flip, resample, scale, shift, uniform
from cfaug.causal.mechanisms import flows
from cfaug.causal.noise import Noise
from cfaug.data import Attribute, Schema

KINDS = ("categorical", "binary", "ordinal", "spline_flow", "additive_noise", "linear")
ROWS = 60


@dataclass(frozen=True)
class World:
    graph: CausalGraph
    table: pd.DataFrame
    scm: SCM

    def noise(self, seed: int) -> Noise:
        return self.scm.abduct(self.table, seed)


@cache
def world(number: int) -> World:
    """A graph, a table and a fitted SCM of 3 to 5 attributes: few are fitted, and many things are done to each."""
    rng = np.random.default_rng(number)
    names = "abcde"[: rng.integers(3, 6)]
    kinds = dict(zip(names, rng.permutation(KINDS)))
    pieces = list(names)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pieces += [f"{a} -> {b}"] * int(rng.random() < 0.5) + [f"{a} <-> {b}"] * int(rng.random() < 0.15)
    graph = CausalGraph("; ".join(pieces))
    columns: dict[str, list[object]] = {}
    scores: dict[str, np.ndarray] = {}
    for name in graph.topological_order():
        score = rng.normal(size=ROWS) + sum((scores[p] for p in graph.parents(name)), np.zeros(ROWS))
        levels = {"categorical": 3, "binary": 2, "ordinal": 4}.get(kinds[name])
        if levels:
            codes = np.searchsorted(np.quantile(score, np.arange(1, levels) / levels), score)
            columns[name], scores[name] = [f"v{c}" for c in codes], codes - codes.mean()
        else:
            columns[name], scores[name] = list(10 + 3 * score), score
    given_kinds = {"categorical": "categorical", "binary": "categorical", "ordinal": "ordinal"}
    ranks = {n: tuple(f"v{r}" for r in range(4)) for n in names if kinds[n] == "ordinal"}
    schema = Schema([Attribute(n, given_kinds.get(kinds[n], "continuous"), ranks.get(n)) for n in names])
    mechanisms = {n: k for n, k in kinds.items() if k in ("spline_flow", "additive_noise", "linear")}
    table = pd.DataFrame(columns, index=[f"k{i}" for i in range(ROWS)])
    steps, flows.STEPS = flows.STEPS, 20  # laws hold however well a mechanism fits
    try:
        scm = SCM(graph, schema, mechanisms).fit(table)
    finally:
        flows.STEPS = steps
    return World(graph, scm.schema.canonical(table), scm)


worlds = st.integers(0, 7).map(world)


def some(draw: st.DrawFn, world: World, names: list[str]) -> Intervention:
    """Anything that can be done to these attributes."""
    wish = {}
    for name in names:
        attribute, seen = world.scm.schema[name], list(world.table[name])
        ways = [st.sampled_from(seen), st.just(resample()), st.just(uniform())]
        if attribute.kind == "continuous":
            ways += [st.sampled_from([shift(1.5), shift(-40.0), scale(-0.5), scale(2.0)])]
        if attribute.kind == "ordinal":
            ways += [st.sampled_from([shift(1), shift(-2)])]
        if attribute.kind != "continuous" and len(attribute.categories) == 2:
            ways += [st.just(flip())]
        wish[name] = draw(st.one_of(ways))
    return do(wish)


def some_names(draw: st.DrawFn, world: World, most: int = 2) -> list[str]:
    return draw(st.lists(st.sampled_from(world.graph.attributes), unique=True, max_size=most))


def same(world: World, one: pd.DataFrame, other: pd.DataFrame) -> None:
    for name in world.graph.attributes:
        if world.scm.schema[name].kind == "continuous":
            unit = world.scm.schema[name].scale[1]
            np.testing.assert_allclose(one[name] / unit, other[name] / unit, rtol=0, atol=1e-5)
        else:
            assert one[name].equals(other[name]), name


LAW = settings(deadline=None, max_examples=15)


@LAW
@given(worlds, st.integers(0, 2**63))
def test_abduction_explains_every_row(world: World, seed: int) -> None:
    noise = world.noise(seed)
    for name in world.scm.order:
        mechanism = world.scm.mechanism(name)
        assert noise.values[name].shape == (ROWS, mechanism.width)
        again = mechanism.predict(noise.values[name], world.table[list(mechanism.parents)])
        if world.scm.schema[name].kind == "continuous":
            assert np.abs(again - world.table[name]).max() < 1e-5 * world.scm.schema[name].scale[1]
        else:
            assert (again == world.table[name].to_numpy()).all()


@LAW
@given(st.data(), worlds, st.integers(0, 2**63))
def test_what_is_not_below_the_intervention_stays_bit_for_bit(data: st.DataObject, world: World, seed: int) -> None:
    assert world.scm.counterfactual(world.table, do(), seed).equals(world.table)
    act = some(data.draw, world, some_names(data.draw, world))
    cf = world.scm.counterfactual(world.table, act, seed)
    touched = set(act.names).union(*(world.graph.descendants(n) for n in act.names))
    for name in world.graph.attributes:
        assert name in touched or cf[name].equals(world.table[name])
    for name, value in act.assignments.items():
        assert (cf[name] == value).all()
    # and below it, where no parent came out another, nothing moved either
    for name in touched - set(act.names):
        parents = list(world.graph.parents(name))
        still = (cf[parents] == world.table[parents]).all(axis=1)
        assert cf[name][still].equals(world.table[name][still])


@LAW
@given(st.data(), worlds, st.integers(0, 2**63))
def test_doing_and_undoing_gives_the_factual_row_back(data: st.DataObject, world: World, seed: int) -> None:
    names = some_names(data.draw, world)
    act, noise = some(data.draw, world, names), world.noise(seed)
    there = world.scm.act(act).predict(noise)
    undo = [do({n: world.table[n].iat[i] for n in names}) for i in range(ROWS)]
    same(world, world.scm.act(undo).predict(noise.moved(there)), world.table)


@LAW
@given(st.data(), worlds, st.integers(0, 2**63))
def test_interventions_not_upstream_of_each_other_commute(data: st.DataObject, world: World, seed: int) -> None:
    a, b = data.draw(st.permutations(world.graph.attributes))[:2]
    assume(a not in world.graph.ancestors(b) and b not in world.graph.ancestors(a))
    one, other = some(data.draw, world, [a]), some(data.draw, world, [b])
    noise = world.noise(seed)
    there = world.scm.act(other).predict(noise.moved(world.scm.act(one).predict(noise)))
    back = world.scm.act(one).predict(noise.moved(world.scm.act(other).predict(noise)))
    same(world, there, back)
    both = world.scm.act(do(dict((*one.items, *other.items)))).predict(noise)
    same(world, there, both)


@LAW
@given(st.data(), worlds, st.integers(0, 2**63), st.integers(1, ROWS + 5))
def test_chunks_and_batches_change_no_bit_of_a_discrete_row(
    data: st.DataObject, world: World, seed: int, chunk: int
) -> None:
    act = some(data.draw, world, some_names(data.draw, world, 3))
    whole = world.scm.counterfactual(world.table, act, seed)
    same(world, world.scm.counterfactual(world.table, act, seed, chunk=chunk), whole)
    rows = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=9))
    same(world, world.scm.counterfactual(world.table.iloc[rows], act, seed), whole.iloc[rows])
    done = np.arange(ROWS) % 3 > 0  # one per row is the same as one for all, wherever the row stands
    many = world.scm.counterfactual(world.table, [act if d else do() for d in done], seed)
    same(world, many[done], whole[done])
    assert many[~done].equals(world.table[~done])


@LAW
@given(st.data(), worlds)
def test_an_intervention_survives_json_and_print(data: st.DataObject, world: World) -> None:
    act = some(data.draw, world, some_names(data.draw, world, 3)).check(world.scm.schema)
    assert Intervention.from_json(json.loads(json.dumps(act.to_json()))) == act
    assert all(f"{name}=" in str(act) for name in act.names)


@settings(deadline=None, max_examples=12)
@given(worlds)
def test_a_saved_model_gives_the_same_counterfactuals(world: World) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        world.scm.save(place)
        again = SCM.load(place)
    assert again.digest == world.scm.digest
    act = do({world.scm.order[0]: uniform()})
    assert again.counterfactual(world.table, act, 3).equals(world.scm.counterfactual(world.table, act, 3))
    assert again.sample(50, 1).equals(world.scm.sample(50, 1))
