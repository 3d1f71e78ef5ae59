"""The gate on models that are wrong on purpose, and on a finished run: who is found, who is rejected, what it costs.

    python benchmarks/gate.py faults RUN [--n 400] [--care ATTRIBUTE]     seven wrong models and the right one, of a run with a gate
    python benchmarks/gate.py cost RUN                                    images a second without and with the gate, in turns
    python benchmarks/gate.py labels RUN [--other OFF]                    label error of what is in the shards, by a net that saw no confounding
    python benchmarks/gate.py equal RUN --other OFF                       worst group with the gate and without, of equally many samples

RUN is the directory of `cfaug run` (or `generate`) with the gate on. Rows go to results/gate.jsonl; those of kind `compare` are tables of `cfaug run`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
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
from cfaug.data import load_images  # noqa: E402
from cfaug.decode import CounterfactualModel  # noqa: E402
from cfaug.judge.accuracy import result_row  # noqa: E402
from cfaug.offline import Plan, ShardReader  # noqa: E402
from cfaug.offline.commit import open_destination  # noqa: E402
from cfaug.offline.make_shard import ShardWork  # noqa: E402
from cfaug.stages.attribute_classifiers import settings_of  # noqa: E402
from cfaug.stages.checked_inputs import open_inputs  # noqa: E402
from cfaug.stages.gate import make_gate  # noqa: E402
from cfaug.stages.gate_readers import Embedding  # noqa: E402
from cfaug.stages.masks import with_masks  # noqa: E402
from cfaug.train import Mixture, TensorImages, TrainingSets, train_classifier, validation_set  # noqa: E402

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


def labels(given: argparse.Namespace) -> None:
    """Share of generated images whose label a classifier, trained on unconfounded images of the same source, does not read."""
    recipe = load_recipe(given.run / "config.yaml")
    inputs = open_inputs(recipe, False, True)
    assert inputs.oracle is not None
    images = load_images(inputs.oracle, range(len(inputs.oracle)), progress=False)
    codes = torch.from_numpy(np.asarray(inputs.schema.index(inputs.target, inputs.oracle.table[inputs.target])))
    settings = dataclasses.replace(settings_of(recipe), selection="last", epochs=8)
    net = train_classifier(
        "erm", TensorImages(images, codes), None, settings, 0, inputs.schema[inputs.target].categories, progress=False
    )
    test = load_images(inputs.test, range(len(inputs.test)), progress=False)
    own = np.asarray(inputs.schema.index(inputs.target, inputs.test.table[inputs.target]))
    real = float((net.predict(test).numpy() != own).mean())
    for name, run in (("on", given.run), ("off", given.other)):
        if run is None:
            continue
        reader = ShardReader(run / "shards")
        made = torch.from_numpy(np.stack([reader.image(i) for i in range(len(reader))])).permute(0, 3, 1, 2)
        truth = np.array(
            [inputs.schema[inputs.target].categories.index(reader.record(i)["target"]) for i in range(len(reader))]
        )
        wrong = net.predict(made).numpy() != truth
        record(
            RESULTS, {"what": "labels", "run": recipe.name, "gate": name, "n": len(wrong), "label_error": _round(wrong.mean()), "error_on_real_test_images": _round(real)},
            cpu=cpu(), command="python benchmarks/gate.py labels RUN --other OFF",
        )  # fmt: skip


def equal(given: argparse.Namespace) -> None:
    """The same methods on as many samples of either run: whole shards, in order, until the smaller run has no more."""
    recipe = load_recipe(given.run / "config.yaml")
    inputs = open_inputs(recipe, False, True)
    sizes = {
        run: np.array([row.count for row in ShardReader(run / "shards").manifest]) for run in (given.run, given.other)
    }
    total = min(sizes[given.run].sum(), sizes[given.other].sum())
    found: dict[tuple[str, str], list[Any]] = {}
    validation = validation_set(inputs.val, inputs.grouper)
    test = load_images(inputs.test, range(len(inputs.test)), progress=False)
    with tempfile.TemporaryDirectory() as place:
        for name, run in (("on", given.run), ("off", given.other)):
            kept = int(np.searchsorted(np.cumsum(sizes[run]), total, side="right"))
            shards = trimmed(run / "shards", Path(place) / name, max(1, kept))
            sets = TrainingSets(inputs.train, inputs.grouper, shards, recipe.train.groups)
            for method, seed in itertools.product(("counterfactuals_only", "cfaug"), recipe.train.seeds):
                net = train_classifier(
                    method, sets.of(method, Mixture(recipe.train.p, recipe.train.null_p), seed), validation, settings_of(recipe), seed,
                    inputs.schema[inputs.target].categories, progress=False,
                )  # fmt: skip
                row = result_row(
                    recipe=recipe.name, method=method, seed=seed, targets=inputs.schema.index(inputs.target, inputs.test.table[inputs.target]),
                    predictions=net.predict(test).numpy(), table=inputs.test.table, grouper=inputs.grouper, train_table=inputs.train.table,
                    train_seconds=0.0, selection="",
                )  # fmt: skip
                found.setdefault((name, method), []).append((row["worst_group_accuracy"], row["average_accuracy"]))
                print(name, method, seed, found[name, method][-1], flush=True)
            samples = int(np.cumsum(sizes[run])[max(1, kept) - 1])
            for (gate, method), values in found.items():
                if gate == name:
                    worst, average = np.array(values).T
                    record(
                        RESULTS, {"what": "equal", "run": recipe.name, "gate": gate, "method": method, "samples": samples, "seeds": len(values),
                                  "worst_group": [_round(v) for v in (worst.mean(), worst.min(), worst.max())], "average": _round(average.mean())},
                        cpu=cpu(), command="python benchmarks/gate.py equal RUN --other OFF",
                    )  # fmt: skip


def trimmed(shards: Path, place: Path, count: int) -> Path:
    """The first shards of a run as a run of their own."""
    place.mkdir(parents=True)
    lines = (shards / "manifest.jsonl").read_text().splitlines()
    rows = sorted(lines, key=lambda line: str(json.loads(line)["name"]))[:count]
    (place / "manifest.jsonl").write_text("".join(f"{row}\n" for row in rows))
    for row in rows:
        stem = json.loads(row)["name"].removesuffix(".tar")
        for path in shards.glob(f"{stem}.*"):
            (place / path.name).symlink_to(path.resolve())
    return place


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
    parts = {"faults": faults, "cost": cost, "labels": labels, "equal": equal}
    parser.add_argument("part", choices=parts)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--care")
    parser.add_argument("--other", type=Path, help="the same run without a gate")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts[given.part](given)


if __name__ == "__main__":
    main()
