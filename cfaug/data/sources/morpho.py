"""Morpho-MNIST as an SCM with known mechanisms (Castro et al. 2019; Pawlowski, Castro and Glocker 2020).

    digit      MNIST's own label, independent of the other two
    thickness  t = 0.5 + Gamma(shape 10, rate 5)                          px (of the 28), mean 2.5, std 0.63
    intensity  i = 64 + 191 sigmoid(e),  e ~ N(2 (t - 2.5), 0.5)          grey levels of 0..255; 0.5 is the std
    image      the digit, thinned or thickened to t, its strokes at i     uint8 (28, 28, 1), black background

Both continuous attributes can be read from pixels (``MEASURES``), so their effectiveness needs no learned judge.

There are two intended differences from the published construction. Distances to the stroke's edge are signed and carry
a sub-pixel part, so a radius is a real number, where dilating and eroding on a grid knows whole radii only. And the
radius is corrected until the thickness *measured* on the finished image is t, where dilating or eroding once by half
the difference leaves in the label what downscaling does to thin strokes. Where that thickness is impossible, the nearest possible one is taken:
a stroke under about 1.2 px is no thinner than that at 28 px (0.3 % of the images), and a thick one closes its loops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.datasets import SPLITS, ArrayDataset
from cfaug.data.schema import Attribute, Schema
from cfaug.data.sources.mnist import choose_digits
from cfaug.errors import UsageError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]

SCALE = 4  # grid points per pixel and axis where shapes are handled; Morpho-MNIST's
RIDGE = (
    0.6  # slope of the distance below which a point is on the medial axis: off it the slope is 1, towards a corner 0.7
)
EDGE = 1.25  # grid steps: next to the edge the slope is that of the grid, and no stroke of 28 px is this thin
KEPT = 0.25  # thinning keeps this share of t as radius around the medial axis, so that no stroke breaks
TOLERANCE = 0.05  # px; the measured thickness is corrected until it is this close ...
CORRECTIONS = 6  # ... or this often
BATCH = 250  # images at once: 250 x 112 x 112 floats are 12 MB


def schema() -> Schema:
    """digit (categorical, target), thickness (px) and intensity (grey levels); intensity is the spurious one."""
    return Schema(
        [
            Attribute("digit", values=tuple(map(str, range(10)))),
            Attribute("thickness", "continuous", unit="px"),
            Attribute("intensity", "continuous", unit="grey levels"),
        ],
        target="digit",
        spurious=["intensity"],
    )


def morpho_mnist(
    split: str = "train",
    *,
    root: str | Path | None = None,
    seed: int = 0,
    train_images: int = 20_000,
    val_images: int = 2_000,
) -> ArrayDataset:
    """One split; ``root`` is torchvision's MNIST root (downloaded there when absent). Keys: "mnist-train-00042".

    Splits are those of ``double_colored_mnist``. ``seed`` draws thickness and intensity, never the split. The table
    has the SCM's t and i; the images differ from them by the error of the construction. An image takes 3 to 4 ms.
    Raises UsageError for a bad option and DataError when MNIST can be neither read nor downloaded.
    """
    grey, labels, keys = choose_digits("morpho_mnist", split, root, train_images, val_images)
    thickness, intensity = draw(len(labels), np.random.default_rng([seed, SPLITS.index(split)]))
    table = pd.DataFrame(
        {"digit": labels.astype(str).astype(object), "thickness": thickness, "intensity": intensity},
        index=keys,
    )
    return ArrayDataset(render(grey, thickness, intensity), table, schema(), split)


def intensity_of(thickness: Numbers, noise: Numbers) -> Numbers:
    """The mechanism of intensity (grey levels, in (64, 255)): ``noise`` is standard normal, ``thickness`` in px."""
    e = 2.0 * (thickness - 2.5) + 0.5 * noise
    return np.asarray(64.0 + 191.0 / (1.0 + np.exp(-e)))


def draw(count: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """(thickness px, intensity grey levels) of ``count`` images from the SCM."""
    thickness = 0.5 + rng.gamma(10.0, 1.0 / 5.0, size=count)
    return thickness, intensity_of(thickness, rng.standard_normal(count))


# --- reading images
def measure_thickness(images: Pixels) -> Numbers:
    """Mean stroke thickness of uint8 images (N, H, W, C), in px: float64 (N,).

    Morpho-MNIST's: pixels above the middle of the image's range, on a grid ``SCALE`` times as fine; the mean over the
    medial axis of twice the distance to the edge. The axis is the ridge of the distance itself. An image of one flat
    value has no stroke: 0.
    """
    flat = _grey(images)
    out = np.zeros(len(flat))
    for rows in _batches(len(flat)):
        out[rows] = _thickness(flat[rows])
    return out


def measure_intensity(images: Pixels) -> Numbers:
    """Stroke brightness of uint8 images (N, H, W, C), in grey levels 0..255: float64 (N,).

    The median of the pixels at or above the middle of the image's range (Pawlowski et al.); of an image of one flat
    value that value.
    """
    flat = _grey(images)
    low, high = flat.min(axis=(1, 2)), flat.max(axis=(1, 2))
    return _median_above(flat, low + 0.5 * (high - low)).astype(np.float64)


MEASURES: dict[str, Callable[[Pixels], Numbers]] = {"thickness": measure_thickness, "intensity": measure_intensity}


def _grey(images: Pixels) -> Floats:
    """uint8 (N, H, W, C) -> float32 (N, H, W), 0..255; colours are averaged."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(f"expected uint8 images (N, H, W, C) to measure, got {images.dtype} {images.shape}")
    flat: Floats = images.mean(axis=3, dtype=np.float32)
    return flat


def _thickness(flat: npt.NDArray[np.floating]) -> Numbers:
    """(B, H, W) grey of any range -> (B,) px."""
    low = flat.min(axis=(1, 2), keepdims=True)
    span = flat.max(axis=(1, 2), keepdims=True) - low
    fine = _finer((flat - low) / np.where(span > 0, span, 1))
    inside = fine > 0.5
    distance = _distance(fine, inside)
    ridge, off = _ridge(distance, inside)
    total = np.where(ridge, 2.0 * (distance + off), 0.0).sum(axis=(1, 2), dtype=np.float64)
    return np.asarray(total / np.maximum(1, ridge.sum(axis=(1, 2))) / SCALE)


def _median_above(flat: Floats, threshold: npt.NDArray[np.floating]) -> Floats:
    """Per image (B, H, W), the median of the pixels at or above its threshold (B,)."""
    order = np.sort(flat.reshape(len(flat), flat.shape[1] * flat.shape[2]), axis=1)
    above = np.maximum(1, (order >= threshold[:, None]).sum(axis=1))
    rows, last = np.arange(len(flat)), order.shape[1] - 1
    return np.asarray(0.5 * (order[rows, last - (above - 1) // 2] + order[rows, last - above // 2]), dtype=np.float32)


# --- making images
def render(grey: Pixels, thickness: Numbers, intensity: Numbers) -> Pixels:
    """MNIST digits (N, H, W) uint8 -> (N, H, W, 1) uint8 with the given thickness (px) and intensity (grey levels)."""
    out = np.empty((*grey.shape, 1), dtype=np.uint8)
    for rows in _batches(len(grey)):
        shape = with_thickness(grey[rows], thickness[rows], 255.0 / np.maximum(1.0, intensity[rows]))
        out[rows, ..., 0] = np.round(shape * intensity[rows, None, None])
    return out


def with_thickness(grey: Pixels, thickness: Numbers, limit: Numbers) -> Numbers:
    """Strokes (B, H, W) uint8 thinned or thickened until they measure ``thickness`` (B,) px.

    (B, H, W) from 0 to ``limit`` (B,), the brightest the image can show; the strokes' brightness is 1.
    """
    fine = _finer(grey / np.maximum(1, grey.max(axis=(1, 2), keepdims=True)).astype(np.float32))
    inside = fine > 0.5
    depth = _distance(fine, inside)
    ridge, _ = _ridge(depth, inside)
    outward = _distance(1.0 - fine, ~inside) - depth  # signed distance to the edge, in grid steps, negative inside
    axis = _distance(np.where(ridge, 0.0, 1.0).astype(np.float32), ~ridge)  # to the medial axis

    drawable = np.asarray(inside.any(axis=(1, 2)))  # a blank image has no edge to move and stays blank

    def drawn(rows: npt.NDArray[np.int64], radius: Floats) -> Numbers:
        keep = axis[rows] - (KEPT * SCALE * thickness[rows, None, None]).astype(np.float32)
        shape = outward[rows] - radius[:, None, None]
        shape = np.where((radius < 0)[:, None, None], np.minimum(shape, keep), shape)
        shape = np.where(drawable[rows, None, None], np.clip(0.5 - shape, 0.0, 1.0), 0.0)
        return _levelled(_coarser(shape.astype(np.float32)), limit[rows])

    radius = np.zeros(len(grey), np.float32)
    low, high = np.full(len(grey), -np.inf, np.float32), np.full(len(grey), np.inf, np.float32)  # radii on either side
    best = drawn(np.arange(len(grey)), radius)
    found = _thickness(best)
    error = np.abs(found - thickness)
    rows = np.flatnonzero((error > TOLERANCE) & (found > 0))
    found = found[rows]
    for _ in range(CORRECTIONS):
        if not len(rows):
            break
        missing = (thickness[rows] - found).astype(np.float32)
        low[rows] = np.where(missing > 0, radius[rows], low[rows])
        high[rows] = np.where(missing > 0, high[rows], radius[rows])
        step = radius[rows] + missing * (SCALE / 2.0)  # two edges move
        beyond = (step <= low[rows]) | (step >= high[rows])
        radius[rows] = np.where(beyond, 0.5 * (low[rows] + high[rows]), step)
        tried = drawn(rows, radius[rows])
        found = _thickness(tried)
        off = np.abs(found - thickness[rows])
        better = off < error[rows]
        best[rows[better]], error[rows[better]] = tried[better], off[better]
        more = off > TOLERANCE
        rows, found = rows[more], found[more]
    return best


def _levelled(shape: Floats, limit: Numbers) -> Numbers:
    """(B, H, W) coverage -> its stroke brightness (``measure_intensity``) is 1, nothing is above ``limit`` (B,)."""
    top = shape.max(axis=(1, 2))
    level = top
    for _ in range(3):  # the cut lowers the top, so its half, so the median above it
        level = _median_above(shape, 0.5 * np.minimum(top, limit * level))
    return np.minimum(limit[:, None, None], shape / np.where(level > 0, level, 1)[:, None, None])


# --- the fine grid
def _finer(flat: npt.NDArray[np.floating]) -> Floats:
    """(B, H, W) -> (B, SCALE H, SCALE W), cubic."""
    rows, columns = (_weights(n) for n in flat.shape[1:])
    fine: Floats = rows @ flat.astype(np.float32) @ columns.T
    return fine


def _coarser(fine: Floats) -> Floats:
    """(B, SCALE H, SCALE W) -> (B, H, W), the mean of each pixel's points."""
    b, h, w = fine.shape
    return np.asarray(fine.reshape(b, h // SCALE, SCALE, w // SCALE, SCALE).mean(axis=(2, 4)), dtype=np.float32)


def _distance(fine: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    """From each point ``inside`` (B, H, W) to the edge, in grid steps; 0 outside.

    The nearest point outside is known exactly (Euclidean); the edge lies where ``fine`` passes 0.5, a fraction of a
    step before that point, which ``fine`` and its slope there tell.
    """
    from scipy import ndimage

    out = np.zeros(inside.shape, dtype=np.float32)
    for i, whole in enumerate(inside):
        if not whole.any() or whole.all():
            continue  # no edge: nothing to be measured
        # the nearest point outside touches the shape, so the shape and one step around it are enough
        box = tuple(
            slice(max(0, int(line[0]) - 1), int(line[-1]) + 2)
            for line in map(np.flatnonzero, (whole.any(1), whole.any(0)))
        )
        mask, level = whole[box], fine[i][box]
        down, across = np.gradient(level)
        fraction = np.abs(level - 0.5) / np.maximum(1e-6, np.hypot(down, across))
        length, (y, x) = ndimage.distance_transform_edt(mask, return_indices=True)
        out[i][box] = np.where(mask, length - np.minimum(1.0, fraction[y, x]), 0.0)
    return out


def _ridge(distance: Floats, inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], Floats]:
    """The medial axis of ``inside``, where the distance stops rising, and how far off it each of its points lies.

    Across a stroke the distance is a tent with slope 1; central differences over its top measure the steps from the
    grid point to the top along the steeper direction, and by so much the distance there falls short of half the width.
    """
    down, across = np.gradient(distance, axis=(1, 2))
    off: Floats = np.maximum(np.abs(down), np.abs(across))
    return inside & (distance > EDGE) & (np.hypot(down, across) < RIDGE), off


def _batches(count: int) -> list[slice]:
    return [slice(i, i + BATCH) for i in range(0, count, BATCH)]


@cache
def _weights(pixels: int) -> Floats:
    """(SCALE * pixels, pixels): cubic interpolation along one axis."""
    from scipy import ndimage

    weights: Floats = ndimage.zoom(
        np.eye(pixels, dtype=np.float32), (SCALE, 1), order=3, mode="nearest", grid_mode=True
    )
    return weights
