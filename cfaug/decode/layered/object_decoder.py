"""Objects redrawn by a diffusion decoder that has seen objects alone, on grey, and knows their own attributes alone.

So it cannot learn what goes with the background or the class: p(object given its attributes) is one mechanism for all of them. What its
noise keeps of the old value is measured like any decoder's (``cfaug evaluate``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset, AttributeDataset, Schema
from cfaug.data.images import Pixels, to_uint8
from cfaug.data.micro_batch import Sources
from cfaug.decode.diffusion.decoder import DiffusionDecoder
from cfaug.decode.layered.compositing import blended
from cfaug.decode.mechanism import FitReport
from cfaug.decode.pixel_mechanism import as_images
from cfaug.errors import DataError

GREY = 127


class ObjectDecoder:
    """A diffusion decoder of the attributes ``own`` of the foreground, on objects cut out."""

    def __init__(self, schema: Schema, own: Collection[str], config: DecoderConfig) -> None:
        self.decoder = DiffusionDecoder(schema, own, dataclasses.replace(config, kind="diffusion", layers={}))

    @property
    def report(self) -> FitReport | None:
        """What training did."""
        return self.decoder.report

    def fit(self, dataset: AttributeDataset, seed: int, progress: bool) -> None:
        """Train on the training images with everything but their objects made grey."""
        images = [cut_out(dataset.image(i), _mask(dataset, i)) for i in range(len(dataset))]
        self.decoder.fit(ArrayDataset(np.stack(images), dataset.table, dataset.schema), seed, progress)

    def redrawn(
        self,
        images: Pixels,
        masks: Pixels,
        table: pd.DataFrame,
        attributes: pd.DataFrame,
        affected: Sequence[Collection[str]],
    ) -> npt.NDArray[np.uint8]:
        """The objects of images uint8 (B, H, W, C) under other attributes; around them is grey."""
        floats = as_images([cut_out(image, mask) for image, mask in zip(images, masks, strict=True)], "cpu")
        names = [str(key) for key in table.index]
        noise = self.decoder.abduct(Sources(floats, table, names, [0] * len(names)))
        made = to_uint8(self.decoder.predict(noise, attributes, affected))
        return np.asarray(made.permute(0, 2, 3, 1).contiguous().numpy())


def cut_out(image: Pixels, mask: Pixels) -> Pixels:
    """The object on grey."""
    return blended(image, np.full_like(image, GREY), mask)


def _mask(dataset: AttributeDataset, i: int) -> Pixels:
    mask = dataset.mask(i)
    if mask is None:
        raise DataError(f"{dataset.key(i)}: expected a mask of its object, got none; name the masks in data.masks")
    return mask
