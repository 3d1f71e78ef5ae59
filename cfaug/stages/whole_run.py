"""Every stage of a recipe, one after the other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cfaug.errors import ShardError
from cfaug.offline import verify
from cfaug.stages.checked_inputs import uses_counterfactuals
from cfaug.stages.diagnosis import diagnosed
from cfaug.stages.evaluation import evaluate
from cfaug.stages.fitting import fit, refuse_without_import
from cfaug.stages.generation import plan
from cfaug.stages.recipe_checks import check_generation, fit_scm
from cfaug.stages.reporting import report
from cfaug.stages.run import Run
from cfaug.stages.training import train

ALL = ("diagnose", "plan", "fit", "generate", "train", "evaluate", "report", "verify")
REAL = ("diagnose", "train", "report")
"""The stages where no listed method uses counterfactuals."""


def run_recipe(run: Run) -> Path:
    """Every stage; counterfactuals only if a listed method uses them. Returns the report's path."""
    made = uses_counterfactuals(run.recipe)
    if made:
        refuse_without_import(run)
        check_generation(run.recipe, run.inputs)
    if run.progress:
        run = dataclasses.replace(run, whole=ALL if made else REAL)
    fitted = (run.out / "model" / "model.json").exists()
    scm = None if fitted else fit_scm(run.recipe, run.inputs)
    with run.step("diagnose"):
        diagnosed(run, scm)
    if made and scm is not None:
        with run.step("plan"):
            plan(run)  # before minutes of training, not after them
        fit(run, scm)
    train(run)
    if made:
        evaluate(run)
    with run.step("report"):
        page = report(run)
    if not made:
        return page
    with run.step("verify"):
        checked = verify(run.place, plan(run))
    if not checked.ok:
        raise ShardError(
            f"the shards just written do not verify: {checked.problems[0]}; check the disk and run with --overwrite"
        )
    return page
