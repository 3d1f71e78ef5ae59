"""The solvers against differential equations with a known solution, and against their own undoing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.decode.diffusion.sampling import evaluations, invert, render

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 3, 2, 2)
LAST = torch.zeros(1, dtype=torch.int64)
SAMPLERS = ["midpoint", "reversible", "reversible_euler"]


def decay(x: torch.Tensor, t: float) -> torch.Tensor:
    """dx/dt = t - 2 x, so x(t) = t / 2 - 1 / 4 + c exp(-2 t)."""
    return t - 2 * x


def bent(strength: float) -> object:
    """A field with no closed form, different for every strength."""
    return lambda x, t: torch.sin(3 * x + strength) * (1 + t) - strength * x.flip(2)


def there(sampler: str, steps: int) -> float:
    exact = 0.25 + (X + 0.25) * math.exp(-2)
    return float((invert(decay, X, sampler, steps, [steps])[0][1] - exact).abs().max())


def back(sampler: str, steps: int) -> float:
    start = 0.25 + (X + 0.25) * math.exp(-2)
    return float((render(decay, [torch.stack([start, start])], sampler, steps, [steps], LAST) - X).abs().max())


@pytest.mark.parametrize("error", [there, back])
@pytest.mark.parametrize(("sampler", "order"), [("midpoint", 2), ("reversible", 2), ("reversible_euler", 1)])
def test_the_error_falls_with_the_order(error: object, sampler: str, order: int) -> None:
    ratio = error(sampler, 128) / error(sampler, 1024)  # type: ignore[operator]
    assert 0.85 < math.log2(ratio) / 3 / order < 1.15
    assert error(sampler, 1024) < 1e-2  # type: ignore[operator]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["reversible", "reversible_euler"]), st.integers(1, 6), st.floats(-2, 2))
def test_a_reversible_solver_undoes_itself_on_any_field(sampler: str, steps: int, strength: float) -> None:
    field = bent(strength)
    states = invert(field, X, sampler, steps, [steps])  # type: ignore[arg-type]
    torch.testing.assert_close(render(field, states, sampler, steps, [steps], LAST), X, atol=1e-9, rtol=0)  # type: ignore[arg-type]


def test_the_midpoint_rule_does_not() -> None:
    field = bent(0.7)
    states = invert(field, X, "midpoint", 2, [2])  # type: ignore[arg-type]
    assert float((render(field, states, "midpoint", 2, [2], LAST) - X).abs().max()) > 1e-2  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_evaluations_are_as_counted(sampler: str, steps: int) -> None:
    times: list[float] = []

    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        assert -1e-9 <= t <= 1 + 1e-9
        if t > 1e-9:  # the velocity of the image itself is known
            times.append(t)
        return -x

    states = invert(field, X, sampler, steps, [steps])
    render(field, states, sampler, steps, [steps], LAST)
    assert len(times) == evaluations(sampler, steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_row_starts_from_its_own_level(sampler: str) -> None:
    x = X.repeat(3, 1, 1, 1)
    states = invert(decay, x, sampler, 4, [1, 3, 4])
    made = render(bent(0.5), states, sampler, 4, [1, 3, 4], torch.tensor([0, 2, 1]))  # type: ignore[arg-type]
    for row, (level, state) in enumerate(zip([1, 4, 3], [states[0], states[2], states[1]], strict=True)):
        alone = render(bent(0.5), [state[:, row : row + 1]], sampler, 4, [level], LAST)  # type: ignore[arg-type]
        torch.testing.assert_close(made[row : row + 1], alone)
