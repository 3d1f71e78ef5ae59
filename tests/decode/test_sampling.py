"""The integrator against differential equations with a known solution."""

from __future__ import annotations

import math

import pytest
import torch

from cfaug.decode.sampling import integrate

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 3, 2, 2)


def decay(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """dx/dt = t - 2 x, so x(t) = t / 2 - 1 / 4 + c exp(-2 t)."""
    return t.view(-1, 1, 1, 1) - 2 * x


def error(start: float, end: float, steps: int) -> float:
    constant = (X - start / 2 + 0.25) * math.exp(2 * start)
    exact = end / 2 - 0.25 + constant * math.exp(-2 * end)
    return float((integrate(decay, X, start, end, steps) - exact).abs().max())


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_it_converges_with_order_two_in_either_direction(start: float, end: float) -> None:
    for steps in (16, 32, 64):
        assert 3.6 < error(start, end, steps) / error(start, end, 2 * steps) < 4.4
    assert error(start, end, 512) < 1e-4


def test_a_field_linear_in_time_is_exact_in_one_step() -> None:
    field = lambda x, t: (2 * t).view(-1, 1, 1, 1).expand_as(x)  # noqa: E731
    torch.testing.assert_close(integrate(field, X, 0.0, 1.0, 1), X + 1)
    torch.testing.assert_close(integrate(field, X, 1.0, 0.0, 1), X - 1)


def test_it_takes_two_evaluations_a_step_and_stays_within_the_interval() -> None:
    times: list[float] = []

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.shape == (len(x),)
        times.append(float(t[0]))
        return x

    integrate(field, X, 1.0, 0.0, 2)
    assert times == [1.0, 0.75, 0.5, 0.25]
