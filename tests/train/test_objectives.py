"""GroupDRO against the published algorithm written out by hand; sampling weights against their definition."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.errors import UsageError
from cfaug.train import objectives
from cfaug.train.objectives import GroupDRO, class_weights, group_weights, importance_weights, jtt_weights

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
def test_a_batch_that_overflows_moves_nothing_and_the_next_is_right(bad: float, dtype: torch.dtype) -> None:
    dro, other = GroupDRO(2, step_size=10.0), GroupDRO(2, step_size=10.0)
    for each in (dro, other):
        each(torch.tensor([0.3, 0.1]), ONE)
    value = dro(torch.tensor([bad, 1.0], dtype=dtype), ONE)
    assert not math.isfinite(float(value))  # so that GradScaler skips the step
    assert torch.equal(dro.weights, other.weights)
    assert torch.equal(dro(torch.tensor([1.0, 2.0]), ONE), other(torch.tensor([1.0, 2.0]), ONE))
    dro(torch.tensor([3e38, 3e38]), ONE)  # finite, and more than float32 holds once it is multiplied
    assert float(dro.weights.sum()) == pytest.approx(1.0)


def test_an_overflow_of_a_sample_of_no_group_does_not_stop_the_others() -> None:
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
def test_the_weights_are_the_softmax_of_the_summed_losses_whatever_the_groups_are_called(
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
    losses, codes = torch.ones(4, device="meta"), torch.zeros(4, 2, dtype=torch.long)
    for _ in range(2):  # the only device that every machine has beside the CPU; it computes shapes and devices alone
        value = dro._moved(losses, codes, codes >= 0, 0.5)
        assert value.device == dro.weights.device == dro.state_dict()["log_weights"].device == losses.device
    dro.load_state_dict(GroupDRO(3).state_dict())
    assert dro(torch.ones(4), codes).device == dro.weights.device == torch.device("cpu")


# -- weights of samples ------------------------------------------------------------------------------------------------


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


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)


def frozen(values: list[int], dtype: str = "int64") -> npt.NDArray[Any]:
    array = np.array(values, dtype)
    array.flags.writeable = False  # what Hugging Face's columns are; torch warns of it
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weigh", [class_weights, group_weights, importance_weights, lambda c: jtt_weights(c, c[::-1])])
def test_once_over_a_data_set_lists_and_arrays_of_any_integers_will_do(weigh: Callable[[Any], torch.Tensor]) -> None:
    codes = [1, 2, 2, 0, 7, 2]
    expected = weigh(frozen(codes))
    assert expected.dtype == torch.float64
    for other in (codes, tuple(codes), frozen(codes, "uint8"), frozen(codes, ">i4"), frozen(codes, "uint64")):
        assert torch.equal(weigh(other), expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_weights_of_every_integer_dtype_are_those_of_int64(dtype: torch.dtype) -> None:
    codes = torch.tensor([1, 2, 2, 0, 3, 2])
    own, losses = codes.to(dtype), torch.rand(6, generator=torch.Generator().manual_seed(0))
    for weigh in (class_weights, group_weights, importance_weights):
        assert torch.equal(weigh(own), weigh(codes))
    assert class_weights(own).tolist() == pytest.approx([1 / 4, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 12])
    assert torch.equal(jtt_weights(own, codes.roll(1)), jtt_weights(codes, codes.roll(1).to(dtype)))
    assert torch.equal(GroupDRO(4)(losses, own), GroupDRO(4)(losses, codes))
    if dtype.is_signed:
        assert torch.equal(group_weights(own - 1), group_weights(codes - 1))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_targets_and_codes_of_every_integer_dtype_are_those_of_int64(dtype: torch.dtype) -> None:
    y = torch.tensor([1, 2, 2, 0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    weights = torch.tensor([0.5, 1.0, 2.0])

    def all_of(codes: torch.Tensor) -> list[torch.Tensor]:
        return [
            objectives.erm_loss(a, codes),
            objectives.paired_consistency_loss(a, b, codes),
            objectives.group_weighted_loss(a[:, 0], codes, weights),
            *objectives.lisa_mix(a, codes, codes.flip(0), 3, generator=torch.Generator().manual_seed(1)),
            objectives.dfr(torch.cat([a, b]), torch.cat([codes, codes]), torch.cat([codes, codes]), 0.3, 1).weight,
        ]

    for found, expected in zip(all_of(y.to(dtype)), all_of(y), strict=True):
        assert torch.equal(found, expected)


def test_codes_may_be_large_numbers_and_counts_a_list() -> None:
    assert group_weights([0, 10**12, 10**12]).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    losses = torch.tensor([1.0, 3.0])
    of_tensor = GroupDRO(2, 0.1, 1.0, torch.tensor([4, 9]))(losses, ONE)
    assert torch.equal(GroupDRO(2, 0.1, 1.0, [4, 9])(losses, ONE), of_tensor)
    assert torch.equal(GroupDRO(np.int64(2), 0.1, 1.0, np.array([4, 9]))(losses, ONE), of_tensor)
    two: Any = 2.0  # a whole number, as the other ways into a loop take it
    assert torch.equal(GroupDRO(two, 0.1, 1.0, [4, 9])(losses, ONE), of_tensor)


# -- refusals ----------------------------------------------------------------------------------------------------------

LOSSES: Any = torch.tensor([1.0, 2.0])
Refused = tuple[Callable[[], object], str]
REFUSED: list[Refused] = [
    (lambda: GroupDRO(0), "GroupDRO groups: expected a whole number of at least 1, came 0"),
    (lambda: GroupDRO("3"), "whole number of at least 1, came '3'"),
    (lambda: GroupDRO(2.5), "whole number of at least 1, came 2.5; pass the number of group codes"),
    (lambda: GroupDRO(True), "whole number of at least 1, came True"),
    (lambda: GroupDRO(torch.ones(3, 3)), "whole number of at least 1, came tensor"),
    (lambda: GroupDRO(2, step_size=0), "step_size: expected a number above 0, came 0"),
    (lambda: GroupDRO(2, step_size=NAN), "step_size: expected a number above 0, came nan"),
    (lambda: GroupDRO(2, step_size=INF), "step_size: expected a number above 0, came inf"),
    (lambda: GroupDRO(2, step_size=torch.ones(3, 3)), "step_size: expected a number"),
    (lambda: GroupDRO(2, adjustment=-1.0, counts=[1, 2]), "adjustment: expected a number of at least 0, came -1"),
    (lambda: GroupDRO(2, adjustment=NAN, counts=[1, 2]), "adjustment: expected a number of at least 0, came nan"),
    (lambda: GroupDRO(2, adjustment=1.0), "counts: expected the group counts with adjustment, came None"),
    (lambda: GroupDRO(2, adjustment=1.0, counts=[1, 2, 3]), r"counts: expected 2 .* came \[1, 2, 3\]"),
    (lambda: GroupDRO(2, adjustment=1.0, counts=[1, -2]), "counts: expected 2 finite numbers of at least 0"),
    (lambda: GroupDRO(2, adjustment=1.0, counts=["a"]), "counts: expected numbers"),
    (lambda: GroupDRO(2)(LOSSES.mean(), ONE), "reduction='none'"),
    (lambda: GroupDRO(2)(LOSSES.long(), ONE), "losses: expected float"),
    (lambda: GroupDRO(2)([1.0, 2.0], ONE), "came list"),
    (lambda: GroupDRO(2)(LOSSES[:0], ONE[:0]), "B > 0"),
    (lambda: GroupDRO(2)(LOSSES, torch.tensor([0, 2])), "below the number of groups 2, came 2"),
    (lambda: GroupDRO(2)(LOSSES, torch.tensor([0, -7])), "or -1 for none, came -7"),
    (lambda: GroupDRO(2)(LOSSES, ONE.float()), "integer codes, came torch.float32"),
    (lambda: GroupDRO(2)(LOSSES, ONE.bool()), "integer codes, came torch.bool"),
    (lambda: GroupDRO(2)(LOSSES, ONE[:1]), r"shape \(2,\) or \(2, A\), not empty, came \(1,\)"),
    (lambda: GroupDRO(2)(LOSSES, ONE[:, None, None]), "one row a sample"),
    (lambda: GroupDRO(2)(LOSSES, torch.zeros(2, 0).long()), "not empty"),
    (lambda: GroupDRO(2).load_state_dict(GroupDRO(3).state_dict()), r"log_weights of 2 groups, came \(3,\)"),
    (lambda: GroupDRO(2).load_state_dict({"weights": torch.ones(2)}), "of 2 groups, came dict"),
    (lambda: GroupDRO(2).load_state_dict({"log_weights": torch.tensor([NAN, 0.0])}), "sum to 1"),
    (lambda: GroupDRO(2).load_state_dict({"log_weights": torch.tensor([0.5, 0.5])}), "sum to 1"),
    (lambda: group_weights([]), "not empty"),
    (lambda: group_weights([0, -2]), "or -1 for none, came -2"),
    (lambda: group_weights([0.0, 1.0]), "integer codes, came torch.float64"),
    (lambda: group_weights([[0, 1], [2]]), "rows of one length, came list"),
    (lambda: group_weights(["a", "b"]), "expected numbers in a tensor"),
    (lambda: group_weights(np.array([0, 2**64 - 1], "uint64")), "below 2"),
    (lambda: group_weights(np.zeros((2, 2, 2), int)), "one row a sample"),
    (lambda: class_weights([]), "not empty"),
    (lambda: class_weights([0, -1]), "classes from 0 up, came -1"),
    (lambda: class_weights([[0], [1]]), "one class a sample"),
    (lambda: class_weights([0.5]), "integer classes"),
    (lambda: class_weights(None), "came NoneType"),
    (lambda: importance_weights([0, 1], groups="3"), "at least 2, came '3'"),
    (lambda: importance_weights([]), "not empty"),
    (lambda: jtt_weights([0, 1], [0]), "targets: expected shape"),
    (lambda: jtt_weights([0, 1], ONE + 0.2), "targets: expected integer classes, came torch.float32"),
    (lambda: jtt_weights([0, 1], [0, -1]), "classes from 0 up"),
    (lambda: jtt_weights(ONE, ONE, upweight=NAN), "upweight: expected a number of at least 1, came nan"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_in_one_line(number: int) -> None:
    call, message = REFUSED[number]
    with pytest.raises(UsageError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
