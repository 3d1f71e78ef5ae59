"""The images of a data set: as one array where they fit into memory, else as a stream that decodes them whenever they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from cfaug.data.datasets import AttributeDataset
from cfaug.data.images import Pixels
from cfaug.errors import DataError

SIDES = (4, 256)
"""Smallest and largest height or width, in pixels, that a decoder is made for."""


def load_images(dataset: AttributeDataset, rows: Sequence[int] | None = None, progress: bool = True) -> torch.Tensor:
    """Decode images of one size into memory.

    Args:
        dataset: any data set with ``image(i)``.
        rows: which images; all when None.
        progress: show a bar when it takes long.

    Returns:
        uint8, shape (N, C, H, W), in the order of ``rows``.

    Raises:
        DataError: two images differ in size or channels (the first is named).
    """
    wanted = _wanted(dataset, rows)
    first = dataset.image(wanted[0])
    images = np.empty((len(wanted), *first.shape), dtype=np.uint8)
    for place, i in enumerate(_bar(dataset, wanted, progress)):
        image = dataset.image(i)
        if image.shape != first.shape:
            raise DataError(
                f"expected every image to be {first.shape[1]}x{first.shape[0]} with {first.shape[2]} channels like "
                f"{dataset.key(wanted[0])}, got {image.shape[1]}x{image.shape[0]} with {image.shape[2]} of {dataset.key(i)}; "
                "resize the images to one size"
            )
        images[place] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class Pictures(Protocol):
    """Whatever has images, uint8 (H, W, C), by their number."""

    def image(self, i: int, /) -> Pixels: ...


@dataclass(frozen=True)
class ImageStream:
    """Some images of a data set, decoded in ``workers`` processes whenever they are read; nothing is held."""

    dataset: Pictures
    rows: Sequence[int]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """uint8, shape (size, C, H, W) each, in order; DataError naming the first image that has a different shape."""
        loader = DataLoader(_Pixels(self.dataset, self.rows), size, num_workers=self.workers)
        yield from loader


class _Pixels(Dataset[torch.Tensor]):
    def __init__(self, dataset: Pictures, rows: Sequence[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.dataset.image(self.rows[k]))).permute(2, 0, 1)


Images = torch.Tensor | ImageStream
"""uint8 (N, C, H, W) in memory, or a stream of as many."""


def images_of(
    dataset: AttributeDataset,
    rows: Sequence[int] | None = None,
    memory_gb: float = 2.0,
    workers: int = 0,
    progress: bool = True,
) -> Images:
    """The images in memory where they take at most ``memory_gb`` gigabytes (10^9 bytes), else a stream that ``workers`` decode."""
    wanted = _wanted(dataset, rows)
    if len(wanted) * dataset.image(wanted[0]).nbytes <= memory_gb * 1e9:
        return load_images(dataset, wanted, progress)
    return ImageStream(dataset, wanted, workers)


def batches_of(images: Images, size: int) -> Iterator[torch.Tensor]:
    """The images in batches of at most ``size``, in order."""
    if isinstance(images, ImageStream):
        yield from images.batches(size)
    else:
        yield from torch.split(images, size)


def load_padded(
    dataset: AttributeDataset, rows: Sequence[int] | None = None, multiple: int = 1, progress: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode images of different sizes onto one canvas: the largest height by the largest width.

    Args:
        dataset: any data set with ``image(i)``.
        rows: which images; all when None.
        multiple: height and width of the canvas are rounded up to a multiple of this.
        progress: show a bar when it takes long.

    Returns:
        uint8, shape (N, C, H', W'), each image at the top left, its last row and column repeated to the bottom and to the
        right; and the sizes before padding, int64, shape (N, 2): height, width.

    Raises:
        DataError: channels differ, or a side is outside ``SIDES`` (the first such image is named).
    """
    wanted = _wanted(dataset, rows)
    loaded: list[Pixels] = []
    for i in _bar(dataset, wanted, progress):
        image = dataset.image(i)
        height, width, channels = image.shape
        if not (SIDES[0] <= min(height, width) and max(height, width) <= SIDES[1]):
            raise DataError(
                f"{dataset.key(i)}: expected sides of {SIDES[0]} to {SIDES[1]} px, got {width}x{height}; resize the images"
            )
        if loaded and channels != loaded[0].shape[2]:
            raise DataError(
                f"{dataset.key(i)}: expected {loaded[0].shape[2]} channels like {dataset.key(wanted[0])}, got {channels}; "
                "make all images grey or all RGB"
            )
        loaded.append(image)
    sizes = np.array([image.shape[:2] for image in loaded], dtype=np.int64)
    height, width = (int(-(-largest // multiple) * multiple) for largest in sizes.max(axis=0))
    padded = np.empty((len(loaded), height, width, loaded[0].shape[2]), dtype=np.uint8)
    for place, image in enumerate(loaded):
        padded[place] = pad_to(image, (height, width))
    return torch.from_numpy(padded).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(sizes)


def pad_to(image: Pixels, canvas: tuple[int, int]) -> Pixels:
    """``image``, uint8 (H, W, C), on a canvas (height, width) at least as large: last row and column repeated."""
    bottom, right = canvas[0] - image.shape[0], canvas[1] - image.shape[1]
    padded: Pixels = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image
    return padded


def _wanted(dataset: AttributeDataset, rows: Sequence[int] | None) -> Sequence[int]:
    wanted = range(len(dataset)) if rows is None else rows
    if len(wanted) == 0:
        raise DataError(f"expected at least one image in split {dataset.split!r}, got none; check the split column")
    return wanted


def _bar(dataset: AttributeDataset, wanted: Sequence[int], progress: bool) -> tqdm[int]:
    return tqdm(wanted, desc=f"images {dataset.split}", unit="img", disable=not progress, delay=2, leave=False)
