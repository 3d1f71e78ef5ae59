"""An untransformed image, whatever it came as: recognised by its pixels, and replaced by a picture of the same kind.

Images are PIL, uint8 tensors (C, H, W) and ``tv_tensors.Image``, uint8 arrays (H, W) or (H, W, C). C is 1 (grey), 3 (RGB)
or 4 (RGB and alpha, which is no part of what an image is recognised by).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile

from cfaug.data.lookup import Picture
from cfaug.errors import DataError, UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ALPHA = ("RGBA", "LA", "PA")
# of the image's file and not of its pixels, and read by later steps (Pillow turns images by any of the first four)
CARRIED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "icc_profile")


def as_pixels(image: Any, cure: str = "pass key=") -> npt.NDArray[np.uint8]:
    """uint8 (H, W, C) of an untransformed image, of an array or tensor in its memory; UsageError, with the ``cure``, else."""
    if isinstance(image, Image.Image):
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    elif isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        array = image.detach().permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        array = image
    else:
        raise UsageError(
            f"expected an untransformed image (PIL, uint8 tensor CHW or uint8 array HWC), came {said(image)}; {cure}"
        )
    return array[..., None] if array.ndim == 2 else array


def recognisable(image: Any, cure: str = "pass key=") -> Picture | None:
    """What :mod:`cfaug.data.lookup` takes of an image: PIL of mode L or RGB, or uint8 (H, W, 1 or 3) that shares memory.

    None for what no source can be: no or two channels, 16 and 32 bits, modes without a way to RGB.
    UsageError, with the ``cure``, for what is no untransformed image at all.
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
    """A sample's picture (mode L or RGB) as what stands at its source's place: same type, mode, channels, layout, device.

    Alpha, EXIF (a rotation that a later step undoes) and the colour profile are the factual image's: an intervention is
    on none of them. A PIL image whose file was opened but not decoded stays so, unless it has alpha; it gives what its
    header says, and its size does not count. Arrays and tensors are RGB. Not promised: the colours of a palette, which
    is made anew (256, median cut), nor what is transparent by a palette's entry.

    Raises:
        UsageError: `factual` is no untransformed image of 8 bits a channel.
        DataError: it has another size; the text begins with ``where()``.
    """
    if isinstance(factual, Image.Image):
        return _like_pil(picture, factual, where)
    channels = as_pixels(factual, "open it again when its transform has changed").shape[2]
    if channels not in MODES:
        raise UsageError(f"expected an image of {', '.join(map(str, MODES))} channels, came {said(factual)}")
    check_size(picture, size_of(factual), where)
    pixels = np.array(in_mode(picture, MODES[channels]))  # a copy: what is handed out is writable
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if isinstance(factual, np.ndarray):
        if channels == 4:
            pixels[..., 3] = factual[..., 3]
        return pixels.reshape(factual.shape)
    made = torch.from_numpy(pixels).permute(2, 0, 1)
    if factual.is_contiguous():  # else as pil_to_tensor gives it, and a third of the time
        made = made.contiguous()
    made = made.to(factual.device)
    if channels == 4:
        made[3] = factual.detach()[3]
    if type(factual) is torch.Tensor:
        return made
    from torchvision import tv_tensors

    return tv_tensors.wrap(made, like=factual) if isinstance(factual, tv_tensors.TVTensor) else made


def _like_pil(picture: Image.Image, factual: Image.Image, where: Callable[[], str]) -> Image.Image:
    alpha = factual.mode in ALPHA
    if alpha or not is_unloaded(factual):
        check_size(picture, size_of(factual), where)
    made = in_mode(picture, factual.mode)
    if alpha and made is not factual:
        made.putalpha(factual.getchannel("A"))
    made.info.update(carried(factual))
    return made


def carried(image: Image.Image) -> dict[str, Any]:
    """What a picture in the place of this image has of its ``info``."""
    return {name: image.info[name] for name in CARRIED if name in image.info}


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in another 8-bit mode; alpha becomes opaque, a palette is fitted. UsageError for 16 bits and more."""
    if picture.mode == mode:
        return picture
    if mode.startswith(("I", "F")):
        raise UsageError(f"base: expected images of 8 bits a channel, came mode {mode}; convert them in the data set")
    if mode == "P":  # a palette of its own: Pillow's default is one fixed palette, with dithering
        return picture.convert("RGB").quantize(256)
    if mode == "1":
        return picture.convert("L").convert("1", dither=Image.Dither.NONE)
    return picture.convert(mode)


def is_unloaded(image: Any) -> bool:
    """Whether this is a PIL image of which only the header has been read."""
    return isinstance(image, ImageFile.ImageFile) and bool(image.tile)


def check_size(picture: Image.Image, size: tuple[int, int], where: Callable[[], str]) -> None:
    """DataError, beginning with ``where()``, unless the picture has the size (W, H) of its source."""
    if picture.size != size:
        raise DataError(
            f"{where()}: expected the size of its source, {said_sizes([size])}, came {said_sizes([picture.size])}; use the "
            "images that the shards were made from and crop or resize them in the transform only, or generate again"
        )


def size_of(image: Any) -> tuple[int, int]:
    """(W, H) of an image."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[:2]
    return int(width), int(height)


def said_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    """Sizes (W, H) for an error, the first three of many."""
    return few([f"{width} x {height}" for width, height in sorted(sizes)]) + " pixels"


def few(words: Sequence[str]) -> str:
    """Words for an error, the first three of many."""
    return ", ".join(words[:3]) + (" and others" if len(words) > 3 else "")


def said(value: Any) -> str:
    """What a value is, for an error: its type, dtype and shape."""
    shape = tuple(value.shape) if hasattr(value, "shape") else ""
    return " ".join(f"{type(value).__name__} {getattr(value, 'dtype', '')} {shape}".split())
