"""The object redrawn from another object: its colours shifted to the other's, or the other's surface put in its place.

    transfer    Lab values z of the object become (z - mean) / deviation * deviation' + mean'   (Reinhard et al., 2001)
    surface     every pixel takes the donor's surface, extended (by a filling) to where the donor's own object does not reach

The donor is an object with the wanted value; neither of the two sees the background or the target.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels
from cfaug.decode.layered.compositing import SURE

STRETCH = (0.5, 2.0)
"""The contrast of an object is changed by at most these factors: a flat donor would make any texture flat."""
Statistics = npt.NDArray[np.float32]
"""(2, C): mean and deviation of an object's pixels in Lab (grey images: of the grey level)."""


def object_statistics(image: Pixels, mask: Pixels) -> Statistics:
    """Mean and deviation of the pixels that are all object (all pixels where none is)."""
    sure = mask >= SURE
    values = _lab(image)[sure if sure.any() else np.ones(mask.shape, bool)]
    return np.stack([values.mean(0), values.std(0)]).astype(np.float32)


def transferred(image: Pixels, mask: Pixels, wanted: Statistics) -> Pixels:
    """The object's colours (all of the image's, for the caller to cut out) with the statistics of another object."""
    own = object_statistics(image, mask)
    stretch = np.clip(wanted[1] / np.maximum(own[1], 1e-3), *STRETCH)
    return _from_lab((_lab(image) - own[0]) * stretch + wanted[0], image.shape[2])


def _lab(image: Pixels) -> npt.NDArray[np.float32]:
    scaled = image.astype(np.float32) / 255
    return np.asarray(scaled * 100 if image.shape[2] == 1 else cv2.cvtColor(scaled, cv2.COLOR_RGB2LAB), np.float32)


def _from_lab(values: npt.NDArray[np.float32], channels: int) -> Pixels:
    scaled = values / 100 if channels == 1 else cv2.cvtColor(values.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8).reshape(*values.shape[:2], channels)
