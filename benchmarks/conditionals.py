"""How near a learned p(v | parents) comes to known laws: cfaug's conditional, plain logistic regression, two perceptrons.

    OMP_NUM_THREADS=1 python benchmarks/conditionals.py [ROWS ...]        # default 200 2000 8000; a few minutes

Mean Kullback-Leibler divergence from the truth on 10 000 fresh rows, in nats (0 is perfect), over three tables each.
Parents: x and w standard normal, c of three values. The perceptrons are scikit-learn's, stopped early on a tenth of the
rows. All answers are mixed with the uniform law as cfaug's own is, so that none is punished for a zero.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from cfaug.causal.mechanisms.conditional import Conditional
from cfaug.data import Attribute, Schema

NAMES = ["x", "w", "c"]
LAWS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "linear": lambda x, w, c: 1 / (1 + np.exp(-x + 0.5 * w - (c == "p"))),
    "exp(-x^2)": lambda x, w, c: np.exp(-(x**2)),
    "xor(x, c)": lambda x, w, c: np.where((x > 0) ^ (c == "p"), 0.9, 0.1),
    "x w": lambda x, w, c: 1 / (1 + np.exp(-3 * x * w)),
    "sin(2 x) c": lambda x, w, c: 1 / (1 + np.exp(-3 * np.sin(2 * x) * np.where(c == "q", -1, 1))),
}


def drawn(law: str, n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """n rows, and their true p(v = 1)."""
    x, w, c = rng.normal(size=n), rng.normal(size=n), rng.choice(list("pqr"), n)
    p = LAWS[law](x, w, c)
    return pd.DataFrame({"x": x, "w": w, "c": c, "v": (rng.random(n) < p).astype(int)}), p


def main(sizes: list[int]) -> None:
    warnings.filterwarnings("ignore")
    perceptron = partial(
        MLPClassifier, early_stopping=True, learning_rate_init=5e-3, max_iter=300, n_iter_no_change=15, random_state=0
    )
    models = {
        "logistic": lambda: LogisticRegression(max_iter=1000),
        "perceptron (32, 32)": lambda: perceptron((32, 32), alpha=1e-3),
        "perceptron (64, 64)": lambda: perceptron((64, 64), alpha=1e-2),
    }
    print("| rows | law | " + " | ".join(["cfaug", *models]) + " |\n|---|---|" + "---|" * (1 + len(models)))
    for n in sizes:
        for law in LAWS:
            found: dict[str, list[tuple[float, float]]] = {k: [] for k in ["cfaug", *models]}
            for seed in range(3):
                rng = np.random.default_rng(seed)
                (table, _), (fresh, p) = drawn(law, n, rng), drawn(law, 10_000, rng)
                kinds = [Attribute("x", "continuous"), Attribute("w", "continuous"), Attribute("c"), Attribute("v")]
                schema = Schema(kinds).fit(table)
                table, fresh = schema.canonical(table), schema.canonical(fresh)
                truth = np.stack([1 - p, p], axis=1).clip(1e-12, 1)
                for name in found:
                    start = time.process_time()
                    if name == "cfaug":
                        learned = Conditional(schema, "v", NAMES).fit(table["v"], table[NAMES], seed=seed)
                        logs = learned.log_probabilities(fresh[NAMES])
                    else:
                        model = models[name]().fit(schema.encode(table, NAMES), table["v"])
                        q = model.predict_proba(schema.encode(fresh, NAMES))
                        logs = np.log((1 - 2 / (n + 2)) * q + 1 / (n + 2))
                    spent = time.process_time() - start
                    found[name].append((float((truth * (np.log(truth) - logs)).sum(axis=1).mean()), spent))
            cells = [f"{np.mean([d for d, _ in v]):.4f} ({np.mean([s for _, s in v]):.1f} s)" for v in found.values()]
            print(f"| {n} | {law} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [200, 2000, 8000])
