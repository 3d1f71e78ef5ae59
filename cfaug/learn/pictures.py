"""An untransformed image as its pixels, whatever it came as."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cfaug.errors import UsageError


def as_pixels(image: Any) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, C) of a PIL image, a uint8 tensor (C, H, W) or a uint8 array (H, W[, C]); UsageError otherwise."""
    if isinstance(image, Image.Image):
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    elif isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        array = image.permute(1, 2, 0).numpy()
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        array = image
    else:
        kind = f"{type(image).__name__} {getattr(image, 'dtype', '')}".strip()
        raise UsageError(
            f"expected an untransformed image (PIL, uint8 tensor CHW or uint8 array HWC), came {kind}; pass key="
        )
    return array[..., None] if array.ndim == 2 else array


def recognisable(image: Any) -> Image.Image | npt.NDArray[np.uint8]:
    """What :mod:`cfaug.data.lookup` takes: a PIL image as it is (nothing is copied), anything else as its pixels."""
    return image if isinstance(image, Image.Image) else as_pixels(image)
