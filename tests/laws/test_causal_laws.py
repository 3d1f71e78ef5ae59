"""Laws that hold for every graph, table and intervention drawn here: categorical SCMs of up to five nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfaug.causal import SCM, CausalGraph, Intervention, do
from cfaug.data import Attribute, Schema

NAMES = "abcde"


@dataclass(frozen=True)
class World:
    graph: CausalGraph
    table: pd.DataFrame
    scm: SCM


@st.composite
def graphs(draw: st.DrawFn) -> CausalGraph:
    names = NAMES[: draw(st.integers(2, 5))]
    pieces = list(names)
    for i, a in enumerate(names):  # arrows go forward in the alphabet: never a cycle
        for b in names[i + 1 :]:
            kind = draw(st.sampled_from(["", "->", "<->", "both"]))
            pieces += [f"{a} -> {b}"] * (kind in ("->", "both")) + [f"{a} <-> {b}"] * (kind in ("<->", "both"))
    return CausalGraph("; ".join(draw(st.permutations(pieces))))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    graph = draw(graphs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(8, 30))
    columns: dict[str, np.ndarray] = {}
    for name in graph.topological_order():
        k = int(rng.integers(2, 4))
        drift = sum((columns[p] for p in graph.parents(name)), np.zeros(n, dtype=int))
        columns[name] = (drift + (rng.random(n) < 0.3) * rng.integers(0, k, n)) % k
    table = pd.DataFrame(columns, index=[f"k{i}" for i in range(n)])
    schema = Schema([Attribute(c, values=("0", "1", "2")) for c in graph.attributes])
    return World(graph, schema.canonical(table), SCM(graph, schema).fit(table))


def some_do(draw: st.DrawFn, world: World) -> Intervention:
    names = draw(st.lists(st.sampled_from(world.graph.attributes), unique=True, max_size=2))
    return do({n: draw(st.sampled_from("012")) for n in names})


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), worlds(), st.integers(0, 2**63))
def test_counterfactuals_keep_the_three_laws(data: st.DataObject, world: World, seed: int) -> None:
    scm, table = world.scm, world.table
    act = some_do(data.draw, world)
    noise = scm.abduct(table, seed)
    cf = scm.act(act).predict(noise)
    # composition: do() changes nothing
    assert scm.predict(noise).equals(table)
    # effectiveness: what is set is so
    for name, value in act.assignments.items():
        assert (cf[name] == value).all()
    # locality: only descendants move
    touched = set(act.assignments).union(*(world.graph.descendants(n) for n in act.assignments))
    for name in world.graph.attributes:
        assert name in touched or cf[name].equals(table[name])
    # the mechanisms recompute every descendant, whatever the shortcut taken where no parent moved
    for name in touched - set(act.assignments):
        mechanism = scm.mechanism(name)
        assert (cf[name].to_numpy() == mechanism.predict(noise.values[name], cf[list(mechanism.parents)])).all()
    # setting what the counterfactual world already holds changes it no further
    further = {n: cf[n].to_numpy() for n in world.graph.attributes}
    rows = [do({**act.assignments, **{n: v[i] for n, v in further.items()}}) for i in range(len(cf))]
    assert scm.act(rows).predict(noise).equals(cf)


@st.composite
def holed(draw: st.DrawFn) -> tuple[World, pd.DataFrame]:
    """A world, and its table with some, half or all of its cells missing."""
    world = draw(worlds())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = world.table.mask(rng.random(world.table.shape) < draw(st.sampled_from([0.1, 0.5, 1.0])), None)
    return world, world.scm.schema.canonical(table)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), holed(), st.integers(0, 2**63))
def test_missing_values_are_passed_on_and_never_guessed(
    data: st.DataObject, drawn: tuple[World, pd.DataFrame], seed: int
) -> None:
    world, table = drawn
    scm, graph = world.scm, world.graph
    act = some_do(data.draw, world)
    noise = scm.abduct(table, seed)
    # composition: do() changes nothing, and fills nothing in
    assert scm.predict(noise).equals(table)
    cf = scm.act(act).predict(noise)
    for name, value in act.assignments.items():
        assert (cf[name] == value).all()
    touched = set(act.assignments).union(*(graph.descendants(n) for n in act.assignments))
    for name in graph.attributes:
        assert name in touched or cf[name].equals(table[name])
    # wherever a value is said, it is the one that the table without holes would have given
    truth = scm.act(act).predict(scm.abduct(world.table, seed))
    for name in graph.attributes:
        said = cf[name].notna()
        assert (cf[name][said] == truth[name][said]).all()
    # complete rows do not notice their neighbours' holes
    whole = table.notna().all(axis=1)
    assert cf[whole].equals(truth[whole])
