"""From the user's images to what the network sees: one canvas, padded to the network's multiple, with a structure map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cfaug.data import AttributeDataset, load_padded
from cfaug.data.images import to_float
from cfaug.decode.diffusion.flow_loss import Views
from cfaug.decode.diffusion.image_space import PixelSpace, Space
from cfaug.decode.diffusion.structure import structure_map
from cfaug.errors import UsageError


@dataclass(frozen=True)
class Frame:
    """The images that a decoder was trained on, and takes.

    Attributes:
        channels: C, 1 or 3.
        size: (H, W) of all images, or the canvas that the largest fits on.
        mixed: whether sources may be smaller than ``size``.
    """

    channels: int
    size: tuple[int, int]
    mixed: bool = False

    @classmethod
    def restore(cls, content: Mapping[str, Any]) -> Frame:
        """From JSON."""
        height, width = content["size"]
        return cls(int(content["channels"]), (int(height), int(width)), bool(content["mixed"]))

    def check(self, images: torch.Tensor, rows: int) -> None:
        """UsageError for images (B, C, H, W) with ``rows`` attribute rows that are not what the decoder was trained on."""
        if not len(images) or not rows:
            raise UsageError("expected at least one image with its attribute row, got none")
        largest = float(images.float().abs().max())
        if math.isnan(largest):
            raise UsageError("expected float images in [-1, 1], got pixels that are NaN; look at how they were made")
        if not images.is_floating_point() or largest > 1.001:
            raise UsageError(
                f"expected float images in [-1, 1], got {images.dtype} up to {largest:.0f}; for uint8 write image / 127.5 - 1"
            )
        height, width = self.size
        fits = images.ndim == 4 and images.shape[1] == self.channels and len(images) == rows
        if fits and self.mixed:
            fits = images.shape[2] <= height and images.shape[3] <= width
        elif fits:
            fits = tuple(images.shape[2:]) == self.size
        if not fits:
            raise UsageError(
                f"expected images (B, {self.channels}, H, W) of {'at most ' if self.mixed else ''}{width}x{height} px and B "
                f"attribute rows, as this decoder was trained on, got {tuple(images.shape)} and {rows} rows; resize or convert them"
            )


def load_framed(dataset: AttributeDataset, progress: bool) -> tuple[torch.Tensor, Frame]:
    """The images on one canvas, uint8 (N, C, H, W), and their frame."""
    images, sizes = load_padded(dataset, progress=progress)
    mixed = len(torch.unique(sizes, dim=0)) > 1
    return images, Frame(images.shape[1], (images.shape[2], images.shape[3]), mixed)


def network_input(
    images: torch.Tensor, frame: Frame, space: Space, multiple: int, structure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network of this ``multiple`` sees of images in [-1, 1].

    Args:
        images: shape (B, C, H, W), on the device of ``space``.
        frame: its canvas, where sizes are mixed.
        space: pixels, or an autoencoder.
        multiple: heights and widths that the network sees are multiples of this.
        structure: kind of the structure map.

    Returns:
        The working tensor, shape (B, c, h, w), and the structure map, shape (B, S, h, w).
    """
    size = frame.size if frame.mixed else (images.shape[2], images.shape[3])
    height, width = (side + -side % (multiple * space.factor) for side in size)
    padded = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]), mode="replicate")
    found, f = structure_map(padded, structure), space.factor
    found = F.avg_pool2d(found, f) if f > 1 and found.shape[1] else found[..., ::f, ::f]
    return space.encode(padded), found


def training_views(
    images: torch.Tensor, frame: Frame, space: Space, multiple: int, structure: str, device: str
) -> Views:
    """The training images, uint8 (N, C, H, W), as the network sees them: pixels when asked for, latents encoded once."""

    def seen(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return network_input(to_float(pixels).to(device), frame, space, multiple, structure)

    if isinstance(space, PixelSpace):
        return lambda rows: seen(images[rows])
    parts = [[part.cpu() for part in seen(batch)] for batch in torch.split(images, 64)]
    latents, maps = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return lambda rows: (latents[rows], maps[rows])
