"""From Fake to Real: train on balanced synthetic images first, then continue with the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple


class Epoch(NamedTuple):
    """One epoch of the schedule: its number over both stages, the stage, the number within it, and what to iterate."""

    number: int
    stage: Literal["synthetic", "real"]
    of_stage: int
    data: Any


def from_fake_to_real(synthetic: Any, real: Any, synthetic_epochs: int, real_epochs: int) -> Iterator[Epoch]:
    """All epochs in order: ``synthetic_epochs`` over ``synthetic``, then ``real_epochs`` over ``real``.

        for epoch in from_fake_to_real(counterfactuals, images, 10, 10):
            if epoch.of_stage == 0: optimiser = SGD(net.parameters(), ...)      # each stage has its own
            for x, y in epoch.data: ...

    ``synthetic`` and ``real`` are whatever the loop iterates: loaders, data sets, arrays. The synthetic ones should be balanced
    over the groups (``CounterfactualDataset(base, shards, p=1.0)`` of a ``balance_groups`` plan). The weights are kept from
    one stage to the next, and no batch has both kinds, so that "synthetic or real" cannot become a shortcut itself. The real
    stage may use any objective. No group labels are needed. Qraitem, Saenko & Plummer 2024 (ECCV),
    https://arxiv.org/abs/2308.04553.
    """
    for number in range(synthetic_epochs):
        yield Epoch(number, "synthetic", number, synthetic)
    for number in range(real_epochs):
        yield Epoch(synthetic_epochs + number, "real", number, real)
