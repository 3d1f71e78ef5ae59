"""The albumentations side: RandomCounterfactual as an ImageOnlyTransform, and streams that workers do not repeat.

    A.Compose([RandomCounterfactual("OUT/shards"), A.HorizontalFlip(), ...])     first in the Compose
    SeededAugmentation(dataset, compose, seed=0)                                 a Dataset, in place of dataset

Albumentations keeps its generators inside the transforms. Every DataLoader worker starts with a copy of them, so all
workers draw the same stream, and draw it again in the next epoch (2.0.8). ``Compose.set_random_seed`` once per sample is
not a cure: it gives every transform a generator of its own from the one seed, and with equal first numbers two flips of
probability 1/2 fire together or not at all. SeededAugmentation gives all transforms of a pipeline one generator that
starts from (seed, epoch, index): what is drawn depends on nothing else. A pipeline that was saved is read by ``A.load``
once this module has been imported.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from cfaug.errors import UsageError
from cfaug.learn.epochs import Epochs, tell_epoch, whole
from cfaug.learn.image_types import as_pixels
from cfaug.learn.pixel_swap import SwapsImages, open_lookup
from cfaug.learn.swap.patched_copy import inner_datasets
from cfaug.offline.read import ShardReader


class RandomCounterfactual(SwapsImages, A.ImageOnlyTransform):  # type: ignore[misc]
    """With probability ``p``, replace an image by one of its counterfactuals; with ``null_p``, by a null intervention.

    Images: uint8 (H, W, 3) RGB, (H, W) or (H, W, 1), before anything that changes a pixel; what comes out has the same
    shape. Unknown images pass through. Draws from albumentations' own generators, two numbers per image whether
    or not it is known (inside ``OneOf`` too, with this same p). ``shards``: OUT, OUT/shards or a URL; ``held_out`` is looked at once and not saved. ``seen``, ``matched``, ``swapped`` and the warning: as in :mod:`cfaug.learn.pixel_swap`.

    Raises UsageError for probabilities out of range and for float images, DataError when the shards lack what is asked
    for, (``guard``) have samples outside the train split, or have samples of images in the data sets ``held_out``.
    """

    def __init__(
        self,
        shards: str | Path | ShardReader,
        p: float = 0.5,
        *,
        null_p: float = 0.0,
        guard: bool = True,
        held_out: Iterable[Any] = (),
    ) -> None:
        lookup = open_lookup(shards, p, null_p, guard, held_out)  # first: it says in one line what is wrong with p
        super().__init__(p=p)
        self.lookup, self.null_p = lookup, float(null_p)
        # text: what A.to_dict writes down and A.from_dict opens again
        self.shards = str(shards.directory if isinstance(shards, ShardReader) else shards)
        self.guard = guard

    def should_apply(self, force_apply: bool = False) -> bool:
        """Always true: every image is looked up and counted, and the draw of ``get_params`` decides."""
        return True

    def get_params(self) -> dict[str, Any]:
        """u, v ~ U[0, 1): of which kind, and which of the samples (:mod:`cfaug.learn.pixel_swap`)."""
        return {"u": self.py_random.random(), "v": self.py_random.random()}

    def apply(self, img: npt.NDArray[np.uint8], *args: Any, u: float = 0.0, v: float = 0.0, **params: Any) -> Any:
        """The image, or what the draw puts in its place."""
        made = self.lookup.swap(img, lambda _: (u, v), self.p, self.null_p)
        return img if made is None else made


class SeededAugmentation(Epochs, Dataset[Any]):
    """``base`` with an albumentations ``transform`` whose randomness comes from (seed, epoch, index) alone.

    Item i is ``base[i]`` with ``transform(image=...)`` in its image's place: the first element of a tuple, list or
    namedtuple, or what a dict has under ``image_key``; PIL images and uint8 tensors (C, H, W) become arrays (H, W, C)
    first. Of a dict the transform also gets everything else whose name it knows (mask, bboxes, keypoints, ...).
    ``inside=True``: ``base`` applies ``transform`` itself (the same object) and is only given the numbers to draw.
    ``set_epoch(e)`` is seen by persistent workers. CounterfactualDataset may stand inside.

    Raises UsageError for a base without length or index, or a transform that is not albumentations'.
    """

    def __init__(
        self, base: Any, transform: Any, seed: int = 0, *, inside: bool = False, image_key: str = "image"
    ) -> None:
        if not hasattr(base, "__len__") or not hasattr(base, "__getitem__"):
            raise UsageError(
                f"base: expected a data set with len() and [i], got {type(base).__name__}; iterables have no index"
            )
        if not hasattr(transform, "set_random_state"):
            raise UsageError(
                f"transform: expected an albumentations transform or Compose, got {type(transform).__name__}; "
                "torchvision's draw from torch's generator, which DataLoader seeds in every worker"
            )
        super().__init__()
        self.base, self.transform, self.seed = base, transform, whole("seed", seed)
        self.inside, self.image_key = inside, image_key
        self._python = random.Random()

    def __len__(self) -> int:
        return len(self.base)

    def set_epoch(self, epoch: int) -> None:
        """Draw epoch `epoch`'s numbers from now on, in every worker; the base's too, where it has epochs."""
        super().set_epoch(epoch)
        tell_epoch(inner_datasets(self.base), epoch)

    def __getitem__(self, i: int) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {i}")
        i %= len(self)
        self._serve(1, len(self))
        reseed(self.transform, self._python, self.seed, self.epoch, i)
        return self.base[i] if self.inside else self._augmented(self.base[i])

    def _augmented(self, item: Any) -> Any:
        if isinstance(item, Mapping):
            known = set(getattr(self.transform, "available_keys", ()))
            given = {name: _array(value) for name, value in item.items() if name in known and name != self.image_key}
            if self.image_key not in item:
                raise UsageError(
                    f"base: expected items with {self.image_key!r}, got {', '.join(item)}; pass image_key="
                )
            made = self.transform(image=_array(item[self.image_key]), **given)
            return {**item, **{name: made[name] for name in given}, self.image_key: made["image"]}
        if not isinstance(item, tuple | list):
            return self.transform(image=_array(item))["image"]
        image, *rest = item
        if isinstance(image, tuple | list | Mapping):
            raise UsageError(
                "base: expected an image first in its items, got an item inside an item (policy 'pairs'?); give the mixture a "
                "base that is a SeededAugmentation: CounterfactualDataset(SeededAugmentation(...), ..., policy='pairs')"
            )
        if any(isinstance(part, Image.Image) or getattr(part, "ndim", 0) >= 2 for part in rest):
            raise UsageError(
                "base: expected one image per item, got a second one or a mask, which a flip would leave behind; yield a "
                "dict with albumentations' names (image, mask, ...), or apply the transform in the base with inside=True"
            )
        parts = [self.transform(image=_array(image))["image"], *rest]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)


def reseed(transform: Any, python: random.Random, seed: int, epoch: int, index: int) -> None:
    """All transforms in `transform` draw from one pair of generators that starts from (seed, epoch, index).

    One pair and not one each: with equal seeds they would all draw the same numbers.
    """
    generator = np.random.default_rng([seed, epoch, index])
    python.seed(int.from_bytes(generator.bytes(16), "little"))
    transform.set_random_state(generator, python)


def _array(value: Any) -> Any:
    """A PIL image or uint8 tensor (C, H, W) as an array (H, W[, C]); anything else as it is."""
    if isinstance(value, Image.Image):
        return np.array(value if value.mode == "L" else as_pixels(value))
    if isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 3:
        return np.ascontiguousarray(as_pixels(value))
    return value
