"""MixingCollate: counterfactuals where batches are made, for data sets that have no index (a WebDataset pipeline).

    samples -> each recognised by its pixels, swapped or not -> transform, one by one -> default_collate -> then

The draw of a sample comes from (seed, epoch, pixels of the source), so it depends on neither workers nor batch size nor
order. Two samples with the same pixels get the same draw in one epoch. ``then`` may be torchvision's v2.CutMix or
v2.MixUp, which draw from torch's generator as they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from cfaug.errors import UsageError
from cfaug.learn.epochs import Epochs, whole
from cfaug.learn.image_types import with_value
from cfaug.learn.pixel_swap import SwapsImages, open_lookup
from cfaug.offline.read import ShardReader


class MixingCollate(SwapsImages, Epochs):
    """A ``collate_fn`` (of a DataLoader, of ``wds.batched``) over untransformed samples; picklable, safe under spawn.

    Samples: ``(image, ...)`` or dicts, the image PIL or uint8, not transformed yet. ``p``, ``null_p``: the rule of
    :mod:`cfaug.learn.pixel_swap`. ``transform``: from the (swapped) image to a tensor. ``then``: called with the batch's
    ``(images, labels)``, or with the whole batch when samples are dicts; further elements of a batch stay as they are.
    ``image_key``: needed only when a dict has more than one image. ``set_epoch`` is seen by persistent workers.

    Raises UsageError for probabilities out of range, samples without an image, or images that were transformed already;
    DataError when the shards lack what is asked for, (``guard``) have samples outside the train split, or have samples of
    images in the data sets ``held_out``.
    """

    def __init__(
        self,
        shards: str | Path | ShardReader,
        p: float = 0.5,
        *,
        transform: Callable[[Any], Any] | None = None,
        then: Callable[..., Any] | None = None,
        null_p: float = 0.0,
        seed: int = 0,
        guard: bool = True,
        held_out: Iterable[Any] = (),
        image_key: str | None = None,
    ) -> None:
        super().__init__()
        cure = "let the pipeline yield decoded images and give MixingCollate the transform"
        self.lookup = open_lookup(shards, p, null_p, guard, held_out, "MixingCollate", cure)
        self.p, self.null_p, self.seed = float(p), float(null_p), whole("seed", seed)
        self.transform, self.then, self.image_key = transform, then, image_key

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = default_collate([self._mixed(sample) for sample in samples])
        if self.then is None:
            return batch
        if isinstance(batch, Mapping):
            return self.then(batch)
        if not isinstance(batch, list | tuple):
            batch = [batch]
        if len(batch) < 2:
            raise UsageError(
                "then: expected samples of an image and a label, got images alone; let the pipeline yield both"
            )
        images, labels, *rest = batch
        return [*self.then(images, labels), *rest]

    def _mixed(self, sample: Any) -> Any:
        if isinstance(sample, Mapping):
            name = self.image_key or _only_image(sample)
            if name not in sample:
                raise UsageError(f"image_key: expected one of {', '.join(map(str, sample))}, got {name!r}")
            return {**sample, name: self._image(sample[name])}
        if isinstance(sample, tuple | list):
            return with_value(sample, (0,), self._image(sample[0]))
        return self._image(sample)

    def _image(self, image: Any) -> Any:
        made = self.lookup.swap(image, self._drawn, self.p, self.null_p)
        image = image if made is None else made
        if self.transform is not None:
            return self.transform(image)
        if isinstance(image, Image.Image):
            raise UsageError("transform: expected one that makes tensors of PIL images, got None; batches hold tensors")
        return image

    def _drawn(self, pixels: int) -> tuple[float, float]:
        u, v = np.random.default_rng([self.seed, self.epoch, pixels]).random(2).tolist()
        return u, v


def _only_image(sample: Mapping[str, Any]) -> str:
    found = [
        name for name, value in sample.items()
        if isinstance(value, Image.Image)
        or (getattr(value, "ndim", 0) >= 2 and isinstance(value, np.ndarray | torch.Tensor))
    ]  # fmt: skip
    if len(found) != 1:
        came = ", ".join(found) if found else f"none among {', '.join(map(str, sample))}"
        raise UsageError(f"samples: expected one image in each, got {came}; pass image_key=")
    return found[0]
