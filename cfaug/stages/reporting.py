"""Collect the plain data of the report from a run's files: grids of images, figures in words, the assumptions that were made."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from itertools import product
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
from cfaug.judge.axioms import worst_rows
from cfaug.judge.report import Axiom, Example, LossTable, ReportData, percent, write_report
from cfaug.offline import ShardReader
from cfaug.stages.audit_report import audit_section
from cfaug.stages.checked_inputs import Inputs, oracle_copies, uses_counterfactuals
from cfaug.stages.diagnosis import diagnosed
from cfaug.stages.evaluation import Evaluation, evaluate
from cfaug.stages.fitting import fit
from cfaug.stages.gate_figures import acceptance_notes
from cfaug.stages.generation import shards
from cfaug.stages.masks import mask_grid, mask_notes
from cfaug.stages.near_duplicates import duplicate_notes
from cfaug.stages.run import Run
from cfaug.stages.run_directory import versions
from cfaug.stages.training import train

log = logging.getLogger(__name__)

_ROWS = 8  # of each grid


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
    generated, evaluation, model, after = None, None, None, {}  # type: Any, Evaluation | None, CounterfactualModel | None, dict[str, float]
    if uses_counterfactuals(recipe):
        evaluation, generated, model = evaluate(run), shards(run), fit(run)
        after = _shard_confounding(inputs, generated)
    found = diagnosed(run)
    return ReportData(
        title=recipe.name,
        rows=rows,
        target=inputs.target,
        spurious=inputs.schema.spurious,
        grids={**_grids(evaluation), **mask_grid(run.inputs, evaluation.figures)} if evaluation else {},
        confounding_before=confounding(inputs.train.table, inputs.schema),
        confounding_after=after,
        nodes=inputs.graph.nodes,
        edges=inputs.graph.edges,
        bidirected=inputs.graph.bidirected,
        unconfirmed=[(a, b) for a, _, b in inputs.graph.to_json().get("unconfirmed", ())],
        axioms=_axioms(evaluation.figures) if evaluation else (),
        losses=_losses(evaluation.figures["losses"]) if evaluation and evaluation.figures["losses"] else None,
        leaks=_leaks(evaluation.figures) if evaluation else (),
        assumptions=_assumptions(recipe) if model else (),
        notes=[
            *filter(None, [pseudo_groups(recipe)]),
            *_advice(inputs, rows),
            *mask_notes(evaluation.figures if evaluation else {}),
            *acceptance_notes(evaluation.figures if evaluation else {}, run.directory.read_json("gate/gate.json")),
            *duplicate_notes(evaluation.figures if evaluation else {}),
            *_notes(recipe, inputs, model),
        ],
        run=_facts(run, len(generated) if generated is not None else None),
        diagnosis=found,
        falsification=found["falsification"],
        card=run.directory.read_json("assumptions.json"),
        discovery=run.directory.read_json("discovery.json"),
        audit=audit_section(run.out, inputs, rows, generated),
    )


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


def _advice(inputs: Inputs, rows: Sequence[dict[str, Any]]) -> list[str]:
    found = advice(inputs, rows)
    return [] if found is None else [f"Do you need counterfactuals? {'; '.join(found.reasons)}."]


def _facts(run: Run, generated: int | None) -> dict[str, str]:
    spent = (run.directory.read_json("run.json") or {}).get("seconds", {})
    installed = versions()
    return {
        "recipe": run.recipe.name,
        "seed": str(run.recipe.seed),
        "training images": str(len(run.inputs.train)),
        _counterfactuals(run): "none" if generated is None else str(generated),
        **{f"{stage} took": f"{seconds:.0f} s" for stage, seconds in spent.items()},
        **{name: installed[name] for name in ("cfaug", "python", "torch", "diffusers")},
        "resolved configuration": json.dumps(run.recipe.to_dict()),
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


def _axioms(figures: dict[str, Any]) -> list[Axiom]:
    def said(value: float | None, form: str) -> str:
        return "no case" if value is None else format(value, form)

    found = [
        Axiom(
            "composition, 1 cycle",
            f"{figures['composition_l1']:.4f}",
            "L1 in [0, 1] after a null intervention; 0 is perfect",
        )
    ]
    for key, value in figures.items():
        if key.startswith("composition_l1_"):
            cycles = key.split("_")[2]
            found.append(
                Axiom(
                    f"composition, {cycles} cycles",
                    f"{value:.4f}",
                    "the same after so many null interventions in a row",
                )
            )
    n = figures.get("reversibility_n", figures["images"])
    of = "" if n == figures["images"] else f"; {n} of {figures['images']} images have a known value to go back to"
    if not figures.get("imported"):
        undone = said(figures["reversibility_l1"], ".4f")
        found.append(Axiom("reversibility", undone, f"L1 after do and undo; 0 is perfect{of}"))
    for name, row in figures["attributes"].items():
        only = ", interventions that change the value only" if row["intervened"] else ""
        meaning = (
            f"share of {row['n']} generated images that a reader (trained on {figures['reader_basis']} of other sources) reads as "
            f"intended{only}; it reads {row['reader_on_real']:.3f} of the real test images right"
        )
        found.append(Axiom(_property(name, row), said(row["agreement"], ".3f"), meaning))
    for name, row in figures["measures"].items():
        unchanged = "" if row["mae"] is None else f"; unchanged images would score {row['mae_unchanged']:.3g}"
        meaning = (
            f"mean absolute error, in units of {name}, of a formula that reads it from pixels, over {row['n']} generated images"
            f"{unchanged}; {row['mae_real']:.3g} on the real test images"
        )
        found.append(Axiom(_property(name, row), said(row["mae"], ".3g"), meaning))
    found += _sets(figures.get("sets"))
    unread = "there is no reader of a continuous or ordinal attribute, unless its source can measure it"
    return found + [Axiom(f"effectiveness: {name}", "not measured", unread) for name in figures["not_measured"]]


_SETS = {"factual": "real images", "null": "null interventions", "counterfactual": "counterfactuals"}


def _sets(found: dict[str, Any] | None) -> list[Axiom]:
    """Realism, memorisation and diversity of each set of images, and minimality."""
    if not found:
        return []
    rows = []
    for name, words in _SETS.items():
        low, high = found[name]["mmd2_interval"]
        rows.append(
            Axiom(
                f"realism: {words}",
                f"{found[name]['mmd2']:.4f}",
                f"squared maximum mean discrepancy from validation images on features of {found['features']} ({low:.4f} to {high:.4f} over "
                f"random subsets of {found['n']} images); 0: no difference",
            )
        )
    for name, words in _SETS.items():
        rows.append(
            Axiom(
                f"memorisation: {words}",
                percent(found[name]["memorised"]),
                "nearer to a training image that is not their source than 1 % of the validation images are",
            )
        )
        if found[name]["diversity"] is not None:
            meaning = "mean distance within a class, of that between real images"
            rows.append(Axiom(f"diversity: {words}", percent(found[name]["diversity"]), meaning))
    if found["minimality"] is not None:
        meaning = "distance to the source, of that to another real image with the class and values that were wanted; 0 is no change, 1 no source kept"
        rows.append(Axiom("minimality", f"{found['minimality']:.2f}", meaning))
    return rows


def _property(name: str, row: dict[str, Any]) -> str:
    return f"{'effectiveness' if row['intervened'] else 'preservation'}: {name}"


_KINDS = {
    "unconfounded": ("unconfounded images", "the ceiling"),
    "reconstruction": ("their reconstructions", "null interventions: through the decoder, nothing changed"),
    "counterfactual": ("their counterfactuals", "every spurious attribute drawn independently of the target"),
    "counterfactual_of_confounded": (
        "counterfactuals of confounded images",
        "the same sources and interventions: what a run trains on",
    ),
}
_LOSSES = {
    "codec": "what passing through the decoder costs",
    "mechanism": "what a wrong image of the new attributes costs, without confounded sources",
    "leak": "what the trace of the source's own attributes costs, because in confounded sources they tell the target",
}


def _losses(found: dict[str, Any]) -> LossTable:
    def spread(row: dict[str, Any]) -> tuple[float, float, float]:
        return row["mean"], min(row["by_seed"]), max(row["by_seed"])

    measures = sorted(found["accuracy"]["unconfounded"])  # "average" comes first
    rows = [(*words, [found["accuracy"][kind][name]["mean"] for name in measures]) for kind, words in _KINDS.items()]
    losses = [
        (f"{loss} loss", meaning, [spread(found["losses"][loss][name]) for name in measures])
        for loss, meaning in _LOSSES.items()
    ]
    return LossTable(measures, rows, losses, found["images"], found["seeds"])


_SEEN = {
    "original_attribute": "counterfactuals",
    "outline": "the masks' outlines alone, of the objects",
    "rim": "the rims of the objects alone, in counterfactuals",
}


def _leaks(figures: dict[str, Any]) -> list[Axiom]:
    leaks, found = figures["leaks"], []
    for (what, words), name in product(_SEEN.items(), leaks["original_attribute"]):
        row = leaks.get(what, {}).get(name)
        if row is not None:
            against = f"chance {percent(row['chance'])}"
            if "given_target" in row:
                against += (
                    f"; because these sources are confounded, the target alone tells {percent(row['given_target'])}, and only what "
                    "is above that is a leak"
                )
            meaning = (
                f"the value before do(...), from {words} of {leaks['sources']} sources ({_interval(row)}); {against}"
            )
            label = f"original {name}" + ("" if what == "original_attribute" else f", by the {what}")
            found.append(Axiom(label, percent(row["accuracy"]), meaning))
    for kind, row in leaks["provenance"].items():
        if row is not None:
            meaning = (
                "which of the two an image is, with the same distribution of target and attributes in both "
                f"({_interval(row)}); chance {percent(0.5)}"
            )
            found.append(Axiom(kind.replace("_", " "), percent(row["balanced_accuracy"]), meaning))
    probe = figures["shortcut_probe"]
    if probe["counterfactual"] is not None and probe["factual"] is not None:
        clean = probe.get("unconfounded")
        against = "" if clean is None else f", {percent(clean)} of unconfounded images"
        meaning = (
            "balanced accuracy of a logistic regression on colour statistics of the counterfactuals; "
            f"{percent(probe['factual'])} of the factual images{against}; chance {percent(probe['chance'])}"
        )
        found.append(Axiom("target told by colour alone", percent(probe["counterfactual"]), meaning))
    return found


def _interval(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"n {row['n']}, 95 % interval {100 * low:.1f} to {100 * high:.1f}"


def _grids(evaluation: Evaluation) -> dict[str, list[Example]]:
    rows = evaluation.figures["rows"]
    errors = np.array([row["reconstruction_l1"] for row in rows])
    misread = [i for i, row in enumerate(rows) if row["misread"]]

    def example(i: int, note: str = "") -> Example:
        made, rebuilt = evaluation.counterfactual[i], evaluation.reconstruction[i]
        return Example(evaluation.factual[i], rows[i]["source"], [made], [rows[i]["do"]], rebuilt, note)

    grids = {
        "A random draw": [example(i) for i in range(min(_ROWS, len(rows)))],
    }
    if errors.max() > 1e-9:  # an exact null intervention has no worst
        grids["The worst reconstructions"] = [example(i, f"L1 {errors[i]:.4f}") for i in worst_rows(errors, _ROWS)]
    if misread:
        grids[f"Misread by a reader ({len(misread)} of {len(rows)})"] = [
            example(i, "misread: " + ", ".join(rows[i]["misread"])) for i in misread[:_ROWS]
        ]
    return grids


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
