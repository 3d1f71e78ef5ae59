"""The image mechanism that a recipe asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pandas as pd

from cfaug.causal import CausalGraph
from cfaug.config import Recipe
from cfaug.data import AttributeDataset, Schema
from cfaug.data.loading import SIDES
from cfaug.decode import DiffusionDecoder, FunctionalDecoder, ImportedDecoder, LayeredDecoder, PretrainedDecoder
from cfaug.decode.composed import ComposedDecoder, Part
from cfaug.decode.layered.mask_sources import GivenMasks, OnnxMasks, mask_source
from cfaug.decode.mechanism import ImageMechanism
from cfaug.errors import DataError, UsageError, near

Simple = DiffusionDecoder | LayeredDecoder | FunctionalDecoder | PretrainedDecoder
Mechanism = Simple | ComposedDecoder | ImportedDecoder


def make_mechanism(recipe: Recipe, graph: CausalGraph, schema: Schema) -> Mechanism:
    """The mechanism of the group ``decoder``, not yet fitted; one of imported images still without any.

    Raises:
        UsageError: attributes that no mechanism, no layer or no function answers for, or that two do; settings that do not fit.
    """
    config, parents = recipe.decoder, graph.parents("image")
    if config.kind == "diffusion":
        return DiffusionDecoder(schema, parents, config)
    if config.kind == "layered":
        return LayeredDecoder(schema, parents, config)
    if config.kind == "functional":
        return FunctionalDecoder(schema, parents, config)
    if config.kind == "pretrained":
        return PretrainedDecoder(schema, parents, config)
    if config.kind == "imported":
        return ImportedDecoder(schema, parents)
    free = [name for name in parents if name != schema.target]
    for name in config.mechanisms:
        if name not in free:
            raise UsageError(
                f"decoder.mechanisms: expected parents of the image other than the target, got {name!r}; {near(name, free)}"
            )
    if absent := [name for name in free if name not in config.mechanisms]:
        raise UsageError(
            f"decoder.mechanisms: expected a mechanism for {absent[0]!r}, got none; write {absent[0]}: layered, functional, pretrained or diffusion"
        )
    kinds = dict.fromkeys(config.mechanisms[name] for name in _ordered(graph, list(config.mechanisms)))
    return ComposedDecoder(
        [_part(recipe, graph, schema, kind, [n for n in free if config.mechanisms[n] == kind]) for kind in kinds]
    )


def mechanisms_of(mechanism: ImageMechanism) -> list[Simple]:
    """The mechanisms that a composed one has, in their order; itself alone for any other."""
    found = [part.mechanism for part in mechanism.parts] if isinstance(mechanism, ComposedDecoder) else [mechanism]
    return [one for one in found if isinstance(one, Simple)]


def _ordered(graph: CausalGraph, names: list[str]) -> list[str]:
    """Causes before what they cause; where the graph leaves it open, as the recipe lists them."""
    left, found = list(names), []
    while left:
        first = next(
            name for name in left if not any(name in graph.descendants(other) for other in left if other != name)
        )
        left.remove(first)
        found.append(first)
    return found


def _part(recipe: Recipe, graph: CausalGraph, schema: Schema, kind: str, names: list[str]) -> Part:
    target = {schema.target} & set(graph.parents("image"))
    own = {*names, *(name for name in target if name is not None)}
    mechanism: ImageMechanism
    if kind == "layered":
        layers = {layer: [n for n in some if n in names] for layer, some in recipe.decoder.layers.items()}
        mechanism = LayeredDecoder(schema, own, dataclasses.replace(recipe.decoder, layers=layers))
    elif kind == "functional":
        mechanism = FunctionalDecoder(schema, own, recipe.decoder)
    elif kind == "pretrained":
        mechanism = PretrainedDecoder(schema, own, recipe.decoder)
    else:  # what it draws depends on everything that shows
        mechanism = DiffusionDecoder(schema, graph.parents("image"), recipe.decoder)
    return Part(mechanism, tuple(names))


def check_interventions(
    recipe: Recipe, graph: CausalGraph, schema: Schema, table: pd.DataFrame, names: Iterable[str]
) -> None:
    """UsageError where some source would need an intervention on ``names`` that its mechanism cannot make."""
    for part in mechanisms_of(make_mechanism(recipe, graph, schema)):
        if isinstance(part, FunctionalDecoder):
            part.check_plan(names, schema.canonical(table))


def needs_masks(recipe: Recipe) -> bool:
    """Whether objects are masked: for a mechanism of layers, or for a gate that is told the regions of attributes."""
    kinds = {recipe.decoder.kind, *recipe.decoder.mechanisms.values()}
    return "layered" in kinds or ("pretrained" in kinds and bool(recipe.decoder.layers)) or bool(recipe.gate.regions)


def check_mechanism(recipe: Recipe, graph: CausalGraph, train: AttributeDataset, generates: bool, fitted: bool) -> None:
    """Refuse now what the decoder would refuse only after the SCM was fitted."""
    from cfaug.decode.diffusion.condition import check_depth
    from cfaug.decode.diffusion.image_space import autoencoder_class

    config, parents, schema = recipe.decoder, graph.parents("image"), train.schema
    if generates:
        made = make_mechanism(recipe, graph, schema)
        _check_masks(recipe, train)
        if made.capabilities.needs_masks and not needs_masks(recipe) and train.mask(0) is None:
            raise UsageError(
                "decoder.functions: remove_mask takes masks of the data, got none; name them in data.masks"
            )
    for part in mechanisms_of(make_mechanism(recipe, graph, schema)) if generates else ():
        if isinstance(part, PretrainedDecoder):
            part.check(train.image(0).shape[:2], recipe.plan.attributes or schema.spurious)
    if "diffusion" not in {config.kind, *config.mechanisms.values()}:
        return
    check_depth(config.depth, parents)
    if config.validate_every and not any(schema[name].kind == "categorical" for name in parents):
        raise UsageError(
            "decoder.validate_every needs a categorical attribute that is a parent of the image, but all are continuous; "
            "set decoder.validate_every to null"
        )
    if config.space == "latents" and not fitted:
        autoencoder_class(config.autoencoder)
    height, width = train.image(0).shape[:2]
    if generates and not (SIDES[0] <= min(height, width) and max(height, width) <= SIDES[1]):
        raise DataError(
            f"{train.key(0)}: expected sides of {SIDES[0]} to {SIDES[1]} px, got {width}x{height}; resize the images (data.size), or "
            "take decoder.kind: layered or functional"
        )


def _check_masks(recipe: Recipe, train: AttributeDataset) -> None:
    """The source of the masks can be opened, and takes images of this size."""
    if not needs_masks(recipe):
        return
    source = mask_source(recipe.decoder.mask, lambda: (lambda image: image.mean(2), "not trained yet"))
    if isinstance(source, GivenMasks) and train.mask(0) is None:
        raise UsageError(
            "decoder.mask: expected masks in the data, got none; name them in data.masks, or write mask: {from: grabcut}"
        )
    least = source.least_side if isinstance(source, OnnxMasks) else 4
    height, width = train.image(0).shape[:2]
    if min(height, width) < least:
        raise UsageError(
            f"decoder.mask: expected images of at least {least} px for {source.digest.split()[0]}, got {width}x{height}; raise data.size, or "
            "write mask: {from: grabcut}"
        )
