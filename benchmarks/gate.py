"""The gate on models that are wrong on purpose, and on a finished run: who is found, who is rejected, what it costs.

    python benchmarks/gate.py faults RUN [--n 400] [--care ATTRIBUTE]     seven wrong models and the right one, of a run with a gate
    python benchmarks/gate.py cost RUN                                    images a second without and with the gate, in turns

RUN is the directory of `cfaug run` (or `generate`) with the gate on. Rows go to results/gate.jsonl; those of kind `compare` are tables of `cfaug run`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

from helpers.wrong_models import CRITERION, FAULTS, Recording, WrongModel  # noqa: E402
from rows import cpu, record  # noqa: E402

from cfaug.config import load_recipe  # noqa: E402
from cfaug.decode import CounterfactualModel  # noqa: E402
from cfaug.offline import Plan  # noqa: E402
from cfaug.offline.commit import open_destination  # noqa: E402
from cfaug.offline.make_shard import ShardWork  # noqa: E402
from cfaug.stages.checked_inputs import open_inputs  # noqa: E402
from cfaug.stages.gate import make_gate  # noqa: E402
from cfaug.stages.gate_readers import Embedding  # noqa: E402
from cfaug.stages.masks import with_masks  # noqa: E402

RESULTS, BATCH = HERE.parent / "results" / "gate.jsonl", 50


def opened(run: Path) -> tuple[Any, Any, Any, Any]:
    recipe = load_recipe(run / "config.yaml")
    inputs = with_masks(recipe, open_inputs(recipe, False, True), run / "masks")
    model = CounterfactualModel.load(run / "model")
    return recipe, inputs, model, make_gate(recipe, inputs, model, run)


def faults(given: argparse.Namespace) -> None:
    recipe, inputs, model, gate = opened(given.run)
    plan, table = Plan.load(given.run / "plan"), inputs.schema.canonical(inputs.train.table)
    changed = [
        row
        for row in plan.sample(8 * given.n)
        if not row.do.is_null
        and all(table[name][row.source_key] != value for name, value in row.do.assignments.items())
    ][: given.n]
    command = f"python benchmarks/gate.py faults RUN --n {given.n}   ({recipe.name})"

    def margins(found: Any) -> dict[str, Any]:
        recording = Recording(gate)
        work = ShardWork(found, inputs.sources, plan, open_destination(given.run), BATCH, {}, gate=recording)
        for start in range(0, len(changed), BATCH):
            work.batch(changed[start : start + BATCH])
        return {name: np.array(values) for name, values in recording.found.items()}

    right = margins(model)
    false = np.any([one < 0 for one in right.values()], axis=0)
    row = {
        "what": "faults",
        "run": recipe.name,
        "model": "right",
        "n": len(changed),
        "rejected": round(float(false.mean()), 4),
    }
    by = {name: round(float(np.mean(one < 0)), 4) for name, one in right.items()}
    abstains = {name: round(float(np.isnan(one).mean()), 4) for name, one in right.items()}
    record(RESULTS, {**row, "by": by, "abstains": abstains}, cpu=cpu(), command=command)
    for fault in FAULTS:
        if fault == "changes a care attribute" and given.care is None:
            continue
        wrong = margins(WrongModel(model, fault, inputs.sources, given.care))
        found = np.any([one < 0 for one in wrong.values()], axis=0)
        names = [name for name in wrong if CRITERION[fault] in name]
        meant = np.any([wrong[name] < 0 for name in names], axis=0) if names else np.zeros(len(found), bool)
        theirs = np.any([right[name] < 0 for name in names], axis=0) if names else np.zeros(len(found), bool)
        record(
            RESULTS,
            {
                "what": "faults", "run": recipe.name, "masks": recipe.decoder.mask.get("from", "given"), "model": fault, "n": len(changed), "criterion": ", ".join(names) or "none",
                "recall": _round(meant.mean()), "precision": _round(meant.sum() / max(1, meant.sum() + theirs.sum())),
                "recall_of_the_gate": _round(found.mean()), "precision_of_the_gate": _round(found.sum() / max(1, found.sum() + false.sum())),
                "by": {name: _round(np.mean(one < 0)) for name, one in wrong.items()},
            },
            cpu=cpu(), command=command,
        )  # fmt: skip


def _round(value: Any) -> float:
    return round(float(value), 4)


def cost(given: argparse.Namespace, turns: int = 5, images: int = 200) -> None:
    """Without the gate, with it, and with it where features are there already (a training on the same images needs them anyway)."""
    torch.set_num_threads(1)
    recipe, inputs, model, gate = opened(given.run)
    plan = Plan.load(given.run / "plan")
    rows = [row for row in plan.sample(4 * images) if not row.do.is_null][:images]

    def seconds(asked: Any) -> float:
        work = ShardWork(model, inputs.sources, plan, open_destination(given.run), BATCH, {}, gate=asked)
        work.batch(rows[:BATCH])
        before = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            work.batch(rows[start : start + BATCH])
        return time.perf_counter() - before

    known: dict[bytes, torch.Tensor] = {}
    compute = Embedding.__call__

    def looked_up(self: Embedding, seen: Any) -> torch.Tensor:
        keys = [image.tobytes() for image in seen.images]
        if missing := [i for i, key in enumerate(keys) if key not in known]:
            found = compute(self, seen)
            known.update({keys[i]: found[i] for i in missing})
        return torch.stack([known[key] for key in keys])

    def cached() -> float:
        Embedding.__call__ = looked_up  # type: ignore[method-assign]
        try:
            return seconds(gate)
        finally:
            Embedding.__call__ = compute  # type: ignore[method-assign]

    cached()
    rounds = [(seconds(None), seconds(gate), cached()) for _ in range(turns)]
    off, on, there = (float(np.median([one[i] for one in rounds])) for i in (0, 1, 2))
    record(
        RESULTS,
        {
            "what": "cost", "run": recipe.name, "images": images, "images_per_second_without": round(images / off, 1),
            "images_per_second_with": round(images / on, 1), "images_per_second_with_features_there": round(images / there, 1),
            "ratio": _round(np.median([b / a for a, b, _ in rounds])), "ratio_with_features_there": _round(np.median([c / a for a, _, c in rounds])),
        },
        cpu=cpu(), command=f"python benchmarks/gate.py cost RUN   ({recipe.name})",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["faults", "cost"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--care")
    given = parser.parse_args()
    {"faults": faults, "cost": cost}[given.part](given)


if __name__ == "__main__":
    main()
