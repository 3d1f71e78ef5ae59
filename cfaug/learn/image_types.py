"""Untransformed images as training code holds them, and where they stand in what a data set yields.

A *plain* image has its pixels as they are on disk, 8 bits per channel, before any transform: a PIL image, a uint8 tensor (C, H, W) or
``tv_tensors.Image``, or a uint8 array (H, W) or (H, W, C). C is 1 (grey), 3 (RGB) or 4 (RGB and alpha; an image is recognised
without its alpha). Items are bare images, or tuples, lists, named tuples and mappings of anything, nested up to three deep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile
from torchvision import tv_tensors

from cfaug.data.pixel_hashes import Picture
from cfaug.errors import DataError, UsageError, described, listed
from cfaug.offline.read import RESIZED

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ALPHA = ("RGBA", "LA", "PA")
DEEPEST = 3
# these belong to the image's file and not to its pixels, and later steps read them (Pillow turns images by any of the first four)
CARRIED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "icc_profile")
Place = tuple[Any, ...]
"""The indices and keys that lead from an item to something in it; () is the item itself."""


def is_plain(value: Any) -> bool:
    """Whether a value is a plain image; masks and other tv_tensors than images are not."""
    if isinstance(value, torch.Tensor):
        return not _no_image(value) and value.dtype == torch.uint8 and value.ndim == 3 and value.shape[0] in MODES
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.ndim == 2 or (value.ndim == 3 and value.shape[2] in MODES)
    return isinstance(value, Image.Image)


def is_image_like(value: Any) -> bool:
    """Whether a value is plain, or what a transform may have made of an image: a float tensor or array of three axes."""
    if isinstance(value, torch.Tensor):
        floats = value.is_floating_point() and not _no_image(value)
    else:
        floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return is_plain(value) or (floats and value.ndim == 3)


def _no_image(value: torch.Tensor) -> bool:
    return isinstance(value, tv_tensors.TVTensor) and not isinstance(value, tv_tensors.Image)


def shows_image(value: Any) -> bool:
    """Whether an image stands anywhere in a value."""
    return next(places(value, is_image_like), None) is not None


def places(item: Any, wanted: Callable[[Any], bool], depth: int = DEEPEST) -> Iterator[Place]:
    """The paths to everything in an item that is ``wanted``, in order."""
    if wanted(item):
        yield ()
        return
    inside: Any = ()
    if isinstance(item, Mapping):
        inside = item.items()
    elif isinstance(item, tuple | list):
        inside = enumerate(item)
    for key, value in inside if depth else ():
        for path in places(value, wanted, depth - 1):
            yield (key, *path)


def image_place(item: Any, image_key: Any = None, wanted: Callable[[Any], bool] = is_plain) -> Place | None:
    """Where the one image of an item stands, None when there is none.

    ``image_key``: the key or index in the item (a tuple: a path) under which to look. UsageError when several images
    are found, or when there is nothing under ``image_key``.
    """
    start: Place = () if image_key is None else image_key if isinstance(image_key, tuple) else (image_key,)
    try:
        part = value_at(item, start)
    except (KeyError, IndexError, TypeError):
        keys = list(item) if isinstance(item, Mapping) else f"an item of {type(item).__name__}"
        raise UsageError(
            f"image_key: expected where the base's image is, got {image_key!r}; there are {keys}"
        ) from None
    found = [start + path for path in places(part, wanted)]
    if len(found) > 1:
        named = ", ".join(repr(p[0] if len(p) == 1 else p) for p in found)
        raise UsageError(f"base: expected one image per item, got images at {named}; say which by image_key=")
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
        parts = list(item)
        parts[key] = inner
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    changed = copy.copy(item)
    changed[key] = inner
    return changed


def as_pixels(image: Any, cure: str = "pass key=") -> npt.NDArray[np.uint8]:
    """A plain image as uint8 (H, W, C), arrays and tensors without a copy; UsageError, with the ``cure``, for anything else."""
    if isinstance(image, Image.Image):
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    elif isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        array = image.detach().permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        array = image
    else:
        raise UsageError(
            f"expected an untransformed image (PIL, uint8 tensor CHW or uint8 array HWC), got {described(image)}; {cure}"
        )
    return array[..., None] if array.ndim == 2 else array


def as_picture(image: Any) -> Image.Image:
    """A plain image as a PIL image with the same pixels."""
    if isinstance(image, Image.Image):
        return image
    pixels = as_pixels(image)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def recognisable(image: Any, cure: str = "pass key=") -> Picture | None:
    """What :mod:`cfaug.data.pixel_hashes` takes of an image: PIL of mode L or RGB, or uint8 (H, W, 1 or 3) that shares memory.

    None for an image that no source can be: no or two channels, 16 and 32 bits, modes that Pillow cannot make RGB.
    UsageError, with the ``cure``, for a value that is no plain image.
    """
    if not isinstance(image, Image.Image):
        pixels = as_pixels(image, cure)
        return pixels[..., :3] if pixels.shape[2] in MODES and 0 not in pixels.shape else None
    if image.mode in ("L", "RGB"):
        return image if 0 not in image.size else None
    if image.mode.startswith(("I", "F")) or 0 in image.size:
        return None
    try:
        return image.convert("RGB")
    except ValueError:  # Pillow has no conversion from it
        return None


def like(picture: Image.Image, factual: Any, where: Callable[[], str]) -> Any:
    """A sample's picture (mode L or RGB) in the form of its source: same type, mode, channels, layout, device.

    Alpha, EXIF (a rotation that a later step undoes) and the colour profile are the factual image's: no intervention is
    on them. Of a PIL image whose file was opened but not decoded only the header is used, unless it has alpha, and its size
    does not count; nor does it where the shards were made at a working size, which the picture keeps. Not promised: the colours of a palette, which is made anew (256, median cut).

    Raises:
        UsageError: `factual` is no plain image.
        DataError: it has a different size; the text begins with ``where()``.
    """
    if isinstance(factual, Image.Image):
        alpha = factual.mode in ALPHA
        if alpha or not is_unloaded(factual):
            check_size(picture, factual, where)
        made = in_mode(picture, factual.mode)
        if alpha and made is not factual:
            made.putalpha(factual.getchannel("A").resize(made.size))
        made.info.pop(RESIZED, None)
        made.info.update(carried(factual))
        return made
    channels = as_pixels(factual, "open the base again when its transform has changed").shape[2]
    if channels not in MODES:
        raise UsageError(f"expected an image of {', '.join(map(str, MODES))} channels, got {described(factual)}")
    check_size(picture, factual, where)
    pixels = np.array(in_mode(picture, MODES[channels]))  # a copy: what is handed out is writable
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    opaque = channels != 4 or picture.size != size_of(factual)  # no alpha of the factual image that would fit
    if isinstance(factual, np.ndarray):
        if not opaque:
            pixels[..., 3] = factual[..., 3]
        return pixels[..., 0] if factual.ndim == 2 else pixels
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    if factual.is_contiguous():  # else as pil_to_tensor gives it, which takes a third of the time
        tensor = tensor.contiguous()
    tensor = tensor.to(factual.device)
    if not opaque:
        tensor[3] = factual.detach()[3]
    return tv_tensors.wrap(tensor, like=factual) if isinstance(factual, tv_tensors.TVTensor) else tensor


def carried(image: Image.Image) -> dict[str, Any]:
    """The entries of an image's ``info`` that a picture in its place gets too."""
    return {name: image.info[name] for name in CARRIED if name in image.info}


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in a different 8-bit mode; alpha becomes opaque, a palette is fitted. UsageError for 16 bits and more."""
    if picture.mode == mode:
        return picture
    if mode.startswith(("I", "F")):
        raise UsageError(f"base: expected images of 8 bits per channel, got mode {mode}; convert them in the data set")
    if mode == "P":  # a palette of its own: Pillow's default is one fixed palette, with dithering
        return picture.convert("RGB").quantize(256)
    if mode == "1":
        return picture.convert("L").convert("1", dither=Image.Dither.NONE)
    return picture.convert(mode)


def is_unloaded(image: Any) -> bool:
    """Whether this is a PIL image of which only the header has been read."""
    return isinstance(image, ImageFile.ImageFile) and bool(image.tile)


def check_size(picture: Image.Image, factual: Any, where: Callable[[], str]) -> None:
    """DataError, beginning with ``where()``, unless the picture has the size of its source."""
    if picture.size != size_of(factual) and RESIZED not in picture.info:
        raise DataError(
            f"{where()}: expected the size of its source, {said_sizes([size_of(factual)])}, got {said_sizes([picture.size])}; use "
            "the images that the shards were made from and crop or resize them in the transform only, or generate again"
        )


def size_of(image: Any) -> tuple[int, int]:
    """(W, H) of an image."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[:2]
    return int(width), int(height)


def mode_of(image: Any) -> str:
    """The PIL mode of a plain image."""
    return image.mode if isinstance(image, Image.Image) else MODES.get(as_pixels(image).shape[2], described(image))


def said_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    """Sizes (W, H) for an error, the first three of many."""
    return listed(f"{width} x {height}" for width, height in sorted(sizes)) + " pixels"
