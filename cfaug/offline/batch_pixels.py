"""The pixels of a micro-batch: what may go into a model, and what comes out of it as uint8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cfaug.data import AttributeDataset
from cfaug.data.images import Pixels, to_uint8
from cfaug.data.micro_batch import Sources
from cfaug.errors import CfaugError, DataError, described
from cfaug.offline.plan import PlanRow

if TYPE_CHECKING:
    import torch


def pixels_of(made: Any, attributes: Any, sources: Sources, rows: Sequence[PlanRow]) -> Pixels:
    """The model's images, (B, C, H, W) in [-1, 1], as uint8 (B, H, W, C); CfaugError for pixels that are not finite."""
    import torch

    shape = tuple(sources.images.shape)
    if tuple(made.shape) != shape or len(attributes) != len(sources):
        raise CfaugError(
            f"expected {shape} images and {len(sources)} attribute rows from the model, got {tuple(made.shape)} and "
            f"{len(attributes)}; its predict must keep the source's shape"
        )
    finite = torch.isfinite(made).flatten(1).all(dim=1)[: len(rows)]
    if not bool(finite.all()):
        key = rows[int((~finite).nonzero()[0, 0])].key
        raise CfaugError(f"the model made non-finite pixels for plan row {key!r}; fit it again, or check its sampler")
    pixels: Pixels = to_uint8(made).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return pixels


def check_images(pixels: Mapping[int, Pixels], dataset: AttributeDataset, canvas: tuple[int, int] | None) -> None:
    """DataError unless all (position -> uint8 image) have one shape; with a canvas, one number of channels, and room on it."""
    first, like = next(iter(pixels.values())), dataset.key(next(iter(pixels)))
    for place, image in pixels.items():
        same = image.shape[2] == first.shape[2] if canvas else image.shape == first.shape
        if image.dtype != np.uint8 or not same:
            expected = f"with {first.shape[2]} channels" if canvas else f"of shape {first.shape}"
            raise DataError(
                f"source {dataset.key(place)!r}: expected a uint8 image {expected} as {like!r}, got {described(image)}; "
                "resize or convert the images first"
            )
        if canvas and (image.shape[0] > canvas[0] or image.shape[1] > canvas[1]):
            raise DataError(
                f"source {dataset.key(place)!r}: expected at most {canvas[1]}x{canvas[0]} px, the largest that the model was "
                f"fitted on, got {image.shape[1]}x{image.shape[0]}; resize it, or fit the model again with it"
            )


def masks_of_sources(
    dataset: AttributeDataset, pixels: Mapping[int, Pixels], canvas: tuple[int, int] | None
) -> dict[int, torch.Tensor] | None:
    """Position -> mask (1, H, W) in [0, 1], 1 on the object; None where the data set has none."""
    import torch

    from cfaug.data.loading import pad_to  # needs torch

    mask = getattr(dataset, "mask", None)  # a user's own data set may have no such method
    found: dict[int, npt.NDArray[np.uint8] | None] = {} if mask is None else {place: mask(place) for place in pixels}
    if all(one is None for one in found.values()):
        return None
    masks = {}
    for place, one in found.items():
        if one is None or one.dtype != np.uint8 or one.shape != pixels[place].shape[:2]:
            size = "x".join(map(str, pixels[place].shape[:2]))
            got = "none" if one is None else described(one)
            raise DataError(
                f"source {dataset.key(place)!r}: expected a uint8 mask of {size}, as its image is, got {got}; correct the mask"
            )
        framed = one[..., None] if canvas is None else pad_to(one[..., None], canvas)
        masks[place] = torch.from_numpy(np.ascontiguousarray(framed)).permute(2, 0, 1).float() / 255
    return masks
