"""How an image came to be, in the terms of IPTC's vocabulary of digital source types, which every generated image is marked with.

Reference: IPTC, Digital Source Type NewsCodes, https://cv.iptc.org/newscodes/digitalsourcetype/
"""

from __future__ import annotations

from collections.abc import Iterable

TRAINED = "trainedAlgorithmicMedia"
SOURCE_TYPES = (
    TRAINED,
    "compositeWithTrainedAlgorithmicMedia",
    "algorithmicMedia",
    "compositeSynthetic",
    "compositeCapture",
    "humanEdits",
    "algorithmicallyEnhanced",
)
"""Those that an edited image can have, the strongest first."""


def strongest(types: Iterable[str]) -> str:
    """Of several source types, the one that claims the least of a photograph."""
    return min(types, key=SOURCE_TYPES.index)
