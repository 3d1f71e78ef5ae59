"""Decide every counterfactual (``plan/``) and make it (``shards/``)."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

from cfaug.decode import CounterfactualModel
from cfaug.decode.diffusion import distributed
from cfaug.errors import UsageError
from cfaug.offline import GenerateReport, Plan, ShardReader
from cfaug.offline import generate as write_shards
from cfaug.offline.commit import RUN, open_destination
from cfaug.offline.format import MANIFEST, PLAN_HEADER
from cfaug.stages.fitting import fit, refuse_without_import
from cfaug.stages.gate import gate_is_on, make_gate
from cfaug.stages.ranks import SHARED
from cfaug.stages.recipe_checks import check_generation, draw_plan, engine_options
from cfaug.stages.run import Run
from cfaug.stages.run_directory import whole_plan


def plan(run: Run) -> Plan:
    """The plan: loaded when it is on disk and whole, otherwise drawn and written now; the same recipe draws the same plan."""
    if (found := whole_plan(run.out)) is None:
        shutil.rmtree(run.out / "plan", ignore_errors=True)
        found = draw_plan(run.recipe, run.inputs)
        found.save(run.out / "plan")
    return found


def fit_with_gate(run: Run) -> CounterfactualModel:
    """The fitted model; and the recipe's gate is made, so that the ranks of a generation read one and the same."""
    model = fit(run)
    if run.leads:
        make_gate(run.recipe, run.inputs, model, run.out, run.progress)
    return model


def generate(run: Run) -> GenerateReport:
    """Write the shards that are missing; whatever cannot be is refused before anything is fitted."""
    config, out = run.recipe.generate, run.out
    refuse_without_import(run)
    needed, said = ["model/model.json", f"plan/{PLAN_HEADER}"], "a model"
    if gate_is_on(run.recipe):
        needed, said = [*needed, "gate/gate.json"], "a model with its gate"
    if run.sharing and not all((out / name).exists() for name in needed):
        raise UsageError(
            f"expected {said} and a plan in {out} before several processes share the work; run "
            f"`cfaug plan RECIPE.yaml --out {out}` and `cfaug fit RECIPE.yaml --out {out}` first"
        )
    check_generation(run.recipe, run.inputs)
    rows = Plan.load(out / "plan") if run.sharing else plan(run)
    model = fit(run)
    suffix = f"-{run.rank}" if run.sharing else ""
    # committed shards are recognised by their commits, so asking a finished run again costs a tenth of a second
    there = not run.overwrite and not rows.missing(open_destination(run.place).committed())
    with nullcontext() if there else run.timed("generate"):
        return write_shards(
            model,
            run.inputs.sources,
            rows,
            run.place,
            engine=config.engine,
            workers=config.workers,
            batch_size=config.batch_size,
            progress=run.progress,
            overwrite=run.overwrite and (run.sharing or bool(config.destination)),  # else they went with the directory
            image=config.image,
            retries=config.retries,
            options=engine_options(run.recipe, str(out / "jobs")),
            gate=make_gate(run.recipe, run.inputs, model, out, run.progress and not there),
            log_to=out / f"stats{suffix}.jsonl",
            tensorboard=out / "tensorboard" if config.tensorboard else None,
        )


def shards(run: Run) -> ShardReader:
    """The complete shards; what is missing of them is generated first. A finished run is only read, on a read-only disk as well."""
    rows, engine = plan(run), run.recipe.generate.engine
    if not _finished(run, rows):
        missing = [rows.shard_name(number) for number in rows.missing(open_destination(run.place).committed())]
        if engine not in SHARED:
            if distributed.several():  # they train together; each would generate on its own
                raise UsageError(
                    f"expected finished shards in {run.place} before several processes train together, got none; run `cfaug generate` first"
                )
            generate(run)
        elif missing:
            raise UsageError(
                f"{len(missing)} shards of {run.place} are not there yet ({missing[0]}), and the engine {engine} is started "
                "from outside; run `cfaug generate` with it first, or --generate.engine=local"
            )
    return ShardReader(run.place)


def _finished(run: Run, rows: Plan) -> bool:
    """Whether every shard of this plan and this model is whole, and all of them are published."""
    place = open_destination(run.place)
    names, found = place.storage.sizes(), place.intact()
    if MANIFEST not in names or RUN in names or rows.missing(found):
        return False
    return {(row.plan, row.model) for row in found.values()} == {(rows.digest, fit(run).digest)}
