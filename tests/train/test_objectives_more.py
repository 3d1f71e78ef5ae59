"""Objectives against closed forms, laws, scikit-learn and torch: weights, losses, LISA, last layer, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cfaug.errors import UsageError
from cfaug.train.objectives import (
    LastLayer,
    dfr,
    erm_loss,
    from_fake_to_real,
    group_weighted_loss,
    group_weights,
    importance_weights,
    jtt_weights,
    lisa_mix,
    paired_consistency_loss,
    soft_target_loss,
)

CODES = st.lists(st.integers(-1, 4), min_size=1, max_size=30)
quick = settings(max_examples=60, deadline=None)


# -- weights ---------------------------------------------------------------------------------------------------------


@given(CODES, st.booleans())
@quick
def test_a_group_weighted_mean_is_the_mean_under_group_sampling(codes: list[int], two: bool) -> None:
    a = torch.tensor(codes)
    both = torch.stack([a, torch.where(a >= 0, 5 + a % 2, a)], dim=1) if two else a
    losses = torch.linspace(0.5, 3.0, len(codes), dtype=torch.float64)
    weights = importance_weights(both, groups=8)
    if two:  # the mean over columns of per-column means
        expected = sum(float((group_weights(c) * losses).sum()) for c in both.T) / 2
    else:
        expected = float((group_weights(a) * losses).sum())
    assert float(group_weighted_loss(losses, both, weights)) == pytest.approx(expected)


def test_equal_groups_are_erm_and_rare_ones_weigh_more() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0])
    equal = torch.tensor([0, 1, 0, 1])
    assert importance_weights(equal).tolist() == [1.0, 1.0]
    assert float(group_weighted_loss(losses, equal, importance_weights(equal))) == pytest.approx(3.0)
    rare = torch.tensor([0, 0, 0, 2])
    assert importance_weights(rare, 4).tolist() == pytest.approx([4 / 6, 0.0, 2.0, 0.0])
    assert float(group_weighted_loss(losses, rare, importance_weights(rare))) == pytest.approx((2.0 + 6.0) / 2)
    assert float(group_weighted_loss(losses, torch.full((4,), -1), torch.ones(1))) == pytest.approx(3.0)


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


def test_soft_targets_are_the_formula_and_one_hot_ones_are_erm() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.tensor([0, 1, 2, 2, 1, 0])
    hard = functional.one_hot(codes, 3).float()
    assert float(soft_target_loss(logits, hard)) == pytest.approx(float(erm_loss(logits, codes)))
    soft = 0.75 * hard + 0.25 * hard.roll(1, 0)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert float(soft_target_loss(logits, soft)) == pytest.approx(float(expected))


def test_consistency_is_zero_for_equal_representations_and_counts_classes_alike() -> None:
    phi = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([5, 5, 5, 0])
    assert float(paired_consistency_loss(phi, phi.clone(), y)) == 0.0
    other = phi.clone()
    other[0, 0, 0] += 3.0  # one of three of class 5
    assert float(paired_consistency_loss(phi, other, y)) == pytest.approx(9 / 3 / 2)
    other = phi.clone()
    other[3, 1, 2] -= 2.0  # the only one of class 0
    assert float(paired_consistency_loss(phi, other, y)) == pytest.approx(4 / 2)


def test_the_gradient_of_consistency_pulls_both_sides_together() -> None:
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
    # weights above 65504 times a loss in half precision
    heavy = group_weighted_loss(torch.ones(2, dtype=dtype), torch.tensor([0, 1]), torch.tensor([100000.0, 0.0]))
    assert float(heavy) == 50000.0


def test_classes_of_yes_and_no_or_of_large_numbers_are_classes() -> None:
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
        (soft_target_loss(logits, soft), functional.cross_entropy(logits.float(), soft.float())),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, single)
    far = torch.tensor([[40000.0, 0.0]], dtype=dtype).expand(64, 2)  # the sum of 64 such losses is inf in float16
    assert erm_loss(far, torch.ones(64, dtype=torch.long)).item() == float(far[0, 0])
    assert soft_target_loss(far, torch.tensor([0.0, 1.0], dtype=dtype).expand(64, 2)).item() == float(far[0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_in_single_and_double_is_that_of_torch_bit_for_bit(dtype: torch.dtype) -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = torch.arange(64) % 10
    soft = 0.75 * functional.one_hot(y, 10).to(dtype) + 0.25 * functional.one_hot((y + 1) % 10, 10).to(dtype)
    for value, theirs in (
        (erm_loss(logits, y), functional.cross_entropy(logits, y)),
        (erm_loss(logits, soft), functional.cross_entropy(logits, soft)),
        (soft_target_loss(logits, soft), functional.cross_entropy(logits, soft)),
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
            inside = soft_target_loss(logits, functional.one_hot(y, 3).float()) if step % 2 else erm_loss(logits, y)
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
def test_lisa_mixes_within_a_label_or_within_an_attribute_and_nothing_else(
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


def test_lisa_draws_beta_shares_every_partner_and_the_coin() -> None:
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
def test_dfr_finds_the_planted_core_feature_where_logistic_regression_takes_the_shortcut(classes: int) -> None:
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


def test_dfr_on_balanced_data_is_the_l1_logistic_regression_of_scikit_learn() -> None:
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


def test_dfr_fits_into_the_net_and_ignores_images_of_no_group() -> None:
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
    with pytest.raises(UsageError, match="expected a Linear"):
        layer.write_into(torch.nn.Linear(3, 2))


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


# -- refusals --------------------------------------------------------------------------------------------------------

X: Any = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
LAYER: Any = LastLayer(torch.ones(2, 3), torch.ones(2), 1.0)
Y, A = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_weighted_loss(torch.tensor(1.0), A, torch.ones(2)), "reduction='none'"),
        (lambda: group_weighted_loss(torch.ones(4), A[:3], torch.ones(2)), "one row a sample"),
        (lambda: group_weighted_loss(torch.ones(4), A.float(), torch.ones(2)), "integer codes"),
        (lambda: group_weighted_loss(torch.ones(4), A, torch.ones(1)), "above the largest code 1"),
        (lambda: group_weighted_loss(torch.ones(4), A, torch.tensor([1.0, -1.0])), "some are not; take"),
        (lambda: importance_weights(A, groups=1), "at least 2"),
        (lambda: importance_weights(torch.stack([A, A], 1)), "codes of their own"),
        (lambda: importance_weights(A - 2), "or -1 for none, came -2"),
        (lambda: jtt_weights(torch.rand(4, 2), Y), r"argmax\(1\)"),
        (lambda: jtt_weights(torch.rand(4), Y), r"argmax\(1\)"),
        (lambda: jtt_weights(Y, Y, upweight=0.5), "at least 1"),
        (lambda: erm_loss(X, Y + 2), "classes from 0 to 2, or -100 for none, came 3; check"),
        (lambda: erm_loss(X, Y - 1), "classes from 0 to 2, or -100 for none, came -1; check"),
        (lambda: erm_loss(X.half(), (Y + 2).to(torch.uint8)), "came 3; check"),
        (lambda: erm_loss(X[:0], Y[:0]), r"logits: expected float \(B, K\), B > 0, came torch.float32 \(0, 3\)"),
        (lambda: erm_loss(X, Y[:2]), r"targets: expected integer \(4,\), .* came torch.int64 \(2,\)"),
        (lambda: erm_loss(X, Y[:, None]), r"targets: expected integer \(4,\)"),
        (lambda: erm_loss(X, Y.float()), r"came torch.float32 \(4,\); pass class codes"),
        (lambda: erm_loss(X.long(), Y), "logits: expected float"),
        (lambda: erm_loss(X.tolist(), Y), "logits: expected float .* came list"),
        (lambda: soft_target_loss(X[:0], X[:0]), "B > 0"),
        (lambda: soft_target_loss(X, X.tolist()), "targets: expected class probabilities .* came list"),
        (lambda: soft_target_loss(X, Y), "use erm_loss"),
        (lambda: soft_target_loss(X, torch.ones(4, 3)), "sum to 1"),
        (lambda: paired_consistency_loss(X, X[:2], Y), "same pair"),
        (lambda: paired_consistency_loss(X, X.numpy(), Y), "came torch.float32 .* and ndarray; pass"),
        (lambda: paired_consistency_loss(X, X, Y[:2]), "one class a sample"),
        (lambda: paired_consistency_loss(X.long(), X.long(), Y), "float representations"),
        (lambda: lisa_mix(X.byte(), Y, A, 2), "expected float"),
        (lambda: lisa_mix(X.tolist(), Y, A, 2), "images: expected float .* came list; stack"),
        (lambda: lisa_mix(X, Y, A, 2, p_sel="a"), "p_sel: expected a probability from 0 to 1, came 'a'; it is"),
        (lambda: lisa_mix(X, Y, A, 2, p_sel=torch.ones(3, 3)), "p_sel: expected a probability"),
        (lambda: lisa_mix(X, Y, A, 2, generator=3), "generator: expected a torch.Generator on the CPU, came 3"),
        (lambda: lisa_mix(X, Y, A, True), "classes: expected a whole number of at least 1, came True"),
        (lambda: lisa_mix(X, Y, A, 1), "from 0 to 0, came 1"),
        (lambda: lisa_mix(X, Y, A, "2"), "classes: expected a whole number"),
        (lambda: lisa_mix(X, Y, A, 2, alpha=0), "above 0"),
        (lambda: lisa_mix(X, Y, A, 2, p_sel=1.5), "from 0 to 1"),
        (lambda: lisa_mix(X, Y, A[:2], 2), "attributes: expected shape"),
        (lambda: dfr(X[0], Y, A), r"float \(N, D\)"),
        (lambda: dfr(X * float("nan"), Y, A), "finite"),
        (lambda: dfr(X, Y * 2, A), "renumber"),
        (lambda: dfr(X, Y, A), "two or more images of every group"),
        (lambda: dfr(X, Y, torch.full((4,), -1)), "images with a group"),
        (lambda: dfr(X, Y, A, c=0.0), "above 0"),
        (lambda: dfr(X, Y, A, c=()), "c: expected a number above 0, came None"),
        (lambda: dfr(X, Y, A, c="a"), "c: expected a number above 0, came 'a'"),
        (lambda: dfr(X, Y, A, c=float("nan")), "c: expected a number above 0, came nan"),
        (lambda: dfr(X, Y, A, subsamples=0), "at least 1"),
        (lambda: dfr(X, Y, A, seed="a"), "seed: expected a whole number of at least 0, came 'a'"),
        (lambda: dfr(X, Y, A, seed=-1), "seed: expected a whole number of at least 0, came -1"),
        (lambda: dfr(X, Y, A, max_iter=-5), "max_iter: expected a whole number of at least 1, came -5"),
        (lambda: LAYER.predict(X[:, :2]), r"features: expected \(B, 3\), came torch.float32 \(4, 2\); pass"),
        (lambda: LAYER.predict(X.numpy()[0]), r"features: expected \(B, 3\)"),
        (lambda: LAYER.predict("x"), "features: expected numbers"),
        (lambda: LAYER.write_into("x"), r"layer: expected a Linear with bias and weight \(2, 3\), came str without bias"),
        (lambda: LAYER.write_into(torch.nn.LazyLinear(2)), "came LazyLinear; pass the layer"),
        (lambda: LAYER.write_into(torch.nn.Linear(5, 2)), r"came Linear \(2, 5\); pass the layer"),
        (lambda: from_fake_to_real([], [], -1, 2), "synthetic_epochs"),
        (lambda: from_fake_to_real([], [], 1, 2.5), "real_epochs"),
    ],
)  # fmt: skip
def test_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_layer_without_bias_is_refused() -> None:
    with pytest.raises(UsageError, match="without bias"):
        LastLayer(torch.ones(2, 3), torch.ones(2), 1.0).write_into(torch.nn.Linear(3, 2, bias=False))
