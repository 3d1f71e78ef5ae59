"""Objectives against closed forms, laws, scikit-learn and torch: weights, losses, LISA, last layer, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cfaug.train.objectives import (
    GroupDRO,
    class_weights,
    dfr,
    erm_loss,
    from_fake_to_real,
    group_weights,
    jtt_weights,
    lisa_mix,
    origin_weights,
    paired_consistency_loss,
)

quick = settings(max_examples=60, deadline=None)
X: Any = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
Y, A = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])


# -- weights of samples ------------------------------------------------------------------------------------------------


def test_sampling_weights_balance_what_occurs() -> None:
    codes = torch.tensor([0, 0, 0, 2])
    assert group_weights(codes).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert class_weights(codes).sum() == pytest.approx(1.0)
    both = group_weights(torch.tensor([[0, 5], [0, 6], [0, 6], [2, 6]]))
    assert both.tolist() == pytest.approx([(1 / 6 + 1 / 2) / 2, 1 / 6, 1 / 6, (1 / 2 + 1 / 6) / 2])


def test_images_of_no_group_keep_their_share() -> None:
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
@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 3)), min_size=1, max_size=40))
def test_the_group_is_independent_of_the_origin(rows: list[tuple[int, int]]) -> None:
    """Within each origin that takes part every group weighs the same, and each origin keeps its share."""
    origins, codes = (torch.tensor(column) for column in zip(*rows))
    weights = origin_weights(codes, origins)
    groups = set(codes[codes >= 0].tolist())
    complete = [o for o in set(origins.tolist()) if set(codes[(origins == o) & (codes >= 0)].tolist()) == groups]
    for origin in set(origins.tolist()):
        own, known = origins == origin, (origins == origin) & (codes >= 0)
        if origin in complete:
            assert float(weights[own].mean()) == pytest.approx(1.0)
            found = [float(weights[known & (codes == g)].sum()) for g in groups]
            assert found == pytest.approx([float(known.sum()) / max(1, len(groups))] * len(found))
        elif complete and known.any():
            assert not weights[known].any()


def test_real_images_of_one_group_a_class_are_left_out() -> None:
    """At a correlation of 1 a real image would tell its group; with nothing beside them nothing is left out."""
    codes, origins = torch.tensor([0, 3, 0, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 1, 1])
    assert origin_weights(codes, origins).tolist() == [0, 0, 1, 1, 1, 1]
    assert origin_weights(codes, origins, shown=[0]).tolist()[:2] == [1, 1]
    both = origin_weights(
        torch.stack([codes, codes % 2], dim=1), origins
    )  # of the second attribute the real images have all groups
    assert both.tolist() == pytest.approx([0.5, 0.5, 1, 1, 1, 1])


@pytest.mark.parametrize("weigh", [class_weights, group_weights, lambda c: jtt_weights(c, c[::-1])])
def test_weights_of_lists_and_arrays_are_those_of_tensors(weigh: Callable[[Any], torch.Tensor]) -> None:
    codes = [1, 2, 2, 0, 7, 2]
    expected = weigh(frozen(codes))
    assert expected.dtype == torch.float64
    for other in (codes, tuple(codes), frozen(codes, "uint8"), frozen(codes, "uint64")):
        assert torch.equal(weigh(other), expected)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_weights_of_every_integer_dtype_are_those_of_int64(dtype: torch.dtype) -> None:
    codes = torch.tensor([1, 2, 2, 0, 3, 2])
    own, losses = codes.to(dtype), torch.rand(6, generator=torch.Generator().manual_seed(0))
    for weigh in (class_weights, group_weights):
        assert torch.equal(weigh(own), weigh(codes))
    assert class_weights(own).tolist() == pytest.approx([1 / 4, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 12])
    assert torch.equal(jtt_weights(own, codes.roll(1)), jtt_weights(codes, codes.roll(1).to(dtype)))
    assert torch.equal(GroupDRO(4)(losses, own), GroupDRO(4)(losses, codes))
    if dtype.is_signed:
        assert torch.equal(group_weights(own - 1), group_weights(codes - 1))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_losses_of_every_integer_dtype_are_those_of_int64(dtype: torch.dtype) -> None:
    y = torch.tensor([1, 2, 2, 0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)

    def all_of(codes: torch.Tensor) -> list[torch.Tensor]:
        return [
            erm_loss(a, codes),
            paired_consistency_loss(a, b, codes),
            *lisa_mix(a, codes, codes.flip(0), 3, generator=torch.Generator().manual_seed(1)),
            dfr(torch.cat([a, b]), torch.cat([codes, codes]), torch.cat([codes, codes]), 0.3, 1).weight,
        ]

    for found, expected in zip(all_of(y.to(dtype)), all_of(y), strict=True):
        assert torch.equal(found, expected)


def test_codes_may_be_large_numbers_and_counts_a_list() -> None:
    assert group_weights([0, 10**12, 10**12]).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    losses = torch.tensor([1.0, 3.0])
    of_tensor = GroupDRO(2, 0.1, 1.0, torch.tensor([4, 9]))(losses, torch.tensor([0, 1]))
    assert torch.equal(GroupDRO(2, 0.1, 1.0, [4, 9])(losses, torch.tensor([0, 1])), of_tensor)
    assert torch.equal(GroupDRO(np.int64(2), 0.1, 1.0, np.array([4, 9]))(losses, torch.tensor([0, 1])), of_tensor)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.floats(1, 200))
@quick
def test_jtt_is_the_upsampled_data_set_of_the_paper(pairs: list[tuple[int, int]], upweight: float) -> None:
    predictions, targets = torch.tensor(pairs).T
    weights = jtt_weights(predictions, targets, upweight)
    assert float(weights.sum()) == pytest.approx(1.0)
    wrong = predictions != targets
    if bool(wrong.any()) and not bool(wrong.all()):
        assert float(weights[wrong][0] / weights[~wrong][0]) == pytest.approx(upweight, rel=1e-6)
    assert weights[wrong].unique().numel() <= 1
    whole = [i for i, bad in enumerate(wrong.tolist()) for _ in range(7 if bad else 1)]  # each error seven times
    counted = np.bincount(whole, minlength=len(pairs)) / len(whole)
    assert jtt_weights(predictions, targets, 7).numpy() == pytest.approx(counted)


# -- losses ----------------------------------------------------------------------------------------------------------


def test_soft_targets_are_the_formula() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.tensor([0, 1, 2, 2, 1, 0])
    hard = functional.one_hot(codes, 3).float()
    assert float(erm_loss(logits, hard)) == pytest.approx(float(erm_loss(logits, codes)))
    soft = 0.75 * hard + 0.25 * hard.roll(1, 0)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert float(erm_loss(logits, soft)) == pytest.approx(float(expected))


def test_consistency_counts_classes_alike() -> None:
    phi = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([5, 5, 5, 0])
    assert float(paired_consistency_loss(phi, phi.clone(), y)) == 0.0
    other = phi.clone()
    other[0, 0, 0] += 3.0  # one of three of class 5
    assert float(paired_consistency_loss(phi, other, y)) == pytest.approx(9 / 3 / 2)
    other = phi.clone()
    other[3, 1, 2] -= 2.0  # the only one of class 0
    assert float(paired_consistency_loss(phi, other, y)) == pytest.approx(4 / 2)


def test_the_gradient_of_consistency_pulls_both_sides() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda u, v: paired_consistency_loss(u, v, y), (a, b))
    left, right = torch.autograd.grad(paired_consistency_loss(a, b, y), (a, b))
    share = torch.tensor([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])[:, None]
    assert torch.allclose(left, 2 * (a - b).detach() * share)
    assert torch.equal(left, -right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_consistency_in_half_precision_is_that_of_single(dtype: torch.dtype) -> None:
    factual, counterfactual = torch.zeros(8, 512, dtype=dtype), torch.full((8, 512), 20.0, dtype=dtype)
    value = paired_consistency_loss(factual, counterfactual.requires_grad_(), torch.arange(8) % 2)
    assert value.dtype == torch.float32
    assert value.item() == 512 * 400  # more than float16 holds
    value.backward()
    assert counterfactual.grad is not None
    assert float(counterfactual.grad[0, 0]) == pytest.approx(2 * 20 / 8)
    assert paired_consistency_loss(factual.double(), counterfactual.double(), torch.arange(8)).dtype == torch.float64


def test_classes_may_be_yes_and_no_or_large_numbers() -> None:
    a, b = X[:4], torch.zeros(4, 3)
    assert torch.equal(paired_consistency_loss(a, b, Y.bool()), paired_consistency_loss(a, b, Y))
    assert torch.equal(paired_consistency_loss(a, b, Y * 10**12), paired_consistency_loss(a, b, Y))
    assert torch.equal(jtt_weights(Y.bool(), A), jtt_weights(Y, A))
    assert torch.equal(erm_loss(a[:, :2], Y.bool()), erm_loss(a[:, :2], Y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_in_half_precision_is_that_of_single(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(1024, 10, generator=torch.Generator().manual_seed(0))).to(dtype)
    y = torch.arange(1024) % 10
    soft = (0.75 * functional.one_hot(y, 10) + 0.25 * functional.one_hot((y + 1) % 10, 10)).to(dtype)
    for value, single in (
        (erm_loss(logits, y), functional.cross_entropy(logits.float(), y)),
        (erm_loss(logits, soft), functional.cross_entropy(logits.float(), soft.float())),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, single)
    far = torch.tensor([[40000.0, 0.0]], dtype=dtype).expand(64, 2)  # the sum of 64 such losses is inf in float16
    assert erm_loss(far, torch.ones(64, dtype=torch.long)).item() == float(far[0, 0])
    assert erm_loss(far, torch.tensor([0.0, 1.0], dtype=dtype).expand(64, 2)).item() == float(far[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_that_of_torch_bit_for_bit(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = torch.arange(64) % 10
    soft = 0.75 * functional.one_hot(y, 10).to(dtype) + 0.25 * functional.one_hot((y + 1) % 10, 10).to(dtype)
    for value, theirs in (
        (erm_loss(logits, y), functional.cross_entropy(logits, y)),
        (erm_loss(logits, soft), functional.cross_entropy(logits, soft)),
    ):
        assert value.dtype == dtype
        assert torch.equal(value, theirs)


def test_an_autocast_loop_trains_and_its_loss_is_single() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 8, generator=generator), torch.randn(3, 8, generator=generator).requires_grad_()
    y = torch.arange(32) % 3
    optimiser, losses = torch.optim.SGD([weight], lr=0.5), []
    for step in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            logits = functional.linear(x, weight)
            inside = erm_loss(logits, functional.one_hot(y, 3).float()) if step % 2 else erm_loss(logits, y)
        assert logits.dtype == torch.bfloat16
        assert inside.dtype == erm_loss(logits, y).dtype == torch.float32
        optimiser.zero_grad()
        inside.backward()
        optimiser.step()
        losses.append(inside.item())
    assert losses[-1] < 0.7 * losses[0]


def test_erm_leaves_out_what_torch_leaves_out() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, -100, 2, -100])
    assert torch.equal(erm_loss(logits, y), functional.cross_entropy(logits[[0, 2]], y[[0, 2]]))
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    dense = torch.arange(32).reshape(2, 4, 4) % 3
    assert torch.equal(erm_loss(images, dense), functional.cross_entropy(images, dense))
    assert torch.equal(erm_loss(logits[0], y[0]), functional.cross_entropy(logits[0], y[0]))


def test_erm_does_not_wait_for_a_device() -> None:
    logits, y = torch.randn(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    assert erm_loss(logits, y).device.type == "meta"  # which has no values: to look at one is an error


# -- LISA ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2), st.integers(0, 1)), min_size=1, max_size=16),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
    st.integers(0, 1000),
)
@quick
def test_lisa_mixes_within_a_label_or_an_attribute_only(
    rows: list[tuple[int, int, int]], p_sel: float, two: bool, seed: int
) -> None:
    y, first, second = torch.tensor(rows).T
    a = torch.stack([first, second], 1) if two else first
    images = torch.eye(len(rows), dtype=torch.float64)  # row i of the mixture names its parents and their shares
    mixed, soft = lisa_mix(images, y, a, 3, p_sel=p_sel, generator=torch.Generator().manual_seed(seed))
    assert mixed.shape == images.shape
    assert torch.allclose(mixed.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert torch.allclose(soft, mixed @ functional.one_hot(y, 3).double())  # labels go with the pixels
    columns = a.reshape(len(rows), -1)
    for i in range(len(rows)):
        parents = mixed[i].nonzero()[:, 0].tolist()
        possible = []
        for j in range(len(rows)):
            same = bool((columns[i] == columns[j]).all())
            known = bool((columns[[i, j]] >= 0).all())
            fits = (y[i] == y[j] and not same) if p_sel else (y[i] != y[j] and same)
            if known and fits:
                possible.append(j)
        assert set(parents) - {i} <= set(possible)
        if not possible:
            assert torch.equal(mixed[i], images[i])
        else:
            assert len(parents) == 2


def test_lisa_draws_shares_partners_and_the_coin() -> None:
    y, a = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    generator = torch.Generator().manual_seed(0)
    own, partners, within_label = [], set(), 0
    for _ in range(1500):
        mixed, soft = lisa_mix(torch.eye(4, dtype=torch.float64), y, a, 2, 2.0, 0.25, generator)
        if bool((soft[0] == torch.tensor([1.0, 0.0])).all()):
            within_label += 1
            partners |= set(mixed[0].nonzero()[:, 0].tolist())
        own.append(float(mixed[0, 0]))
    assert partners == {0, 1, 2}
    assert within_label / 1500 == pytest.approx(0.25, abs=0.05)  # 4.5 standard deviations
    assert np.mean(own) == pytest.approx(0.5, abs=0.03)
    assert np.var(own) == pytest.approx(1 / 20, abs=0.008)  # Beta(2, 2)


def test_lisa_is_drawn_by_its_generator_alone() -> None:
    y, a, images = torch.arange(8) % 2, torch.arange(8) // 2 % 2, torch.rand(8, 3, 4, 4)

    def once(seed: int) -> torch.Tensor:
        return lisa_mix(images, y, a, 2, generator=torch.Generator().manual_seed(seed))[0]

    before = torch.get_rng_state()
    first = once(3)
    assert torch.equal(torch.get_rng_state(), before)
    np.random.seed(0)
    assert torch.equal(first, once(3))
    assert not torch.equal(first, once(4))


# -- the last layer --------------------------------------------------------------------------------------------------


def planted(n: int, rho: float, seed: int, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features: a weak core feature block of the class, a strong spurious block of an attribute that follows it, noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    a = np.where(rng.random(n) < rho, y, rng.integers(0, classes, n))
    core = np.eye(classes)[y] * 3 + rng.normal(size=(n, classes))
    spurious = np.eye(classes)[a] * 8 + 0.3 * rng.normal(size=(n, classes))
    x = np.hstack([core, spurious, rng.normal(size=(n, 8)), np.full((n, 1), 7.0)])
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(a)


def worst(found: torch.Tensor, y: torch.Tensor, a: torch.Tensor) -> float:
    return min(float((found == y)[(y == i) & (a == j)].double().mean()) for i in y.unique() for j in a.unique())


@pytest.mark.parametrize("classes", [2, 3])
def test_dfr_finds_the_planted_core_feature(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y, a = planted(300 * classes, 0.95, 0, classes)
    test = planted(900, 0.0, 1, classes)
    plain = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
    layer = dfr(x, y, a, c=(1.0, 0.1), subsamples=10)
    before = worst(torch.from_numpy(plain.predict(test[0].numpy())), test[1], test[2])
    after = worst(layer.predict(test[0]), test[1], test[2])
    assert after > before + 0.15
    assert after > 0.75
    weight = layer.weight.abs()
    assert float(weight[:, :classes].sum()) > float(weight[:, classes : 2 * classes].sum())
    assert layer.weight.shape == (classes, 2 * classes + 9)


def test_dfr_on_balanced_data_is_scikit_learns_l1_regression() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, _ = planted(200, 0.0, 2)
    a = torch.arange(200) // 2 % 2  # four groups of 50: the only balanced subsample is all of it
    layer = dfr(x, y, a, c=0.3, subsamples=1)
    scaled = StandardScaler().fit(x.numpy())
    whole = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", intercept_scaling=1e4, tol=1e-8, max_iter=5000)
    whole.fit(scaled.transform(x.numpy()), y.numpy())
    margin = layer.logits(x)[:, 1] - layer.logits(x)[:, 0]
    assert margin.numpy() == pytest.approx(whole.decision_function(scaled.transform(x.numpy())), abs=0.05)
    assert layer.c == 0.3


def test_dfr_fits_the_net_and_ignores_images_of_no_group() -> None:
    x, y, a = planted(120, 0.8, 3)
    layer = dfr(x, y, a, c=0.3, subsamples=3)
    head = torch.nn.Linear(x.shape[1], 2)
    layer.write_into(head)
    assert torch.equal(head(x.float()).argmax(1), layer.predict(x))
    assert torch.allclose(head(x.float()).double(), layer.logits(x), atol=1e-4)
    more = torch.cat([x, torch.full((5, x.shape[1]), 1e6)])
    ignored = dfr(more, torch.cat([y, torch.zeros(5, dtype=torch.long)]), torch.cat([a, torch.full((5,), -1)]), 0.3, 3)
    assert torch.equal(ignored.weight, layer.weight)
    assert torch.equal(dfr(x, y, torch.stack([a, a], 1), 0.3, 3).weight, layer.weight)  # the same groups twice
    assert not torch.equal(dfr(x, y, a, 0.3, 3, seed=1).weight, layer.weight)


def test_dfr_chooses_the_penalty_by_the_worst_group() -> None:
    x, y, a = planted(400, 0.9, 4)
    assert dfr(x, y, a, c=(1e-6, 0.3), subsamples=1).c == 0.3  # 1e-6 leaves no weight at all
    # nine of ten images are of class 0: whoever always says 0 is right more often, and never in the groups of class 1
    rng = np.random.default_rng(0)
    y, a = rng.random(2000) < 0.1, rng.integers(0, 2, 2000)
    z = (y - 0.5 + 0.6 * rng.normal(size=2000))[:, None]
    found = dfr(z, y.astype(int), a, c=(1e-6, 0.3), subsamples=1)
    right = (z @ found.weight.numpy().T + found.bias.numpy()).argmax(axis=1) == y
    assert found.c == 0.3
    assert right.mean() < 0.87 < (~y).mean()


def test_dfr_takes_arrays_and_lists() -> None:
    x, y, a = planted(80, 0.8, 5)
    of_arrays = dfr(x.numpy(), y.tolist(), a.numpy(), c=np.array([0.3]), subsamples=2)
    assert torch.equal(of_arrays.weight, dfr(x, y, a, 0.3, 2).weight)
    for features in (x.numpy(), x.numpy().astype(np.float32), x.tolist()):
        assert torch.allclose(of_arrays.logits(features), of_arrays.logits(x), atol=1e-4)
        assert torch.equal(of_arrays.predict(features), of_arrays.predict(x))


# -- the schedule ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(0, 5))
@quick
def test_synthetic_first_then_real(first: int, second: int) -> None:
    epochs = list(from_fake_to_real("made", "real", first, second))
    assert [e.number for e in epochs] == list(range(first + second))
    assert [e.data for e in epochs] == ["made"] * first + ["real"] * second
    assert [e.stage for e in epochs] == ["synthetic"] * first + ["real"] * second
    assert [e.of_stage for e in epochs] == [*range(first), *range(second)]
