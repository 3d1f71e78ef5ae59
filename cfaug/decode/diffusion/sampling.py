r"""Solving the flow's differential equation dx/dt = v(x, t), from the image (t = 0) to the noise (t = 1) and back.

``midpoint`` is the explicit midpoint rule. Running it there and back is *not* the identity: its composition error is the
discretisation error. With either ``reversible`` solver, there and back returns the image for any number of steps and any
network, up to the rounding of the network's input. They carry two copies (y, z) of the state, each moved by what the other one says (McCallum & Foster, 2024, arXiv 2410.11648,
with coupling 1; EDICT, Wallace et al., 2023, arXiv 2211.12446, is the same idea for DDIM):

.. math:: y' = y + \Psi_h(z, t), \quad z' = z - \Psi_{-h}(y', t + h); \qquad
          z = z' + \Psi_{-h}(y', t + h), \quad y = y' - \Psi_h(z, t),

with :math:`\Psi_h` one explicit step: Euler's (one evaluation) or the midpoint rule (two). Both copies start at the image, the
result is z. At t = 0 no evaluation is needed: v(x, 0) = -x, because the noise is independent of the image. A network that
computes in bfloat16 turns the last bit of float32 into more: after several steps some pixels may come back one grey level off.

With one Euler step, y = 0 and z = x - m(pa), where m(pa) = -v(0, 1, pa) is the image that the network expects before it has
seen any noise: the counterfactual is then x + m(pa') - m(pa), an additive-noise mechanism. More steps let the noise be more
than additive. Not promised: that more steps are better; ``benchmarks/decoder.py`` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
"""(x of shape (B, C, H, W), t in [0, 1]) -> dx/dt of the shape of x."""

_Step = Callable[[Velocity, torch.Tensor, float, float], torch.Tensor]


def _euler(velocity: Velocity, x: torch.Tensor, t: float, width: float) -> torch.Tensor:
    return velocity(x, t) * width


def _midpoint(velocity: Velocity, x: torch.Tensor, t: float, width: float) -> torch.Tensor:
    return velocity(x + velocity(x, t) * (width / 2), t + width / 2) * width


_RULES: dict[str, tuple[bool, _Step]] = {
    "midpoint": (False, _midpoint),
    "reversible": (True, _midpoint),
    "reversible_euler": (True, _euler),
}


def evaluations(sampler: str, steps: int) -> int:
    """Network evaluations of one counterfactual: abduction and prediction together."""
    paired, step = _RULES[sampler]
    each = 1 if step is _euler else 2
    if not paired:
        return 2 * each * steps - 1  # v(x, 0) costs none, and only abduction asks for it
    return 4 * each * steps - (each + 1)  # nor does the y that would stand beside the finished image


def invert(velocity: Velocity, x: torch.Tensor, sampler: str, steps: int, levels: Sequence[int]) -> list[torch.Tensor]:
    """From the image towards the noise.

    Args:
        velocity: v(x, t).
        x: the image, shape (B, C, H, W).
        sampler: ``midpoint``, ``reversible`` or ``reversible_euler``.
        steps: equal steps from t = 0 to 1.
        levels: step numbers, ascending, in 1..steps: the states that are wanted.

    Returns:
        For each level the state at time level / steps: shape (2, B, C, H, W), the copies (y, z), equal for ``midpoint``.
    """
    paired, step = _RULES[sampler]
    width, found = 1 / steps, []
    y = z = x
    for k in range(levels[-1]):
        t = k * width
        y = y + step(velocity, z, t, width)
        z = z - step(velocity, y, t + width, -width) if paired else y
        if k + 1 in levels:
            found.append(torch.stack([y, z]))
    return found


def render(
    velocity: Velocity,
    states: Sequence[torch.Tensor],
    sampler: str,
    steps: int,
    levels: Sequence[int],
    start: torch.Tensor,
) -> torch.Tensor:
    """From the noise to the image: undoes :func:`invert`, usually under another ``velocity``.

    Args:
        velocity: v(x, t).
        states: of the levels, as :func:`invert` gives them.
        sampler: as there.
        steps: as there.
        levels: as there.
        start: shape (B,), int64: for each image the level to start from, an index into ``levels``.

    Returns:
        The image, shape (B, C, H, W).
    """
    paired, step = _RULES[sampler]
    width = 1 / steps
    y, z = states[int(start.max())].unbind()
    for k in range(levels[int(start.max())], 0, -1):
        if k in levels:
            here = (start == levels.index(k)).view(-1, 1, 1, 1).to(y.device)
            own = states[levels.index(k)]
            y, z = torch.where(here, own[0], y), torch.where(here, own[1], z)
        t = k * width
        if paired:
            z = z + step(velocity, y, t, -width)
            y = y - step(velocity, z, t - width, width) if k > 1 else y
        else:
            y = z = z + step(velocity, z, t, -width)
    return z
