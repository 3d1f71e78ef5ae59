"""Counterfactuals of linear-Gaussian models: the matrix closed form, and dowhy.gcm's answers.

    x = B x + o + u   so   x = (I - B)^-1 (o + u),   and under an intervention   x' = (I - B')^-1 (o' + u')

do(k) empties row k of B and puts the value in place of o_k + u_k, shift(k) adds to o_k, scale(k) multiplies row k, o_k
and u_k. dowhy's answers are files in ``reference``; ``tox -e dowhy`` makes them anew (make_reference.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal import SCM, CausalGraph, Intervention, do
from cfaug.causal.intervention import scale, shift
from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.data import Attribute, Schema

Numbers = npt.NDArray[np.float64]
REFERENCE = Path(__file__).parent / "reference"


class Linear:
    """A linear-Gaussian model as matrices: ``weights[effect, cause]``, offsets, standard deviations of the noise."""

    def __init__(self, names: list[str], weights: Numbers, offsets: Numbers, stds: Numbers, rows: int) -> None:
        self.names, self.weights, self.offsets, self.stds = names, weights, offsets, stds
        self.noise = np.random.default_rng(rows).normal(size=(rows, len(names)))  # standard
        edges = [f"{names[cause]} -> {names[effect]}" for effect, cause in np.argwhere(weights)]
        self.graph = CausalGraph("; ".join([*names, *edges]))
        self.schema = Schema([Attribute(name, "continuous") for name in names])

    def rows(self, acts: dict[str, tuple[str, Numbers]] | None = None) -> pd.DataFrame:
        """The rows, factual or under ``acts``: {name: (verb, amount of every row)}, by solving each row's equations."""
        out = np.empty_like(self.noise)
        for i, u in enumerate(self.noise):
            weights, push = self.weights.copy(), self.offsets + self.stds * u
            for name, (verb, amounts) in (acts or {}).items():
                k, amount = self.names.index(name), amounts[i]
                if verb == "do":
                    weights[k], push[k] = 0.0, amount
                elif verb == "shift":
                    push[k] += amount
                else:
                    weights[k] *= amount
                    push[k] *= amount
            out[i] = np.linalg.solve(np.eye(len(self.names)) - weights, push)
        return pd.DataFrame(out, columns=self.names)

    def scm(self, table: pd.DataFrame) -> SCM:
        """The same model as an SCM of user-supplied functions."""
        mechanisms = {name: self._function(name) for name in self.names}
        return SCM(self.graph, self.schema, mechanisms=mechanisms).fit(table)

    def _function(self, name: str) -> FunctionMechanism:
        k = self.names.index(name)
        parents = self.graph.parents(name)

        def mean(table: pd.DataFrame) -> Numbers:
            out = np.full(len(table), self.offsets[k])
            for p in parents:
                out += self.weights[k, self.names.index(p)] * table[p].to_numpy()
            return out

        return FunctionMechanism(
            name,
            parents,
            predict=lambda noise, table: mean(table) + self.stds[k] * noise[:, 0],
            abduct=lambda values, table: ((np.asarray(values) - mean(table)) / self.stds[k])[:, None],
            version="1",
        )


def interventions(acts: dict[str, tuple[str, Numbers]], rows: int) -> list[Intervention]:
    """One do(...) a row."""
    verbs = {"do": float, "shift": shift, "scale": scale}
    return [do({name: verbs[verb](float(amounts[i])) for name, (verb, amounts) in acts.items()}) for i in range(rows)]


def off(found: pd.DataFrame, wanted: pd.DataFrame, spread: pd.Series) -> float:
    """The largest difference in standard deviations of the node."""
    names = list(wanted.columns)
    return float((np.abs(found[names].to_numpy() - wanted.to_numpy()) / spread[names].to_numpy()).max())


# --- five nodes:   a -> b, a -> c, b -> d, c -> d, b -> e, d -> e
def five(rows: int = 200) -> Linear:
    names = list("abcde")
    weights, offsets = np.zeros((5, 5)), np.zeros(5)
    for cause, effect, weight in pd.read_csv(REFERENCE / "weights.csv").itertuples(index=False):
        if isinstance(cause, str):
            weights[names.index(effect), names.index(cause)] = weight
        else:
            offsets[names.index(effect)] = weight
    return Linear(names, weights, offsets, np.array([2.0, 0.5, 1.0, 0.1, 4.0]), rows)


CASES = {
    "do": {"a": ("do", 1.5)},
    "do in the middle": {"d": ("do", -2.0)},
    "shift": {"b": ("shift", -0.5)},
    "scale": {"c": ("scale", 2.0)},
    "do twice": {"a": ("do", 0.25), "d": ("do", 1.0)},
    "do and shift below it": {"a": ("do", 0.25), "d": ("shift", 1.0)},
    "shift and scale below it": {"a": ("shift", 1.0), "c": ("scale", -0.5)},
}


@pytest.mark.parametrize("case", CASES)
def test_given_mechanisms_give_the_closed_form(case: str) -> None:
    model = five()
    table = model.rows()
    scm = model.scm(table)
    acts = {name: (verb, np.full(len(table), amount)) for name, (verb, amount) in CASES[case].items()}
    truth = model.rows(acts)
    assert off(truth, table, table.std()) > 0.1  # the case does something
    one = interventions(acts, 1)[0]
    whole = scm.counterfactual(table, one)
    assert off(whole, truth, table.std()) < 1e-10
    assert scm.counterfactual(table, interventions(acts, len(table))).equals(whole)
    assert scm.counterfactual(table, one, chunk=37).equals(whole)


def test_the_abducted_noise_is_the_noise_that_made_the_row() -> None:
    model = five()
    table = model.rows()
    found = model.scm(table).abduct(table)
    for k, name in enumerate(model.names):
        assert np.allclose(found.values[name][:, 0], model.noise[:, k], rtol=0, atol=1e-10)


def test_samples_have_the_moments_of_the_closed_form() -> None:
    model = five()
    scm = model.scm(model.rows())
    for act, cut in ((do(), None), (do(b=2.0), 1)):
        weights, stds, offsets = model.weights.copy(), model.stds.copy(), model.offsets.copy()
        if cut is not None:
            weights[cut], stds[cut], offsets[cut] = 0.0, 0.0, 2.0
        through = np.linalg.inv(np.eye(5) - weights)
        found = scm.sample(40_000, seed=3, intervention=act)[model.names].to_numpy()
        covariance = through @ np.diag(stds**2) @ through.T
        spread = np.sqrt(np.diag(covariance)) + 1e-12
        # four standard errors of 40 000 rows
        assert (np.abs(found.mean(axis=0) - through @ offsets) / spread).max() < 0.02
        assert (np.abs(np.cov(found.T) - covariance) / np.outer(spread, spread)).max() < 0.03


# --- any graph
@st.composite
def models(draw: st.DrawFn) -> tuple[Linear, dict[str, tuple[str, Numbers]]]:
    n, rows = draw(st.integers(2, 6)), 5
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = draw(st.permutations(range(n)))  # causes first; names say nothing about it
    weights = np.zeros((n, n))
    for later in range(1, n):
        for earlier in range(later):
            if draw(st.booleans()):
                weights[order[later], order[earlier]] = rng.uniform(0.2, 2.0) * rng.choice([-1, 1])
    names = [f"x{k}" for k in range(n)]
    acted = draw(st.lists(st.sampled_from(names), min_size=1, max_size=n, unique=True))
    acts = {}
    for name in acted:
        amounts = rng.uniform(0.3, 3.0, rows) * rng.choice([-1, 1], rows)
        acts[name] = (draw(st.sampled_from(["do", "shift", "scale"])), amounts)
    return Linear(names, weights, rng.normal(size=n), rng.uniform(0.1, 3.0, n), rows), acts


@settings(max_examples=12, deadline=None)
@given(models())
def test_any_linear_gaussian_graph_gives_the_closed_form(drawn: tuple[Linear, dict[str, tuple[str, Numbers]]]) -> None:
    model, acts = drawn
    table = model.rows()
    found = model.scm(table).counterfactual(table, interventions(acts, len(table)), chunk=2)
    truth = model.rows(acts)
    assert np.allclose(found[model.names], truth, rtol=1e-9, atol=1e-9)
    below = {d for name in acts for d in model.graph.descendants(name)}
    for name in set(model.names) - below - set(acts):
        assert (found[name].to_numpy() == table[name].to_numpy()).all()


# --- dowhy.gcm
DOWHY = [path.stem.removeprefix("acts-") for path in sorted(REFERENCE.glob("acts-*.csv"))]


def reference(case: str, kind: str) -> tuple[pd.DataFrame, list[Intervention], pd.DataFrame]:
    """(factual rows, what dowhy did to each, dowhy's counterfactuals of the first of them)."""
    factual = pd.read_csv(REFERENCE / "factual.csv")
    columns = pd.read_csv(REFERENCE / f"acts-{case}.csv")
    acts = {}
    for column in columns:
        verb, name = column.split(" ")
        acts[name] = (verb, np.broadcast_to(columns[column].to_numpy(dtype=float), (len(factual),)))
    return factual, interventions(acts, len(factual)), pd.read_csv(REFERENCE / f"{kind}-{case}.csv")


def test_there_is_a_reference() -> None:
    assert DOWHY == ["do", "each", "scale", "shift", "two"]


@pytest.mark.parametrize("case", DOWHY)
def test_given_mechanisms_agree_with_dowhy(case: str) -> None:
    factual, acts, theirs = reference(case, "given")
    ours = five().scm(factual).counterfactual(factual, acts)
    assert off(ours.head(len(theirs)), theirs, factual.std()) < 1e-9  # the files carry twelve digits


@pytest.fixture(scope="module")
def fitted() -> SCM:
    model = five()
    scm = SCM(model.graph, model.schema, mechanisms=dict.fromkeys(model.names, "linear"))
    return scm.fit(pd.read_csv(REFERENCE / "factual.csv"))


@pytest.mark.parametrize("case", DOWHY)
def test_fitted_linear_mechanisms_agree_with_dowhys(case: str, fitted: SCM) -> None:
    factual, acts, theirs = reference(case, "fitted")
    ours = fitted.counterfactual(factual, acts)
    assert off(ours.head(len(theirs)), theirs, factual.std()) < 2e-6  # the schema encodes parents in float32
