"""Pixels: how an image file is read and brought to a size, how uint8 and [-1, 1] relate, and the digest that identifies an image.

    x = pixels / 127.5 - 1          to_float: uint8 in [0, 255] -> float in [-1, 1]
    pixels = round((x + 1) * 127.5) to_uint8: clamped, the inverse of to_float on all 256 values

No other module writes either formula. Arrays of images are (H, W, C) or (N, H, W, C) with C in {1, 3}; tensors are (B, C, H, W).
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cfaug.errors import DataError, UsageError, one_line

if TYPE_CHECKING:
    import torch

# Pillow without a list of formats reaches Ghostscript through an EPS file named .png
FORMATS = ("PNG", "JPEG", "WEBP")
Pixels = npt.NDArray[np.uint8]
Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[str, ...] = get_args(Fit)


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """A uint8 tensor of any shape as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """A float tensor of any shape, about [-1, 1], as uint8; values outside are clamped. NaN becomes 0: check before."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


def pixel_digest(image: Pixels) -> str:
    """sha256 (hex) of "HxWx3:" and the RGB bytes of a uint8 image (H, W, C) or (H, W); grey counts as R = G = B.

    The identity of a source image: shards carry it, and training finds counterfactuals by it.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise UsageError(f"expected a uint8 image (H, W, 1 or 3), got {pixels.dtype} {pixels.shape}")
    pixels = as_rgb(pixels)
    h, w, _ = pixels.shape
    return hashlib.sha256(f"{h}x{w}x3:".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def as_rgb(image: Pixels) -> Pixels:
    """A uint8 image (H, W, 1 or 3) with three channels; grey counts as R = G = B."""
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def as_grey(image: Pixels) -> Pixels:
    """An image (H, W, C) as its luminance, uint8 (H, W); of one channel, that."""
    return image[..., 0] if image.shape[2] == 1 else np.asarray(Image.fromarray(image).convert("L"))


def to_pil(image: Pixels) -> Image.Image:
    """A uint8 array (H, W, C) as a PIL image: mode L for C = 1, RGB for C = 3."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


class Decoded(NamedTuple):
    """An image file as it is shown, and what had to be done for that."""

    pixels: Pixels
    """uint8 (H, W, C), C in {1, 3}."""
    transparent: bool
    """Whether any pixel was not opaque."""
    deep: bool
    """Whether the file has 16 bits per channel, of which the upper 8 are kept."""


def decode(source: Path | bytes, where: object = None) -> Decoded:
    """Read one PNG, JPEG or WebP file (or its bytes) as a viewer shows it: upright by its EXIF orientation, transparency on white.

    Grey images keep their one channel, other modes (palette, CMYK) become RGB, and 16 bits per channel are scaled to 8. Raises
    DataError, naming the file or ``where``, for a file that is absent, unreadable or damaged, and for one with several frames.
    """
    where = source if where is None else where
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # a camera's JPEG may carry a preview
                raise DataError(f"{where}: expected one image, got an animation of {frames} frames; save one of them")
            picture.load()
            return as_shown(picture)
    except FileNotFoundError:
        raise DataError(
            f"{where}: expected an image file, got no such file; correct the name or add the file"
        ) from None
    except PermissionError:
        raise DataError(
            f"{where}: expected a file that may be read, got permission denied; change its permissions"
        ) from None
    except DataError:
        raise
    # Pillow reports a damaged file as OSError, SyntaxError or ValueError, depending on where the damage is
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where}: cannot decode this as PNG, JPEG or WebP ({one_line(error)}); replace the file"
        ) from error


def as_shown(picture: Image.Image) -> Decoded:
    """A PIL image that has been loaded as :func:`decode` gives it: upright, on white, 8 bits, grey or RGB."""
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        return Decoded(_eight_bits(picture)[..., None], False, True)
    pixels, transparent = _on_white(picture)
    return Decoded(pixels[..., None] if pixels.ndim == 2 else pixels, transparent, False)


def resize(pixels: Pixels, size: tuple[int, int], fit: Fit = "crop") -> Pixels:
    """An image, uint8 (H, W, C), brought to ``size`` (height, width) by antialiased bilinear resampling; C is kept.

    crop: the image covers the size, and what stands over is cut off evenly. pad: all of it is inside, centred on black.
    stretch: height and width are scaled on their own. Of an image that has the size already, the pixels stay as they are.
    """
    height, width = size
    h, w = pixels.shape[:2]
    if (h, w) == (height, width):
        return pixels
    if fit == "stretch":
        inner = (height, width)
    else:
        scale = (max if fit == "crop" else min)(height / h, width / w)
        inner = (max(1, round(h * scale)), max(1, round(w * scale)))
    scaled = np.array(to_pil(pixels).resize(inner[::-1], Image.Resampling.BILINEAR))
    scaled = scaled.reshape(*inner, pixels.shape[2])
    if fit == "pad":
        made = np.zeros((height, width, pixels.shape[2]), dtype=np.uint8)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        made[top : top + inner[0], left : left + inner[1]] = scaled
        return made
    top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def read_mask(path: Path) -> Pixels:
    """A mask file: uint8 (H, W), 255 on the object. DataError as :func:`decode`, which says what can be read."""
    return as_grey(decode(path).pixels)


def read_image(path: Path) -> Pixels:
    """The pixels of :func:`decode`: uint8 (H, W, C), C in {1, 3}."""
    return decode(path).pixels


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):  # damaged EXIF is shown as it lies
        return picture


def _eight_bits(picture: Image.Image) -> Pixels:
    """Grey levels of 16 bits, whatever Pillow calls the mode, scaled from 0..65535 to 0..255: uint8 (H, W)."""
    levels = np.asarray(picture).astype(np.float64)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"mode {picture.mode} with levels outside 0 to 65535")
    return np.rint(levels / 257).astype(np.uint8)


def _on_white(picture: Image.Image) -> tuple[Pixels, bool]:
    mode = "L" if picture.mode in ("L", "1") else "RGB"
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        if layers.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", layers.size, "white")
            return np.array(Image.alpha_composite(white, layers).convert(mode)), True
    return np.array(picture.convert(mode)), False
