"""From the user's images to what the network sees: one canvas, padded to the network's multiple, with its structure map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from cfaug.config import DecoderConfig
from cfaug.data import AttributeDataset, load_padded
from cfaug.data.images import to_float
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

    def check(self, image: torch.Tensor, attributes: pd.DataFrame) -> None:
        """UsageError for images (B, C, H, W) that are not what the decoder was trained on."""
        if not len(image) or not len(attributes):
            raise UsageError("expected at least one image with its attribute row, but none came")
        largest = float(image.float().abs().max())
        if math.isnan(largest):
            raise UsageError("expected float images in [-1, 1], but some pixels are NaN; look at how they were made")
        if not image.is_floating_point() or largest > 1.001:
            raise UsageError(
                f"expected float images in [-1, 1], but {image.dtype} up to {largest:.0f} came; for uint8 write image / 127.5 - 1"
            )
        height, width = self.size
        fits = image.ndim == 4 and image.shape[1] == self.channels and len(image) == len(attributes)
        if fits and self.mixed:
            fits = image.shape[2] <= height and image.shape[3] <= width
        elif fits:
            fits = tuple(image.shape[2:]) == self.size
        if not fits:
            most = "at most " if self.mixed else ""
            raise UsageError(
                f"expected images (B, {self.channels}, H, W) of {most}{width}x{height} px and B attribute rows, but "
                f"{tuple(image.shape)} and {len(attributes)} rows came; this decoder was trained on {self.channels}-channel "
                f"images of {width}x{height} px: resize or convert these"
            )

    def prepare(
        self, image: torch.Tensor, multiple: int, structure: str, factor: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(image padded to the canvas and to ``multiple``, its structure map at 1 / factor of that size)."""
        padded = padded_to(image, self.size if self.mixed else (image.shape[2], image.shape[3]), multiple)
        found = structure_map(padded, structure)
        return padded, F.avg_pool2d(found, factor) if factor > 1 and found.shape[1] else found[..., ::factor, ::factor]


def padded_to(image: torch.Tensor, size: tuple[int, int], multiple: int) -> torch.Tensor:
    """(B, C, H, W) with its last row and column repeated up to ``size``, rounded up to ``multiple``."""
    height, width = (side + -side % multiple for side in size)
    return F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]), mode="replicate")


def load_framed(dataset: AttributeDataset, progress: bool) -> tuple[torch.Tensor, Frame]:
    """The images on one canvas, uint8 (N, C, H, W), and their frame."""
    images, sizes = load_padded(dataset, progress=progress)
    mixed = len(torch.unique(sizes, dim=0)) > 1
    return images, Frame(images.shape[1], (images.shape[2], images.shape[3]), mixed)


def views_of(images: torch.Tensor, space: Space, multiple: int, config: DecoderConfig) -> ImageViews | LatentViews:
    """Training images, uint8 (N, C, H, W), as a network of this ``multiple`` sees them in ``space``."""
    if isinstance(space, PixelSpace):  # not by its factor: an autoencoder may have factor 1
        return ImageViews(images, multiple, config.structure)
    return LatentViews(images, space, multiple, config)


def patch_for(config: DecoderConfig, frame: Frame, space: Space) -> int:
    """The space-to-depth factor: as configured, or by the size of what the network sees."""
    side = max(frame.size) // space.factor
    return config.patch or (1 if side <= 8 else 2 if side <= 16 else 4)


class ImageViews:
    """Training images in pixel space, converted as they are asked for.

    Args:
        images: uint8 (N, C, H, W).
        multiple: of the network.
        structure: kind of the structure map.
    """

    def __init__(self, images: torch.Tensor, multiple: int, structure: str) -> None:
        self.images, self.multiple, self.structure = images, multiple, structure

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.images[rows]
        x = padded_to(to_float(images), (images.shape[2], images.shape[3]), self.multiple)
        return x, structure_map(x, self.structure)


class LatentViews:
    """Training images in latent space, encoded once.

    Args:
        images: uint8 (N, C, H, W).
        space: the autoencoder.
        multiple: of the network, in latent pixels.
        config: structure map and device.
    """

    def __init__(self, images: torch.Tensor, space: Space, multiple: int, config: DecoderConfig) -> None:
        frame = Frame(images.shape[1], (images.shape[2], images.shape[3]))
        latents, maps = [], []
        for batch in torch.split(images, 64):
            x = to_float(batch).to(config.device)
            padded, found = frame.prepare(x, multiple * space.factor, config.structure, space.factor)
            latents.append(space.encode(padded).cpu())
            maps.append(found.cpu())
        self.latents, self.maps = torch.cat(latents), torch.cat(maps)

    def __len__(self) -> int:
        return len(self.latents)

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.latents[rows], self.maps[rows]
