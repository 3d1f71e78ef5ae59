"""Compositing: an image as an object over a background, and one of the two exchanged.

    x = m f + (1 - m) b           m in [0, 1]: the mask, f: the object's colours, b: the background

A new background b' gives x' = m f + (1 - m) b'. Where m = 1 the pixel is that of the image, bit by bit. In the rim (0 < m < 1)
the image shows a mixture of both layers, so f is taken from the nearest pixel that is all object: the old background
does not shine through (colour decontamination; Porter & Duff, 1984, for the equation).

Arrays of one image: uint8 (H, W, C) pixels, uint8 (H, W) masks, 255 on the object. Nothing here draws at random.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels

SURE = 250
"""A pixel with at least this much mask is all object; the masks that people draw are rarely 255 throughout."""
Bools = npt.NDArray[np.bool_]


def softened(mask: Pixels, feather: float) -> Pixels:
    """The mask with a border that fades over about ``feather`` pixels, inwards: outside the object it stays 0.

    A mask whose border is soft already is kept where it is softer.
    """
    if feather <= 0:
        return mask
    size = 2 * int(np.ceil(feather)) + 1
    inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    if not (inner >= SURE).any():  # an object as thin as its border would vanish
        return mask
    soft = cv2.GaussianBlur(inner, (0, 0), feather / 2)
    # all object stays all object where the eroded mask is, and nothing reaches beyond the mask
    return np.asarray(np.minimum(np.maximum(inner, soft), mask))


def object_colours(image: Pixels, mask: Pixels) -> Pixels:
    """f: the image where it is all object, elsewhere the colour of the nearest such pixel."""
    return nearest(image, mask >= SURE)


def nearest(image: Pixels, known: Bools) -> Pixels:
    """The image with every unknown pixel replaced by the nearest known one; itself where all or none are known."""
    if known.all() or not known.any():
        return image
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    flat = np.flatnonzero(known)
    place[labels.ravel()[flat]] = flat
    pixels = image.reshape(-1, image.shape[2])
    return np.asarray(pixels[place[labels]])


def blended(colours: Pixels, background: Pixels, mask: Pixels) -> Pixels:
    """m f + (1 - m) b, rounded; exactly f where m is 255 and exactly b where it is 0."""
    alpha = mask[..., None].astype(np.int32)
    mixed = alpha * colours + (255 - alpha) * background.astype(np.int32)
    return ((mixed + 127) // 255).astype(np.uint8)


def on_background(image: Pixels, mask: Pixels, background: Pixels) -> Pixels:
    """The object of ``image`` on another background. All but the rim is a copy of one of the two."""
    sure = mask >= SURE
    alpha = np.where(sure, np.uint8(255), mask)
    rim = (alpha > 0) & ~sure
    if not rim.any():
        return np.where(sure[..., None], image, background)
    top, bottom, left, right = _box(alpha > 0)
    made = background.copy()
    part = (slice(top, bottom), slice(left, right))
    made[part] = blended(object_colours(image[part], alpha[part]), background[part], alpha[part])
    return made


def hole_of(mask: Pixels, margin: int) -> Bools:
    """Where the object is not to be seen any more: its mask, widened by ``margin`` pixels, because masks are rarely wide enough."""
    shown = (mask > 8).astype(np.uint8)
    if margin > 0:
        element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
        shown = np.asarray(cv2.dilate(shown, element), np.uint8)
    return np.asarray(shown.astype(bool))


def filled(image: Pixels, hole: Bools, radius: float = 3.0) -> Pixels:
    """The image with its hole filled from around it (Telea, 2004), as OpenCV does."""
    if not hole.any():
        return image
    pixels = image if image.shape[2] == 3 else image[..., 0]
    made = cv2.inpaint(np.ascontiguousarray(pixels), hole.astype(np.uint8), radius, cv2.INPAINT_TELEA)
    return np.asarray(made, np.uint8).reshape(image.shape)


def patched(image: Pixels, hole: Bools, most: int = 200) -> Pixels:
    """The image with its hole filled by a copy of another part of itself, which keeps the grain of a texture.

    Of about ``most`` shifts the one is taken that covers most of the hole with known pixels and differs least in the ring around it;
    what it does not cover is filled as by :func:`filled`.
    """
    if not hole.any() or hole.all():
        return image
    ring = cv2.dilate(hole.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~hole
    ys, xs = np.nonzero(hole)
    ry, rx = np.nonzero(ring)
    height, width = hole.shape
    step = max(1, int(np.ceil(np.sqrt(height * width * 4 / most))))
    best: tuple[float, int, int] | None = None
    pixels = image.astype(np.int32)
    for dy in range(-height + 1, height, step):
        for dx in range(-width + 1, width, step):
            y, x = ys + dy, xs + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            known = inside.copy()
            known[inside] = ~hole[y[inside], x[inside]]
            lacking = 1 - known.mean()
            if lacking > 0.5:
                continue
            y, x = ry + dy, rx + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            if not inside.any():
                continue
            differs = np.abs(pixels[ry[inside], rx[inside]] - pixels[y[inside], x[inside]]).mean()
            cost = float(differs) + 255 * float(lacking)
            if best is None or cost < best[0]:
                best = (cost, dy, dx)
    if best is None:
        return filled(image, hole)
    _, dy, dx = best
    y, x = ys + dy, xs + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inside[inside] = ~hole[y[inside], x[inside]]
    made, left = image.copy(), hole.copy()
    made[ys[inside], xs[inside]] = image[y[inside], x[inside]]
    left[ys[inside], xs[inside]] = False
    return filled(made, left)


FILLS = {"telea": filled, "nearest": lambda image, hole: nearest(image, ~hole), "texture": patched}
"""How a hole is filled: (image, hole) -> image."""


def _box(shown: Bools) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
