"""The checks of a recipe that need no fitted model; ``cfaug doctor`` makes all of them, and each stage those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from cfaug.causal import SCM, refuse_if_ancestor, refuse_unconfirmed
from cfaug.config import Recipe
from cfaug.errors import UsageError
from cfaug.offline import Plan, make_engine, make_plan
from cfaug.offline.commit import open_destination
from cfaug.stages.audited_plan import shares_where_it_fails
from cfaug.stages.checked_inputs import Inputs, open_inputs, uses_counterfactuals
from cfaug.stages.gate import check_gate
from cfaug.stages.image_mechanism import check_interventions
from cfaug.stages.ranks import SHARED
from cfaug.stages.run_directory import local


def check_recipe(recipe: Recipe, progress: bool = False) -> Inputs:
    """Everything that :func:`run_recipe` would refuse, short of training; the opened data.

    Raises:
        UsageError, DataError: as the checks of a run.
    """
    inputs = open_inputs(recipe, progress)
    for check in later_checks(recipe, inputs).values():
        check()
    return inputs


def later_checks(recipe: Recipe, inputs: Inputs) -> dict[str, Callable[[], str]]:
    """What is looked at -> a check that needs the opened data; each says what it found, or raises as the run would."""

    def generation() -> str:
        check_generation(recipe, inputs)
        return f"{recipe.decoder.kind}, by the engine {recipe.generate.engine}"

    def planned() -> str:
        rows = draw_plan(recipe, inputs)
        return f"{len(rows)} images, {rows.summary.nulls} of them null interventions"

    def fitted() -> str:
        fit_scm(recipe, inputs)
        return f"fits the training table: {inputs.graph}"

    made = {"counterfactuals": generation, "plan": planned} if uses_counterfactuals(recipe) else {}
    return {**made, "SCM": fitted}


def check_generation(recipe: Recipe, inputs: Inputs) -> None:
    """Raise UsageError or StorageError for what would stop the generation of ``recipe`` after its model was fitted.

    Confirmed edges, an image format for these images, an engine that can be started, the package for TensorBoard, a destination
    that can be reached. Nothing is started or written.
    """
    refuse_unconfirmed(inputs.graph)
    check_interventions(
        recipe, inputs.graph, inputs.schema, inputs.train.table, recipe.plan.attributes or inputs.schema.spurious
    )
    check_gate(recipe, inputs)
    config = recipe.generate
    if config.image == "webp" and inputs.train.image(0).shape[2] == 1:
        raise UsageError("generate.image: expected png or png-stored for grey images, got 'webp'; write image: png")
    if config.engine not in SHARED:  # those are started from outside, and only then can be asked for their rank
        make_engine(config.engine, config.workers, engine_options(recipe, "jobs"))
    elif config.options:
        raise UsageError(
            f"generate.options: the engine {config.engine} takes none, got {', '.join(config.options)}; remove them"
        )
    if config.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            'generate.tensorboard needs the package tensorboard, which is not installed; pip install "cfaug[tensorboard]"'
        )
    if config.destination:  # a bucket that does not exist is found before hours of fitting
        open_destination(local(config.destination)).committed()


def engine_options(recipe: Recipe, jobs: str) -> dict[str, Any]:
    """The options of the recipe's engine; ``jobs`` is where submitit keeps its files unless the recipe says."""
    config = recipe.generate
    return {"folder": jobs, **config.options} if config.engine == "submitit" else dict(config.options)


def draw_plan(recipe: Recipe, inputs: Inputs) -> Plan:
    """The plan of ``recipe``, not yet written.

    Raises:
        UsageError, DataError: a strategy, an attribute, a value or shares that cannot be; the target or a cause of it.
    """
    config = recipe.plan
    if inputs.target in config.attributes:
        raise UsageError(
            f"plan.attributes: expected attributes other than the target, got {inputs.target!r}: training keeps a source's label"
        )
    refuse_if_ancestor(inputs.graph, inputs.target, config.attributes)
    hidden = _hideable(recipe, inputs, config.attributes or inputs.schema.spurious)
    if config.invariant_fraction and not hidden:
        raise UsageError(
            "plan.invariant_fraction: expected an attribute that is intervened on and lives in the background (decoder.kind: layered, "
            "decoder.layers) and causes the image alone, which can be hidden, got none; set it to 0"
        )
    strategy, joint = config.strategy, config.joint
    if strategy == "where_it_fails":
        strategy, joint = "balance", shares_where_it_fails(recipe, inputs)
    return make_plan(
        strategy,
        inputs.train.table,
        inputs.schema,
        per_image=config.per_image,
        null_fraction=config.null_fraction,
        replicas=config.replicas,
        joint=joint,
        attributes=config.attributes,
        seed=recipe.seed,
        samples_per_shard=recipe.generate.samples_per_shard,
        invariant_fraction=config.invariant_fraction,
        hidden=hidden,
    )


def _hideable(recipe: Recipe, inputs: Inputs, names: Sequence[str]) -> list[str]:
    """Those of the attributes ``names`` that an image can be shown without: a background can be one colour."""
    own = recipe.decoder
    layered = {name for name in names if own.kind == "layered" or own.mechanisms.get(name) == "layered"}
    alone = {name for name in layered if set(inputs.graph.descendants(name)) <= {name, "image"}}
    return [name for name in own.layers.get("background", []) if name in alone]


def fit_scm(recipe: Recipe, inputs: Inputs) -> SCM:
    """The SCM of the attributes, fitted on the training table; the same seed fits the same."""
    scm = SCM(inputs.graph, inputs.schema, recipe.scm.mechanisms)
    return scm.fit(inputs.train.table, seed=recipe.seed)
