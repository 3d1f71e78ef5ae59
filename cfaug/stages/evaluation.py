"""Judge the counterfactuals themselves, on training sources, because classifiers are trained on counterfactuals of those.

The axioms and the attribute readers judge the generated images. The leak probes and, where the recipe asks for them, the
three losses are measured on images that are made here by the same model.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm.auto import tqdm

from cfaug.causal import Intervention, do
from cfaug.config import Recipe
from cfaug.data import load_images
from cfaug.data.loading import images_of
from cfaug.decode import CounterfactualModel
from cfaug.judge import axioms
from cfaug.judge.probes import LEAST_SOURCES
from cfaug.offline import Plan, PlanRow, ShardReader
from cfaug.offline.gate import CriteriaGate
from cfaug.stages import generation
from cfaug.stages.attribute_classifiers import Pixels, attribute_readers, feature_store, to_pixels
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.doubt import least_margins
from cfaug.stages.fitting import fit
from cfaug.stages.gate import gate_is_on, make_gate
from cfaug.stages.gate_figures import acceptance
from cfaug.stages.gate_soundness import gate_soundness
from cfaug.stages.generated_sets import balanced_acts, make_pool, masks_of, pool_of_shards
from cfaug.stages.image_sets import compared_sets
from cfaug.stages.leak_probes import leak_figures, shortcut_probe
from cfaug.stages.loss_breakdown import three_losses
from cfaug.stages.masks import mask_figures
from cfaug.stages.near_duplicates import near_duplicates
from cfaug.stages.run import Run
from cfaug.train.models import as_input

PROBED, PROBED_FROZEN = 2000, 800
"""The leak probes use at most this many sources where the losses are not measured (fewer where each costs features of a large net);
otherwise both use the pool of the losses."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of ``evaluation/figures.json`` and, row by row, the images behind them, each uint8 (N, H, W, C)."""

    figures: dict[str, Any]
    factual: Pixels
    reconstruction: Pixels
    counterfactual: Pixels


def evaluate(run: Run) -> Evaluation:
    """The evaluation: read from ``evaluation/`` where it is there, otherwise measured and written now."""
    if (found := _saved(run)) is None:
        generated = generation.shards(run)
        with run.timed("evaluate"):
            model = fit(run)
            found = evaluate_counterfactuals(
                run.recipe, run.inputs, model, generation.plan(run), generated, run.progress, run.out / "features",
                make_gate(run.recipe, run.inputs, model, run.out) if gate_is_on(run.recipe) else None,
            )  # fmt: skip
            images = io.BytesIO()
            np.savez(images, **{name: getattr(found, name) for name in _ARRAYS})
            run.directory.write("evaluation/images.npz", images.getvalue())
            run.directory.write_json("evaluation/figures.json", found.figures)
    return found


_ARRAYS = ("factual", "reconstruction", "counterfactual")


def _saved(run: Run) -> Evaluation | None:
    """The evaluation on disk; None where it is missing or damaged."""
    figures = run.directory.read_json("evaluation/figures.json")
    if figures is None:
        return None
    try:
        with np.load(run.out / "evaluation" / "images.npz", allow_pickle=False) as arrays:
            return Evaluation(figures, *(arrays[name] for name in _ARRAYS))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def evaluate_counterfactuals(
    recipe: Recipe,
    inputs: Inputs,
    model: CounterfactualModel,
    plan: Plan,
    shards: ShardReader,
    progress: bool,
    features: Path | None = None,
    gate: CriteriaGate | None = None,
) -> Evaluation:
    """Measure composition, reversibility, effectiveness, preservation, realism, the gate, the leak probes and the three losses."""
    bar = tqdm(total=5, desc="evaluate", disable=not progress, bar_format="{desc}: {n}/{total} {postfix} [{elapsed}]")
    place = {entry.key: i for i, entry in enumerate(shards.index)}
    made_of = {entry.key: entry.source_key for entry in shards.index}
    rows = judged_rows(plan, recipe.evaluate.images, len(inputs.train) // 2, made_of)
    position = {inputs.train.key(i): i for i in range(len(inputs.train))}
    wanted = [position[row.source_key] for row in rows]
    images = load_images(inputs.train, wanted, progress=False)
    factual = as_input(images)
    table = inputs.train.table.iloc[wanted].set_axis([row.key for row in rows])  # a source may have several rows
    made = torch.from_numpy(np.stack([shards.image(place[row.key]) for row in rows])).permute(0, 3, 1, 2)
    records = [shards.record(place[row.key]) for row in rows]
    attributes = inputs.schema.canonical(pd.DataFrame([one["attributes"] for one in records], index=table.index))
    acts: list[Intervention] = [row.do for row in rows]
    cycles = recipe.evaluate.cycles
    bar.set_postfix_str(f"{cycles} null cycles")
    masks = masks_of(model, inputs.sources, wanted)
    rebuilt, _ = axioms.counterfactuals(model, factual, table, [do()] * len(acts), recipe.seed, masks=masks)
    rebuilt = torch.from_numpy(to_pixels(rebuilt)).permute(0, 3, 1, 2)
    errors = axioms.l1(factual, as_input(rebuilt))
    composed = axioms.composition(model, factual, table, cycles, recipe.seed, masks)
    imported = model.capabilities.imported  # nobody has edited what was edited back
    undone = np.empty(0) if imported else axioms.reversibility(model, factual, table, acts, recipe.seed, masks)
    undone = undone[~np.isnan(undone)]  # an unknown factual value cannot be restored
    figures: dict[str, Any] = {
        "images": len(rows),
        "composition_l1": float(errors.mean()),
        f"composition_l1_{cycles}_cycles": float(composed.mean()),
        "reversibility_l1": float(undone.mean()) if len(undone) else None,
        "reversibility_n": len(undone),
        "imported": imported,
    }
    _next(bar, "readers")
    readers, figures["reader_basis"] = attribute_readers(
        recipe, inputs, {row.source_key for row in rows}, progress, features
    )
    known = {*readers, *inputs.measures}
    figures["not_measured"] = [name for name in inputs.graph.parents("image") if name not in known]
    predictors = {name: reader.predict for name, reader in readers.items()}
    read = axioms.read_attributes(predictors, made, attributes, inputs.schema)
    _next(bar, "real test images")
    test = images_of(inputs.test, None, recipe.data.memory_gb, recipe.data.workers, False)
    read_real = axioms.read_attributes(predictors, test, inputs.test.table, inputs.schema)
    figures["attributes"] = {}
    for name, agrees in read.items():
        intervened, counted = counted_rows(name, acts, attributes, table)
        figures["attributes"][name] = {
            "intervened": intervened,
            "n": int(counted.sum()),
            "agreement": float(agrees[counted].mean()) if counted.any() else None,
            "reader_on_real": float(read_real[name].mean()),
        }
    wrong = {name: ~agrees & attributes[name].notna().to_numpy() for name, agrees in read.items()}
    figures["rows"] = [
        {
            "source": row.source_key,
            "sample": row.key,
            "do": str(row.do),
            "reconstruction_l1": float(errors[i]),
            "misread": [name for name in wrong if wrong[name][i]],
            "attempt": int(one["quality"].get("attempt", 0)),
        }
        for i, (row, one) in enumerate(zip(rows, records))
    ]
    if gate is not None and gate.criteria:
        margins, criteria = least_margins(gate, model, inputs, records, [shards.image(place[row.key]) for row in rows])
        for found, margin, criterion in zip(figures["rows"], margins.tolist(), criteria):
            found |= {"margin": margin, "criterion": criterion}
    pixels = [to_pixels(each) for each in (images, rebuilt, made)]
    test_pixels = to_pixels(test) if inputs.measures and isinstance(test, torch.Tensor) else pixels[0]
    figures["measures"] = {
        name: measured_errors(inputs, name, acts, attributes, table, pixels[2], pixels[0], test_pixels)
        for name in inputs.measures
    }
    _next(bar, "leak probes")
    store = feature_store(recipe, inputs, features, progress) if recipe.train.mode == "frozen" else None
    figures["sets"] = compared_sets(
        recipe,
        inputs,
        readers,
        {"factual": images, "null": rebuilt, "counterfactual": made},
        table,
        attributes,
        wanted,
        store,
    )
    if store is not None:
        figures["near_duplicates"] = near_duplicates(inputs, store, recipe.seed)
    if (of_masks := mask_figures(inputs, recipe.seed)) is not None:
        figures["masks"] = of_masks
    figures["shortcut_probe"] = shortcut_probe(inputs, shards, recipe.seed)
    figures |= _on_pools(recipe, inputs, model, shards, progress, bar, gate)
    sound = figures.pop("soundness")
    asked = (row for row in plan if model.makes(row.source_key, row.seed, row.do))
    figures["gate"] = None if gate is None else {"acceptance": acceptance(inputs, asked, shards), "soundness": sound}
    _next(bar, "")
    bar.close()
    return Evaluation(figures, *pixels)


MOST_READ = 1_000_000
"""At most this many rows of a plan are searched for those to judge; a plan may have a hundred million."""


def judged_rows(plan: Plan, most: int, sources: int, made_of: Mapping[str, str] | None = None) -> list[PlanRow]:
    """The first ``most`` real interventions of the (shuffled) plan, on at most ``sources`` different images.

    The readers are trained on the other images, so that no reader has seen a judged image.
    """
    rows: list[PlanRow] = []
    known: set[str] = set()
    for row in islice(plan, MOST_READ):
        if row.do.is_null or (made_of is not None and made_of.get(row.key) != row.source_key):
            continue  # the gate has rejected it, or another source stands in for it
        if row.source_key not in known and len(known) >= max(sources, 1):
            continue
        known.add(row.source_key)
        rows.append(row)
        if len(rows) == most:
            break
    return rows


def _next(bar: tqdm[Any], what: str) -> None:
    bar.update()
    bar.set_postfix_str(what)


def _on_pools(
    recipe: Recipe,
    inputs: Inputs,
    model: CounterfactualModel,
    shards: ShardReader,
    progress: bool,
    bar: tqdm[Any],
    gate: CriteriaGate | None,
) -> dict[str, Any]:
    """The figures that need sources beyond the judged ones: leak probes, losses and the gate's soundness; None where not measured.

    Of imported images there are only those of the shards.
    """
    imported = model.capabilities.imported
    source = inputs.clean or inputs.sources
    # the losses compare the same sources with and without confounding, which a folder of other images does not have
    paired = inputs.clean is not None and inputs.clean.key(0) in inputs.train.table.index
    wanted = recipe.evaluate.loss_images if paired and not imported else 0
    pool = pool_of_shards(inputs.sources, shards, PROBED) if imported else None
    if not imported and (wanted or len(source) >= LEAST_SOURCES):
        acts = balanced_acts(
            inputs.train if paired else source,
            wanted or (PROBED_FROZEN if recipe.train.mode == "frozen" else PROBED),
            recipe.seed,
        )
        pool = make_pool(model, source, acts, recipe.seed, recipe.generate.batch_size, progress)
    found: dict[str, Any] = {
        "leaks": leak_figures(recipe, inputs, model, pool, progress),
        "losses": None,
        "soundness": None,
    }
    if gate is not None and (paired or not imported):
        found["soundness"] = gate_soundness(recipe, inputs, model, gate, paired, progress)
    _next(bar, "losses" if wanted else "")
    if wanted and pool is not None:
        confounded = make_pool(model, inputs.sources, acts, recipe.seed, recipe.generate.batch_size, progress)
        found["losses"] = three_losses(recipe, inputs, pool, confounded, progress)
    return found


def counted_rows(
    name: str, acts: list[Intervention], attributes: pd.DataFrame, table: pd.DataFrame
) -> tuple[bool, npt.NDArray[np.bool_]]:
    """Whether any intervention sets the attribute ``name``, and the rows that count for it.

    An intervention to the value that the image already has does not count, because an identity would pass it. A row without
    the factual or the intended value does not count either.
    """
    intervened = any(name in act.assignments for act in acts)
    known = attributes[name].notna() & table[name].notna()
    return intervened, ((attributes[name] != table[name]) & known if intervened else known).to_numpy()


def measured_errors(
    inputs: Inputs,
    name: str,
    acts: list[Intervention],
    attributes: pd.DataFrame,
    table: pd.DataFrame,
    made: Pixels,
    factual: Pixels,
    test: Pixels,
) -> dict[str, Any]:
    """Mean absolute errors, in the attribute's unit, of a formula that reads it from pixels.

    ``mae``: on the counterfactuals; ``mae_unchanged``: what the factual images would score in their place; ``mae_real``: on
    the real test images.
    """
    measure = inputs.measures[name]
    intervened, counted = counted_rows(name, acts, attributes, table)

    def error(images: Pixels, truth: pd.DataFrame) -> float | None:
        wanted = truth[name].to_numpy(dtype=np.float64)
        return float(np.abs(measure(images) - wanted).mean()) if len(images) else None

    return {
        "intervened": intervened,
        "n": int(counted.sum()),
        "mae": error(made[counted], attributes[counted]),
        "mae_unchanged": error(factual[counted], attributes[counted]),
        "mae_real": error(test, inputs.test.table),
    }
