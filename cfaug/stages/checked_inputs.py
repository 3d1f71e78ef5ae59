"""What a recipe points at, opened and checked before anything is trained or written.

Every check that needs only the inputs happens here, for ``cfaug doctor`` and for every stage: the graph, the label's safety,
columns, splits, values, methods, devices, every image. What only generating needs is in :mod:`cfaug.stages.recipe_checks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cfaug.causal import SCM, CausalGraph, missing_counts, refuse_if_ancestor
from cfaug.config import Recipe
from cfaug.data import (
    ArrayDataset,
    AttributeDataset,
    Grouper,
    Schema,
    can_unconfound,
    duplicates_across_splits,
    measures_of,
    open_source,
)
from cfaug.data.sources import Measure
from cfaug.data.sources.stored_images import StoredImages
from cfaug.errors import DataError, UsageError
from cfaug.stages.image_mechanism import check_mechanism, needs_masks

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
    sources: AttributeDataset = field(default=None)  # type: ignore[assignment]
    """The training images as the image mechanism takes them: with masks, where it needs them."""
    clean: AttributeDataset | None = None
    """The unconfounded training images likewise; None where there are none, or none with masks."""

    def __post_init__(self) -> None:
        """Without masks, sources are the images themselves."""
        if self.sources is None:
            object.__setattr__(self, "sources", self.train)
            object.__setattr__(self, "clean", self.oracle)

    @property
    def schema(self) -> Schema:
        """The schema fitted on the training table."""
        return self.train.schema

    @property
    def target(self) -> str:
        """Name of the target attribute."""
        return str(self.schema.target)


def open_inputs(recipe: Recipe, progress: bool = True, fitted: bool = False) -> Inputs:
    """Open the three splits and the graph of ``recipe``. With ``fitted`` there is a model, and what only fitting needs may be gone.

    Raises:
        UsageError: the recipe asks for something that does not exist or cannot be right.
        DataError: the data themselves are broken; the message names the file or the row.
    """
    graph = CausalGraph(recipe.graph)
    _check_graph(recipe, graph)
    _check_training_settings(recipe)
    train = _open(recipe, graph, "train")
    SCM(graph, train.schema, recipe.scm.mechanisms)  # names and kinds; nothing is fitted
    check_mechanism(recipe, graph, train, uses_counterfactuals(recipe), fitted)
    val, test = (_open(recipe, graph, split, train.schema) for split in ("val", "test"))
    _check_classifier(recipe, train)
    content = hashlib.sha256(train.schema.digest.encode())
    for dataset in (train, val, test):
        content.update(dataset.table.to_csv().encode())
        content.update(_pixels(dataset, progress))
    _check_images(train, val, test)
    oracle = _oracle(recipe, graph, train.schema, progress)
    measures = {name: read for name, read in measures_of(recipe.data.source).items() if name in graph.parents("image")}
    grouper = Grouper.fit(train.table, train.schema)
    inputs = Inputs(train, val, test, oracle, graph, grouper, content.hexdigest(), measures)
    _check_values(inputs)
    _check_groups(inputs)
    if (oracle is None or recipe.data.oracle) and recipe.evaluate.loss_images:
        log.warning("evaluate.loss_images is %d, but a %s source cannot be made unconfounded: no losses are measured",
                    recipe.evaluate.loss_images, recipe.data.source)  # fmt: skip
    return inputs


def uses_counterfactuals(recipe: Recipe) -> bool:
    """Whether any listed method needs generated images."""
    from cfaug.train.methods import METHODS

    return any(METHODS[name].needs_shards for name in recipe.train.methods)


def has_oracle(recipe: Recipe) -> bool:
    """Whether there are training images without the confounding: the source makes them, or ``data.oracle`` has them."""
    return can_unconfound(recipe.data.source) or recipe.data.oracle is not None


def oracle_copies(recipe: Recipe) -> int:
    """Draws of the attributes under which the oracle has every source: as many images as cfaug shows of it, where they can be made."""
    made = can_unconfound(recipe.data.source) and uses_counterfactuals(recipe)
    return 1 + recipe.plan.per_image if made else 1


def training_oracle(recipe: Recipe, inputs: Inputs) -> AttributeDataset | None:
    """The oracle's training images: as many different ones as cfaug shows, where the source can make them.

    cfaug shows every real image and ``plan.per_image`` counterfactuals of it; so the oracle gets every source under as many draws of
    its attributes. A folder has what it has.
    """
    oracle, copies = inputs.oracle, oracle_copies(recipe)
    if copies == 1 or not isinstance(oracle, ArrayDataset):
        return oracle
    parts = [oracle]
    for copy in range(1, copies):
        other = dataclasses.replace(recipe.data, seed=recipe.data.seed + copy)
        part = _open(dataclasses.replace(recipe, data=other), inputs.graph, "train", inputs.schema, confounded=False)
        assert isinstance(part, ArrayDataset)
        parts.append(
            ArrayDataset(part.images, part.table.set_axis([f"{key}+{copy}" for key in part.table.index]), part.schema)
        )
    return ArrayDataset(
        np.concatenate([part.images for part in parts]), pd.concat([part.table for part in parts]), oracle.schema
    )


def _oracle(recipe: Recipe, graph: CausalGraph, schema: Schema, progress: bool) -> AttributeDataset | None:
    if not has_oracle(recipe):
        return None
    if recipe.data.oracle is None:
        return _open(recipe, graph, "train", schema, confounded=False)
    if can_unconfound(recipe.data.source):
        raise UsageError(
            f"data.oracle: a {recipe.data.source} source makes its own unconfounded images; remove data.oracle"
        )
    masks = recipe.data.masks if needs_masks(recipe) and recipe.decoder.mask.get("from", "given") == "given" else None
    elsewhere = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=recipe.data.oracle, masks=masks))
    oracle = _open(elsewhere, graph, "train", schema)
    _pixels(oracle, progress)
    return oracle


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
        size=data.size,
        fit=data.fit,
        masks=data.masks,
        **options,
    )


def _pixels(dataset: AttributeDataset, progress: bool) -> bytes:
    """sha256 of all pixels; stored images are decoded here, so an unreadable one is named before any training."""
    if isinstance(dataset, StoredImages):
        bar = partial(
            tqdm, total=len(dataset), desc=f"check {dataset.split}", unit="img", disable=not progress, delay=2, leave=False
        )  # fmt: skip
        return bytes.fromhex(dataset.check_images(bar))  # type: ignore[arg-type]
    content = hashlib.sha256()
    for i in range(len(dataset)):
        content.update(dataset.image(i).tobytes())
    return content.digest()


# -- checks: each raises UsageError or DataError in one line -----------------------------------------------------------


def _check_graph(recipe: Recipe, graph: CausalGraph) -> None:
    attributes = recipe.attributes
    refuse_if_ancestor(graph, attributes.target, attributes.spurious)
    for name in (attributes.target, *attributes.spurious):
        if name not in graph.attributes:
            raise UsageError(
                f"graph: expected every listed attribute, but {name!r} is not in the graph {graph}; add its edges, for example {name} -> image"
            )
    if "image" not in graph.nodes:
        raise UsageError(
            f"graph: expected the node image, but {graph} has no image; say what shows in it, for example {attributes.target} -> image"
        )
    for name in attributes.spurious:
        if "image" not in graph.descendants(name):
            raise UsageError(
                f"graph: expected spurious attributes that show, but {name!r} has no path to the image; add {name} -> image"
            )
    if attributes.kinds.get(attributes.target, "categorical") == "continuous":
        raise UsageError(
            f"attributes.kinds: expected a target of classes, got {attributes.target!r}, which is continuous; bin its column"
        )


def _check_training_settings(recipe: Recipe) -> None:
    """Refuse an unknown method, classifier or device before the decoder trains for minutes."""

    from cfaug.train.methods import check_method_settings, method_named
    from cfaug.train.models import check_model

    for name in recipe.train.methods:
        if method_named(name).data == "oracle" and not has_oracle(recipe):
            raise UsageError(
                f"train.methods: got {name!r}, but a {recipe.data.source} source cannot be made unconfounded; remove it from the list, or "
                "name a directory of unconfounded images in data.oracle"
            )
    check_method_settings(recipe.train.method_settings)
    check_model(recipe.train.model)
    if recipe.train.mode == "frozen" and recipe.train.weights is None:
        raise UsageError(
            f"train.mode is frozen, but train.weights names no file, and features of an untrained {recipe.train.model} say nothing; give "
            "pretrained weights, or write model: small_cnn, mode: finetune (as the recipe demo_photos)"
        )
    if recipe.train.mode == "frozen" and recipe.train.augment != "none":
        raise UsageError(
            "train.mode is frozen, so features are computed once, and nothing is augmented; write augment: none"
        )
    check_devices(recipe)


def check_devices(recipe: Recipe) -> tuple[str, ...]:
    """The devices of decoder and training; UsageError for one that this machine does not have."""
    import torch

    devices = {"decoder.device": recipe.decoder.device, "train.device": recipe.train.device}
    for setting, device in devices.items():
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError):
            raise UsageError(
                f"{setting}: expected a device of this machine, got {device!r}, which cannot be used; write cpu, or start it where there is one"
            ) from None
    return tuple(devices.values())


def _check_classifier(recipe: Recipe, train: AttributeDataset) -> None:
    """The net, its weights and its normalisation fit one another and the images."""
    from cfaug.train.models import build_model

    config, (height, width, channels) = recipe.train, train.image(0).shape
    classes = len(train.schema[str(train.schema.target)].categories)
    build_model(config.model, channels, (height, width), classes, 0, config.weights, config.normalization)


def _check_images(train: AttributeDataset, val: AttributeDataset, test: AttributeDataset) -> None:
    """Refuse images of different sizes, and an image that is in two splits."""
    height, width, channels = train.image(0).shape  # of a working size all are the same
    for dataset in (val, test):
        if (found := dataset.image(0).shape) != (height, width, channels):
            raise DataError(
                f"expected images of one size and mode, but train has {(height, width, channels)} (height, width, channels) and "
                f"{dataset.split} {found}; make them the same"
            )
    # a generated source keeps its sources apart itself, and two digits that their colours hide are one image
    own = isinstance(train, StoredImages)
    if own and (shared := duplicates_across_splits((train, val, test))):
        (split, key), (other_split, other) = shared[0]
        raise DataError(
            f"expected every image in one split only, got {len(shared)} in two, the first {key} ({split}), which is {other} "
            f"({other_split}); remove one of each"
        )


def _check_values(inputs: Inputs) -> None:
    """Refuse a class without training or validation images; log attributes that lack values or never vary."""
    for dataset, why in ((inputs.train, "to learn from"), (inputs.val, "to select an epoch by its worst group")):
        present = set(dataset.table[inputs.target])
        for value in inputs.schema[inputs.target].categories:
            if value not in present:
                raise DataError(
                    f"expected {dataset.split} images of every class {why}, got none of {inputs.target}={value}; add rows with "
                    f"split {dataset.split}, or remove the class"
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


def _check_groups(inputs: Inputs) -> None:
    """Refuse splits without a common group, which have no adjusted average; log empty groups."""
    grouper = inputs.grouper
    trained = grouper.labels(inputs.train.table, missing=True)
    for dataset, means in ((inputs.val, "selection"), (inputs.test, "the results")):
        labels = grouper.labels(dataset.table)
        for name in inputs.schema.spurious:
            if dataset is inputs.test and not set(labels[name]) & set(trained[name].dropna()):
                raise DataError(
                    f"expected at least one group of {inputs.target} and {name} in both training and test, got none; add test "
                    "images of groups that training has"
                )
            empty = [group for group in grouper.names(name) if group not in set(labels[name])]
            if empty:
                log.warning(
                    "%d of %d %s groups of %s are empty (first: %s); they take no part in %s",
                    len(empty), len(grouper.names(name)), {"val": "validation"}.get(dataset.split, dataset.split), name, empty[0], means,
                )  # fmt: skip
