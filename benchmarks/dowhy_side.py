"""dowhy.gcm answers a counterfactual question, in its own environment: CSV files in, CSV files out, JSON printed.

    tox -e dowhy -- benchmarks/dowhy_side.py linear FACTUAL ACTS OUT --graph "a -> b; b -> c" [--weights WEIGHTS] [--train TRAIN]
    tox -e dowhy -- benchmarks/dowhy_side.py morpho FACTUAL ACTS OUT --graph "thickness -> intensity" --train TRAIN --quality better
    tox -e dowhy -- benchmarks/dowhy_side.py speed FACTUAL ACTS OUT --graph "..." --train TRAIN --models auto

`linear` fits an additive noise model with a linear regressor to every node that has parents, or takes the coefficients
of WEIGHTS (columns cause, effect, weight; an intercept has no cause). `morpho` lets dowhy assign the mechanisms itself.
`speed` is either of the two, and what dowhy refuses is then an answer, not an error. Seconds and memory are in every answer.

ACTS says what is done: a column "do x", "shift x" or "scale x" for each node acted on, with one line for all rows or one
a row. Several columns act at once. Nothing of cfaug is imported here: dowhy 0.14 needs an older scipy.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

DIGITS = "%.12g"  # two machines' linear algebra differ in the last digits; the committed files should not


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["linear", "morpho", "speed"])
    parser.add_argument("factual", type=Path, help="CSV of the rows whose counterfactuals are asked for")
    parser.add_argument("acts", type=Path, help="CSV of what is done to them")
    parser.add_argument("out", type=Path, help="where the counterfactual rows go")
    parser.add_argument("--graph", required=True, help='"a -> b; b -> c"')
    parser.add_argument("--train", type=Path, help="CSV to fit to (default: FACTUAL)")
    parser.add_argument("--weights", type=Path, help="CSV of given coefficients: nothing is fitted but the roots")
    parser.add_argument("--quality", choices=["good", "better"], default="good", help="of the automatic assignment")
    parser.add_argument("--models", choices=["linear", "auto"], default="linear", help="for speed")
    parser.add_argument("--keep", type=int, help="write only so many of the first rows")
    parser.add_argument("--jobs", type=int, default=1, help="processes of dowhy's model selection")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print(json.dumps(answer(given)), flush=True)


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Fit, ask, write; what was used and how long it took."""
    import dowhy
    import scipy
    import sklearn
    from dowhy import gcm

    gcm.util.general.set_random_seed(given.seed)
    gcm.config.disable_progress_bars()
    gcm.config.set_default_n_jobs(given.jobs)
    graph = read_graph(given.graph)
    names = list(graph.nodes)
    factual = pd.read_csv(given.factual)[names]
    train = factual if given.train is None else pd.read_csv(given.train)[names]
    acts = pd.read_csv(given.acts)

    started = time.perf_counter()
    model = gcm.InvertibleStructuralCausalModel(graph)
    refused = None
    try:
        if given.what == "morpho" or (given.what == "speed" and given.models == "auto"):
            quality = gcm.auto.AssignmentQuality[given.quality.upper()]
            gcm.auto.assign_causal_mechanisms(model, train, quality=quality)
        else:
            assign_linear(model, None if given.weights is None else pd.read_csv(given.weights))
        gcm.fit(model, train)
        fit_seconds = time.perf_counter() - started
        kinds = {name: str(model.causal_mechanism(name)) for name in names}
        before = reset_peak()
        started, worked = time.perf_counter(), time.process_time()
        found = gcm.counterfactual_samples(model, interventions(acts, len(factual)), observed_data=factual)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        peak = resident("VmHWM") - before
        found[names].head(given.keep or len(found)).to_csv(given.out, index=False, float_format=DIGITS)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if given.what != "speed":
            raise
        # what dowhy cannot do on the table is part of the answer
        refused = f"{type(error).__name__}: {' '.join(str(error).split())}"
        fit_seconds = seconds = worked = peak = before = None
        kinds = {}
    return {
        "rows": len(factual),
        "fit_rows": len(train),
        "mechanisms": kinds,
        "fit_seconds": fit_seconds,
        "seconds": seconds,
        "cpu_seconds": worked,
        "peak_mb_over_table": peak,
        "mb_before": before,
        "refused": refused,
        "jobs": given.jobs,
        "versions": {m.__name__: m.__version__ for m in (dowhy, scipy, sklearn, np, pd)},
    }


def read_graph(text: str) -> nx.DiGraph:
    """ "a -> b -> c; d" as dowhy takes it."""
    graph = nx.DiGraph()
    for piece in filter(None, (p.strip() for p in text.split(";"))):
        nx.add_path(graph, [name.strip() for name in piece.split("->")])
    return graph


def assign_linear(model: Any, weights: pd.DataFrame | None) -> None:
    """Empirical roots; below them v = weights . parents + u, the weights given or (None) fitted by least squares."""
    from dowhy import gcm
    from dowhy.gcm.ml.regression import create_linear_regressor_with_given_parameters
    from dowhy.graph import get_ordered_predecessors

    for name in model.graph.nodes:
        parents = get_ordered_predecessors(model.graph, name)
        if not parents:
            model.set_causal_mechanism(name, gcm.EmpiricalDistribution())
        elif weights is None:
            model.set_causal_mechanism(name, gcm.AdditiveNoiseModel(gcm.ml.create_linear_regressor()))
        else:
            own = weights[weights["effect"] == name].set_index("cause")["weight"]
            intercept = float(own[own.index.isna()].sum())
            regressor = create_linear_regressor_with_given_parameters([float(own[p]) for p in parents], intercept)
            model.set_causal_mechanism(name, gcm.AdditiveNoiseModel(regressor))


def interventions(acts: pd.DataFrame, rows: int) -> dict[str, Callable[[float], float]]:
    """dowhy calls one function a node, row by row in order; where a row has a value of its own, the function counts."""
    out: dict[str, Callable[[float], float]] = {}
    for column in acts.columns:
        verb, name = column.split(" ", 1)
        values = np.broadcast_to(acts[column].to_numpy(dtype=float), (rows,))
        if len(acts) == 1:
            out[name] = VERBS[verb](float(values[0]))
        else:
            out[name] = each(VERBS[verb], iter(values.tolist()))
    return out


VERBS: dict[str, Callable[[float], Callable[[float], float]]] = {
    "do": lambda to: lambda _: to,
    "shift": lambda by: lambda v: v + by,
    "scale": lambda by: lambda v: v * by,
}


def each(verb: Callable[[float], Callable[[float], float]], values: Any) -> Callable[[float], float]:
    return lambda v: verb(next(values))(v)


def resident(field: str) -> float:
    """Memory of this process in MB, from the kernel: VmRSS now, VmHWM the most since ``reset_peak``."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) / 1024


def reset_peak() -> float:
    """Start VmHWM anew; MB held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


if __name__ == "__main__":
    main()
