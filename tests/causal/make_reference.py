"""Remakes tests/causal/reference with dowhy.gcm, in dowhy's own environment:

    tox -e dowhy

factual.csv     300 rows of a linear-Gaussian model, Gaussian noise           weights.csv     its coefficients
acts-CASE.csv   what is done, one line for all rows or one a row
given-CASE.csv  dowhy's counterfactuals of the first 100 rows under the coefficients of weights.csv
fitted-CASE.csv the same under linear mechanisms that dowhy fitted to the 300 rows

Not a test: pytest does not collect it, and the suite reads the committed files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent / "reference"
SIDE = Path(__file__).parents[2] / "benchmarks" / "dowhy_side.py"
GRAPH = "a -> b; a -> c; b -> d; c -> d; b -> e; d -> e"
WEIGHTS = [
    ("", "b", 1.0),
    ("a", "b", 2.0),
    ("a", "c", -1.5),
    ("", "d", -3.0),
    ("b", "d", 0.5),
    ("c", "d", 1.25),
    ("b", "e", -0.75),
    ("d", "e", 3.0),
]
STDS = {"a": 2.0, "b": 0.5, "c": 1.0, "d": 0.1, "e": 4.0}
ROWS, KEPT = 300, 100


def main() -> None:
    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows: dict[str, np.ndarray] = {}
    for name, std in STDS.items():
        own = [(cause, weight) for cause, effect, weight in WEIGHTS if effect == name]
        causes = sum((weight * (rows[cause] if cause else np.ones(ROWS)) for cause, weight in own), np.zeros(ROWS))
        rows[name] = causes + rng.normal(0, std, ROWS)
    write("factual.csv", pd.DataFrame(rows))
    write("weights.csv", pd.DataFrame(WEIGHTS, columns=["cause", "effect", "weight"]))
    acts = {
        "do": {"do a": [1.5]},
        "shift": {"shift b": [-0.5]},
        "scale": {"scale c": [2.0]},
        "two": {"do a": [0.25], "shift d": [1.0]},
        "each": {"do b": rng.normal(0, 3, ROWS), "scale d": rng.uniform(0.5, 2, ROWS)},
    }
    for case, columns in acts.items():
        write(f"acts-{case}.csv", pd.DataFrame(columns))
        for kind, more in {"given": ["--weights", str(HERE / "weights.csv")], "fitted": []}.items():
            files = [HERE / "factual.csv", HERE / f"acts-{case}.csv", HERE / f"{kind}-{case}.csv"]
            line = [sys.executable, str(SIDE), "linear", *map(str, files), "--graph", GRAPH, "--keep", str(KEPT), *more]
            subprocess.run(line, check=True)


def write(name: str, table: pd.DataFrame) -> None:
    table.to_csv(HERE / name, index=False, float_format="%.12g")


if __name__ == "__main__":
    main()
