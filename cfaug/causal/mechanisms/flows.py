"""The continuous mechanism: a neural spline flow, scalar and increasing in its noise, given the encoded parents.

    u = T((v - mean) / std ; parents),   u ~ N(0, 1),   v = mean + std T^-1(u ; parents)

T is an affine map followed by one monotonic rational-quadratic spline (``spline``; Durkan et al. 2019, Neural Spline
Flows; zuko). Because it is scalar and monotone, the counterfactual is identifiable under the stated graph (Nasr-Esfahany et al. 2023,
arXiv 2302.02228). Inversion is exact to 1e-5 of a standard deviation. A discrete or censored column (many equal values) is
fitted as a steep density, not as atoms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import one_seed_per_row, row_weights
from cfaug.causal.row_random import Array, Seeds, normals
from cfaug.data.schema import Schema
from cfaug.errors import DataError

STEPS = 1000  # two to three seconds on one core; Morpho-MNIST's intensity gained nothing from more
HIDDEN = (32, 32)
BINS = 8
ROWS = 8192  # evaluated at a time: twice as fast as all at once, and memory does not grow with the table


def finite(values: pd.Series, name: str) -> Array:
    """The column as float64 (B,); DataError for a value that is not a finite number."""
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise DataError(
            f"column {name!r}: expected finite numbers, got {found[~np.isfinite(found)][0]}; correct the table"
        )
    return found


class ScalarMechanism(ABC):
    """A continuous node that strictly increases in one standard normal noise (B, 1)."""

    kind: ClassVar[str]
    convention: ClassVar[str]
    width = 1
    monotone = True

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        self.schema, self.name, self.parents = schema, name, tuple(parents)

    def _standardised(self, values: pd.Series) -> Array:
        """(B,) in standard deviations of the attribute; DataError for what is not a finite number."""
        mean, std = self.schema[self.name].scale
        x: Array = (finite(values, self.name) - mean) / std
        return x

    @abstractmethod
    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,), float64, in the attribute's unit."""

    def draw(self, seeds: Seeds) -> Array:
        """Fresh standard normal noise (B, 1)."""
        return normals(seeds)

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Values (B,) from fresh noise, row i with ``seeds[i]``."""
        return self.predict(self.draw(one_seed_per_row(seeds, len(parents), self.name)), parents)


class ContinuousMechanism(ScalarMechanism):
    """The spline flow of a continuous node. Works without parents (a marginal) as well."""

    kind = "spline_flow"
    convention = (
        "one standard normal noise in which the value strictly increases: a row keeps its quantile among rows with the "
        "same parents; identifiable if the true mechanism is monotone in one noise"
    )

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        super().__init__(schema, name, parents)
        self._arrays: dict[str, npt.NDArray[Any]] = {}  # the parameters, float32 as fitted
        self._spline: Any = None  # built from them on first use; never pickled

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spline": None}

    @property
    def parameters(self) -> int:
        """How many numbers were fitted; 0 before ``fit``."""
        return sum(a.size for a in self._arrays.values())

    def _context(self, parents: pd.DataFrame) -> Array:
        return self.schema.encode(parents, self.parents).astype(np.float64)

    def fit(
        self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0
    ) -> ContinuousMechanism:
        """Maximum likelihood, ``STEPS`` steps on batches drawn (by weight) with ``seed``; DataError for an empty table."""
        from cfaug.causal.mechanisms.spline import fit_spline

        w = row_weights(weights, len(values), self.name)
        x = self._standardised(values)[:, None]
        fitted = fit_spline(x, self._context(parents), w, HIDDEN, BINS, STEPS, seed)
        self._arrays = {k: v.detach().numpy().copy() for k, v in fitted.state_dict().items()}
        self._spline = None
        return self

    def _empty(self) -> Any:
        import torch

        from cfaug.causal.mechanisms.spline import Spline

        with torch.random.fork_rng(devices=[]):  # building draws initial weights; leave the caller's stream alone
            return Spline(self.schema.width(self.parents), HIDDEN, BINS)

    def _each(self, what: Literal["forward", "inverse", "log_prob"], x: Array, parents: pd.DataFrame) -> Array:
        """(B,) of standardised x or u (B,)."""
        import torch

        if self._spline is None:
            self._spline = self._empty()
            self._spline.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in self._arrays.items()})
            self._spline.double().requires_grad_(False)
        x, context = np.asarray(x, dtype=np.float64)[:, None], self._context(parents)
        out = np.empty(len(x))
        with torch.inference_mode():
            for start in range(0, len(x), ROWS):
                some = slice(start, start + ROWS)
                xs, cs = torch.from_numpy(x[some]), torch.from_numpy(context[some])
                if what == "log_prob":
                    found = self._spline.log_prob(xs, cs)
                else:
                    transform = self._spline.transform(cs)
                    found = (transform.inv if what == "inverse" else transform)(xs)[:, 0]
                out[some] = found.numpy()
        return out

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """The one noise (B, 1) that gives the values; nothing is drawn."""
        return self._each("forward", self._standardised(values), parents)[:, None]

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,), float64, in the attribute's unit."""
        mean, std = self.schema[self.name].scale
        out: Array = mean + std * self._each("inverse", noise[:, 0], parents)
        return out

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log density (B,) in the attribute's own unit."""
        density = self._each("log_prob", self._standardised(values), parents)
        out: Array = density - np.log(self.schema[self.name].scale[1])
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The parameters as arrays; the architecture is ``spline``'s."""
        sizes = {"bins": BINS, "hidden": list(HIDDEN)}
        return {"kind": self.kind, "parents": list(self.parents)} | sizes, self._arrays

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ContinuousMechanism:
        """The inverse of ``state``; KeyError or ValueError when the arrays are not this network's."""
        if data["bins"] != BINS or list(data["hidden"]) != list(HIDDEN):
            raise ValueError("a flow of a different size")
        shapes = {k: tuple(v.shape) for k, v in self._empty().state_dict().items()}
        if shapes != {k: v.shape for k, v in arrays.items()}:
            raise ValueError("the parameters do not fit the flow")
        self._arrays, self._spline = dict(arrays), None
        return self
