"""What the velocity network is shown: rare attribute combinations more often than they are there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_decoder import small, source

from cfaug.decode.diffusion import flow_loss as fit
from cfaug.decode.diffusion.flow_loss import FlowLoss


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rows_are_drawn_by_the_power_of_their_cells_count(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = source(), []

    class Spy(FlowLoss):
        def __call__(self, module: Any, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            drawn.append(batch)
            return sum(p.sum() for p in module.parameters()) * 0  # type: ignore[return-value]

    monkeypatch.setattr(fit, "FlowLoss", Spy)
    decoder = small(data, cell_power=power, max_steps=4, batch_size=5000)
    counts = decoder.condition.cells(data.table)
    assert len(counts.unique()) > 2
    expected = counts.double().pow(-power)
    shares = torch.bincount(torch.cat(drawn), minlength=len(data)) / 20_000
    for count in counts.unique():
        cell = counts == count
        assert float(shares[cell].sum()) == pytest.approx(float(expected[cell].sum() / expected.sum()), abs=0.02)
