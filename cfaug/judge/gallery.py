"""The gallery of the report: pairs of images with what was measured of each, as small pictures and ranks to sort by.

    Pair (uint8 pictures, measures) -> data URIs that fit into a number of bytes together, rank 0 for the worst by each measure

Not promised: full resolution. Pictures get smaller until all of them fit, and enlarging one shows the same pixels larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data.images import as_rgb
from cfaug.judge.charts import thumbnail_uri

Pixels = npt.NDArray[np.uint8]

BUDGET = 3_600_000  # bytes of all pictures together: with the rest of the page, and with room, below 5 MB
_SIDES = (192, 160, 128, 96, 72, 56, 40)  # pixels of a picture's longer side; the first that fits is taken

MEASURES: Mapping[str, tuple[str, str, int]] = {
    "margin": ("gate margin", "rank of the least margin by any criterion of the gate among these pairs: 0 is the nearest to rejection", 1),
    "change": ("change", "mean absolute difference from the factual image, 0 to 1", -1),
    "flip": ("flip", "what the label's probability loses by the intervention, by the classifier that uses a shortcut most; known for its worst pairs", -1),
    "misread": ("attributes misread", "number of attributes that a reader does not read as intended", -1),
    "null": ("null error", "L1 between the factual image and its null intervention", -1),
    "attempt": ("attempt", "how often the gate had it drawn again", -1),
}  # fmt: skip
"""Measure -> its name, what it says, and the sign that puts the worst first. The first one that there is sorts the page."""


@dataclass(frozen=True)
class Pair:
    """A factual image and its counterfactual, with what belongs to them.

    ``pictures``: ``factual``, ``counterfactual``, ``difference``, ``mask`` or ``null`` -> uint8 (H, W, 1 or 3); ``group``: of the
    factual image; ``measures``: those of :data:`MEASURES` that are known.
    """

    source: str
    group: str
    done: str
    pictures: Mapping[str, Pixels]
    measures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def difference(factual: Pixels, counterfactual: Pixels) -> Pixels:
    """Absolute difference of two images (H, W, C), the largest over their channels, uint8 (H, W, 1)."""
    found = np.abs(as_rgb(factual).astype(np.int16) - as_rgb(counterfactual).astype(np.int16)).max(axis=2)
    return found.astype(np.uint8)[..., None]


def gallery(pairs: Sequence[Pair], budget: int = BUDGET) -> dict[str, Any]:
    """What the template shows: ``sorts`` (measure, name, meaning) and ``rows``, the worst by the first of them first."""
    sorts = [(key, *MEASURES[key][:2]) for key in MEASURES if len({pair.measures.get(key) for pair in pairs}) > 1]
    orders = {key: _ranks(pairs, key) for key, _, _ in sorts}
    pictures = _fitted(pairs, budget)
    rows = [
        {
            "pair": pair,
            "pictures": pictures[i],
            "measures": [(name, f"{pair.measures[key]:.3g}") for key, (name, _, _) in MEASURES.items() if key in pair.measures],
            "ranks": {key: ranks[i] for key, ranks in orders.items()},
        }
        for i, pair in enumerate(pairs)
    ]  # fmt: skip
    if sorts:
        rows.sort(key=lambda row: row["ranks"][sorts[0][0]])  # type: ignore[index]
    return {"sorts": sorts, "rows": rows}


def _ranks(pairs: Sequence[Pair], key: str) -> list[int]:
    """0 for the worst by a measure; pairs without it come last."""
    sign = MEASURES[key][2]
    values = [sign * pair.measures[key] if key in pair.measures else np.inf for pair in pairs]
    return [int(i) for i in np.argsort(np.argsort(values, kind="stable"), kind="stable")]


def _alt(kind: str, pair: Pair) -> str:
    done = "" if kind in ("factual", "mask") else f", {pair.done}" if kind != "null" else ", do()"
    what = {"factual": "factual image", "null": "null intervention"}.get(kind, kind)
    return f"{what} of {pair.source}{done}, group {pair.group}"


def _fitted(pairs: Sequence[Pair], budget: int) -> list[list[tuple[str, str, str]]]:
    """(kind, alternative text, data URI) of each pair's pictures, as large as they may be to fit; never smaller than the last size.

    About ten of the pairs tell how large all of them will be, so that few are encoded in vain.
    """
    found: list[list[tuple[str, str, str]]] = []
    few = pairs[:: max(1, len(pairs) // 10)]
    longest = max((max(image.shape[:2]) for pair in pairs for image in pair.pictures.values()), default=0)
    sides = [side for i, side in enumerate(_SIDES) if i + 1 == len(_SIDES) or _SIDES[i + 1] < longest]
    for side in sides:
        if side != sides[-1] and _total(_encoded(few, side)) * len(pairs) > budget * len(few):
            continue
        found = _encoded(pairs, side)
        if _total(found) <= budget:
            break
    return found


def _encoded(pairs: Sequence[Pair], side: int) -> list[list[tuple[str, str, str]]]:
    return [
        [(kind, _alt(kind, pair), thumbnail_uri(image, side)) for kind, image in pair.pictures.items()]
        for pair in pairs
    ]


def _total(rows: Sequence[Sequence[tuple[str, str, str]]]) -> int:
    return sum(len(uri) for row in rows for _, _, uri in row)
