"""GroupDRO against the published algorithm written out by hand; sampling weights against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfaug.errors import UsageError
from cfaug.learn.objectives import GroupDRO, class_weights, group_weights


def test_group_dro_is_algorithm_1_of_sagawa_et_al() -> None:
    dro, q = GroupDRO(3, step_size=0.1), np.full(3, 1 / 3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        losses, codes = rng.random(8), rng.integers(0, 2, 8)  # group 2 never occurs
        group = np.array([losses[codes == g].mean() if (codes == g).any() else 0.0 for g in range(3)])
        q = q * np.exp(0.1 * group)
        q = q / q.sum()
        value = dro(torch.tensor(losses), torch.tensor(codes))
        assert float(value) == pytest.approx(float(q @ group), abs=1e-6)
    assert dro.weights.numpy() == pytest.approx(q, abs=1e-6)


def test_group_dro_pushes_the_worse_group() -> None:
    dro = GroupDRO(2, step_size=1.0)
    losses = torch.tensor([2.0, 0.1], requires_grad=True)
    for _ in range(3):
        dro(losses, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(dro(losses, torch.tensor([0, 1])), losses)
    assert gradient[0] > 0.9
    assert gradient.sum() == pytest.approx(1.0)


def test_one_group_per_attribute_and_adjustment() -> None:
    dro = GroupDRO(4, 0.01, adjustment=2.0, counts=torch.tensor([4, 4, 4, 0]))
    value = dro(torch.tensor([1.0, 3.0]), torch.tensor([[0, 2], [1, 2]]))
    group = np.array([2.0, 4.0, 3.0, 0.0])  # mean losses plus 2 / sqrt(4) where the batch has the group
    q = np.exp(0.01 * group) / np.exp(0.01 * group).sum()
    assert float(value) == pytest.approx(float(q @ group), abs=1e-5)


def test_sampling_weights_balance_what_occurs() -> None:
    codes = torch.tensor([0, 0, 0, 2])
    assert group_weights(codes).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert class_weights(codes).sum() == pytest.approx(1.0)
    both = group_weights(torch.tensor([[0, 5], [0, 6], [0, 6], [2, 6]]))
    assert both.tolist() == pytest.approx([(1 / 6 + 1 / 2) / 2, 1 / 6, 1 / 6, (1 / 2 + 1 / 6) / 2])


def test_images_of_no_group_keep_their_share_and_only_the_rest_is_balanced() -> None:
    codes = torch.tensor([0, 0, 0, 2, -1])
    assert group_weights(codes).tolist() == pytest.approx([0.8 / 6] * 3 + [0.8 / 2, 0.2])
    assert group_weights(torch.full((4,), -1)).tolist() == pytest.approx([0.25] * 4)
    both = group_weights(torch.tensor([[0, 5], [-1, 6], [2, 6]]))
    assert both.tolist() == pytest.approx([(1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 4) / 2, (1 / 3 + 1 / 4) / 2])
    losses = torch.tensor([1.0, 4.0, 2.0, 7.0])
    with_some, without = GroupDRO(2, 0.1), GroupDRO(2, 0.1)
    value = with_some(losses, torch.tensor([0, -1, 1, -1]))
    robust = without(losses[[0, 2]], torch.tensor([0, 1]))
    assert torch.equal(with_some.weights, without.weights)  # the adversary does not look at them
    assert float(value) == pytest.approx(0.5 * float(robust) + 0.5 * 5.5)
    assert float(with_some(losses, torch.full((4,), -1))) == pytest.approx(float(losses.mean()))


def test_refusals() -> None:
    with pytest.raises(UsageError, match="at least one group"):
        GroupDRO(0)
    with pytest.raises(UsageError, match="step_size above 0"):
        GroupDRO(2, step_size=0)
    with pytest.raises(UsageError, match="group counts"):
        GroupDRO(2, adjustment=1.0)
