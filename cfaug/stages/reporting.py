"""Collect the plain data of the report from a run's files: grids of images, figures in words, the assumptions that were made."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal import missing_counts
from cfaug.causal.audit.confounding import confounding
from cfaug.config import Recipe
from cfaug.decode import CounterfactualModel, ImportedDecoder
from cfaug.errors import CfaugError, listed
from cfaug.judge.advice import Advice, advise
from cfaug.judge.report import ReportData, write_report
from cfaug.judge.sentences import percent
from cfaug.offline import ShardReader
from cfaug.offline.progress import read_stats
from cfaug.stages.audit_report import audit_section
from cfaug.stages.checked_inputs import Inputs, oracle_copies, uses_counterfactuals
from cfaug.stages.diagnosis import diagnosed
from cfaug.stages.evaluation import Evaluation, evaluate
from cfaug.stages.fitting import fit
from cfaug.stages.gate_figures import gate_section
from cfaug.stages.generation import shards
from cfaug.stages.masks import mask_grid, mask_notes
from cfaug.stages.near_duplicates import duplicate_notes
from cfaug.stages.property_tables import axioms, leaks, losses
from cfaug.stages.report_gallery import gallery_pairs
from cfaug.stages.reproducibility import reproducibility
from cfaug.stages.run import Run
from cfaug.stages.training import train

log = logging.getLogger(__name__)


def report(run: Run) -> Path:
    """Write ``report.html``; what is missing of training and evaluation is done first.

    Where the directory can no longer be written, the report of a finished run stays as it is, and a warning says so.
    """
    page = run.out / "report.html"
    data = report_data(run)
    try:
        write_report(page, data)
    except CfaugError as error:
        if not page.exists() or os.access(run.out, os.W_OK):
            raise
        log.warning("%s; the report that is there stays", error)
    return page


def report_data(run: Run) -> ReportData:
    """Everything that the page shows."""
    recipe, inputs = run.recipe, run.inputs
    rows = train(run)
    generated: ShardReader | None = None
    evaluation: Evaluation | None = None
    model: CounterfactualModel | None = None
    after: dict[str, float] = {}
    if uses_counterfactuals(recipe):
        evaluation, generated, model = evaluate(run), shards(run), fit(run)
        after = _shard_confounding(inputs, generated)
    found = diagnosed(run)
    advised = advice(inputs, rows)
    return ReportData(
        title=recipe.name,
        rows=rows,
        target=inputs.target,
        spurious=inputs.schema.spurious,
        gallery=gallery_pairs(run.out, inputs, generated, evaluation) if evaluation and generated else (),
        grids=mask_grid(run.inputs, evaluation.figures) if evaluation else {},
        confounding_before=confounding(inputs.train.table, inputs.schema),
        confounding_after=after,
        graph=inputs.graph,
        axioms=axioms(evaluation.figures) if evaluation else (),
        losses=losses(evaluation.figures["losses"]) if evaluation and evaluation.figures["losses"] else None,
        leaks=leaks(evaluation.figures) if evaluation else (),
        assumptions=_assumptions(recipe) if model else (),
        notes=[
            *filter(None, [pseudo_groups(recipe)]),
            *([f"Do you need counterfactuals? {'; '.join(advised.reasons)}."] if advised else []),
            *mask_notes(evaluation.figures if evaluation else {}),
            *duplicate_notes(evaluation.figures if evaluation else {}),
            *_notes(recipe, inputs, model),
        ],
        advice=advised,
        run=_facts(run, len(generated) if generated is not None else None),
        remake=reproducibility(run),
        configuration=run.recipe.to_dict(),
        diagnosis=found,
        falsification=found["falsification"],
        card=run.directory.read_json("assumptions.json"),
        discovery=run.directory.read_json("discovery.json"),
        gate=_gate(run, evaluation) if evaluation else None,
        audit=audit_section(run.out, inputs, rows, generated),
    )


def _gate(run: Run, evaluation: Evaluation) -> dict[str, Any] | None:
    stats = read_stats(run.out)
    return gate_section(evaluation.figures, run.directory.read_json("gate/gate.json"), stats.reasons if stats else {})


def advice(inputs: Inputs, rows: Sequence[dict[str, Any]]) -> Advice | None:
    """Which method the rows speak for; None without rows of plain training."""
    if not any(row["method"] == "erm" for row in rows):
        return None
    labels = inputs.grouper.labels(inputs.train.table, missing=True)
    counts = {name: int((labels == name).sum().sum()) for name in inputs.grouper.all_names}
    return advise(rows, counts)


def pseudo_groups(recipe: Recipe) -> str:
    """What every table says where groups are guesses; empty where none are."""
    if not (names := recipe.attributes.pseudo):
        return ""
    return (
        f"WARNING: the groups of {listed(names)} are pseudo-groups, guessed from the images by `cfaug suspect`: training, selection and the worst group "
        "go by them, and the worst group of the true shortcut may be another."
    )


def _facts(run: Run, generated: int | None) -> dict[str, str]:
    return {
        "recipe": run.recipe.name,
        "training images": str(len(run.inputs.train)),
        _counterfactuals(run): "none" if generated is None else str(generated),
    }


def _counterfactuals(run: Run) -> str:
    return "counterfactuals (imported)" if run.recipe.decoder.kind == "imported" else "counterfactuals"


def _shard_confounding(inputs: Inputs, shards: ShardReader) -> dict[str, float]:
    """Normalised mutual information of the target and each spurious attribute among the counterfactuals, reconstructions left out."""
    rows = [shards.record(i)["attributes"] for i in np.flatnonzero(~shards.nulls).tolist()]
    table = pd.DataFrame(rows, index=[str(i) for i in range(len(rows))])
    return confounding(inputs.schema.canonical(table), inputs.schema)


def _assumptions(recipe: Recipe) -> Sequence[str]:
    """What the recipe assumes beside the graph and the mechanisms, which the assumption card covers."""
    if recipe.decoder.structure == "none":
        return ()
    return (
        f"decoder.structure = {recipe.decoder.structure}: the intervened attributes recolour regions and move no edge. The map of "
        "edges is taken from the factual image and kept; where an attribute changes shape or texture, use structure: none.",
    )


def _notes(recipe: Recipe, inputs: Inputs, model: CounterfactualModel | None) -> list[str]:
    notes = [
        "Groups: the target crossed with one spurious attribute at a time; the worst group is the worst of all of them. "
        "Epochs are selected by validation worst-group accuracy, so every method here uses the group labels of the validation split.",
    ]
    if recipe.data.source == "digits":
        notes.append(
            "How n counts: every test digit is rendered in ten colourings, once under each foreground and once under each background. "
            "Within one group no handwritten digit occurs twice, so n is a number of different handwritten digits; across groups the same digits return."
        )
    notes.append(
        "The range over seeds is that of the classifiers. The SCM, the decoder, the plan and the shards are made once per run, with the "
        "run's own seed: how much a different decoder would change the table is not in the range."
    )
    if missing := missing_counts(inputs.train.table, inputs.schema):
        total = len(inputs.train)
        counts = ", ".join(f"{name} in {n} of {total} rows ({percent(n / total)})" for name, n in missing.items())
        notes.append(
            f"Missing values in the training table: {counts}. All rows train the decoder and the classifiers. A mechanism learns from the "
            "rows that have the attribute and its parents, confounding is measured on the rows that have both values, a row without a "
            "spurious attribute is in no group of it (group methods draw it as often as it occurs), and no figure of an attribute counts "
            "an image whose value is not known."
        )
    if inputs.oracle is None:
        notes.append("There is no oracle: these images cannot be had without their confounding.")
    elif "oracle" not in recipe.train.methods:
        notes.append("No oracle was trained, so the table closes no gap: add it to train.methods.")
    elif uses_counterfactuals(recipe):
        shown, own = len(inputs.train) * (1 + recipe.plan.per_image), len(inputs.oracle) * oracle_copies(recipe)
        more = ", so more than the oracle may come from more images" if own < shown else ""
        notes.append(
            f"The oracle has {own} different images, cfaug shows up to {shown}: the real ones and {recipe.plan.per_image} counterfactuals of each{more}."
        )
    size = getattr(inputs.train, "size", None)
    if size is not None:
        notes.append(
            f"Every image is brought to {size[1]}x{size[0]} pixels ({recipe.data.fit}), by antialiased bilinear resampling."
        )
    if isinstance(model and model.decoder, ImportedDecoder):
        notes.append(
            "The counterfactuals are imported: they were edited elsewhere, and nothing here says how. Null interventions are the sources "
            "themselves, so whatever tells an edited image from another one tells that it is a counterfactual. Reversibility and the probes of "
            "provenance would need images that nobody has edited, and are not measured."
        )
    if model is not None and (fitted := model.decoder.report) is not None:
        notes.append(
            f"The decoder was trained on {fitted.images} images for {fitted.steps} steps in {fitted.seconds:.0f} s (final loss {fitted.loss:.4f})."
        )
    return notes
