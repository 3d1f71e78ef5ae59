"""What a recipe points at, opened and checked before anything is trained or written.

Every check that needs only the inputs happens here: columns, splits, values, the graph, the label's safety, every image
decodable, every class in validation. A run that gets past this can only fail for reasons that are not in the inputs.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cfaug.causal import SCM, CausalGraph, missing_counts, refuse_if_ancestor
from cfaug.config import Recipe
from cfaug.data import (
    Attribute,
    AttributeDataset,
    FolderDataset,
    Grouper,
    Schema,
    can_unconfound,
    measures_of,
    open_source,
)
from cfaug.data.sources import Measure
from cfaug.errors import DataError, ShardError, UsageError, near
from cfaug.train import METHODS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The opened data and the graph. ``oracle`` is the unconfounded training set, where the source can make one."""

    train: AttributeDataset
    val: AttributeDataset
    test: AttributeDataset
    oracle: AttributeDataset | None
    graph: CausalGraph
    grouper: Grouper
    digest: str
    """sha256 (hex) over the attribute tables and pixels of the three splits: what a run directory is bound to."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Attributes that the source can read from pixels: uint8 images (N, H, W, C) to (N,) in the attribute's unit."""

    @property
    def schema(self) -> Schema:
        """The schema fitted on the training table."""
        return self.train.schema

    @property
    def target(self) -> str:
        """Name of the target attribute."""
        return str(self.schema.target)


def open_inputs(recipe: Recipe, progress: bool = True, fitted: bool = False) -> Inputs:
    """Open the three splits and the graph of ``recipe``; ``fitted``: there is a model, what only fitting needs may be gone.

    Raises:
        UsageError: the recipe asks for something that is not there or cannot be right.
        DataError: the data themselves are broken; file or row are named.
    """
    graph = CausalGraph(recipe.graph)
    attributes = recipe.attributes
    refuse_if_ancestor(graph, attributes.target, attributes.spurious)
    for name in (attributes.target, *attributes.spurious):
        if name not in graph.attributes:
            raise UsageError(
                f"attribute {name!r} is not in the graph {graph}; add its edges, for example {name} -> image"
            )
    if "image" not in graph.nodes:
        raise UsageError(
            f"the graph {graph} has no image; say what shows in it, for example {attributes.target} -> image"
        )
    for name in attributes.spurious:
        if "image" not in graph.descendants(name):
            raise UsageError(
                f"the graph gives {name!r} no path to the image, so intervening on it changes nothing; add {name} -> image"
            )
    if attributes.kinds.get(attributes.target, "categorical") == "continuous":
        raise UsageError(
            f"the target {attributes.target!r} is continuous, but classifiers need classes; make it categorical or bin its column"
        )
    _known_to_learn(recipe)
    train = _open(recipe, graph, "train")
    SCM(graph, train.schema, recipe.scm.mechanisms)  # names and kinds; nothing is fitted
    _check_decoder(recipe, graph, train.schema, fitted)
    val, test = (_open(recipe, graph, split, train.schema) for split in ("val", "test"))
    shape = train.image(0).shape
    for dataset in (val, test):
        if (found := dataset.image(0).shape) != shape:
            raise DataError(
                f"expected images of one size and mode, but train has {shape} (height, width, channels) and {dataset.split} "
                f"{found}; make them the same"
            )
    content = hashlib.sha256(train.schema.digest.encode())
    for dataset in (train, val, test):
        content.update(dataset.table.to_csv().encode())
        content.update(_pixels(dataset, progress))
    oracle = (
        _open(recipe, graph, "train", train.schema, confounded=False) if can_unconfound(recipe.data.source) else None
    )
    measures = {name: read for name, read in measures_of(recipe.data.source).items() if name in graph.parents("image")}
    grouper = Grouper.fit(train.table, train.schema)
    inputs = Inputs(train, val, test, oracle, graph, grouper, content.hexdigest(), measures)
    _check_training(inputs)
    _check_validation(inputs)
    if oracle is None and recipe.evaluate.loss_images:
        log.warning("evaluate.loss_images is %d, but a %s source cannot be made unconfounded: no losses are measured",
                    recipe.evaluate.loss_images, recipe.data.source)  # fmt: skip
    return inputs


def _pixels(dataset: AttributeDataset, progress: bool) -> bytes:
    """sha256 of all pixels; a folder's images are decoded here, so an unreadable one is named before any training."""
    if isinstance(dataset, FolderDataset):
        bar = partial(
            tqdm,
            total=len(dataset),
            desc=f"check {dataset.split}",
            unit="img",
            disable=not progress,
            delay=2,
            leave=False,
        )
        return bytes.fromhex(dataset.check_images(bar))  # type: ignore[arg-type]
    content = hashlib.sha256()
    for i in range(len(dataset)):
        content.update(dataset.image(i).tobytes())
    return content.digest()


def _known_to_learn(recipe: Recipe) -> None:
    """UsageError for a method, classifier or device that is not there: before the decoder trains for minutes."""
    import torch

    from cfaug.train.methods import method_named
    from cfaug.train.models import MODELS

    for name in recipe.train.methods:
        if method_named(name).data == "oracle" and not can_unconfound(recipe.data.source):
            raise UsageError(
                f"train.methods lists {name!r}, but a {recipe.data.source} source cannot be made unconfounded; remove it from the list"
            )
    if recipe.train.model not in MODELS:
        raise UsageError(
            f"train.model must be one of {', '.join(MODELS)}, but {recipe.train.model!r} came; {near(recipe.train.model, MODELS)}"
        )
    for setting, device in (("decoder.device", recipe.decoder.device), ("train.device", recipe.train.device)):
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError):
            raise UsageError(
                f"{setting} must be a device of this machine, but {device!r} cannot be used; write cpu, or see `cfaug doctor`"
            ) from None


def _check_decoder(recipe: Recipe, graph: CausalGraph, schema: Schema, fitted: bool) -> None:
    """UsageError for what the decoder would refuse only after the directory is claimed and the SCM fitted."""
    from cfaug.decode.diffusion.condition import check_depth

    config, parents = recipe.decoder, graph.parents("image")
    check_depth(config.depth, parents)
    if config.validate_every and not any(schema[name].kind == "categorical" for name in parents):
        raise UsageError(
            "decoder.validate_every needs a categorical attribute that is a parent of the image, but all are continuous; "
            "set decoder.validate_every to null"
        )
    if config.space == "latents" and not fitted:
        from cfaug.decode.diffusion.image_space import autoencoder_class

        autoencoder_class(config.autoencoder)


def refuse_other_model(inputs: Inputs, graph: CausalGraph, schema: Schema, place: Path) -> None:
    """Raise ShardError unless a model's graph and fitted schema are those of the inputs.

    Means and deviations may differ in the last digits, as they do between machines.
    """
    ours = inputs.schema.fit(inputs.train.table, inputs.schema.names)
    expected = came = ""
    if graph != inputs.graph:
        expected, came = f"the graph {inputs.graph}", f"{graph}"
    elif (schema.target, schema.spurious) != (ours.target, ours.spurious):
        expected, came = (f"{s.target} against {', '.join(s.spurious)}" for s in (ours, schema))
        expected = f"the target {expected}"
    elif schema.names != ours.names:
        expected, came = f"the attributes {', '.join(ours.names)}", ", ".join(schema.names)
    else:
        for own, other in zip(ours, schema, strict=True):
            if (own.kind, own.values) != (other.kind, other.values):
                expected, came = (f"{a.kind} ({', '.join(a.values or ())})" for a in (own, other))
                expected = f"{own.name}: {expected}"
            elif not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(_scale(own), _scale(other), strict=True)):
                expected, came = (f"mean {a[0]:.6g}, deviation {a[1]:.6g}" for a in (_scale(own), _scale(other)))
                expected = f"{own.name}: {expected}"
            if expected:
                break
    if expected:
        raise ShardError(
            f"{place} holds a model of another run: expected {expected:.220}, but {came:.200} came; put the right model there, "
            "or start over with `cfaug fit RECIPE.yaml --out DIR --overwrite`"
        )


def _scale(attribute: Attribute) -> tuple[float, float]:
    return attribute.scale if attribute.kind == "continuous" else (0.0, 1.0)


def uses_counterfactuals(recipe: Recipe) -> bool:
    """Whether any listed method needs generated images."""
    return any(METHODS[name].needs_shards for name in recipe.train.methods)


def _open(
    recipe: Recipe, graph: CausalGraph, split: str, schema: Schema | None = None, confounded: bool = True
) -> AttributeDataset:
    data, attributes = recipe.data, recipe.attributes
    options: dict[str, Any] = {
        name: value for name in ("rho", "train_images", "val_images") if (value := getattr(data, name)) is not None
    }
    return open_source(
        data.source,
        data.root,
        split,
        target=attributes.target,
        spurious=attributes.spurious,
        kinds=attributes.kinds,
        values={name: [str(v) for v in values] for name, values in attributes.values.items()},
        attributes=[name for name in graph.attributes if name not in (attributes.target, *attributes.spurious)],
        schema=schema,
        seed=data.seed,
        confounded=confounded,
        **options,
    )


def _check_training(inputs: Inputs) -> None:
    target = inputs.target
    for value in inputs.schema[target].categories:
        if value not in set(inputs.train.table[target]):
            raise DataError(
                f"expected training images of every class, but {target}={value} has none; add rows with split train, or remove the class"
            )
    for name, count in missing_counts(inputs.train.table, inputs.schema).items():
        log.warning("%s: %d of %d training rows have no value; they are kept", name, count, len(inputs.train))
    for name in inputs.schema.spurious:
        seen = set(inputs.train.table[name].dropna())
        if len(seen) < 2:
            log.warning("%s has one value in training, so no intervention on it can change an image", name)
        unseen = sorted(set(inputs.schema[name].values or ()) - seen)
        if unseen:
            log.warning("%s=%s has no training image: nothing is planned for it", name, unseen[0])


def _check_validation(inputs: Inputs) -> None:
    target = inputs.target
    present = set(inputs.val.table[target])
    for value in inputs.schema[target].categories:
        if value not in present:
            raise DataError(
                f"expected validation images of every class, but {target}={value} has none; selection by worst group needs "
                "at least one: add rows with split val"
            )
    labels = inputs.grouper.labels(inputs.val.table)
    for name in inputs.schema.spurious:
        empty = sorted(set(inputs.grouper.names(name)) - set(labels[name]))
        if empty:
            log.warning(
                "%d of %d validation groups of %s are empty (first: %s); they take no part in selection",
                len(empty),
                len(inputs.grouper.names(name)),
                name,
                empty[0],
            )
