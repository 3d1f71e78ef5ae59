"""The SCM beside dowhy.gcm and beside known truth. No data set, no network; dowhy answers from its own environment.

    tox -e dowhy --notest                                    once: .tox/dowhy, which --dowhy points to by default
    python benchmarks/causal.py linear OUT                   linear-Gaussian: closed form, dowhy's given and fitted models
    python benchmarks/causal.py morpho OUT                   thickness -> intensity of Morpho-MNIST: error against the truth
    python benchmarks/causal.py speed OUT                    a million counterfactual rows: seconds and memory
    python benchmarks/causal.py numeric OUT                  the same beside dowhy, on a table that it can answer

Every result is one JSON line in OUT/causal.jsonl with the command and the machine. Times and memory are those of a fresh
process each, which fits nothing and holds the table before its clock starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from dowhy_side import reset_peak, resident
from rows import cpu, record

from cfaug.causal import SCM, CausalGraph, Intervention, do
from cfaug.causal.intervention import scale, shift
from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.data import Attribute, Schema
from cfaug.data.sources import morpho as morpho_mnist

Numbers = npt.NDArray[np.float64]
SIDE = Path(__file__).with_name("dowhy_side.py")
CHUNK = 65536


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=sorted(PARTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--dowhy", type=Path, default=Path(".tox/dowhy/bin/python"), help="Python that has dowhy 0.14")
    parser.add_argument("--seeds", type=int, default=3, help="tables and fits of morpho")
    parser.add_argument("--rows", type=int, default=1_000_000, help="the most rows of speed and numeric")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        for found in PARTS[given.what](given):
            line = {"what": given.what, **found}
            record(given.out / "causal.jsonl", line, command=command(given), machine=machine())


def command(given: argparse.Namespace) -> str:
    rows = ["--rows", str(given.rows)]
    more = {"morpho": ["--seeds", str(given.seeds)], "speed": rows, "numeric": rows}.get(given.what, [])
    return shlex.join(["python", "benchmarks/causal.py", given.what, "OUT", *more])


def machine() -> dict[str, Any]:
    return {"cpu": cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "numpy": np.__version__}


def ask_dowhy(
    given: argparse.Namespace,
    what: str,
    graph: str,
    rows: pd.DataFrame,
    acts: pd.DataFrame,
    train: pd.DataFrame | None = None,
    **options: Any,
) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """(dowhy's counterfactual rows, or None where it refuses; its own account of the run)."""
    files = {name: given.folder / f"{name}.csv" for name in ("rows", "acts", "out", "train")}
    rows.to_csv(files["rows"], index=False)
    acts.to_csv(files["acts"], index=False)
    files["out"].unlink(missing_ok=True)
    line = [str(given.dowhy), str(SIDE), what, *(str(files[n]) for n in ("rows", "acts", "out")), "--graph", graph]
    if train is not None:
        train.to_csv(files["train"], index=False)
        line += ["--train", str(files["train"])]
    line += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    told = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    return (pd.read_csv(files["out"]) if files["out"].exists() else None), told


# -- linear-Gaussian --------------------------------------------------------------------------------------------------

#   a -> b, a -> c, b -> d, c -> d, b -> e, d -> e
LINEAR = "a -> b; a -> c; b -> d; c -> d; b -> e; d -> e"
NAMES = tuple("abcde")
WEIGHTS = {("a", "b"): 2.0, ("a", "c"): -1.5, ("b", "d"): 0.5, ("c", "d"): 1.25, ("b", "e"): -0.75, ("d", "e"): 3.0}
OFFSETS = np.array([0.0, 1.0, 0.0, -3.0, 0.0])
STDS = np.array([2.0, 0.5, 1.0, 0.1, 4.0])
ACTS: dict[str, tuple[Intervention, dict[str, float]]] = {
    "do(a)": (do(a=1.5), {"do a": 1.5}),
    "shift(b)": (do(b=shift(-0.5)), {"shift b": -0.5}),
    "scale(c)": (do(c=scale(2.0)), {"scale c": 2.0}),
    "do(a), shift(d)": (do(a=0.25, d=shift(1.0)), {"do a": 0.25, "shift d": 1.0}),
}


def linear(given: argparse.Namespace, rows: int = 10_000) -> Iterator[dict[str, Any]]:
    """The largest difference over rows and nodes, in standard deviations of the node."""
    matrix = np.zeros((5, 5))  # matrix[effect, cause]
    for (cause, effect), weight in WEIGHTS.items():
        matrix[NAMES.index(effect), NAMES.index(cause)] = weight
    noise = OFFSETS + np.random.default_rng(0).normal(size=(rows, 5)) * STDS
    table = pd.DataFrame(np.linalg.solve(np.eye(5) - matrix, noise.T).T, columns=list(NAMES))
    schema = Schema([Attribute(name, "continuous") for name in NAMES])
    graph = CausalGraph(LINEAR)
    exact = SCM(graph, schema, mechanisms={n: given_linear(n, graph.parents(n)) for n in NAMES}).fit(table)
    fitted = SCM(graph, schema, mechanisms=dict.fromkeys(NAMES, "linear")).fit(table)
    weights = pd.DataFrame(
        [(c, e, w) for (c, e), w in WEIGHTS.items()] + [("", n, o) for n, o in zip(NAMES, OFFSETS) if o],
        columns=["cause", "effect", "weight"],
    )
    weights.to_csv(given.folder / "weights.csv", index=False)
    spread = table.std().to_numpy()

    def apart(one: pd.DataFrame, other: Any) -> float:
        return float((np.abs(one[list(NAMES)].to_numpy() - np.asarray(other)) / spread).max())

    for case, (act, columns) in ACTS.items():
        truth = closed_form(matrix, noise, columns)
        ours, fit = (scm.counterfactual(table, act) for scm in (exact, fitted))
        acts = pd.DataFrame([columns])
        theirs, told = ask_dowhy(given, "linear", LINEAR, table, acts, weights=given.folder / "weights.csv")
        their_fit, _ = ask_dowhy(given, "linear", LINEAR, table, acts)
        assert theirs is not None
        assert their_fit is not None
        yield {
            "case": case,
            "rows": rows,
            "given, from the closed form": apart(ours, truth),
            "dowhy given, from the closed form": apart(theirs, truth),
            "given, from dowhy given": apart(ours, theirs[list(NAMES)]),
            "fitted, from dowhy fitted": apart(fit, their_fit[list(NAMES)]),
            "fitted, from the closed form": apart(fit, truth),
            "versions": told["versions"],
        }


def given_linear(name: str, parents: tuple[str, ...]) -> FunctionMechanism:
    """value = offset + weights . parents + std noise, as a user would write it down."""
    std = STDS[NAMES.index(name)]

    def mean(table: pd.DataFrame) -> Numbers:
        out = np.full(len(table), OFFSETS[NAMES.index(name)])
        for p in parents:
            out += WEIGHTS[p, name] * table[p].to_numpy()
        return out

    return FunctionMechanism(
        name,
        parents,
        predict=lambda noise, table: mean(table) + std * noise[:, 0],
        abduct=lambda values, table: ((np.asarray(values) - mean(table)) / std)[:, None],
        version="1",
    )


def closed_form(matrix: Numbers, noise: Numbers, columns: dict[str, float]) -> Numbers:
    """x' = (I - B')^-1 u': a shift adds to the noise, a scale multiplies the row of B and the noise, a do replaces both."""
    matrix, noise = matrix.copy(), noise.copy()
    for column, amount in columns.items():
        verb, name = column.split(" ")
        k = NAMES.index(name)
        if verb == "shift":
            noise[:, k] += amount
        else:
            matrix[k] *= 0.0 if verb == "do" else amount
            noise[:, k] = amount if verb == "do" else amount * noise[:, k]
    return np.linalg.solve(np.eye(len(matrix)) - matrix, noise.T).T


# -- thickness -> intensity of Morpho-MNIST ---------------------------------------------------------------------------


def morpho(given: argparse.Namespace, rows: int = 10_000, fitted: int = 8_000) -> Iterator[dict[str, Any]]:
    """Mean absolute error, in grey levels, of the counterfactual intensities of the rows not fitted to."""
    schema = Schema([Attribute("thickness", "continuous"), Attribute("intensity", "continuous")])
    errors: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    kinds: dict[str, list[str]] = {}
    for seed in range(given.seeds):
        rng = np.random.default_rng([seed, 17])
        thickness, intensity = morpho_mnist.draw(rows, rng)
        table = pd.DataFrame({"thickness": thickness, "intensity": intensity})
        train, test = table[:fitted], table[fitted:].reset_index(drop=True)
        old = test["thickness"].to_numpy()
        share = (test["intensity"].to_numpy() - 64.0) / 191.0
        noise = (np.log(share / (1.0 - share)) - 2.0 * (old - 2.5)) / 0.5  # the row's own: the mechanism, inverted
        designs = {
            "marginal": morpho_mnist.draw(len(test), rng)[0],
            "uniform 1.5 to 4": rng.uniform(1.5, 4.0, len(test)),
        }
        answers: dict[str, dict[str, Numbers]] = {
            "unchanged": dict.fromkeys(designs, test["intensity"].to_numpy()),
            # the best that any model can do which keeps the residual: no regressor is better than the true mean
            "additive noise, true mean": {
                design: test["intensity"].to_numpy() - mean_intensity(old) + mean_intensity(wanted)
                for design, wanted in designs.items()
            },
        }
        for kind in ("spline_flow", "additive_noise", "linear"):
            started = time.perf_counter()
            scm = SCM(CausalGraph("thickness -> intensity"), schema, mechanisms={"intensity": kind})
            scm.fit(train, seed=seed)
            seconds.setdefault(f"cfaug {kind}", []).append(time.perf_counter() - started)
            answers[f"cfaug {kind}"] = {
                design: scm.counterfactual(test, [do(thickness=t) for t in wanted])["intensity"].to_numpy()
                for design, wanted in designs.items()
            }
        for quality in ("good", "better"):
            acts = pd.DataFrame({"do thickness": np.concatenate(list(designs.values()))})
            twice = pd.concat([test] * len(designs))
            found, told = ask_dowhy(
                given, "morpho", "thickness -> intensity", twice, acts, train, quality=quality, seed=seed
            )
            assert found is not None
            parts = np.split(found["intensity"].to_numpy(), len(designs))
            answers[f"dowhy {quality}"] = dict(zip(designs, parts))
            seconds.setdefault(f"dowhy {quality}", []).append(told["fit_seconds"])
            kinds.setdefault(f"dowhy {quality}", []).append(told["mechanisms"]["intensity"])
        for design, wanted in designs.items():
            truth = morpho_mnist.intensity_of(wanted, noise)
            for model, answer in answers.items():
                mae = float(np.abs(answer[design] - truth).mean())
                errors.setdefault(model, {}).setdefault(design, []).append(mae)
    for model, found in errors.items():
        yield {
            "model": model,
            "mechanism": sorted(set(kinds.get(model, []))),
            "fitted_rows": fitted,
            "rows": rows - fitted,
            "mae": {d: {"mean": float(np.mean(e)), "least": min(e), "most": max(e)} for d, e in found.items()},
            "fit_seconds": seconds.get(model),
        }


def mean_intensity(thickness: Numbers) -> Numbers:
    """E[intensity | thickness] by Gauss-Hermite quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    values = morpho_mnist.intensity_of(thickness[:, None], nodes)
    return np.asarray(values @ weights / weights.sum())


# -- speed ------------------------------------------------------------------------------------------------------------

#   season, place: roots with a hidden common cause; the rest below them
ARROWS = (
    "season -> weather; season -> light; weather -> light; place -> light; "
    "place -> size; size -> distance; light -> distance; weather -> distance"
)
VALUES = {
    "season": ("spring", "summer", "autumn", "winter"),
    "place": ("field", "forest", "shore"),
    "weather": ("clear", "cloudy", "rain"),
    "size": ("xs", "s", "m", "l", "xl"),
}
SIX = ("season", "place", "weather", "size", "light", "distance")
FIT_ROWS = 5_000


def six_attributes(rows: int, seed: int, numeric: bool = False) -> pd.DataFrame:
    """A table of the graph above: additive noise throughout when ``numeric``, else cut into the values named there."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(7, rows))
    season, place = 0.8 * u[6] + 0.6 * u[0], 0.8 * u[6] - 0.6 * u[1]
    if not numeric:
        season, place = cut(season, 4), cut(place, 3)
    weather = np.tanh(season) + 0.5 * u[2]
    weather = weather if numeric else cut(weather, 3)
    size = 0.7 * place + 0.7 * u[3]
    size = size if numeric else cut(size, 5)
    light = 0.5 * season**2 - weather + 0.4 * place + 0.3 * u[4]
    distance = size + np.sin(light) + 0.5 * weather + 0.4 * u[5]
    columns = dict(zip(SIX, (season, place, weather, size, light, distance)))
    if not numeric:
        for name, values in VALUES.items():
            columns[name] = np.array(values, dtype=object)[columns[name].astype(np.int64)]
    return pd.DataFrame(columns, index=pd.Index([f"{seed}-{i}" for i in range(rows)], dtype=object))


def cut(x: Numbers, parts: int) -> Numbers:
    """Whole numbers 0..parts - 1, about equally many."""
    edges = np.quantile(x, np.arange(1, parts) / parts) if len(x) else []
    return np.searchsorted(edges, x).astype(np.float64)


def six_schema(numeric: bool) -> Schema:
    if numeric:
        return Schema([Attribute(name, "continuous") for name in SIX])
    kinds = {"size": "ordinal", "light": "continuous", "distance": "continuous"}
    return Schema([Attribute(name, kinds.get(name, "categorical"), values=VALUES.get(name)) for name in SIX])


def six_act(numeric: bool) -> Intervention:
    """Both roots at once, so that every other attribute of (nearly) every row is computed anew."""
    return do(season=1.0, place=-1.0) if numeric else do(season="winter", place="shore")


def speed(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Default mechanisms on the mixed table: held and streamed, in one process and in two."""
    folder, fit_seconds = fitted_model(given, False, None)
    most = given.rows
    runs = [(most // 4, False, 1), (most // 2, False, 1), (most, False, 1), (most, False, 2)]
    runs += [(most // 4, True, 1), (most, True, 1), (most, True, 2)]
    for rows, streamed, processes in runs:
        yield {
            "model": "cfaug default",
            "table": "mixed",
            "rows": rows,
            "streamed": streamed,
            "processes": processes,
            "fit_seconds": fit_seconds,
            **timed(folder, rows, streamed, processes, False),
        }


def numeric(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same arrows between six continuous attributes: dowhy and ours; and what dowhy says to the mixed table."""
    table, train = six_attributes(given.rows, 1, numeric=True), six_attributes(FIT_ROWS, 0, numeric=True)
    acts = pd.DataFrame([{f"do {name}": value for name, value in six_act(True).assignments.items()}])
    for models in ("linear", "auto"):
        _, told = ask_dowhy(given, "speed", ARROWS, table, acts, train, models=models, keep=1000)
        yield {"model": f"dowhy {models}", "table": "numeric", "processes": 1, **told}
    mixed = six_attributes(1000, 1)
    light = pd.DataFrame([{"do light": 0.0}])
    _, told = ask_dowhy(given, "speed", ARROWS, mixed, light, six_attributes(2000, 0), models="auto", keep=1000)
    yield {"model": "dowhy auto", "table": "mixed", "processes": 1, **told}
    del table
    for kind in ("linear", None, "additive_noise"):
        folder, fit_seconds = fitted_model(given, True, kind)
        for processes in (1, 2):
            yield {
                "model": f"cfaug {kind or 'default'}",
                "table": "numeric",
                "rows": given.rows,
                "streamed": False,
                "processes": processes,
                "fit_seconds": fit_seconds,
                **timed(folder, given.rows, False, processes, True),
            }


def fitted_model(given: argparse.Namespace, numeric: bool, kind: str | None) -> tuple[Path, float]:
    """(where the SCM lies, seconds it took to fit); ``kind`` of the attributes that have parents, None for the default."""
    folder = given.folder / f"scm-{numeric}-{kind}"
    graph = CausalGraph(ARROWS if numeric else f"season <-> place; {ARROWS}")
    mechanisms = dict.fromkeys(SIX[2:], kind) if kind else None
    started = time.perf_counter()
    SCM(graph, six_schema(numeric), mechanisms=mechanisms).fit(six_attributes(FIT_ROWS, 0, numeric)).save(folder)
    return folder, time.perf_counter() - started


def timed(folder: Path, rows: int, streamed: bool, processes: int, numeric: bool) -> dict[str, Any]:
    """Wall seconds from the first process's start to the last one's end; processor time and memory of all of them.

    On a busy machine the wall says little; the processor time (with that of making the chunks, when streamed) does.
    """
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)  # the clock starts when all of them have loaded and hold their table
    with ProcessPoolExecutor(processes, mp_context=context, initializer=meet, initargs=(together,)) as pool:
        share = rows // processes
        jobs = [pool.submit(one_process, folder, share, k, streamed, numeric) for k in range(processes)]
        parts = [job.result() for job in jobs]
    total = {name: sum(part[name] for part in parts) for name in parts[0] if name.endswith("_mb")}
    return {
        "seconds": max(p["end"] for p in parts) - min(p["start"] for p in parts),
        "cpu_seconds": sum(p["cpu"] for p in parts),
        "making_chunks_seconds": max(p["making"] for p in parts),
        **{name: round(value, 1) for name, value in total.items()},
    }


_together: Any = None


def meet(barrier: Any) -> None:
    """Runs once in every new process."""
    global _together
    _together = barrier


def one_process(folder: Path, rows: int, seed: int, streamed: bool, numeric: bool) -> dict[str, float]:
    """One process's share: when it worked, and its memory before (the table is held, unless streamed) and at its most."""
    import torch

    torch.set_num_threads(1)
    scm, act = SCM.load(folder), six_act(numeric)
    scm.counterfactual(six_attributes(1000, 99, numeric), act)  # libraries are loaded, flows are built
    making = 0.0

    def chunks() -> Iterator[pd.DataFrame]:
        nonlocal making
        for number, start in enumerate(range(0, rows, CHUNK)):
            began = time.perf_counter()
            part = six_attributes(min(CHUNK, rows - start), 1000 * (seed + 1) + number, numeric)
            making += time.perf_counter() - began
            yield part

    table = pd.DataFrame() if streamed else six_attributes(rows, seed + 1, numeric)
    before = reset_peak()
    _together.wait()
    start, worked = time.time(), time.process_time()
    if streamed:
        result, done = pd.DataFrame(), 0
        for part in chunks():
            done += len(scm.counterfactual(part, act))
    else:
        result = scm.counterfactual(table, act, chunk=CHUNK)
        done = len(result)
    end, worked = time.time(), time.process_time() - worked
    if done != rows:
        raise RuntimeError(f"expected {rows} counterfactual rows, got {done}")
    over = resident("VmHWM") - before
    # the texts of a column are the schema's own: the result holds pointers to them
    kept = 0.0 if streamed else result.memory_usage(index=True).sum() / 2**20
    return {
        "start": start,
        "end": end,
        "cpu": worked,
        "making": making,
        "before_mb": before,
        "peak_over_table_mb": over,
        "result_mb": kept,
        "peak_over_table_and_result_mb": over - kept,
    }


PARTS: dict[str, Callable[[argparse.Namespace], Iterable[dict[str, Any]]]] = {
    "linear": linear,
    "morpho": morpho,
    "numeric": numeric,
    "speed": speed,
}

if __name__ == "__main__":
    main()
