"""Pictures of the report as plain data: images as data URIs, the values of charts, and group accuracies as coloured cells."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

_EXAMPLE = 160  # pixels of an example's longer side
_FEW = 40  # pixels of a side: below it a lossy picture is larger than a lossless one, and worse
# low, middle and high accuracy, which differ in lightness as well as in hue
SCALE = ((122, 31, 43), (233, 180, 84), (38, 132, 118))


def picture_uri(image: npt.NDArray[np.uint8]) -> str:
    """A data URI of a uint8 image (H, W, 1 or 3) among the examples of a page."""
    return thumbnail_uri(image, _EXAMPLE)


def thumbnail_uri(image: npt.NDArray[np.uint8], side: int, quality: int = 80) -> str:
    """A data URI of a uint8 image (H, W, 1 or 3), at most ``side`` pixels long; what has few pixels keeps each of them."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    if max(picture.size) <= _FEW:
        return data_uri(picture, "png", optimize=True)
    picture.thumbnail((side, side))
    return data_uri(picture, "webp", quality=quality)


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data URI of a format of Pillow, ``png`` or ``webp``, with its options."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_colour(value: float) -> tuple[str, str]:
    """(fill, text colour) of an accuracy in [0, 1]."""
    low, high, t = (SCALE[0], SCALE[1], value * 2) if value < 0.5 else (SCALE[1], SCALE[2], value * 2 - 1)
    colour = [round(a + (b - a) * t) for a, b in zip(low, high)]
    fill = "#" + "".join(f"{part:02x}" for part in colour)
    # black or white, whichever has the higher contrast: at least 4.58 with any fill
    return fill, "#ffffff" if _luminance(colour) < 0.179 else "#000000"


def _luminance(colour: Sequence[int]) -> float:
    """Relative luminance of sRGB in [0, 255], as the Web Content Accessibility Guidelines define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, a note below it, and the values in [0, 1] of each series; a series may have none."""

    name: str
    note: str
    values: Sequence[Sequence[float]]

    def mean(self, series: int) -> float:
        """The mean of one series' values."""
        return float(np.mean(self.values[series]))


@dataclass(frozen=True)
class Chart:
    """Values in [0, 1] by line and series; ``left_out`` lines are not shown."""

    series: Sequence[str]
    lines: Sequence[Line]
    left_out: int = 0


def group_chart(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], most: int = 24) -> Chart | None:
    """The accuracy of each group by method, one value per seed; the groups worst by the first method first, ``most`` at most.

    None without rows of the methods.
    """
    by_method = {name: [row["groups"] for row in rows if row["method"] == name] for name in methods}
    by_method = {name: found for name, found in by_method.items() if found}
    if not by_method:
        return None
    first = next(iter(by_method.values()))[0]
    lines = [
        Line(name, f"n {group['n']}", [[groups[name]["accuracy"] for groups in found] for found in by_method.values()])
        for name, group in first.items() if group["n"]
    ]  # fmt: skip
    lines.sort(key=lambda line: line.mean(0))
    return Chart(list(by_method), lines[:most], max(0, len(lines) - most))


def group_matrix(rows: Sequence[Mapping[str, Any]], method: str, target: str, attribute: str) -> dict[str, Any] | None:
    """Accuracies of one method by target class and level of a spurious attribute, mean over seeds; None without any.

    Returns ``method``, ``levels`` and ``classes``: class -> one cell per level, {n, accuracy, fill, text, worst}, or None where
    the group is empty.
    """
    found = [row["groups"] for row in rows if row["method"] == method]
    cells: dict[tuple[str, str], dict[str, Any] | None] = {}
    for name, group in found[0].items():
        if name.startswith(f"{target}=") and f",{attribute}=" in name:
            left, level = name.rsplit(f",{attribute}=", 1)
            values = [groups[name]["accuracy"] for groups in found if groups[name]["n"]]
            cells[left.split("=", 1)[1], level] = _cell(group["n"], float(np.mean(values))) if group["n"] else None
    filled = [cell for cell in cells.values() if cell]
    if not filled:
        return None
    min(filled, key=lambda cell: float(cell["accuracy"]))["worst"] = True
    classes, levels = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return {
        "method": method,
        "levels": levels,
        "classes": {value: [cells.get((value, level)) for level in levels] for value in classes},
    }


def _cell(n: int, accuracy: float) -> dict[str, Any]:
    fill, text = scale_colour(accuracy)
    return {"n": n, "accuracy": accuracy, "fill": fill, "text": text, "worst": False}
