"""Recognising an image by its decoded pixels at a price that a training loop does not feel.

    sample_hash   xxh3-64 of height, width and the 16 x 16 pixels of a nearest-neighbour grid   about 6 microseconds
    pixels_hash   xxh3-64 of height, width and every pixel      to compare with (has_pixels)    about 20, at 500 px

The first proposes, the second confirms: two images may agree on a grid (frames of a fixed camera). Both are 64 bits and no
secret: they tell mistakes apart, not adversaries. The identity that other tools read is :func:`cfaug.data.pixel_digest`.
Images: PIL of any mode (other than L and RGB are converted to RGB), or uint8 arrays (H, W), (H, W, 1) or (H, W, 3) of any
strides; grey counts as R = G = B.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from cfaug.errors import UsageError

GRID = 16  # a power of two: the places of the grid are then exact in floating point, in Pillow as here
Picture = Image.Image | npt.NDArray[np.uint8]


def sample_hash(image: Picture) -> int:
    """64 bits of the image's size and of 16 x 16 of its pixels; UsageError for anything but an 8-bit image."""
    if isinstance(image, Image.Image):
        picture = _grey_or_rgb(image)
        content = _grid(picture) if picture.mode == "RGB" and _short_way_holds() else None
        return _hash(image.height, image.width, _public_grid(picture) if content is None else content)
    pixels = _checked(image)
    height, width = pixels.shape[:2]
    places = pixels[_places(height)][:, _places(width)]
    return _hash(height, width, np.ascontiguousarray(np.broadcast_to(places, (GRID, GRID, 3))))


def _public_grid(picture: Image.Image) -> bytes:
    grid = picture.resize((GRID, GRID), Image.Resampling.NEAREST)
    return (grid if grid.mode == "RGB" else grid.convert("RGB")).tobytes()


@cache
def _short_way_holds() -> bool:
    """Whether :func:`_grid` gives here what Pillow's public functions give: looked at once per process, at three sizes."""
    for height, width in ((7, 3), (GRID, GRID), (53, 41)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        if _grid(picture) != _public_grid(picture):
            return False
    return True


def _grid(picture: Image.Image) -> bytes | None:
    """:func:`_public_grid` of an RGB picture, without what that checks and allocates.

    Between two images, when nothing of them is in the processor's caches, they take twice as long as this and 3 % of decoding
    a 500 px JPEG. These are Pillow's internals: None where they are not as they were in Pillow 10 to 13, and used only
    after :func:`_short_way_holds`.
    """
    try:
        picture.load()
        encoder = Image._getencoder("RGB", "raw", ("RGB", 0, 1))  # type: ignore[attr-defined]
        encoder.setimage(picture.im.resize((GRID, GRID), 0, (0, 0, *picture.size)), (0, 0, GRID, GRID))
        content: bytes = encoder.encode(GRID * GRID * 3)[2]
    except (AttributeError, TypeError, ValueError):
        return None
    return content if len(content) == GRID * GRID * 3 else None


def pixels_hash(image: Picture) -> int:
    """64 bits of the image's size and of all its pixels; UsageError for anything but an 8-bit image.

    The bytes that are hashed are R, G, B, 255 for each pixel: what Pillow holds in memory after decoding a file.
    """
    picture = _as_rgb(image)
    held = _memory(picture)
    words = np.frombuffer(picture.tobytes("raw", "RGBX") if held is None else held, "<u4")
    if int(np.bitwise_and.reduce(words)) >> 24 != 255:  # some of Pillow's operations leave anything in the fourth byte
        words = words | np.uint32(0xFF000000)
    return _hash(picture.height, picture.width, words)


def has_pixels(image: Picture, expected: int) -> bool:
    """Whether ``pixels_hash(image)`` is ``expected``, found out in one pass over the pixels where it is."""
    picture = _as_rgb(image)
    held = _memory(picture)
    quick = held is not None and _hash(picture.height, picture.width, held) == expected
    return quick or pixels_hash(picture) == expected


def _memory(picture: Image.Image) -> Any:
    """What Pillow holds of an RGB picture, four bytes per pixel, not copied; None where it cannot be looked at."""
    import pyarrow

    try:
        held = pyarrow.array(picture).buffers()[-1]
    except (ValueError, TypeError, NotImplementedError):  # a Pillow before 11.3, or an image of several blocks
        return None
    return held if held is not None and held.size == 4 * picture.width * picture.height else None


def _as_rgb(image: Picture) -> Image.Image:
    if not isinstance(image, Image.Image):
        pixels = _checked(image)
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _places(size: int) -> npt.NDArray[np.int64]:
    """Where Pillow's nearest-neighbour resampling to GRID looks: the centres of GRID equal parts."""
    return ((np.arange(GRID) + 0.5) * (size / GRID)).astype(np.int64)


def _checked(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise UsageError(f"expected a uint8 image (H, W, 1 or 3), got {image.dtype} {image.shape}: convert it first")
    return pixels


def _hash(height: int, width: int, content: Any) -> int:
    return xxhash.xxh3_64_intdigest(content, seed=(height << 32) | width)
