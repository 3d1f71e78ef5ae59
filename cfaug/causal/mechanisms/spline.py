"""One increasing function of a number, given a context: the density behind every continuous mechanism.

    u = S(exp(a(c)) x + b(c); c),   u ~ N(0, 1)        x standardised (B, 1), c encoded parents (B, D), D may be 0

S is a monotonic rational-quadratic spline on [-5, 5] and the identity outside (Durkan et al. 2019, Neural Spline Flows;
zuko). a, b and the knots of S come from one small network of c; b also has a linear function of c, so that the fit starts at the
least-squares Gaussian. The weights that are kept are those under which held-out rows are most likely. Far outside the training rows
the law is Gaussian in x. Far outside the parents' own range a and b are extrapolated.

Fitted in float32 and used in float64: the inverse is exact to about 1e-12.
This module imports torch; ``flows`` does so only when it is used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import zuko
from torch import Tensor, nn
from zuko.transforms import ComposedTransform, MonotonicAffineTransform, MonotonicRQSTransform

from cfaug.causal.row_random import Array

Rows = npt.NDArray[np.int64]

BATCH = 512
RATE = 1e-2
AVERAGE = 0.99  # of the weights over the last hundred steps: single steps are noisy
EVERY = 25  # steps between looks at the held-out rows
FEW = 20  # with fewer rows none are held out, and the fit stays at the least-squares Gaussian
PLENTY = 2000  # from so many rows on a tenth of them is enough to say when to stop
NARROWEST = 1e-4  # of a standard deviation: a constant or heavily tied column gets a steep density, not an atom


class Spline(nn.Module):
    """The function and its parameters; ``context`` is D. Starts at u = x."""

    def __init__(self, context: int, hidden: Sequence[int], bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.slope, self.shift = nn.Parameter(torch.zeros(context)), nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))
        outputs = 3 * bins + 1
        self.free = nn.Parameter(torch.zeros(outputs))  # the network's bias; without a context there is no network
        self.network = zuko.nn.MLP(context, outputs, hidden, activation=nn.SiLU) if context else None
        if self.network is not None:
            last = self.network[-1]
            # started from random knots, a marginal can stay wavy to the end of the short fit
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias).requires_grad_(False)

    def start(self, x: Tensor, context: Tensor, weights: Tensor) -> None:
        """Set the linear part to the weighted least-squares Gaussian of x (B, 1) given the context (B, D)."""
        w = (weights / weights.sum()).double()[:, None]
        columns = torch.cat([context, torch.ones(len(context), 1)], dim=1).double()
        # one-hot blocks and the constant are collinear; the ridge picks one of several equal answers
        gram = columns.T @ (w * columns) + 1e-6 * torch.eye(columns.shape[1]).double()
        found = torch.linalg.solve(gram, columns.T @ (w * x.double()))
        std = (w * (x.double() - columns @ found) ** 2).sum().sqrt().clamp(min=10 * NARROWEST)
        wanted = -std.log()
        with torch.no_grad():
            self.log_scale.copy_(wanted / (1 - (wanted / math.log(NARROWEST)).abs()))
            self.slope.copy_(-found[:-1, 0] / std)
            self.shift.copy_(-found[-1, 0] / std)

    def transform(self, context: Tensor) -> ComposedTransform:
        """x -> u for a context (B, D); its ``inv`` is u -> x. Both take (B, 1)."""
        raw = self.free if self.network is None else self.network(context) + self.free
        raw = raw.expand(len(context), -1)[:, None]
        linear = (self.shift + context @ self.slope)[:, None]
        b, a, widths, heights, derivatives = raw.split([1, 1, self.bins, self.bins, self.bins - 1], dim=-1)
        scale = MonotonicAffineTransform(linear + b[..., 0], self.log_scale + a[..., 0], slope=NARROWEST)
        return ComposedTransform(scale, MonotonicRQSTransform(widths, heights, derivatives))

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """log density of x (B, 1): (B,)."""
        u, slope = self.transform(context).call_and_ladj(x)
        density: Tensor = (slope - 0.5 * u**2 - 0.5 * math.log(2 * math.pi))[:, 0]
        return density


def fit_spline(
    x: Array, context: Array, weights: Array, hidden: Sequence[int], bins: int, steps: int, seed: int
) -> Spline:
    """Maximum likelihood by Adam on (B, 1) and (B, D), batches drawn by weight (B,); float32.

    Of ``PLENTY`` rows or more a tenth is held out, and the averaged weights under which it is most likely are kept; the start counts
    as well. Of fewer rows each third is held out in turn to find the number of steps, which are then taken with all rows. The
    caller's torch generator is not touched.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(weights > 0))
    data = (torch.from_numpy(x).float(), torch.from_numpy(context).float(), torch.from_numpy(weights).float())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(rng.integers(2**31)))

        def climb(train: Rows, held: Rows, most: int) -> tuple[Spline, Array]:
            spline = Spline(context.shape[1], hidden, bins)
            spline.start(*(d[train] for d in data))
            return _climb(spline, data, train, held, most, steps, rng)

        if len(rows) < FEW:
            return climb(rows, rows[:0], 0)[0]
        if len(rows) >= PLENTY:
            held = len(rows) // 10
            return climb(rows[held:], rows[:held], steps)[0]
        short = math.ceil(0.3 * steps)
        thirds = np.array_split(rows, 3)
        curves = [
            climb(np.concatenate([t for j, t in enumerate(thirds) if j != i]), thirds[i], short)[1] for i in range(3)
        ]
        return climb(rows, rows[:0], EVERY * int(np.argmax(np.sum(curves, axis=0))))[0]


def _climb(
    spline: Spline,
    data: tuple[Tensor, Tensor, Tensor],
    train: Rows,
    held: Rows,
    most: int,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Spline, Array]:
    """``most`` steps on the rows ``train``: (the averaged weights, the sums of the log-likelihood of ``held`` every ``EVERY`` steps).

    With held-out rows the weights are those of the highest of these sums; without, the last.
    """
    x, context, w = data
    average = copy.deepcopy(spline)

    def likelihood() -> float:
        with torch.no_grad():
            return float((w[held] * average.log_prob(x[held], context[held])).sum())

    curve = [likelihood()] if len(held) else []
    best = copy.deepcopy(average)
    share = w[train].double().numpy()
    chance = None if np.ptp(share) == 0 else share / share.sum()
    batches = torch.from_numpy(rng.choice(train, size=(most, min(BATCH, len(train))), p=chance))
    means: list[Tensor] = list(average.parameters())
    nows: list[Tensor] = list(spline.parameters())
    optimiser = torch.optim.Adam([p for p in nows if p.requires_grad], lr=RATE, fused=True)
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:  # a cosine over all ``steps``, even where fewer are taken
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        loss = -spline.log_prob(x[batch], context[batch]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(spline.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            # one call for all parameters: with so small a network the calls take most of the time
            torch._foreach_lerp_(means, nows, 1 - min(AVERAGE, (1 + step) / (10 + step)))
        if len(held) and (step + 1) % EVERY == 0:
            curve.append(likelihood())
            if curve[-1] == max(curve):
                best = copy.deepcopy(average)
    return best if len(held) else average, np.array(curve)
