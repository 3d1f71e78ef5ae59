"""RandomCounterfactual: a torchvision transform that swaps a known image for a counterfactual of itself.

It needs no key and no change to the data set: the input is recognised by its decoded pixels
(:mod:`cfaug.learn.pixel_swap`), so it must come first in the Compose, before anything that touches a pixel. An image it
does not know passes through and is counted. The label is the caller's, and stays as it is.

A transform has neither epoch nor index: it draws from torch's default generator, as torchvision's do, two numbers per
sample whether or not it knows the image. Not promised: reproducibility across worker counts; that is
CounterfactualDataset's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from cfaug.errors import UsageError
from cfaug.learn.pixel_swap import SwapsImages, open_lookup
from cfaug.offline.read import ShardReader


class RandomCounterfactual(SwapsImages, v2.Transform):  # type: ignore[misc]
    """With probability ``p``, replace an image by one of its counterfactuals; with ``null_p``, by a null intervention.

    PIL images (any mode), uint8 tensors (C, H, W), tv_tensors.Image, uint8 arrays (H, W[, C]); what comes out has the
    type, mode and size of what went in. In a ``v2.Compose`` also whole samples: ``(image, target)``, dicts, nested
    ones; masks, boxes, labels and everything else are left alone, and all images of one sample share one draw. Which
    tensor is an image is decided as torchvision does: where a sample has a PIL image or a tv_tensors.Image only those
    are, else the first plain tensor or array of at least two dimensions. In a v1 Compose: images.

    ``shards``: OUT, OUT/shards, a URL or a ShardReader. ``seen``, ``matched``, ``swapped`` count images, those of
    DataLoader workers too. One warning, with the likeliest reason, when none of the first 100 images is known.

    Raises UsageError for probabilities out of range and for images that were transformed already, DataError when the
    shards lack what is asked for, (``guard``) have samples outside the train split, or have samples of images in the data sets
    ``held_out``.
    """

    _transformed_types = (Image.Image, tv_tensors.Image, torch.Tensor, np.ndarray)

    def __init__(
        self,
        shards: str | Path | ShardReader,
        p: float = 0.5,
        *,
        null_p: float = 0.0,
        guard: bool = True,
        held_out: Iterable[Any] = (),
    ) -> None:
        super().__init__()
        self.lookup = open_lookup(shards, p, null_p, guard, held_out)
        self.p, self.null_p = float(p), float(null_p)

    def forward(self, *inputs: Any) -> Any:
        """The sample with its images swapped or not; a lone image takes the short way, without taking samples apart."""
        if len(inputs) == 1 and isinstance(inputs[0], Image.Image | torch.Tensor | np.ndarray):
            return self.transform(inputs[0], self.make_params([*inputs]))
        return super().forward(*inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The draw for one sample: u, v ~ U[0, 1), and which of its parts are images."""
        u, v = torch.rand(2).tolist()
        return {"u": u, "v": v, "images": _images(flat_inputs)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """`inpt` itself, or what replaces it."""
        if not any(inpt is image for image in params["images"]):
            return inpt
        made = self.lookup.swap(inpt, lambda _: (params["u"], params["v"]), self.p, self.null_p)
        return inpt if made is None else made

    def extra_repr(self) -> str:
        return f"shards={str(self.lookup.reader.directory)!r}, p={self.p}, null_p={self.null_p}"


def _images(parts: list[Any]) -> list[Any]:
    """The images among the tensors, arrays and PIL images of a sample; UsageError if there is no image."""
    said = [part for part in parts if isinstance(part, Image.Image | tv_tensors.Image)]
    if said:
        return said
    plain = [
        part for part in parts
        if getattr(part, "ndim", 0) >= 2 and (isinstance(part, np.ndarray) or type(part) is torch.Tensor)
    ]  # fmt: skip
    if not plain:
        raise UsageError(
            "RandomCounterfactual: expected an image (PIL, uint8 tensor CHW or uint8 array HWC) in the sample, got none; "
            "put it first in the Compose that gets the images"
        )
    return plain[:1]
