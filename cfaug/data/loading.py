"""All images of a data set as one array, for the stages that read each image many times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from cfaug.data.datasets import AttributeDataset
from cfaug.errors import DataError


def load_images(dataset: AttributeDataset, rows: Sequence[int] | None = None, progress: bool = True) -> torch.Tensor:
    """Decode images into memory.

    Args:
        dataset: any data set with ``image(i)``.
        rows: which images; all when None.
        progress: show a bar when it lasts.

    Returns:
        uint8, shape (N, C, H, W), in the order of ``rows``.

    Raises:
        DataError: two images differ in size or channels (the first is named).
    """
    wanted = range(len(dataset)) if rows is None else rows
    if len(wanted) == 0:
        raise DataError(
            f"expected at least one image in split {dataset.split!r}, but it is empty; check the split column"
        )
    first = dataset.image(wanted[0])
    images = np.empty((len(wanted), *first.shape), dtype=np.uint8)
    for place, i in enumerate(
        tqdm(wanted, desc=f"images {dataset.split}", unit="img", disable=not progress, delay=2, leave=False)
    ):
        image = dataset.image(i)
        if image.shape != first.shape:
            raise DataError(
                f"expected every image to be {first.shape[1]}x{first.shape[0]} with {first.shape[2]} channels like "
                f"{dataset.key(wanted[0])}, but {dataset.key(i)} is {image.shape[1]}x{image.shape[0]} with {image.shape[2]}; "
                "resize the images to one size"
            )
        images[place] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
