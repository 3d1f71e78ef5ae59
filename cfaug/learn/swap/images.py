"""Where the image stands in what a data set yields, and how something else takes its place.

An image here is *plain*: pixels as they are on disk, 8 bits a channel, before any transform. That is a PIL image, a
uint8 tensor (C, H, W) or ``tv_tensors.Image``, or a uint8 array (H, W) or (H, W, C), C in {1, 3, 4}. Items are bare
images, or tuples, lists, named tuples and mappings of anything, nested up to three deep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from cfaug.errors import UsageError
from cfaug.learn.image_types import ALPHA, CARRIED, MODES, said

Place = tuple[Any, ...]
"""The indices and keys that lead from an item to something in it; () is the item itself."""

DEEPEST = 3


def is_plain(value: Any) -> bool:
    """Whether a value is an untransformed image; masks and other tv_tensors than images are not."""
    if isinstance(value, Image.Image):
        return True
    if isinstance(value, torch.Tensor):
        other = isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image)
        return not other and value.dtype == torch.uint8 and value.ndim == 3 and value.shape[0] in MODES
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.ndim == 2 or (value.ndim == 3 and value.shape[2] in MODES)
    return False


def is_image_like(value: Any) -> bool:
    """Plain, or what a transform may have made of an image: a float tensor or array of three axes."""
    if isinstance(value, torch.Tensor):
        other = isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image)
        return is_plain(value) or (not other and value.is_floating_point() and value.ndim == 3)
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return value.ndim == 3
    return is_plain(value)


def places(item: Any, wanted: Callable[[Any], bool], depth: int = DEEPEST) -> Iterator[Place]:
    """The paths to everything in an item that is ``wanted``, in order."""
    if wanted(item):
        yield ()
        return
    inside: Any = ()
    if isinstance(item, Mapping):
        inside = item.items()
    elif isinstance(item, (tuple, list)):
        inside = enumerate(item)
    for key, value in inside if depth else ():
        for path in places(value, wanted, depth - 1):
            yield (key, *path)


def image_place(
    item: Any, image_key: Any = None, wanted: Callable[[Any], bool] = is_plain, what: str = "base"
) -> Place | None:
    """Where the one image of an item stands, None when there is none.

    ``image_key``: the key or index in the item (a tuple: a path) under which to look. UsageError when several images
    are found, or when there is nothing under ``image_key``.
    """
    start: Place = () if image_key is None else image_key if isinstance(image_key, tuple) else (image_key,)
    try:
        part = value_at(item, start)
    except (KeyError, IndexError, TypeError):
        keys = list(item) if isinstance(item, Mapping) else f"an item of {type(item).__name__}"
        raise UsageError(f"image_key: expected where {what}'s image is, came {image_key!r}; there are {keys}") from None
    found = [start + path for path in places(part, wanted)]
    if len(found) > 1:
        named = ", ".join(repr(p[0] if len(p) == 1 else p) for p in found)
        raise UsageError(f"{what}: expected one image an item, came images at {named}; say which by image_key=")
    return found[0] if found else None


def value_at(item: Any, path: Place) -> Any:
    """What stands at ``path`` in an item."""
    for key in path:
        item = item[key]
    return item


def with_value(item: Any, path: Place, value: Any) -> Any:
    """A copy of the item's containers along ``path``, of the same types, with ``value`` at its end."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    inner = with_value(item[key], rest, value)
    if isinstance(item, tuple):
        parts = (
            (*item[:key], inner, *item[key + 1 :])
            if key >= 0
            else (*item[: len(item) + key], inner, *item[len(item) + key + 1 :])
        )
        make = getattr(type(item), "_make", None)  # a named tuple
        return make(parts) if make is not None else type(item)(parts)
    changed = copy.copy(item)
    changed[key] = inner
    return changed


def as_picture(image: Any) -> Image.Image:
    """A plain image as a PIL image, whose pixels are the same; what is one already passes."""
    if isinstance(image, Image.Image):
        return image
    if not is_plain(image):
        raise UsageError(f"expected an untransformed image (PIL, or uint8), came {said(image)}")
    pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def one_mode(images: Iterable[Any]) -> str | None:
    """The mode of PIL images (in memory) where it is all that a picture in their place takes from them, else None."""
    modes = set()
    for image in images:
        if not isinstance(image, Image.Image) or image.mode in ALPHA or any(name in image.info for name in CARRIED):
            return None
        modes.add(image.mode)
    return modes.pop() if len(modes) == 1 else None
