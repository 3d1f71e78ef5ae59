"""GroupDRO against the published algorithm written out by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.train.objectives import GroupDRO

INF, NAN = float("inf"), float("nan")
ONE, BATCH = torch.tensor([0, 1]), st.lists(st.tuples(st.integers(-1, 3), st.floats(0, 50)), min_size=1, max_size=6)


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
    assert torch.equal(gradient, dro.weights)  # q is a constant to the net, as in the paper
    assert not dro.weights.requires_grad
    assert gradient.sum() == pytest.approx(1.0)


def test_one_group_per_attribute_and_adjustment() -> None:
    dro = GroupDRO(4, 0.01, adjustment=2.0, counts=torch.tensor([4, 4, 4, 0]))
    value = dro(torch.tensor([1.0, 3.0]), torch.tensor([[0, 2], [1, 2]]))
    group = np.array([2.0, 4.0, 3.0, 0.0])  # mean losses plus 2 / sqrt(4) where the batch has the group
    q = np.exp(0.01 * group) / np.exp(0.01 * group).sum()
    assert float(value) == pytest.approx(float(q @ group), abs=1e-5)


def test_the_adjustment_is_of_groups_in_the_batch() -> None:
    dro = GroupDRO(3, 0.5, adjustment=2.0, counts=torch.tensor([4, 16, 1]))
    group = np.array([2.0, 3.5, 0.0])  # group 2 has images, but none in the batch
    q = np.exp(0.5 * group) / np.exp(0.5 * group).sum()
    assert float(dro(torch.tensor([1.0, 3.0]), ONE)) == pytest.approx(float(q @ group), abs=1e-6)
    assert dro.weights.numpy() == pytest.approx(q, abs=1e-6)


# -- GroupDRO in long and in broken runs -------------------------------------------------------------------------------


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = np.exp(logits - logits.max())
    return shares / shares.sum()


@pytest.mark.parametrize("bad", [INF, NAN, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_batch_that_overflows_moves_nothing(bad: float, dtype: torch.dtype) -> None:
    dro, other = GroupDRO(2, step_size=10.0), GroupDRO(2, step_size=10.0)
    for each in (dro, other):
        each(torch.tensor([0.3, 0.1]), ONE)
    value = dro(torch.tensor([bad, 1.0], dtype=dtype), ONE)
    assert not math.isfinite(float(value))  # so that GradScaler skips the step
    assert torch.equal(dro.weights, other.weights)
    assert torch.equal(dro(torch.tensor([1.0, 2.0]), ONE), other(torch.tensor([1.0, 2.0]), ONE))
    dro(torch.tensor([3e38, 3e38]), ONE)  # finite, and more than float32 holds once it is multiplied
    assert float(dro.weights.sum()) == pytest.approx(1.0)


def test_an_overflow_outside_all_groups_stops_nothing() -> None:
    dro, without = GroupDRO(2, 1.0), GroupDRO(2, 1.0)
    assert float(dro(torch.tensor([INF, 1.0, 2.0]), torch.tensor([-1, 0, 1]))) == INF
    without(torch.tensor([1.0, 2.0]), ONE)
    assert torch.equal(dro.weights, without.weights)


def test_a_group_that_was_almost_forgotten_comes_back() -> None:
    dro = GroupDRO(2, step_size=1.0)
    for _ in range(300):
        dro(torch.tensor([5.0, 0.0]), ONE)
    assert dro.weights.tolist() == [1.0, 0.0]  # exp(-1500) as float32
    for _ in range(300):
        value = dro(torch.tensor([0.0, 5.0]), ONE)
    assert dro.weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert float(value) == pytest.approx(2.5)
    for _ in range(2000):  # steps far below the last digit of 1500
        dro(torch.tensor([1e-5, 0.0]), ONE)
    assert dro.weights.numpy() == pytest.approx(softmax(np.array([0.02, 0.0])), abs=1e-6)


@given(st.lists(BATCH, min_size=1, max_size=8), st.sampled_from([0.01, 1.0, 30.0]), st.permutations(range(4)))
@settings(max_examples=60, deadline=None)
def test_the_weights_are_the_softmax_of_the_summed_losses(
    batches: list[list[tuple[int, float]]], step_size: float, order: list[int]
) -> None:
    dro, named = GroupDRO(4, step_size), GroupDRO(4, step_size)
    total, renamed = np.zeros(4), torch.tensor([*order, -1])
    for batch in batches:
        codes, losses = torch.tensor([g for g, _ in batch]), torch.tensor([x for _, x in batch], dtype=torch.float64)
        for g in range(4):
            total[g] += step_size * float(losses[codes == g].mean()) if bool((codes == g).any()) else 0.0
        value = dro(losses, codes)
        assert float(named(losses, renamed[codes])) == pytest.approx(float(value), rel=1e-9, abs=1e-12)
    assert dro.weights.numpy() == pytest.approx(softmax(total), abs=1e-6)
    assert torch.allclose(named.weights[torch.tensor(order)], dro.weights, atol=1e-6)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(-1, 2), st.floats(width=32)), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_the_weights_sum_to_one_whatever_comes(batches: list[list[tuple[int, float]]], dtype: torch.dtype) -> None:
    dro = GroupDRO(3, step_size=0.5)
    for batch in batches:
        dro(torch.tensor([x for _, x in batch]).to(dtype), torch.tensor([g for g, _ in batch]))
        assert float(dro.weights.sum()) == pytest.approx(1.0, abs=1e-6)
        assert bool((dro.weights >= 0).all())


def test_half_precision_is_summed_in_single() -> None:
    value = GroupDRO(2)(torch.full((256,), 300.0, dtype=torch.float16), torch.zeros(256, dtype=torch.long))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(300 / (1 + math.exp(-3)), rel=1e-6)  # the sum, 76800, is inf in float16


def test_a_resumed_run_is_the_run_that_went_on() -> None:
    def steps(dro: GroupDRO, seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return [
            float(dro(torch.rand(8, generator=generator), torch.randint(0, 3, (8,), generator=generator)))
            for _ in range(20)
        ]

    first, second, third = (GroupDRO(3, 0.5) for _ in range(3))
    steps(first, 0)
    file, kept = io.BytesIO(), first.state_dict()
    torch.save(kept, file)
    went_on = steps(first, 1)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert steps(second, 1) == went_on
    assert torch.equal(first.weights, second.weights)
    third.load_state_dict(kept)  # which the steps since did not move
    assert steps(third, 1) == went_on
    assert steps(GroupDRO(3, 0.5), 1) != went_on


def test_the_state_follows_the_losses_to_their_device() -> None:
    dro = GroupDRO(3)
    losses, codes = torch.ones(4, device="meta"), torch.tensor([[0, 1], [0, -1], [2, 2], [-1, 0]])
    for _ in range(2):  # the only device that every machine has beside the CPU; it computes shapes and devices alone
        value = dro(losses, codes)
        assert value.device == dro.weights.device == dro.state_dict()["log_weights"].device == losses.device
    dro.load_state_dict(GroupDRO(3).state_dict())
    assert dro(torch.ones(4), codes).device == dro.weights.device == torch.device("cpu")
