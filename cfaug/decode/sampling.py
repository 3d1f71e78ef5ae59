"""Solving the flow's differential equation in either direction.

dx/dt = v(x, t) from t = 0 (image) to t = 1 (noise) abducts; from 1 to 0 it predicts. The explicit midpoint rule takes two
evaluations a step and has global error O(h^2). Running it there and back is *not* the identity: the composition error is
measured (``judge.axioms.composition``), not assumed away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def integrate(velocity: Velocity, x: torch.Tensor, start: float, end: float, steps: int) -> torch.Tensor:
    """Midpoint integration of ``velocity(x, t)``.

    Args:
        velocity: takes x, shape (B, C, H, W), and t, shape (B,); returns the shape of x.
        x: the state at ``start``.
        start: time of ``x``, in [0, 1].
        end: time to reach, in [0, 1]; smaller than ``start`` to go from noise to image.
        steps: equal steps, two evaluations each.

    Returns:
        The state at ``end``, shape (B, C, H, W).
    """
    width = (end - start) / steps
    for step in range(steps):
        t = x.new_full((len(x),), start + step * width)
        middle = x + velocity(x, t) * (width / 2)
        x = x + velocity(middle, t + width / 2) * width
    return x
