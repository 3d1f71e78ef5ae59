"""Mechanisms: how one node follows from its parents and its exogenous noise, and back. The protocols and the names.

    v = f(parents, u)          abduct: u given (v, parents)          predict: v given (u, parents)
    predict(abduct(v, parents), parents) == v                        the law every mechanism keeps

    name             attribute              noise               convention, in short
    categorical      categorical, ordinal   K Gumbels           Gumbel-max: counterfactually stable
    ordinal          ordinal                one uniform         monotone quantile coupling
    spline_flow      continuous             one normal          the value increases in its noise
    additive_noise   continuous             one normal          smooth f(parents) + noise
    linear           continuous             one normal          least squares + noise

Each room of its own says what it assumes; ``convention`` repeats it in one sentence for the assumption card. A
``FunctionMechanism`` (``functions``) is the user's own, passed as an object, and has no name here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.additive import AdditiveNoiseMechanism, LinearMechanism
from cfaug.causal.mechanisms.categorical import CategoricalMechanism
from cfaug.causal.mechanisms.flows import ContinuousMechanism
from cfaug.causal.mechanisms.functions import FunctionMechanism
from cfaug.causal.mechanisms.ordinal import OrdinalMechanism
from cfaug.causal.row_random import Array, Seeds
from cfaug.data.schema import Attribute, Schema
from cfaug.errors import UsageError, near

if TYPE_CHECKING:
    import torch

__all__ = [
    "MECHANISMS",
    "AdditiveNoiseMechanism",
    "CategoricalMechanism",
    "ContinuousMechanism",
    "FunctionMechanism",
    "ImageMechanism",
    "LinearMechanism",
    "Mechanism",
    "OrdinalMechanism",
    "default_kind",
    "mechanism_named",
]


class Mechanism(Protocol):
    """One attribute given its parents. B rows; ``values`` is a canonical column, ``parents`` a canonical table."""

    name: str
    parents: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Its name in ``MECHANISMS`` ("function" for the user's own)."""
        ...

    @property
    def width(self) -> int:
        """K, the columns of its noise."""
        ...

    @property
    def monotone(self) -> bool:
        """Whether the noise is one number and the value strictly increases in it (Nasr-Esfahany et al. 2023)."""
        ...

    @property
    def convention(self) -> str:
        """What is assumed about the noise, in one sentence."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers were fitted; 0 before ``fit``."""
        ...

    def fit(self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0) -> Any:
        """Learn f from rows, optionally weighted (B,); returns self."""
        ...

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Noise (B, K) that gives ``values``; random only where many noises do, and then by the row's seed."""
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


class ImageMechanism(Protocol):
    """The last node: image = g(parents, u). Images are float (B, C, H, W) in [-1, 1], attributes B table rows."""

    schema: Schema
    parents: tuple[str, ...]

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame) -> Any:
        """The image's noise, inferred jointly from pixels and factual attributes."""
        ...

    def predict(self, noise: Any, attributes: pd.DataFrame) -> torch.Tensor:
        """The image of this noise under these attributes: float (B, C, H, W) in [-1, 1]."""
        ...

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything the prediction depends on."""
        ...


MECHANISMS: Mapping[str, type[Any]] = {
    m.kind: m
    for m in (
        CategoricalMechanism,
        OrdinalMechanism,
        ContinuousMechanism,
        AdditiveNoiseMechanism,
        LinearMechanism,
    )
}
_SUITED = {
    "categorical": ("categorical",),
    "ordinal": ("ordinal", "categorical"),
    "continuous": ("spline_flow", "additive_noise", "linear"),
}


def has_normal_noise(mechanism: Mechanism) -> bool:
    """Whether its noise is one standard normal number in which the value increases; a user's function may take another."""
    return mechanism.monotone and getattr(mechanism, "noise", "normal") == "normal"


def default_kind(attribute: Attribute) -> str:
    """The name of the mechanism an attribute gets when none is asked for."""
    return _SUITED[attribute.kind][0]


def refuse_unsuited(kind: str, attribute: Attribute) -> None:
    """UsageError for an unknown name of a mechanism, or one that does not suit the attribute's kind."""
    name, suited = attribute.name, _SUITED[attribute.kind]
    if kind not in MECHANISMS:
        raise UsageError(f"attribute {name!r}: unknown mechanism {kind!r}; {near(str(kind), MECHANISMS)}")
    if kind not in suited:
        raise UsageError(
            f"attribute {name!r} is {attribute.kind}, which the mechanism {kind!r} is not for; use {' or '.join(suited)}"
        )


def mechanism_named(kind: str, schema: Schema, name: str, parents: Sequence[str] = ()) -> Mechanism:
    """A new, unfitted mechanism of a fitted schema; UsageError as ``refuse_unsuited``."""
    refuse_unsuited(kind, schema[name])
    made: Mechanism = MECHANISMS[kind](schema, name, parents)
    return made
