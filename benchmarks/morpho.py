"""Counterfactuals of known continuous attributes: Morpho-MNIST, thickness (px) and intensity (grey levels) read from the pixels.

    python benchmarks/morpho.py OUT --root MNIST

Fits the shipped recipe's decoder (or takes the one in OUT/run), then asks of validation images, which it has not seen: do(intensity = i'), and
do(thickness = t') with the intensity that follows by the SCM; i' and t' are drawn from the data's own values. One JSON line a
solver in OUT/morpho.jsonl: mean absolute errors of what the pixels measure against what was asked, beside the same measure
on real images and on images left as they are, and the digit a classifier reads, relative to real images.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import cpu, record

from cfaug.causal import do
from cfaug.config import load_recipe
from cfaug.data import load_images, measures_of
from cfaug.data.images import to_float
from cfaug.decode.diffusion.sampling import evaluations
from cfaug.judge.axioms import composition, counterfactuals
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages import fit, open_run
from cfaug.stages.attribute_classifiers import attribute_readers, quantised, to_pixels

SOLVERS = [
    ("reversible", 1),
    ("reversible", 2),
    ("reversible", 3),
    ("reversible", 4),
    ("reversible_euler", 1),
    ("reversible_euler", 3),
    ("midpoint", 3),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", required=True, help="MNIST in torchvision's layout")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = load_recipe(shipped_recipes()["morpho_mnist"], [f"--data.root={given.root}"])
    with open_run(recipe, given.out / "run") as run:
        model: Any = fit(run)
    readers, _ = attribute_readers(recipe, run.inputs, set(), progress=False)
    rows = list(range(min(given.images, len(run.inputs.val))))
    images = load_images(run.inputs.val, rows, progress=False)
    table = run.inputs.val.table.iloc[rows]
    x = to_float(images)
    digits = torch.from_numpy(np.asarray(run.inputs.schema.index("digit", table["digit"])))
    read_real = float((readers["digit"].predict(images) == digits).float().mean())
    measures = measures_of("morpho_mnist")
    rng = np.random.default_rng(0)
    asked = {name: rng.permutation(table[name].to_numpy()) for name in measures}
    for sampler, steps in SOLVERS:
        model.decoder.config = dataclasses.replace(model.decoder.config, sampler=sampler, steps=steps)
        found: dict[str, Any] = {
            "sampler": sampler,
            "steps": steps,
            "evaluations": evaluations(sampler, steps),
            "composition_l1": float(composition(model, x, table).mean()),
        }
        for name in measures:
            made, after = counterfactuals(model, x, table, [do({name: float(value)}) for value in asked[name]])
            pixels = to_pixels(made)
            found[f"do({name})"] = {
                "n": len(rows),
                "digit_relative": float((readers["digit"].predict(quantised(made)) == digits).float().mean())
                / read_real,
                **{f"{other}_mae": _mae(measure(pixels), after[other]) for other, measure in measures.items()},
                **{
                    f"{other}_mae_real": _mae(measure(to_pixels(images)), table[other])
                    for other, measure in measures.items()
                },
                **{
                    f"{other}_mae_unchanged": _mae(measure(to_pixels(images)), after[other])
                    for other, measure in measures.items()
                },
            }
        report = model.decoder.report
        command = ["python", "benchmarks/morpho.py", "OUT", "--root", "MNIST", "--images", str(given.images)]
        record(
            given.out / "morpho.jsonl",
            found,
            training={"steps": report.steps, "seconds": report.seconds},
            command=shlex.join(command),
            machine={"cpu": cpu(), "torch": torch.__version__},
        )


def _mae(found: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(wanted, dtype=float)).mean())


if __name__ == "__main__":
    main()
