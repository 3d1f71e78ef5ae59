"""Pictures of the report as plain data: images as data URIs, and group accuracies as coloured cells."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

# low, middle and high accuracy, which differ in lightness as well as in hue
SCALE = ((122, 31, 43), (233, 180, 84), (38, 132, 118))


def png_uri(image: npt.NDArray[np.uint8]) -> str:
    """A data URI of a uint8 image (H, W, 1 or 3)."""
    from PIL import Image

    return data_uri(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), "png", optimize=True)


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data URI of a format of Pillow, ``png`` or ``webp``, with its options."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_colour(value: float) -> tuple[str, str]:
    """(fill, text colour) of an accuracy in [0, 1]."""
    low, high, t = (SCALE[0], SCALE[1], value * 2) if value < 0.5 else (SCALE[1], SCALE[2], value * 2 - 1)
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(low, high))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if dark else "#1b1b1b"


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
