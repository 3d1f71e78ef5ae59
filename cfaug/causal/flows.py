"""The continuous mechanism: a neural spline flow, scalar and increasing in its noise, given the encoded parents.

    u = T((v - mean) / std ; parents),   u ~ N(0, 1),   v = mean + std T^-1(u ; parents)

T is one monotonic rational-quadratic spline whose knots are a small network of the parents (Durkan et al. 2019,
Neural Spline Flows; zuko). Scalar and monotone: under the stated graph the counterfactual is then identifiable
(Nasr-Esfahany et al. 2023, arXiv 2302.02228). Fitted in float32, used in float64, so that inversion is exact to 1e-5
of a standard deviation and better. Outside 5 standard deviations the spline is the identity; a discrete or
censored column (many equal values) is fitted as a steep density, not as atoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.draws import Array, Seeds, normals
from cfaug.data.attributes import Schema
from cfaug.errors import DataError

STEPS = 400  # enough for a linear-Gaussian law to within 5 % of its noise; about a second
BATCH = 512
RATE = 1e-2
HIDDEN = (32, 32)
BINS = 8


def _last_layer(flow: Any) -> str:
    names = [name for name, _ in flow.named_parameters()]
    return str(names[-1].rsplit(".", 1)[0]) + "."


class ContinuousMechanism:
    """A continuous node: noise (B, 1), standard normal. Works without parents (a marginal) as well."""

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        self.schema, self.name, self.parents = schema, name, tuple(parents)
        self._arrays: dict[str, npt.NDArray[Any]] = {}  # the parameters, float32 as fitted
        self._flow: Any = None  # built from them on first use; never pickled

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_flow": None}

    def _build(self) -> Any:
        import torch
        import zuko

        flow = zuko.flows.NSF(1, self.schema.width(self.parents), bins=BINS, transforms=1, hidden_features=HIDDEN)
        # start at the identity: from zuko's random knots a marginal can stay wavy after the whole short fit
        last = [p for name, p in flow.named_parameters() if not self.parents or name.startswith(_last_layer(flow))]
        with torch.no_grad():
            for p in last:
                p.zero_()
        return flow

    def _standardised(self, values: pd.Series) -> Array:
        mean, std = self.schema[self.name].scale
        x: Array = (np.asarray(values, dtype=np.float64) - mean) / std
        if not np.isfinite(x).all():
            raise DataError(f"column {self.name!r} holds a value that is not a finite number; correct the table")
        return x[:, None]

    def _transform(self, parents: pd.DataFrame) -> Any:
        import torch

        if self._flow is None:
            with torch.random.fork_rng(devices=[]):  # building draws initial weights; leave the caller's stream alone
                self._flow = self._build()
            self._flow.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in self._arrays.items()})
            self._flow.double().requires_grad_(False)
        context = torch.from_numpy(self.schema.encode(parents, self.parents).astype(np.float64))
        return self._flow(context if self.parents else None)

    def fit(
        self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0
    ) -> ContinuousMechanism:
        """Maximum likelihood by Adam, ``STEPS`` batches of ``BATCH`` rows drawn (by weight) with ``seed``."""
        import torch

        x = self._standardised(values)
        if not len(x):
            raise DataError(f"cannot fit {self.name!r} to an empty table; give at least one row")
        xs, cs = torch.from_numpy(x).float(), torch.from_numpy(self.schema.encode(parents, self.parents))
        rng = np.random.default_rng(seed)
        p = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)
        rows = torch.from_numpy(rng.choice(len(x), size=(STEPS, min(BATCH, len(x))), p=p))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(int(rng.integers(2**31)))
            flow = self._build()
            optimiser = torch.optim.Adam(flow.parameters(), lr=RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
            for batch in rows:
                loss = -flow(cs[batch] if self.parents else None).log_prob(xs[batch]).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
                optimiser.step()
                schedule.step()
        self._arrays = {k: v.detach().numpy().copy() for k, v in flow.state_dict().items()}
        self._flow = None
        return self

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """The one noise (B, 1) that gives the values; nothing is drawn."""
        import torch

        x = torch.from_numpy(self._standardised(values))
        noise: Array = self._transform(parents).transform(x).numpy()
        return noise

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,), float64, in the attribute's unit."""
        import torch

        mean, std = self.schema[self.name].scale
        x = self._transform(parents).transform.inv(torch.from_numpy(np.asarray(noise, dtype=np.float64)))
        out: Array = mean + std * x.numpy()[:, 0]
        return out

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Values (B,) from fresh noise, row i with ``seeds[i]``."""
        return self.predict(normals(seeds), parents)

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log density (B,) in the attribute's own unit."""
        import torch

        x = torch.from_numpy(self._standardised(values))
        density = self._transform(parents).log_prob(x)
        out: Array = density.numpy() - np.log(self.schema[self.name].scale[1])
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The parameters as arrays; the architecture is this module's."""
        return {"kind": "continuous", "parents": list(self.parents), "bins": BINS, "hidden": list(HIDDEN)}, self._arrays

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ContinuousMechanism:
        """The inverse of ``state``; KeyError or ValueError when the arrays are not this network's."""
        if data["bins"] != BINS or list(data["hidden"]) != list(HIDDEN):
            raise ValueError("a flow of another size")
        with_shapes = {k: tuple(v.shape) for k, v in self._build_shapes().items()}
        if with_shapes != {k: v.shape for k, v in arrays.items()}:
            raise ValueError(f"the parameters of {self.name!r} do not fit the flow")
        self._arrays, self._flow = dict(arrays), None
        return self

    def _build_shapes(self) -> Mapping[str, Any]:
        import torch

        with torch.random.fork_rng(devices=[]):
            shapes: Mapping[str, Any] = self._build().state_dict()
        return shapes
