"""``cfaug verify``: every committed byte is read again; with ``--regenerate N`` random samples are made again from the run's own model.

To regenerate, config.yaml (and with it the data and the graph), model/, plan/ and the shards are opened, wherever the
configuration put them. Nothing is fitted, planned or written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cfaug.config import Recipe, load_recipe
from cfaug.data.files import expand
from cfaug.decode import CounterfactualModel
from cfaug.errors import UsageError
from cfaug.offline import Plan, VerifyReport, verify
from cfaug.offline.format import PLAN_HEADER
from cfaug.offline.regenerate import RegenerateReport, regenerate
from cfaug.stages.checked_inputs import Inputs, open_inputs
from cfaug.stages.fitting import refuse_other_model
from cfaug.stages.gate import make_gate
from cfaug.stages.masks import with_masks
from cfaug.stages.run_directory import saved_plan, shards_of

PLANNED = {"config.yaml": "its configuration", f"plan/{PLAN_HEADER}": "its plan"}
_NEEDED = {**PLANNED, "model/model.json": "its model"}


def verify_run(place: str) -> VerifyReport:
    """Read every committed byte of a run or of its shards, in a directory or at a URL."""
    shards = shards_of(place)
    elsewhere = "://" not in place and shards != str(expand(place))  # then the plan is not beside the shards
    return verify(shards, saved_plan(expand(place)) if elsewhere else None)


def regenerate_run(
    directory: str | Path, n: int = 10, seed: int = 0, progress: bool = False, tolerance: float = 0.0
) -> RegenerateReport:
    """Make `n` random samples of the run in `directory` (or in the directory above it, when it is ``shards``) again.

    Raises:
        UsageError: not a run's directory, or one without model or plan; other images than the run was made on.
        DataError, ShardError: what opening the data, the model, the plan and the shards may raise.
    """
    run, recipe, inputs = open_finished(directory, progress)
    inputs = with_masks(recipe, inputs, run / "masks")
    model = CounterfactualModel.load(run / "model", recipe.decoder.device)
    refuse_other_model(inputs, model.scm.graph, model.schema, run / "model")
    plan = Plan.load(run / "plan")
    place = shards_of(str(run))
    gate = make_gate(recipe, inputs, model, run, progress)
    return regenerate(model, inputs.sources, plan, place, n, seed, progress, gate=gate, tolerance=tolerance)


def open_finished(directory: str | Path, progress: bool = False) -> tuple[Path, Recipe, Inputs]:
    """The directory of a run (given as it, or as its ``shards``), its recipe and its data; nothing is written.

    Raises:
        UsageError: not a run's directory, or one without model or plan; other images than the run was made on.
        DataError: what opening the data may raise.
    """
    run = run_with(directory)
    recipe = load_recipe(run / "config.yaml")
    inputs = open_inputs(recipe, progress, fitted=True)
    refuse_other_data(run, inputs.digest)
    return run, recipe, inputs


def open_planned(directory: str | Path, progress: bool = False) -> tuple[Path, Recipe, Inputs, Plan]:
    """The same of a run that need not have a model yet, the data with their masks, and its plan."""
    run = run_with(directory, PLANNED)
    recipe = load_recipe(run / "config.yaml")
    inputs = open_inputs(recipe, progress, fitted=(run / "model" / "model.json").exists())
    refuse_other_data(run, inputs.digest)
    return run, recipe, with_masks(recipe, inputs, run / "masks"), Plan.load(run / "plan")


def run_with(directory: str | Path, needed: Mapping[str, str] = _NEEDED) -> Path:
    """The directory of a run, given as it or as its ``shards``; UsageError where one of the ``needed`` files is missing."""
    if "://" in str(directory):
        raise UsageError(
            f"expected a run's own directory, got {directory}: its configuration, model and plan are needed"
        )
    run = expand(directory)
    if run.name == "shards" and not (run / "config.yaml").exists():
        run = run.parent
    stage = "plan" if needed is PLANNED else "generate"
    for name, what in needed.items():
        if not (run / name).exists():
            raise UsageError(
                f"expected a run with {what}, but {run / name} is missing; give the directory that cfaug {stage} wrote to"
            )
    return run


def refuse_other_data(run: Path, digest: str) -> None:
    """UsageError where the run was made from other images than those of ``digest``."""
    try:
        then = json.loads((run / "run.json").read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return  # the records name each source's own digest, which is compared as well
    if then is not None and then != digest:
        raise UsageError(
            f"{run} was made from other images or attributes (data {str(then)[:12]}, now {digest[:12]}): put those back"
        )
