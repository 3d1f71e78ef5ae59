"""The masks of a run: the training images as an image mechanism takes them, and how good their masks look."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.decode.layered.mask_sources import Heat, mask_source
from cfaug.decode.layered.masked import MaskedDataset
from cfaug.stages.attribution import Attributed
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.image_mechanism import needs_masks


def with_masks(recipe: Recipe, inputs: Inputs, directory: Path | None) -> Inputs:
    """The inputs whose ``sources`` and ``clean`` have the masks of ``decoder.mask``, kept in ``directory``; as they are without need."""
    if not needs_masks(recipe):
        return inputs

    def heat() -> tuple[Heat, str]:
        found = Attributed(recipe, inputs)
        return found, found.name

    source = mask_source(recipe.decoder.mask, heat)

    def masked(dataset: AttributeDataset) -> MaskedDataset:
        return MaskedDataset(dataset, source, directory)

    oracle = inputs.oracle
    lacking = oracle is None or (recipe.decoder.mask.get("from", "given") == "given" and oracle.mask(0) is None)
    clean = None if lacking or oracle is None else masked(oracle)
    return dataclasses.replace(inputs, sources=masked(inputs.train), clean=clean)
