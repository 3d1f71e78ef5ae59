"""The semantic latent: it carries the image, and the adversary keeps the attributes out of it."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from small_decoder import floats, small, source

from cfaug.data import ArrayDataset
from cfaug.decode import semantic
from cfaug.decode.semantic import Adversary, SemanticEncoder


def colour_read_from_z(data: ArrayDataset) -> float:
    """How well a fresh probe reads the colour from z; the shape of these images says nothing about it."""
    decoder = small(data, semantic=4, max_steps=200, drop_attribute=0.0, batch_size=32)
    encoder = decoder.learner.encoder
    assert encoder is not None
    with torch.inference_mode():
        z = encoder(floats(data, len(data)))
    features = torch.cat([z.mean((2, 3)), z.std((2, 3)), z.amax((2, 3))], 1).numpy()
    return float(cross_val_score(LogisticRegression(max_iter=500), features, data.table["colour"], cv=4).mean())


@pytest.fixture(scope="module")
def balanced() -> ArrayDataset:
    return source(240)


def test_the_adversary_keeps_the_attribute_out(balanced: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_out = colour_read_from_z(balanced)
    monkeypatch.setattr(semantic, "ADVERSARY", 0.0)
    free = colour_read_from_z(balanced)
    assert free > 0.85  # otherwise there would be nothing to remove
    told_by_shape = balanced.table.groupby("shape")["colour"].agg(lambda c: c.value_counts(normalize=True).max()).mean()
    assert kept_out < (free + told_by_shape) / 2


def test_z_is_constant_over_a_patch_and_bounded() -> None:
    z = SemanticEncoder(3, 5, 4)(torch.randn(2, 3, 8, 12)).detach()
    assert z.shape == (2, 5, 8, 12)
    assert float(z.abs().max()) <= 1
    assert torch.equal(z[..., :4, :4], z[..., :1, :1].expand(-1, -1, 4, 4))


def test_the_reversal_pushes_the_encoder_the_other_way() -> None:
    adversary = Adversary(2, 4, torch.tensor([0, 3]), [torch.tensor([1, 2])])
    z = torch.randn(6, 2, 4, 4, requires_grad=True)
    condition = torch.tensor([[1.0, 0.5, 1.0, 1.0]]).repeat(6, 1)
    adversary(z, condition).backward()
    assert z.grad is not None
    with torch.no_grad():
        before = adversary(z, condition)
        assert adversary(z - 0.5 * z.grad, condition) > before  # descending its gradient raises the adversary's loss


def test_a_hidden_attribute_is_not_asked_for() -> None:
    adversary = Adversary(2, 4, torch.tensor([0, 3]), [torch.tensor([1, 2])])
    condition = torch.tensor([[1.0, 0.5, 0.0, 1.0]]).repeat(6, 1)
    assert adversary(torch.randn(6, 2, 4, 4), condition).item() == 0
