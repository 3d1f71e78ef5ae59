"""Fit the SCM and train the decoder: ``model/``."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from cfaug.causal import SCM, CausalGraph, assumption_card
from cfaug.data import Attribute, Schema
from cfaug.decode import CounterfactualModel, DiffusionDecoder, MaskedDataset, PretrainedDecoder
from cfaug.decode.diffusion import distributed
from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.image_mechanism import make_mechanism, mechanisms_of
from cfaug.stages.recipe_checks import fit_scm
from cfaug.stages.run import Run
from cfaug.stages.validation_score import ValidationScore


def fit(run: Run, scm: SCM | None = None) -> CounterfactualModel:
    """The fitted model: loaded when it is on disk, else fitted now. Killed, the next call goes on from ``fit.partial/``.

    Args:
        run: at work; every process of a torchrun calls this together.
        scm: fitted already, by :func:`cfaug.stages.recipe_checks.fit_scm`.

    Raises:
        ShardError: a corrupt checkpoint, or the model of a different graph or schema.
    """
    folder, device = run.out / "model", run.recipe.decoder.device
    there = (folder / "model.json").exists()
    if not (there if run.sharing else distributed.first(there, device)):
        refuse_without_import(run)
        with run.timed("fit"):
            _fit(run, scm or fit_scm(run.recipe, run.inputs), folder)
        run.meet()
    model = CounterfactualModel.load(folder, device)
    refuse_other_model(run.inputs, model.scm.graph, model.schema, folder)
    if run.leads and run.directory.read_json("assumptions.json") is None:  # a model's card is written once
        card = assumption_card(model.scm, run.inputs.train.table)
        run.directory.write("ASSUMPTIONS.md", card["text"])
        run.directory.write_json("assumptions.json", card)
    return model


def refuse_without_import(run: Run) -> None:
    """UsageError where the images are made elsewhere and have not been imported yet: nothing here can make them."""
    if run.recipe.decoder.kind == "imported" and not (run.out / "model" / "model.json").exists():
        raise UsageError(
            f"decoder.kind: imported: expected images that were imported into {run.out}, got none; run `cfaug plan`, `cfaug export {run.out}`, "
            f"edit, and `cfaug import {run.out} EDITS`"
        )


def _fit(run: Run, scm: SCM, folder: Path) -> None:
    recipe, inputs, partial = run.recipe, run.inputs, run.out / "fit.partial"
    decoder = make_mechanism(recipe, inputs.graph, scm.schema)
    images = inputs.sources
    if isinstance(images, MaskedDataset) and run.leads:
        images.make(recipe.data.workers or 1, run.progress)
    for part in mechanisms_of(decoder):
        if isinstance(part, DiffusionDecoder):
            score = ValidationScore(recipe, inputs, scm, run.progress) if recipe.decoder.validate_every else None
            part.fit(inputs.train, recipe.seed, run.progress, checkpoint=partial / "diffusion", score=score)
        elif isinstance(part, PretrainedDecoder):
            part.fit(images, recipe.seed, run.progress, checkpoint=partial / "adapters")
        elif run.leads:
            part.fit(images, recipe.seed, run.progress)
    if not run.leads:
        return
    try:
        CounterfactualModel(scm, decoder).save(folder)
        (run.out / "assumptions.json").unlink(missing_ok=True)  # of a model that was here before
    except OSError as error:
        raise CfaugError(
            f"cannot write the model to {folder}: {error.strerror}; free some space and run again"
        ) from None
    shutil.rmtree(partial, ignore_errors=True)


def refuse_other_model(inputs: Inputs, graph: CausalGraph, schema: Schema, place: Path) -> None:
    """Raise ShardError unless a model's graph and fitted schema are those of the inputs.

    Means and deviations may differ in the last digits, as they do between machines.
    """
    ours = inputs.schema.fit(inputs.train.table, inputs.schema.names)
    if wrong := _other(inputs.graph, ours, graph, schema):
        expected, got = wrong
        raise ShardError(
            f"{place} holds a model of a different run: expected {expected:.220}, got {got:.200}; put the right model there, "
            "or start over with `cfaug fit RECIPE.yaml --out DIR --overwrite`"
        )


def _other(graph: CausalGraph, ours: Schema, other_graph: CausalGraph, theirs: Schema) -> tuple[str, str] | None:
    """(expected, got) of the first thing in which a model differs."""
    if other_graph != graph:
        return f"the graph {graph}", f"{other_graph}"
    if (theirs.target, theirs.spurious) != (ours.target, ours.spurious):
        wanted, got = (f"{s.target} against {', '.join(s.spurious)}" for s in (ours, theirs))
        return f"the target {wanted}", got
    if theirs.names != ours.names:
        return f"the attributes {', '.join(ours.names)}", ", ".join(theirs.names)
    for own, other in zip(ours, theirs, strict=True):
        if (own.kind, own.values) != (other.kind, other.values):
            wanted, got = (f"{a.kind} ({', '.join(a.values or ())})" for a in (own, other))
            return f"{own.name}: {wanted}", got
        if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(_scale(own), _scale(other), strict=True)):
            wanted, got = (f"mean {a[0]:.6g}, deviation {a[1]:.6g}" for a in (_scale(own), _scale(other)))
            return f"{own.name}: {wanted}", got
    return None


def _scale(attribute: Attribute) -> tuple[float, float]:
    return attribute.scale if attribute.kind == "continuous" else (0.0, 1.0)
