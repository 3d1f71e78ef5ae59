"""What every mechanism offers: how one attribute follows from its parents and its exogenous noise, and back.

v = f(parents, u)          abduct: u given (v, parents)          predict: v given (u, parents)
predict(abduct(v, parents), parents) == v                        holds for every mechanism
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt
import pandas as pd

from cfaug.causal.row_random import Array, Seeds


class Mechanism(Protocol):
    """One attribute given its parents. B rows; ``values`` is a canonical column, ``parents`` a canonical table."""

    name: str
    parents: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Its name in ``registry.MECHANISMS`` ("function" for the user's own)."""
        ...

    @property
    def width(self) -> int:
        """K, the number of columns of its noise."""
        ...

    @property
    def monotone(self) -> bool:
        """Whether the noise is one number and the value strictly increases in it (Nasr-Esfahany et al. 2023)."""
        ...

    @property
    def convention(self) -> str:
        """What is assumed about the noise, in one sentence for the assumption card."""
        ...

    @property
    def parameters(self) -> int:
        """The number of fitted numbers; 0 before ``fit``."""
        ...

    def fit(self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0) -> Any:
        """Learn f from rows, optionally weighted (B,); returns self."""
        ...

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Noise (B, K) that gives ``values``; drawn by the row's seed where many noises do."""
        ...

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,) from noise (B, K)."""
        ...

    def draw(self, seeds: Seeds) -> Array:
        """Fresh noise (B, K) from its distribution, row i with ``seeds[i]``."""
        ...

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """predict(draw(seeds), parents): an interventional or observational sample, not a counterfactual."""
        ...

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log p(value | parents) (B,), in the attribute's own unit."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """(JSON, arrays) from which ``restore`` rebuilds the fitted mechanism exactly."""
        ...

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
        """The inverse of ``state``; returns self."""
        ...


def has_normal_noise(mechanism: Mechanism) -> bool:
    """Whether the noise is one standard normal number in which the value increases; a user's function may take a different one."""
    return mechanism.monotone and getattr(mechanism, "noise", "normal") == "normal"
