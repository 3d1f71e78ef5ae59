"""Colours that predict the digit: the confounding common to the coloured digit families.

For an image of class y and one colour attribute with correlation rho,

    colour = own(y) with probability rho, else uniform over all ten        P(colour = own(y)) = rho + (1 - rho) / 10

each attribute on its own draw. With rho = 0 colour and class are independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.errors import UsageError, near, shown

Codes = npt.NDArray[np.int64]


def correlations(rho: float | Mapping[str, float], names: Sequence[str], default: float) -> dict[str, float]:
    """One rho in [0, 1] per attribute from one number or from a mapping; UsageError for anything else."""
    given: dict[str, Any] = dict(rho) if isinstance(rho, Mapping) else dict.fromkeys(names, rho)
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"rho: expected an attribute among {', '.join(names)}, got {name!r}; {near(name, names)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UsageError(f"rho of {name!r}: expected a number from 0 to 1, got {shown(value)}")
    return {name: float(given.get(name, default)) for name in names}


def draw_colours(own: Codes, rho: float, rng: np.random.Generator, colours: int = 10) -> Codes:
    """(N,) colour codes: the class's ``own`` code with probability ``rho``, else uniform over all ``colours``."""
    uniform = rng.integers(0, colours, size=len(own))
    return np.where(rng.random(len(own)) < rho, own, uniform).astype(np.int64)
